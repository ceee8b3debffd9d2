"""The forward pass of GPT-2, Llama and Qwen3, written out plainly from the papers' formulas.

It shares no code with our own model: exports are proven against it. Slow, and easy to check.

Letters: T tokens, C width, H query heads, G heads of keys and values, D head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

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
    """Return the logits (T, V), fp32, of one sequence of ids (T,); computed in fp32."""
    raise NotImplementedError
