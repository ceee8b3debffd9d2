"""Gradient checkpointing changes memory and time, but no bit of the loss or the gradients."""

import parts
import pytest
import torch
from torch import nn

import chatgot.model.gpt
from chatgot.config import SamplingConfig
from chatgot.model.gpt import evaluating
from chatgot.numerics.gradient_checkpointing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
)
from chatgot.run.assembly import Run
from chatgot.run.modes import prove_gradient_checkpointing_again
from chatgot.sampling.generation import continue_texts
from chatgot.training.step import compute_gradients, update_weights


def fresh_run(precision: str = "fp32", **model) -> Run:
    return parts.run(
        precision=precision,
        model={"n_layers": 4, "dropout": 0.3, "attention_dropout": 0.3, **model},
    )


def loss_and_gradients(run: Run) -> list[torch.Tensor]:
    run.model.zero_grad()
    loss = compute_gradients(run)
    return [loss, *(p.grad for p in run.model.parameters())]


def passes(run: Run) -> list[int]:
    """Return how often each block ran in one micro-batch: forward plus recomputation."""
    run.state.micro_batch.size = 8
    counts = [0] * len(run.model.layers)
    hooks = []
    for i, block in enumerate(run.model.layers):

        def count(module, args, i=i):
            counts[i] += 1

        hooks.append(block.register_forward_pre_hook(count))
    loss_and_gradients(run)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_loss_and_gradients_are_bit_equal_with_gradient_checkpointing(
    every, precision, architecture
):
    plain, recomputing = (fresh_run(precision, architecture=architecture) for _ in range(2))
    assert enable_gradient_checkpointing(recomputing.model, every=every)
    assert all(map(torch.equal, loss_and_gradients(recomputing), loss_and_gradients(plain)))


