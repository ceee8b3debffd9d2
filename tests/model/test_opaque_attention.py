"""Attention as one operator for the compiler computes what the eager function computes."""

import pytest
import torch

import chatgot.model.opaque_attention  # noqa: F401 it registers the operator
from chatgot.model.attention import Products


@pytest.mark.parametrize("T", [5, 128, 300])
def test_the_operator_gives_the_bits_of_eager_attention(T):
    generator = torch.Generator().manual_seed(0)
    q, k, v, dy = torch.randn(4, 3, T, 8, generator=generator).bfloat16()
    results = []
    for attend in (Products.apply, lambda *qkv: torch.ops.chatgot.products(*qkv)[0]):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        y = attend(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    eager, opaque = results
    for one, other in zip(eager, opaque, strict=True):
        assert torch.equal(one, other)


def test_the_operator_tells_the_compiler_its_true_shapes():
    """Otherwise compiled blocks would read past the end of a tensor."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 300, 8, generator=generator)
    torch.library.opcheck(
        torch.ops.chatgot.products.default,
        (q, k, v),
        test_utils=("test_schema", "test_faketensor"),
    )
    y, scaled, *weights = torch.ops.chatgot.products(q, k, v)
    torch.library.opcheck(
        torch.ops.chatgot.products_backward.default,
        (y, scaled, k, v, weights),
        test_utils=("test_schema", "test_faketensor"),
    )
