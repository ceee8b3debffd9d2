"""Dropout masks are independent, have the rate asked for, and are the same when recomputed."""

import math
from functools import cache

import parts
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import chatgot.model.gpt
from chatgot.model.dropout import drop, keep_mask
from chatgot.training.step import compute_gradients

N = 10_000_000
RATES = [0.1, 0.25, 0.5, 0.999]
SIGMAS = 5  # a correct mask fails one check in two million; the seeds are fixed


@cache
def mask(rate: float) -> Tensor:
    """Return a mask of N elements."""
    torch.manual_seed(0)
    return keep_mask((N,), rate, parts.CPU)


def correlation(a: Tensor, b: Tensor) -> float:
    """Return the correlation of two masks in standard errors."""
    a, b = (t.flatten().float() - t.float().mean() for t in (a, b))
    return (a @ b / (a.norm() * b.norm())).item() * math.sqrt(a.numel())


# The rate


@pytest.mark.parametrize("rate", RATES)
def test_the_share_of_dropped_elements_is_the_rate(rate):
    dropped = 1 - mask(rate).float().mean(dtype=torch.float64).item()
    assert abs(dropped - rate) < SIGMAS * math.sqrt(rate * (1 - rate) / N)


@pytest.mark.parametrize("rate", RATES)
def test_kept_elements_are_scaled_by_one_value_and_all_others_are_zero(rate):
    y = drop(torch.ones(1000), mask(rate)[:1000], rate)
    assert torch.equal(y == 0, ~mask(rate)[:1000])
    exact = 1 / (1 - round(rate * 65536) / 65536)  # the rate is rounded to 16 bits
    assert set(y[y != 0].tolist()) <= {torch.tensor(exact).item()}
    assert exact == pytest.approx(1 / (1 - rate), rel=0.01)


@pytest.mark.parametrize("rate", RATES)
def test_output_has_the_mean_and_variance_of_independent_draws(rate):
    x = torch.linspace(1, 3, N)
    y = drop(x, mask(rate), rate)
    variance = rate / (1 - rate)  # of an element with value 1
    mean_square = 13 / 3  # of x
    error = (y - x).mean(dtype=torch.float64)
    assert abs(error) < SIGMAS * math.sqrt(variance * mean_square / N)
    sums = drop(torch.ones(N), mask(rate), rate).view(-1, 64).sum(dim=1, dtype=torch.float64)
    excess = (1 - 6 * rate * (1 - rate)) / (64 * rate * (1 - rate))  # excess kurtosis of a binomial
    spread = math.sqrt((2 + excess) / sums.numel())
    rounding = 0.01 if rate == 0.999 else 0.0  # of the rate
    assert abs(sums.var() / (64 * variance) - 1) < SIGMAS * spread + rounding


def test_rate_0_keeps_all_elements_and_no_rate_drops_all():
    assert keep_mask((1000,), 0.0, parts.CPU).all()
    assert keep_mask((10 * 65536,), 0.9999999, parts.CPU).any()
    x = torch.ones(3)
    assert drop(x, None, 0.5) is x


# Independence


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("lag", range(1, 9))
def test_neighbouring_elements_are_independent(rate, lag):
    assert abs(correlation(mask(rate)[:-lag], mask(rate)[lag:])) < SIGMAS


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_four_elements_of_a_draw_have_one_rate_and_are_independent(rate):
    places = mask(rate).view(-1, 4)
    sigma = math.sqrt(rate * (1 - rate) / len(places))
    assert (
        (1 - places.float().mean(dim=0, dtype=torch.float64)) - rate
    ).abs().max() < SIGMAS * sigma
    for i in range(4):
        for j in range(i):
            assert abs(correlation(places[:, i], places[:, j])) < SIGMAS


def test_masks_of_branches_layers_micro_batches_and_steps_are_independent(monkeypatch):
    model = {"d_model": 32, "dropout": 0.3, "n_layers": 3, "max_seq_length": 32}
    run = parts.run(model=model, training={"batch_size": 16})
    drawn = []
    monkeypatch.setattr(
        chatgot.model.gpt, "keep_mask", lambda *args: drawn.append(keep_mask(*args)) or drawn[-1]
    )
    for position in (0, 1):
        run.state.progress.position = position
        compute_gradients(run)
    assert [tuple(m.shape) for m in drawn] == 4 * ([(16, 32, 32)] + 3 * [(2, 16, 32, 32)])
    masks = [one for m in drawn for one in (m if m.dim() == 4 else m[None])]
    assert len(masks) == 4 * 7
    assert max(abs(correlation(a, b)) for i, a in enumerate(masks) for b in masks[:i]) < SIGMAS


# Shapes, generators


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5,), (7, 3), (2, 3, 5), (2, 1, 1, 3), (0, 4)])
def test_a_mask_has_the_shape_asked_for(shape):
    found = keep_mask(shape, 0.5, parts.CPU)
    assert found.shape == torch.Size(shape)
    assert found.dtype == torch.bool


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7])
def test_each_element_of_an_odd_size_is_dropped_at_the_rate(n):
    torch.manual_seed(0)
    share = torch.stack([keep_mask((n,), 0.25, parts.CPU) for _ in range(4000)]).float().mean(dim=0)
    assert (share - 0.75).abs().max() < SIGMAS * math.sqrt(0.25 * 0.75 / 4000)


def test_masks_come_only_from_the_global_generator():
    torch.manual_seed(3)
    first, second = (keep_mask((100,), 0.5, parts.CPU) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(keep_mask((100,), 0.5, parts.CPU), first)
    state = torch.get_rng_state()
    torch.set_rng_state(state)
    assert torch.equal(keep_mask((100,), 0.5, parts.CPU), second)


def test_a_recomputation_repeats_the_mask():
    def noisy(x: Tensor) -> Tensor:
        masks.append(keep_mask(x.shape, 0.5, x.device))
        return drop(x.exp(), masks[-1], 0.5)

    masks: list[Tensor] = []
    x = torch.zeros(1001, requires_grad=True)
    y = checkpoint(noisy, x, use_reentrant=False, preserve_rng_state=True)
    torch.rand(5)
    y.sum().backward()
    assert len(masks) == 2
    assert torch.equal(*masks)
    assert torch.equal(x.grad, y.detach())  # the derivative of exp is exp


def test_the_gradient_is_dropped_and_scaled_like_the_output():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1000, dtype=dtype, requires_grad=True)
        y = drop(x, mask(0.25)[:1000], 0.25)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        assert torch.equal(x.grad, y.detach())