def private_masks(monkeypatch) -> torch.Generator:
    """Draw dropout masks from a generator that recomputation does not restore; return it."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        chatgot.model.gpt,
        "keep_mask",
        lambda shape, rate, device: (torch.rand(shape, generator=generator) >= rate).to(device),
    )
    return generator


def test_the_comparison_notices_other_dropout_masks(monkeypatch):
    plain = fresh_run()
    recomputing = fresh_run()
    enable_gradient_checkpointing(recomputing.model)
    generator = private_masks(monkeypatch)
    expected = loss_and_gradients(plain)
    generator.manual_seed(0)
    assert not all(map(torch.equal, loss_and_gradients(recomputing), expected))


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [2, 2, 2, 2]), (2, [2, 1, 2, 1]), (3, [2, 1, 1, 2])]
)
def test_every_nth_block_is_recomputed_once(every, expected):
    run = fresh_run()
    assert passes(run) == [1, 1, 1, 1]
    assert enable_gradient_checkpointing(run.model, every=every)
    assert passes(run) == expected


def test_disabling_switches_it_off_and_returns_whether_it_was_on():
    run = fresh_run()
    assert disable_gradient_checkpointing(run.model) is False
    assert enable_gradient_checkpointing(run.model) is True
    assert enable_gradient_checkpointing(run.model, every=2) is True
    assert passes(run) == [2, 1, 2, 1]
    assert disable_gradient_checkpointing(run.model) is True
    assert disable_gradient_checkpointing(run.model) is False
    assert passes(run) == [1, 1, 1, 1]


@pytest.mark.parametrize("setting", [False, True, "every_2"])
def test_the_configuration_switches_it_on(setting):
    run = parts.run(model={"n_layers": 4}, training={"gradient_checkpointing": setting})
    assert (
        passes(run) == {False: [1, 1, 1, 1], True: [2, 2, 2, 2], "every_2": [2, 1, 2, 1]}[setting]
    )


def test_enabling_it_is_an_event(caplog):
    caplog.set_level("INFO")
    run = fresh_run()
    caplog.clear()
    assert enable_gradient_checkpointing(run.model, every=2)
    (record,) = caplog.records
    assert record.event["kind"] == "gradient_checkpointing"
    assert record.event["on"] is True
    assert record.event["every"] == 2
    assert record.event["reason"].startswith("proven")


def test_evaluation_recomputes_nothing():
    run = fresh_run()
    enable_gradient_checkpointing(run.model)
    counts = []
    run.model.layers[1].register_forward_pre_hook(lambda module, args: counts.append(1))
    x, y = run.train_windows.batch(run.train_windows.starts(0, 2))
    with evaluating(run.model):
        run.model(x, y)
    assert counts == [1]


def test_generation_uses_its_cache_with_gradient_checkpointing_on():
    plain = fresh_run(init_range=1.0, tie_embeddings=False)
    recomputing = fresh_run(init_range=1.0, tie_embeddings=False)
    enable_gradient_checkpointing(recomputing.model)
    greedy = SamplingConfig(temperature=0, max_new_tokens=20)
    texts = [
        list(continue_texts(run.model, run.vocabulary, ["ab"], greedy, 0))[-1][0]
        for run in (plain, recomputing)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_a_model_without_layers_is_left_as_it_is_with_a_warning(net, caplog):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert enable_gradient_checkpointing(net) is False
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert type(net).__name__ in caplog.text
    assert caplog.records[0].event["kind"] == "gradient_checkpointing"
    assert caplog.records[0].event["on"] is False
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert disable_gradient_checkpointing(net) is False


def test_enabling_does_not_touch_generators_gradients_weights_or_mode():
    for training_mode in (True, False):
        run = fresh_run()
        loss_and_gradients(run)
        run.model.train(training_mode)
        gradients = [p.grad.clone() for p in run.model.parameters()]
        weights = parts.copied(run.model.state_dict())
        generator = torch.get_rng_state()
        enable_gradient_checkpointing(run.model)
        disable_gradient_checkpointing(run.model)
        assert torch.equal(torch.get_rng_state(), generator)
        assert all(
            torch.equal(p.grad, g) for p, g in zip(run.model.parameters(), gradients, strict=True)
        )
        assert parts.same(run.model.state_dict(), weights)
        assert run.model.training is training_mode


@pytest.mark.parametrize("at_pass", [1, 2])
def test_an_error_in_a_block_is_raised_in_forward_and_in_recomputation(at_pass):
    run = fresh_run()
    enable_gradient_checkpointing(run.model)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) == at_pass:
            raise ZeroDivisionError("in a block")

    run.state.micro_batch.size = 8
    hook = run.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in a block"):
        loss_and_gradients(run)
    assert len(calls) == at_pass  # the second pass happens in backward
    hook.remove()
    assert all(map(torch.equal, loss_and_gradients(run), expected_plain()))


def expected_plain() -> list[torch.Tensor]:
    run = fresh_run()
    run.state.micro_batch.size = 8
    return loss_and_gradients(run)


def odd_recomputation(run: Run, how, odd_calls=None) -> list[int]:
    """Let block 2's attention compute something else when it is recomputed; return the call count.

    The block's own output would not do: backward does not need it, so it is not recomputed.

    odd_calls: the calls that compute something else; None: every second one, the recomputation.
    Returns: a list with one number, the calls so far while recomputation is on.
    """
    attention = run.model.layers[2].attention
    calls = [0]
    real = attention.forward

    def forward(x, rotated, cache):
        y = real(x, rotated, cache)
        if not run.model.recompute_every:
            return y
        calls[0] += 1
        odd = calls[0] in odd_calls if odd_calls else calls[0] % 2 == 0
        return how(y) if odd else y

    attention.forward = forward
    return calls


def other_value(h):
    return h * 1.001


def one_tensor_more(h):
    return h + 0 * h[:, :1].exp()  # exp saves its result for backward


@pytest.mark.parametrize(
    "how", [other_value, one_tensor_more, lambda h: h.double().float() * 1.0001]
)
def test_a_block_whose_recomputation_differs_is_refused(how, caplog):
    run = fresh_run()
    calls = odd_recomputation(run, how)
    caplog.clear()
    assert enable_gradient_checkpointing(run.model) is False
    assert calls == [2]  # the proof did recompute the block
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "gradient checkpointing stays off" in caplog.text
    event = caplog.records[0].event
    assert event["on"] is False
    assert event["reason"] in caplog.text
    assert passes(run) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("how", "is_rounding"), [(lambda h: h * 1.0001, True), (lambda h: h * 3, False)]
)
def test_tolerance_allows_rounding_but_no_other_value(how, is_rounding, caplog):
    """As for compiled blocks on a card. The blocks of a new model add little to the stream."""
    caplog.set_level("INFO")
    run = fresh_run()
    odd_recomputation(run, how)
    assert enable_gradient_checkpointing(run.model, tolerance=2e-2) is is_rounding
    assert "at most 0.02 is rounding" in caplog.messages[-1]
    assert caplog.records[-1].event["on"] is is_rounding


def test_tolerance_allows_no_other_dropout_masks(monkeypatch, caplog):
    real = chatgot.model.gpt.checkpoint

    def with_other_masks(*args, preserve_rng_state, **keys):
        return real(*args, preserve_rng_state=False, **keys)

    monkeypatch.setattr(chatgot.model.gpt, "checkpoint", with_other_masks)
    run = parts.run(model={"n_layers": 4, "dropout": 0.1})
    assert not enable_gradient_checkpointing(run.model, tolerance=2e-2)
    assert "at most 0.02 is rounding" in caplog.text


def test_an_error_in_a_block_during_the_proof_is_raised():
    run = fresh_run()

    def fail(module, args):
        raise ZeroDivisionError("in a block")

    run.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        enable_gradient_checkpointing(run.model)
    assert run.model.recompute_every is None


@pytest.mark.cpu("its passes are equal bit for bit")
def test_a_proof_fails_where_plain_passes_differ_on_a_cpu(caplog):
    caplog.set_level("INFO")
    run = fresh_run()
    noise = torch.Generator().manual_seed(0)
    run.model.norm.register_forward_hook(
        lambda m, args, out: out * (1 + 1e-6 * torch.randn(1, generator=noise))
    )
    # on a CPU two equal passes give equal bits, or something is wrong
    assert enable_gradient_checkpointing(run.model) is False
    assert "two plain passes differ by" in caplog.text
    assert "nothing can be proven" in caplog.text


def test_the_proof_always_refuses_dropout_from_a_private_generator(monkeypatch):
    private_masks(monkeypatch)
    run = fresh_run()
    assert [enable_gradient_checkpointing(run.model) for _ in range(20)] == [False] * 20


def test_the_proof_restores_the_mode_of_each_module():
    run = fresh_run()
    run.model.layers[1].eval()
    modes = [module.training for module in run.model.modules()]
    assert enable_gradient_checkpointing(run.model)
    assert [module.training for module in run.model.modules()] == modes


def test_a_recompute_interval_below_one_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        enable_gradient_checkpointing(fresh_run().model, every=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_twenty_steps_with_and_without_it_end_in_the_same_bits(precision):
    finals = []
    for every in (None, 1):
        run = fresh_run(precision)
        if every:
            assert enable_gradient_checkpointing(run.model)
        for _ in range(20):
            loss = compute_gradients(run)
            update_weights(run, loss)
        finals.append({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})
    assert parts.same(*finals)


def test_a_recomputation_of_another_shape_costs_one_attempt(caplog):
    """The step runs again without gradient checkpointing: one warning, and the same bits."""
    plain = fresh_run()
    recomputing = fresh_run()
    assert enable_gradient_checkpointing(recomputing.model)
    # a step has two micro-batches of two calls each: this is the second one of the third step
    calls = odd_recomputation(recomputing, one_tensor_more, odd_calls={10})
    results = []
    for run in (plain, recomputing):
        losses = []
        for _ in range(4):
            update_weights(run, compute_gradients(run))
            losses.append(run.state.progress.train_loss)
        results.append((losses, parts.copied(run.model.state_dict())))
    assert calls == [10]  # no call after the one that differed
    assert caplog.text.count("is done again without gradient checkpointing, which stays off") == 1
    assert recomputing.state.modes.gradient_checkpointing_failed
    assert recomputing.model.recompute_every is None
    assert results[0][0] == results[1][0]
    assert parts.same(results[0][1], results[1][1])


def test_a_recomputation_that_goes_wrong_later_fails_the_next_proof(caplog):
    """The proof's warning names the steps since the last proof."""
    run = fresh_run()
    assert enable_gradient_checkpointing(run.model)
    run.state.progress.global_step = 100
    caplog.clear()
    prove_gradient_checkpointing_again(run.model, run.state, run.device, run.ranks)
    assert "off" not in caplog.text
    odd_recomputation(run, other_value)
    run.state.progress.global_step = 200
    prove_gradient_checkpointing_again(run.model, run.state, run.device, run.ranks)
    assert "gradient checkpointing is off from step 201 on" in caplog.text
    assert "steps 101 to 200 were trained since the last proof" in caplog.text
    assert run.model.recompute_every is None
    assert run.state.modes.gradient_checkpointing_failed


def test_weights_load_with_and_without_gradient_checkpointing():
    plain = fresh_run()
    recomputing = fresh_run()
    enable_gradient_checkpointing(recomputing.model)
    assert list(plain.model.state_dict()) == list(recomputing.model.state_dict())
