"""Mixed precision is chosen by measurement and then proven; choice and proof are events."""

import logging
import math

import parts
import pytest
import torch

from chatgot.numerics import precision as precision_module
from chatgot.numerics.precision import next_lower, pick_precision, prove_mixed_precision


@pytest.fixture
def net_and_batch():
    net = parts.run().model
    ids = torch.randint(0, len(parts.ALPHABET), (4, 8), generator=torch.Generator().manual_seed(0))
    ids = ids.to(parts.DEVICE)
    return net, (ids, ids)


def mixed(**keys):
    return parts.config(training={"mixed_precision": True, **keys})


@pytest.mark.parametrize(("gain", "chosen"), [(0.5, "fp32"), (2.0, "bf16")])
def test_the_faster_precision_is_chosen_and_is_an_event(gain, chosen, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precision_module, "bf16_gain", lambda *shape: gain)
    assert pick_precision(mixed(), parts.CPU) == chosen
    (record,) = caplog.records
    assert record.event == {
        "step": None,
        "kind": "choice",
        "what": "precision",
        "chosen": chosen,
        "measured": {"bf16_gain": gain},
    }


def test_a_precision_asked_for_by_name_is_used_without_measuring(machine):
    assert pick_precision(mixed(precision_dtype="bf16"), parts.CPU) == "bf16"
    assert pick_precision(parts.config(), parts.CPU) == "fp32"
    assert not machine.exists()


def test_a_successful_proof_is_an_event_with_the_measured_numbers(net_and_batch, caplog):
    caplog.set_level(logging.INFO)
    caplog.clear()
    assert prove_mixed_precision(*net_and_batch, "bf16") is None
    (record,) = caplog.records
    assert (record.event["what"], record.event["chosen"]) == ("precision", "bf16")
    assert 0 <= record.event["measured"]["loss_difference"] < 0.01
    assert 0.99 < record.event["measured"]["gradient_cosine"] <= 1 + 1e-6


@pytest.mark.parametrize("factor", [1.05, math.nan])
def test_a_failed_proof_names_the_difference_and_leaves_the_model_alone(
    factor, net_and_batch, caplog
):
    net, batch = net_and_batch
    caplog.set_level(logging.INFO)
    caplog.clear()
    net.layers[1].eval()
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()

    def spoil(module, args, out):
        logits, loss = out
        return logits, loss * factor if torch.is_autocast_enabled(parts.DEVICE.type) else loss

    hook = net.register_forward_hook(spoil)
    assert "in fp32" in prove_mixed_precision(net, batch, "bf16")
    hook.remove()
    assert not caplog.records
    assert [module.training for module in net.modules()] == modes
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_proof_without_memory_for_the_batch_takes_half_of_it(net_and_batch):
    net, batch = net_and_batch
    sizes = []

    def run_out(module, args):
        sizes.append(len(args[0]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("no memory")

    hook = net.register_forward_pre_hook(run_out)
    assert prove_mixed_precision(net, batch, "bf16") is None
    assert sizes == [4, 2, 1, 1]  # the first of two passes fails at 4 and 2; both passes run at 1
    hook.remove()


def test_any_other_error_in_the_proof_is_raised(net_and_batch):
    def fail(module, args):
        raise ZeroDivisionError

    net, batch = net_and_batch
    hook = net.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        prove_mixed_precision(net, batch, "bf16")
    hook.remove()


def test_the_ladder_of_precisions_ends_in_fp32():
    assert next_lower("fp16", parts.CPU) == "bf16"
    assert next_lower("fp16", torch.device("mps")) == "fp32"
    assert next_lower("bf16", parts.CPU) == "fp32"
