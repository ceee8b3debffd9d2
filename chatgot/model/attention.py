"""How causal attention is computed, and which way is fast for a shape on this machine.

Letters: B batch, H heads, T time, D head size; N = B x H; R rows of queries that one product takes at once.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatgot.config import ModelConfig
from chatgot.machine.measured import best_times, remembered

logger = logging.getLogger(__name__)

KERNELS = ("sdpa", "products")
ROWS = 128  # queries of one product: above the diagonal only half a square is wasted, and products stay large
LONGEST = 512  # context up to which `products` is tried: it keeps the weights, which grow with the square of it
TIMED_SEQUENCES = 8


class Products(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v with a causal mask, by batched matrix products over ROWS queries at a time.

    q, k, v: (N, T, D) of one dtype, contiguous; returns (N, T, D). All is computed in that dtype, bf16 included: on a
    CPU that is twice as fast as scaled_dot_product_attention in short contexts. It rounds the scores too, so it
    is farther from fp32: up to twice where they spread by 1, four times by 2, eight times by 8 (tests). The attention
    weights are kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, D = q.shape[1:]
        q = q * D**-0.5
        y, kept = torch.empty_like(v), []
        above = torch.full((min(ROWS, T),) * 2, -torch.inf, dtype=q.dtype, device=q.device).triu(
            1
        )  # (R, R)
        for begin in range(0, T, ROWS):
            end = min(begin + ROWS, T)
            scores = torch.bmm(q[:, begin:end], k[:, :end].transpose(1, 2))  # (N, R, end)
            scores[:, :, begin:] += above[
                : end - begin, : end - begin
            ]  # the square on the diagonal
            weights = scores.softmax(dim=-1)
            y[:, begin:end] = torch.bmm(weights, v[:, :end])  # (N, R, D)
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors  # q is scaled
        T, D = q.shape[1:]
        dq = torch.empty_like(q)
        for i in reversed(
            range(len(kept))
        ):  # the last one sees every key, so it makes dk and dv; the others add
            begin, end = i * ROWS, min((i + 1) * ROWS, T)
            weights, dy_rows = kept[i], dy[:, begin:end]
            dv_part = torch.bmm(weights.transpose(1, 2), dy_rows)  # (N, end, D)
            d_weights = torch.bmm(dy_rows, v[:, :end].transpose(1, 2))  # (N, R, end)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            dq[:, begin:end] = torch.bmm(d_scores, k[:, :end])
            dk_part = torch.bmm(d_scores.transpose(1, 2), q[:, begin:end])  # (N, end, D)
            if end == T:
                dk, dv = dk_part, dv_part
            else:
                dk[:, :end] += dk_part
                dv[:, :end] += dv_part
        return dq.mul_(D**-0.5), dk, dv


def causal_attention(q: Tensor, k: Tensor, v: Tensor, kernel: str, dropout: float = 0.0) -> Tensor:
    """Let each token look at itself and those before it; q, k, v and the result are (B, H, T, D), of one dtype.

    dropout: share of the attention weights that is dropped; only `sdpa` can. `products` are for CPUs.
    """
    if kernel == "sdpa" or dropout or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    B, H, T, D = q.shape
    q, k, v = (t.reshape(B * H, T, D) for t in (q, k, v))
    return Products.apply(q, k, v).view(B, H, T, D)


def pick_attention(
    asked: str, cfg: ModelConfig, batch_size: int, device: torch.device, dtype: torch.dtype
) -> str:
    """Return the kernel that is in force, `sdpa` or `products`; for `auto` the faster one, measured once per machine.

    Forward and backward of one layer are timed, at most TIMED_SEQUENCES sequences of them.
    """
    if cfg.attention_dropout or device.type != "cpu":
        return "sdpa"
    if asked != "auto":
        return asked
    if cfg.max_seq_length > LONGEST:
        return "sdpa"
    shape = (
        min(batch_size, TIMED_SEQUENCES),
        cfg.n_head,
        cfg.max_seq_length,
        cfg.d_model // cfg.n_head,
    )
    name = str(dtype).removeprefix("torch.")
    what = f"attention {'x'.join(map(str, shape))} {name}, {torch.get_num_threads()} threads"
    sdpa_s, products_s = remembered(
        what, lambda: best_times([_layer(kernel, shape, dtype) for kernel in KERNELS])
    )
    kernel = "sdpa" if sdpa_s <= products_s else "products"
    logger.info(
        "attention: %s; one layer of %d sequences takes %.2f ms by sdpa, %.2f ms by products, in %s",
        kernel, shape[0], 1000 * sdpa_s, 1000 * products_s, name,
    )  # fmt: skip
    return kernel


def _layer(kernel: str, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that computes one layer's attention on the CPU, forward and backward; shape: (B, H, T, D)."""
    B, H, T, D = shape
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, 3 * H * D, generator=generator).to(dtype).requires_grad_()
    dy = torch.ones(B, T, H * D, dtype=dtype)

    def forward_backward() -> None:
        q, k, v = (
            t.view(B, T, H, D).transpose(1, 2) for t in qkv.chunk(3, dim=-1)
        )  # as the model makes them
        y = causal_attention(q, k, v, kernel).transpose(1, 2).reshape(B, T, H * D)
        torch.autograd.grad(y, qkv, dy)

    return forward_backward
