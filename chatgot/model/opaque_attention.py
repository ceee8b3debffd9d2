"""Attention by products as one operator that torch.compile calls instead of compiling it.

It is mostly matrix products, which the compiler calls as they are. Compiling the rest of it makes
a quarter of the kernels, and training is no faster for them (measured: 151 and 152 ms for
forward and backward of the quick configuration). Importing this module registers the operator.

Letters: N batch x heads, T time, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from chatgot.model.attention import ROWS, attend_by_products, gradients_of_products


@torch.library.custom_op("chatgot::products", mutates_args=())
def products(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Return the attention (N, T, D), the scaled queries, and the weights of each group of rows."""
    y, scaled, weights_of_rows = attend_by_products(q, k, v)
    return [y, scaled, *weights_of_rows]


@products.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    N, T, _ = q.shape
    weights = []
    for begin in range(0, T, ROWS):
        end = min(begin + ROWS, T)
        weights.append(q.new_empty((N, end - begin, end)))
    return [torch.empty_like(v), torch.empty_like(q), *weights]


@torch.library.custom_op("chatgot::products_backward", mutates_args=())
def products_backward(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights_of_rows: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, each (N, T, D)."""
    return gradients_of_products(dy, q, k, v, weights_of_rows)


@products_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights_of_rows: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: list[Tensor]) -> None:
    _, k, v = inputs
    _, scaled, *weights_of_rows = output
    ctx.save_for_backward(scaled, k, v, *weights_of_rows)


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, *weights_of_rows = ctx.saved_tensors
    dy = gradients[0].contiguous()
    result: tuple[Tensor, Tensor, Tensor] = products_backward(dy, q, k, v, weights_of_rows)
    return result


products.register_autograd(_backward, setup_context=_keep)
