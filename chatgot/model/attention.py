"""How causal attention is computed, and which way is fast for a shape on this machine.

Letters: B batch, H query heads, G heads of keys and values, each shared by H / G query heads in
turn, T time, D head size; N = B x H; R rows of queries in one product.
Source of the sharing: grouped-query attention, Ainslie et al. 2023, arXiv:2305.13245.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatgot.config import ModelConfig
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.measured import best_times, remembered

logger = logging.getLogger(__name__)

Kernel = Literal["sdpa", "products"]
KERNELS: tuple[Kernel, ...] = ("sdpa", "products")
# Queries in one product: few enough to waste little above the diagonal, enough to be fast.
ROWS = 128
# Longest context for which `products` is tried: its attention weights grow with the square of it.
LONGEST = 512
TIMED_SEQUENCES = 8


class Products(torch.autograd.Function):
    """softmax(q k^T / sqrt(D)) v with a causal mask, by batched products of ROWS queries at a time.

    q, k, v: (N, T, D) of one dtype, contiguous; returns (N, T, D). Everything is computed in that
    dtype, bf16 included: on a CPU that is twice as fast as scaled_dot_product_attention in short
    contexts. It rounds the scores too, so it is farther from fp32: up to twice as far where they
    spread by 1, four times by 2, eight times by 8 (tests). Backward needs the attention weights,
    so they stay in memory until then.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return (N, T, D)."""
        y, q, weights_of_rows = attend_by_products(q, k, v)
        ctx.save_for_backward(q, k, v, *weights_of_rows)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v, each (N, T, D)."""
        q, k, v, *weights_of_rows = ctx.saved_tensors
        return gradients_of_products(dy, q, k, v, weights_of_rows)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the attention, q times 1 / sqrt(D), and the weights of each group of rows.

    The first two are (N, T, D), the weights (N, R, keys).
    """
    T, D = q.shape[1:]
    R = min(ROWS, T)
    q = q * D**-0.5
    y = torch.empty_like(v)
    weights_of_rows: list[Tensor] = []
    above = torch.full((R, R), -torch.inf, dtype=q.dtype, device=q.device).triu(1)  # (R, R)
    for begin in range(0, T, ROWS):
        end = min(begin + ROWS, T)
        rows = end - begin
        scores = torch.bmm(q[:, begin:end], k[:, :end].transpose(1, 2))  # (N, R, end)
        scores[:, :, begin:] += above[:rows, :rows]  # the square on the diagonal
        weights = scores.softmax(dim=-1)  # (N, R, end)
        y[:, begin:end] = torch.bmm(weights, v[:, :end])  # (N, R, D)
        weights_of_rows.append(weights)
    return y, q, weights_of_rows


def gradients_of_products(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, weights_of_rows: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, each (N, T, D).

    q and weights_of_rows: as `attend_by_products` returned them.
    """
    T, D = q.shape[1:]
    dq = torch.empty_like(q)
    # The last rows see every key, so they make dk and dv; the others add to them.
    for i in reversed(range(len(weights_of_rows))):
        begin = i * ROWS
        end = min(begin + ROWS, T)
        weights = weights_of_rows[i]  # (N, R, end)
        dy_rows = dy[:, begin:end]  # (N, R, D)
        dv_part = torch.bmm(weights.transpose(1, 2), dy_rows)  # (N, end, D)
        d_weights = torch.bmm(dy_rows, v[:, :end].transpose(1, 2))  # (N, R, end)
        d_scores = torch._softmax_backward_data(  # noqa: SLF001 - it has no public name
            d_weights, weights, -1, weights.dtype
        )  # (N, R, end)
        dq[:, begin:end] = torch.bmm(d_scores, k[:, :end])  # (N, R, D)
        dk_part = torch.bmm(d_scores.transpose(1, 2), q[:, begin:end])  # (N, end, D)
        if end == T:
            dk = dk_part
            dv = dv_part
        else:
            dk[:, :end] += dk_part
            dv[:, :end] += dv_part
    return dq.mul_(D**-0.5), dk, dv


