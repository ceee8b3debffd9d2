"""The fast norms, rotation and gate give the bits of the plain formulas."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatgot.model import fewer_passes
from chatgot.model.fewer_passes import Gate, RMSNorm, Rotate
from chatgot.model.gpt import rotation

B = 3
T = 40
H = 2
D = 16


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def results(compute: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all inputs."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    y = compute(*leaves)
    return [y, *torch.autograd.grad(y, leaves, drawn(*y.shape).to(y.dtype))]


def assert_same(plain: list[Tensor], fast: list[Tensor]) -> None:
    for one, other in zip(plain, fast, strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "in a residual stream"])
def test_the_norm_gives_the_bits_of_the_plain_one(residual):
    """In a residual stream x has a third gradient, and the order of the sum matters."""
    norm = RMSNorm(D, eps=1e-5)

    def fast(x: Tensor, weight: Tensor) -> Tensor:
        y = torch.func.functional_call(norm, {"weight": weight}, (x,))
        return 3 * y + x if residual else y

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        y = F.rms_norm(x, (D,), weight, 1e-5)
        return 3 * y + x if residual else y

    inputs = (drawn(B, T, D), drawn(D))
    assert_same(results(plain, *inputs), results(fast, *inputs))


def test_the_rotation_gives_the_bits_of_the_plain_one():
    cosines, sines = rotation(torch.arange(T), D, 1e4)

    def plain(x: Tensor) -> Tensor:
        lower, upper = x.chunk(2, dim=-1)
        return x * cosines + torch.cat((-upper, lower), dim=-1) * sines

    x = drawn(B, T, H, D)
    assert_same(results(plain, x), results(lambda x: Rotate.apply(x, cosines, sines), x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_gives_the_bits_of_the_plain_one(dtype):
    def plain(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    x = drawn(B, T, 2 * D).to(dtype)
    assert_same(results(plain, x), results(Gate.apply, x))


def test_without_gradients_the_plain_formulas_are_taken():
    x = drawn(B, T, D).requires_grad_()
    assert fewer_passes.pays(x)
    with torch.no_grad():
        assert not fewer_passes.pays(x)
    assert not fewer_passes.pays(x.detach())
