"""Attention by products equals torch's own and is exactly causal; the faster kernel is used."""

import json
import logging

import parts
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from chatgot.model import attention
from chatgot.model.attention import LONGEST, Products, causal_attention, pick_attention

FP32_TOLERANCE = 1e-5  # relative: the order of summation differs


def drawn(
    shape: tuple[int, ...], seed: int = 0, scale: float = 1.0, dtype=torch.float32
) -> list[Tensor]:
    """Return random q, k, v that require gradients, and a gradient of the result.

    scale: of q, and so of the spread of the scores.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v, dy = (torch.randn(shape, generator=generator) for _ in range(4))
    qkv = [t.to(dtype).requires_grad_() for t in (q * scale, k, v)]
    return [*qkv, dy.to(dtype)]


def results(kernel: str, q: Tensor, k: Tensor, v: Tensor, dy: Tensor) -> list[Tensor]:
    """Return output and gradients in float64."""
    y = causal_attention(q, k, v, kernel)
    return [t.detach().double() for t in (y, *torch.autograd.grad(y, (q, k, v), dy))]


def error(found: Tensor, expected: Tensor) -> float:
    """Return the relative error."""
    return ((found - expected).norm() / expected.norm()).item()


# The same numbers


@pytest.mark.parametrize("T", [1, 7, 128, 129, 200, 256])
@pytest.mark.parametrize("head_size", [1, 16, 64])
def test_output_and_gradients_equal_those_of_sdpa(T, head_size):
    tensors = drawn((2, 3, T, head_size), seed=T)
    for found, expected in zip(
        results("products", *tensors), results("sdpa", *tensors), strict=True
    ):
        assert (found - expected).abs().max() <= FP32_TOLERANCE * max(1.0, expected.abs().max())


@pytest.mark.parametrize("kernel", ["sdpa", "products"])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_neighbouring_query_heads_share_keys_and_values(groups, kernel):
    """The reference computes head by head, in float64."""
    H = 6
    T = 150
    D = 4
    q, _, _, dy = drawn((2, H, T, D), seed=1)
    _, k, v, _ = drawn((2, groups, T, D), seed=2)
    found = results(kernel, q, k, v, dy)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    above = torch.ones(T, T, dtype=torch.bool).triu(1)
    by_head = []
    for head in range(H):
        own_q = exact[0][:, head]
        own_k, own_v = (t[:, head // (H // groups)] for t in exact[1:])
        scores = own_q @ own_k.transpose(1, 2) / D**0.5
        by_head.append(scores.masked_fill(above, -torch.inf).softmax(-1) @ own_v)
    y = torch.stack(by_head, dim=1)
    expected = [y, *torch.autograd.grad(y, exact, dy.double())]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < FP32_TOLERANCE


def test_gradients_equal_finite_differences(monkeypatch):
    monkeypatch.setattr(attention, "ROWS", 4)
    q, k, v, _ = (t.squeeze(0) for t in drawn((1, 2, 9, 3), dtype=torch.float64))
    assert torch.autograd.gradcheck(Products.apply, (q, k, v))


@pytest.mark.parametrize("t", [1, 127, 128, 129, 199])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_later_token_changes_no_bit_of_earlier_outputs(t, dtype):
    q, k, v, _ = (tensor.detach() for tensor in drawn((1, 2, 200, 8), dtype=dtype))
    before = causal_attention(q, k, v, "products")
    for tensor in (q, k, v):
        tensor[:, :, t:] = 50 * tensor[:, :, t:] + 1
    after = causal_attention(q, k, v, "products")
    assert torch.equal(before[:, :, :t], after[:, :, :t])
    assert not torch.equal(before[:, :, t], after[:, :, t])


@pytest.mark.parametrize(("scale", "most"), [(1.0, 2.0), (2.0, 4.0), (8.0, 8.0)])
@pytest.mark.parametrize("seed", range(4))
def test_products_in_bf16_are_about_as_close_to_fp32_as_sdpa(seed, scale, most):
    """Products round the scores, sdpa does not; so large scores cost precision."""
    tensors = drawn((4, 2, 200, 16), seed, scale, torch.bfloat16)
    exact = results("sdpa", *(t.detach().float().requires_grad_() for t in tensors))
    for name, ours, theirs, expected in zip(
        ("y", "dq", "dk", "dv"),
        results("products", *tensors),
        results("sdpa", *tensors),
        exact,
        strict=True,
    ):
        assert error(ours, expected) <= most * error(theirs, expected), name
        assert error(ours, expected) < 0.03, name


def test_a_model_computes_the_same_with_either_kernel():
    found = {}
    for kernel in ("sdpa", "products"):
        run = parts.run(training={"attention": kernel})
        assert (
            {block.attention.kernel for block in run.model.layers}
            == {kernel}
            == {run.state.modes.attention}
        )
        x, y = run.train_windows.batch(run.train_windows.starts(0, 8))
        loss = run.model(x, y)[1]
        loss.backward()
        found[kernel] = [loss.detach(), *(p.grad for p in run.model.parameters())]
    for ours, theirs in zip(found["products"], found["sdpa"], strict=True):
        assert (ours - theirs).abs().max() <= FP32_TOLERANCE * max(0.1, theirs.abs().max())
    assert not all(map(torch.equal, found["products"], found["sdpa"]))  # two kernels did run


# What stays in memory


@pytest.mark.parametrize("recompute", [False, True])
def test_attention_weights_are_kept_for_backward_unless_recomputed(recompute, monkeypatch):
    kept = []
    real = Tensor.softmax

    def softmax(scores: Tensor, dim: int) -> Tensor:
        weights = real(scores, dim=dim)
        kept.append(StorageWeakRef(weights.untyped_storage()))
        return weights

    monkeypatch.setattr(Tensor, "softmax", softmax)
    q, k, v, dy = drawn((1, 2, 150, 4))
    if recompute:
        y = checkpoint(causal_attention, q, k, v, "products", use_reentrant=False)
    else:
        y = causal_attention(q, k, v, "products")
    assert len(kept) == 2
    assert [weights.expired() for weights in kept] == [recompute] * 2
    found = torch.autograd.grad(y, (q, k, v), dy)
    del y
    assert len(kept) == (4 if recompute else 2)
    expected = results("sdpa", q, k, v, dy)[1:]
    assert all(error(a.double(), b) < FP32_TOLERANCE for a, b in zip(found, expected, strict=True))


# Which kernel is used


def pick(
    asked: str = "auto", batch_size: int = 4, device=parts.CPU, dtype=torch.float32, **model
) -> str:
    return pick_attention(asked, parts.config(model=model).model, batch_size, device, dtype)


def remember(machine, seconds: list[float]) -> None:
    """Write the times of sdpa and products as if this machine had measured them."""
    pick()
    machine.write_text(json.dumps(dict.fromkeys(json.loads(machine.read_bytes()), seconds)))


def test_a_kernel_asked_for_by_name_is_used_without_measuring(machine):
    assert [pick(name) for name in ("sdpa", "products")] == ["sdpa", "products"]
    assert not machine.exists()


@pytest.mark.parametrize("asked", ["auto", "sdpa", "products"])
def test_attention_dropout_needs_sdpa(machine, asked):
    assert pick(asked, attention_dropout=0.1) == "sdpa"
    assert not machine.exists()


def test_long_contexts_and_other_devices_use_sdpa_without_measuring(machine):
    assert pick(max_seq_length=LONGEST + 1) == "sdpa"
    assert pick(device=torch.device("cuda")) == "sdpa"
    assert not machine.exists()


def test_auto_measures_both_kernels_once_and_remembers_the_times(machine, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    measured = []
    monkeypatch.setattr(attention, "_layer", lambda kernel, *rest: measured.append(kernel))
    monkeypatch.setattr(attention, "best_times", lambda ways: [1e-3, 2e-3])
    assert pick() == "sdpa"
    assert measured == ["sdpa", "products"]
    assert list(json.loads(machine.read_bytes()).values()) == [[1e-3, 2e-3]]
    assert caplog.records[0].event == {
        "step": None,
        "kind": "choice",
        "what": "attention",
        "chosen": "sdpa",
        "measured": {"sdpa_s": 1e-3, "products_s": 2e-3},
    }
    assert pick() == "sdpa"
    assert measured == ["sdpa", "products"]
    assert caplog.messages == 2 * [
        "attention: sdpa; one layer of 4 sequences takes 1.00 ms by sdpa, "
        "2.00 ms by products, in float32"
    ]
    pick(dtype=torch.bfloat16)  # each of these calls needs a new measurement
    pick(batch_size=2)
    pick(n_head=4)
    assert len(measured) == 8
    pick(architecture="modern")  # the same shape
    assert len(measured) == 8
    pick(architecture="modern", n_kv_head=1)
    pick(architecture="modern", head_dim=4)
    assert len(measured) == 12
    pick(batch_size=attention.TIMED_SEQUENCES + 1)
    pick(batch_size=1000)
    assert len(measured) == 14


@pytest.mark.parametrize("keys", [{}, {"architecture": "modern", "n_kv_head": 1, "head_dim": 6}])
def test_a_real_measurement_does_not_touch_the_global_generator(keys, machine):
    before = torch.get_rng_state()
    assert pick(**keys) in attention.KERNELS
    (times,) = json.loads(machine.read_bytes()).values()
    assert len(times) == 2
    assert all(0 < seconds < 1 for seconds in times)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cpu("attention by products is measured")
@pytest.mark.parametrize(
    ("seconds", "kernel"), [([2.0, 1.0], "products"), ([1.0, 2.0], "sdpa"), ([1.0, 1.0], "sdpa")]
)
def test_the_choice_follows_the_remembered_times(machine, seconds, kernel):
    remember(machine, seconds)
    assert pick() == kernel
    assert parts.run().state.modes.attention == kernel


@pytest.mark.cpu("attention by products is measured")
@pytest.mark.parametrize("setting", ["auto", "sdpa"])
def test_a_resumed_run_keeps_its_kernel_despite_new_measurements(machine, setting):
    remember(machine, [2.0, 1.0])
    stored = parts.run().checkpoint()
    assert stored["state"]["modes"]["attention"] == "products"
    remember(machine, [1.0, 2.0])
    assert parts.run().state.modes.attention == "sdpa"
    resumed = parts.run(stored, training={"attention": setting})
    assert resumed.state.modes.attention == "products"
    assert {block.attention.kernel for block in resumed.model.layers} == {"products"}


def test_attention_dropout_is_computed_by_sdpa():
    q, k, v, _ = drawn((1, 2, 9, 3))
    torch.manual_seed(3)
    found = causal_attention(q, k, v, "products", dropout=0.5)
    torch.manual_seed(3)
    assert torch.equal(
        found, F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.5)
    )
