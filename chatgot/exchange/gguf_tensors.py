"""Which tensors does a GGUF file have for our model, by which names, and how are they stored?

The names are those of llama.cpp's architectures gpt2, llama and qwen3.
Letters: C width, D head size, R rows of a matrix.
"""

from typing import Literal

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from numpy.typing import NDArray
from torch import Tensor, nn

from chatgot.config import ModelConfig
from chatgot.exchange.formats import Dtype
from chatgot.model.gpt import GPT, MLP, Attention, Block, GatedMLP

Architecture = Literal["gpt2", "llama", "qwen3"]
STORED: dict[Dtype, Stored] = {
    "fp32": Stored.F32,
    "fp16": Stored.F16,
    "bf16": Stored.BF16,
    "q8_0": Stored.Q8_0,
}
POSITIONS = "position_embd.weight"
Q8_BLOCK = 32  # weights of a row that share one scale


def architecture_of(cfg: ModelConfig) -> Architecture:
    """Return llama.cpp's name for an architecture of ours."""
    if cfg.architecture == "gpt":
        return "gpt2"
    return "qwen3" if cfg.qk_norm else "llama"


def stored_as(name: str, shape: torch.Size, dtype: Dtype) -> Stored:
    """Return how a tensor is stored.

    What llama.cpp adds or multiplies element by element stays fp32: norms, biases, positions. Rows
    that Q8_0 cannot divide stay fp16.

    name: in a GGUF.
    """
    if len(shape) < 2 or name == POSITIONS:
        return Stored.F32
    if dtype == "q8_0" and shape[-1] % Q8_BLOCK:
        return Stored.F16
    return STORED[dtype]


def tensors_in_gguf(model: GPT) -> dict[str, Tensor]:
    """Return the tensors of a model by their names in a GGUF; a tied head is left out.

    Queries and keys of `llama` have their rows in another order: there, a rotation turns elements
    2 i and 2 i + 1 of a head, not i and i + D / 2.
    """
    tensors = {"token_embd.weight": model.token_embedding.weight}
    if model.position_embedding is not None:
        tensors[POSITIONS] = model.position_embedding.weight
    for i, block in enumerate(model.blocks):
        tensors |= _block(model.cfg, block, f"blk.{i}.")
    tensors |= _norm(model.norm, "output_norm")
    if not model.cfg.tie_embeddings:
        tensors["output.weight"] = model.head.weight
    return {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}


def bytes_in_gguf(tensor: Tensor, stored: Stored) -> NDArray[np.generic]:
    """Return a tensor as it is stored; what is too large for fp16 becomes infinite."""
    with np.errstate(over="ignore"):
        array: NDArray[np.generic] = gguf.quantize(tensor.contiguous().numpy(), stored)
    return array


def values_of(array: NDArray[np.generic], stored: Stored) -> Tensor:
    """Return what was stored, fp32."""
    return torch.from_numpy(np.array(gguf.dequantize(array, stored), dtype=np.float32))


def _block(cfg: ModelConfig, block: Block, prefix: str) -> dict[str, Tensor]:
    tensors = _norm(block.norm_attention, f"{prefix}attn_norm")
    tensors |= _norm(block.norm_mlp, f"{prefix}ffn_norm")
    if isinstance(block.mlp, MLP):
        tensors |= _linear(block.attention.qkv, f"{prefix}attn_qkv")
        tensors |= _linear(block.attention.proj, f"{prefix}attn_output")
        tensors |= _linear(block.mlp.up, f"{prefix}ffn_up")
        return tensors | _linear(block.mlp.down, f"{prefix}ffn_down")
    return tensors | _modern(cfg, block.attention, block.mlp, prefix)


def _modern(
    cfg: ModelConfig, attention: Attention, mlp: GatedMLP, prefix: str
) -> dict[str, Tensor]:
    q, k, v = torch.split(attention.qkv.weight, list(attention.sizes))
    norms: dict[str, Tensor] = {}
    if attention.q_norm is not None and attention.k_norm is not None:
        norms |= _norm(attention.q_norm, f"{prefix}attn_q_norm")
        norms |= _norm(attention.k_norm, f"{prefix}attn_k_norm")
    if architecture_of(cfg) == "llama":
        q = _neighbours(q, cfg.head_size)
        k = _neighbours(k, cfg.head_size)
    gate, up = mlp.gate_up.weight.chunk(2)
    return norms | {
        f"{prefix}attn_q.weight": q,
        f"{prefix}attn_k.weight": k,
        f"{prefix}attn_v.weight": v,
        f"{prefix}attn_output.weight": attention.proj.weight,
        f"{prefix}ffn_gate.weight": gate,
        f"{prefix}ffn_up.weight": up,
        f"{prefix}ffn_down.weight": mlp.down.weight,
    }


def _neighbours(rows: Tensor, D: int) -> Tensor:
    """Put rows i and i + D / 2 of each head next to each other; rows: (R, C)."""
    R, C = rows.shape
    return rows.view(R // D, 2, D // 2, C).transpose(1, 2).reshape(R, C)


def _norm(norm: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a norm's weight, and the bias of a LayerNorm: llama.cpp wants one, be it of zeros."""
    assert isinstance(norm, nn.RMSNorm | nn.LayerNorm)
    tensors: dict[str, Tensor] = {f"{name}.weight": norm.weight}
    if isinstance(norm, nn.LayerNorm):
        tensors[f"{name}.bias"] = _bias(norm)
    return tensors


def _linear(layer: nn.Linear, name: str) -> dict[str, Tensor]:
    """Return a layer of gpt2, where llama.cpp wants biases, be they of zeros."""
    return {f"{name}.weight": layer.weight, f"{name}.bias": _bias(layer)}


def _bias(module: nn.Linear | nn.LayerNorm) -> Tensor:
    bias: Tensor | None = module.bias
    return module.weight.new_zeros(module.weight.shape[0]) if bias is None else bias
