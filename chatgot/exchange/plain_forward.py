"""The forward pass of GPT-2, Llama and Qwen3, written out plainly from the papers' formulas.

It shares no code with our own model: exports are proven against it. Slow, and easy to check.

Letters: T tokens, C width, H query heads, G heads of keys and values, D head size, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class PlainLinear:
    """y = x W^T + b; weight: (out, in), bias: (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class PlainNorm:
    """A norm's weight (C,), and the bias of a LayerNorm."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class PlainBlock:
    """One layer. gate: of SwiGLU; None: GELU. q_norm, k_norm: (D,), None: not normalised."""

    norm_attention: PlainNorm
    q: PlainLinear
    k: PlainLinear
    v: PlainLinear
    out: PlainLinear
    norm_mlp: PlainNorm
    up: PlainLinear
    down: PlainLinear
    gate: PlainLinear | None = None
    q_norm: PlainNorm | None = None
    k_norm: PlainNorm | None = None


@dataclass(frozen=True)
class PlainModel:
    """A model as a file describes it.

    norm: `layer` with biases (GPT-2), `rms` (Llama, Qwen3). positions: learned, (max T, C), or
    None: rotary, with `rope_base`; the halves of a head are rotated (element i with i + D / 2).
    gelu: `erf`, exact, or `tanh`.
    """

    embedding: Tensor  # (V, C)
    positions: Tensor | None
    blocks: list[PlainBlock]
    norm_final: PlainNorm
    head: Tensor  # (V, C)
    n_head: int
    n_kv_head: int
    norm: Literal["layer", "rms"]
    eps: float
    rope_base: float = 10_000.0
    gelu: Literal["erf", "tanh"] = "erf"


def plain_logits(model: PlainModel, ids: Tensor) -> Tensor:
    """Return the logits (T, V), fp64, of one sequence of ids (T,).

    Computed in fp64: what differs from another program is that program's rounding, or an error.

    Sources: GPT-2 (Radford et al. 2019, section 2.3); Llama, arXiv:2302.13971, section 2.2;
    Qwen3, arXiv:2505.09388, section 2.
    """
    with torch.no_grad():
        x = model.embedding[ids].double()  # (T, C)
        if model.positions is not None:
            x = x + model.positions[: len(ids)].double()  # (T, C)
        for block in model.blocks:
            x = x + _attention(model, block, _norm(model, block.norm_attention, x))  # (T, C)
            x = x + _mlp(model, block, _norm(model, block.norm_mlp, x))  # (T, C)
        return _norm(model, model.norm_final, x) @ model.head.double().T  # (T, V)


def _linear(layer: PlainLinear, x: Tensor) -> Tensor:
    """Return (..., out) from x (..., in)."""
    y = x @ layer.weight.double().T  # (..., out)
    return y if layer.bias is None else y + layer.bias.double()


def _norm(model: PlainModel, norm: PlainNorm, x: Tensor) -> Tensor:
    """Normalise the last dimension: LayerNorm (arXiv:1607.06450) or RMSNorm (arXiv:1910.07467)."""
    if model.norm == "layer":
        x = x - x.sum(-1, keepdim=True) / x.shape[-1]
    mean_square = (x * x).sum(-1, keepdim=True) / x.shape[-1]
    normal = x / (mean_square + model.eps).sqrt() * norm.weight.double()
    if norm.bias is not None:
        normal = normal + norm.bias.double()
    return normal


def _attention(model: PlainModel, block: PlainBlock, x: Tensor) -> Tensor:
    """Return (T, C) from x (T, C): each token looks at itself and at those before it.

    Source: arXiv:1706.03762, section 3.2; grouped heads: arXiv:2305.13245.
    """
    T = len(x)
    q = _linear(block.q, x).view(T, model.n_head, -1)  # (T, H, D)
    k = _linear(block.k, x).view(T, model.n_kv_head, -1)  # (T, G, D)
    v = _linear(block.v, x).view(T, model.n_kv_head, -1)  # (T, G, D)
    if block.q_norm is not None:
        q = _norm(model, block.q_norm, q)
    if block.k_norm is not None:
        k = _norm(model, block.k_norm, k)
    if model.positions is None:
        q = _rotated(q, model.rope_base)
        k = _rotated(k, model.rope_base)
    later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # True: not to be seen
    queries_per_group = model.n_head // model.n_kv_head
    heads = []
    for head in range(model.n_head):
        group = head // queries_per_group
        scores = q[:, head] @ k[:, group].T / math.sqrt(q.shape[-1])  # (T, T)
        scores = scores.masked_fill(later, -math.inf)
        likelihoods = (scores - scores.amax(-1, keepdim=True)).exp()  # (T, T)
        shares = likelihoods / likelihoods.sum(-1, keepdim=True)  # (T, T)
        heads.append(shares @ v[:, group])  # (T, D)
    return _linear(block.out, torch.cat(heads, -1))  # (T, C)


def _rotated(x: Tensor, base: float) -> Tensor:
    """Rotate each pair of elements (i, i + D / 2) by its position's angle; x: (T, heads, D).

    Source: arXiv:2104.09864, section 3.2.2.
    """
    T, _, D = x.shape
    pair = torch.arange(D // 2, device=x.device)  # (D / 2,)
    position = torch.arange(T, device=x.device)  # (T,)
    # the one thing in fp32, as all programs compute it: at late positions its rounding shows
    wave = base ** (2 * pair / D)  # (D / 2,)
    angle = position[:, None] / wave  # (T, D / 2)
    cosine = angle.cos()[:, None]  # (T, 1, D / 2)
    sine = angle.sin()[:, None]  # (T, 1, D / 2)
    first = x[..., : D // 2]  # (T, heads, D / 2)
    second = x[..., D // 2 :]  # (T, heads, D / 2)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)


def _mlp(model: PlainModel, block: PlainBlock, x: Tensor) -> Tensor:
    """Return (T, C) from x (T, C): SwiGLU (arXiv:2002.05202) with a gate, GELU without one."""
    up = _linear(block.up, x)  # (T, d_hid)
    if block.gate is None:
        return _linear(block.down, _gelu(model, up))  # (T, C)
    gate = _linear(block.gate, x)  # (T, d_hid)
    return _linear(block.down, gate / (1 + (-gate).exp()) * up)  # (T, C)


def _gelu(model: PlainModel, x: Tensor) -> Tensor:
    """Source: arXiv:1606.08415, section 2."""
    if model.gelu == "erf":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + torch.tanh(inner))