def causal_attention(q: Tensor, k: Tensor, v: Tensor, kernel: str, dropout: float = 0.0) -> Tensor:
    """Let each token look at itself and those before it.

    q and the result: (B, H, T, D); k, v: (B, G, T, D); all of one dtype.
    dropout: share of the attention weights that is dropped; only `sdpa` can do that.
    kernel: `products` is for CPUs; elsewhere `sdpa` is taken.
    """
    if kernel == "sdpa" or dropout or q.device.type != "cpu":
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=q.size(1) != k.size(1)
        )
    B, H, T, D = q.shape
    k = repeat_heads(k, H)  # (B, H, T, D)
    v = repeat_heads(v, H)  # (B, H, T, D)
    q, k, v = (t.reshape(B * H, T, D) for t in (q, k, v))
    if torch.compiler.is_compiling():
        # one operator for the compiler; opaque_attention.py registers it
        y: Tensor = torch.ops.chatgot.products(q, k, v)[0]
    else:
        y = Products.apply(q, k, v)  # type: ignore[no-untyped-call] # untyped in torch
    return y.view(B, H, T, D)


def repeat_heads(t: Tensor, H: int) -> Tensor:
    """Return keys or values (B, G, T, D) once for each query head that shares them, (B, H, T, D).

    The copies of one head are neighbours, as query heads that share it are.
    """
    G = t.size(1)
    return t if G == H else t.repeat_interleave(H // G, dim=1)


def pick_attention(
    asked: Literal["auto"] | Kernel,
    cfg: ModelConfig,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Kernel:
    """Return the kernel to use, `sdpa` or `products`; for `auto` the faster one.

    Forward and backward of one layer are timed, on at most TIMED_SEQUENCES sequences, once per
    machine.
    """
    if cfg.attention_dropout or device.type != "cpu":
        return "sdpa"
    if asked != "auto":
        return asked
    if cfg.max_seq_length > LONGEST:
        return "sdpa"
    B = min(batch_size, TIMED_SEQUENCES)
    shape = (B, cfg.n_head, cfg.max_seq_length, cfg.head_size)
    G = cfg.kv_heads
    name = str(dtype).removeprefix("torch.")
    grouped = "" if cfg.n_head == G else f", {G} key/value heads"
    threads = f"{torch.get_num_threads()} threads"
    what = f"attention {'x'.join(map(str, shape))}{grouped} {name}, {threads}"
    with waiting("measuring which way of attention is fast"):
        sdpa_s, products_s = remembered(
            what, lambda: best_times([_layer(kernel, shape, G, dtype) for kernel in KERNELS])
        )
    kernel: Kernel = "sdpa" if sdpa_s <= products_s else "products"
    logger.info(
        "attention: %s; one layer of %d sequences takes %.2f ms by sdpa, "
        "%.2f ms by products, in %s",
        kernel,
        B,
        1000 * sdpa_s,
        1000 * products_s,
        name,
        extra=event(
            "choice",
            what="attention",
            chosen=kernel,
            measured={"sdpa_s": sdpa_s, "products_s": products_s},
        ),
    )
    return kernel


def _layer(
    kernel: str, shape: tuple[int, int, int, int], G: int, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a function that runs one layer's attention on the CPU, forward and backward.

    shape: (B, H, T, D).
    """
    B, H, T, D = shape
    sizes = (H * D, G * D, G * D)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, sum(sizes), generator=generator).to(dtype).requires_grad_()
    dy = torch.ones(B, T, H * D, dtype=dtype)

    def forward_backward() -> None:
        # laid out in memory as the model's are
        q, k, v = (t.view(B, T, -1, D).transpose(1, 2) for t in qkv.split_with_sizes(sizes, dim=-1))
        y = causal_attention(q, k, v, kernel).transpose(1, 2).reshape(B, T, H * D)
        # of one number: given a tensor for y's gradient, torch imports sympy, which takes 0.4 s
        torch.autograd.grad((y * dy).sum(), qkv)

    return forward_backward
