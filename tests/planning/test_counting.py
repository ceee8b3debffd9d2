"""Memory counted with fake tensors: it is that of real tensors, without their content."""

from dataclasses import replace

import pytest
import torch
from tiny import V, tiny

from chatgot.model.gpt import build_model
from chatgot.planning.counting import Way, _peak_of_passes, count_on_cpu, passes_of, sizes_of
from chatgot.planning.live_bytes import LiveBytes, counted

CPU = torch.device("cpu")
PLAIN = Way("fp32", "sdpa", 0, False)


def peak_of_real_passes(config, way: Way) -> int:
    with LiveBytes() as live:
        model = build_model(config.model, V, CPU, 1)
        model.use_attention(way.attention)
        model.recompute_every = way.every or None
        x = torch.zeros(config.training.batch_size, config.model.max_seq_length, dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way.precision == "bf16"):
            live.begin()
            _, loss = model(x, x)
            loss.backward()
    return live.peak - 4 * (model.parameter_count() + model.trained_count())


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize(("precision", "attention"), [("fp32", "products"), ("bf16", "sdpa")])
def test_fake_tensors_take_what_real_ones_take(architecture, every, precision, attention):
    config = tiny({"batch_size": 64}, architecture=architecture, max_seq_length=64)
    way = Way(precision, attention, every, False)
    fake = _peak_of_passes(config, V, way, 2, 64)
    assert fake == pytest.approx(peak_of_real_passes(config, way), rel=0.01)


def test_bytes_go_when_nothing_holds_them():
    with counted() as live:
        a = torch.ones(1000)
        b = a[:500]  # the same storage
        assert live.now == 4000
        del a
        assert live.now == 4000
        del b
        assert (live.now, live.peak) == (0, 4000)


@pytest.mark.parametrize("way", [PLAIN, Way("bf16", "sdpa", 1, True)])
def test_few_layers_and_sequences_tell_what_many_take(way):
    config = tiny(n_layers=5, max_seq_length=64)
    passes = passes_of(config, V, way)
    for B in (1, 5, 200):
        direct = max(_peak_of_passes(config, V, way, 5, B), passes.casts)
        assert passes.at(B) == pytest.approx(direct, rel=0.02)


def test_gradients_that_leave_at_once_take_no_room_in_the_end():
    config = tiny()
    kept = _peak_of_passes(config, V, PLAIN, 2, 1) + 4 * sizes_of(config, V).parameters
    assert _peak_of_passes(config, V, replace(PLAIN, scatters=True), 2, 1) < kept


@pytest.mark.parametrize("training", [{}, {"optimizer": "muon"}, {"lora": {"rank": 2}}])
def test_optimizer_is_counted_as_it_keeps_moments(training):
    sizes = sizes_of(tiny(training), V)
    model = build_model(tiny().model, V, CPU, 1)
    hidden = 4 * sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
    expected = 2 * sizes.gradients
    if "optimizer" in training:
        expected -= hidden  # one momentum, no second moment
    assert sizes.optimizer == expected
    assert (sizes.gradients < sizes.weights) == ("lora" in training)


def test_proof_of_mixed_precision_may_need_more_than_a_step():
    config = tiny({"mixed_precision": True, "batch_size": 64}, max_seq_length=64)
    bf16 = count_on_cpu(config, V, Way("bf16", "sdpa", 0, False), "fp32", 64)
    fp32 = count_on_cpu(config, V, PLAIN, "fp32", 64)
    assert bf16.step < fp32.step
    assert bf16.start > 0
    assert fp32.start == 0


def test_recomputation_is_proven_with_three_gradients():
    config = tiny({"batch_size": 1}, d_model=128)
    here = count_on_cpu(config, V, replace(PLAIN, every=1), "fp32", 1)
    assert here.start > 4 * sizes_of(config, V).parameters
