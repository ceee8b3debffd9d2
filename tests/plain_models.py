"""Our models in the words of plain_forward.py; models of all shapes that can leave."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import parts
import torch
from torch import nn

from chatgot.config import Config, ModelConfig
from chatgot.data.vocabulary import Characters
from chatgot.exchange.plain_forward import PlainBlock, PlainLinear, PlainModel, PlainNorm
from chatgot.model.gpt import GPT, Block, build_model
from chatgot.sampling.loading import LoadedModel, load_model
from chatgot.sampling.speakers import Speaker

# Each kind differs from another one in one thing
KINDS: dict[str, dict] = {
    "gpt": {},
    "gpt_without_biases": {"bias": False},
    "gpt_tanh": {"activation": "gelu_tanh"},
    "gpt_untied": {"tie_embeddings": False},
    "qwen3": {"architecture": "modern"},
    "qwen3_untied": {"architecture": "modern", "tie_embeddings": False},
    "qwen3_grouped": {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "head_dim": 6},
    "qwen3_rope": {"architecture": "modern", "rope_base": 500.0, "layer_norm_eps": 1e-3},
    "llama": {"architecture": "modern", "qk_norm": False},
    "llama_grouped": {
        "architecture": "modern",
        "qk_norm": False,
        "n_head": 4,
        "n_kv_head": 1,
        "head_dim": 6,
        "rope_base": 500.0,
        "tie_embeddings": False,
    },
}

# A shape that LlamaForCausalLM refuses
ODD = {"architecture": "modern", "qk_norm": False, "n_head": 3, "head_dim": 6}


def random_model(kind: str, vocab_size: int, **keys) -> GPT:
    """Return a model, in evaluation mode, in which each weight, bias and norm is random."""
    shape = {
        "max_seq_length": 32,
        "init_range": 0.2,
        **(KINDS | {"llama_odd_width": ODD})[kind],
        **keys,
    }
    model = build_model(parts.config(model=shape).model, vocab_size, parts.CPU, seed=3)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            with torch.no_grad():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False).eval()


def loaded_model(kind: str, characters: str, **sections) -> LoadedModel:
    """Return a random model with a vocabulary and two speakers, as if loaded from a checkpoint."""
    vocabulary = Characters(characters)
    model = random_model(kind, len(vocabulary))
    values = parts.config(**sections).model_dump()
    config = Config(**{**values, "model": model.cfg.model_dump()})
    speakers = (Speaker("KING", 60, 0.6, "QUEEN"), Speaker("QUEEN", 40, 0.4, "KING"))
    return replace(_loaded(), model=model, vocabulary=vocabulary, config=config, speakers=speakers)


@cache
def _loaded() -> LoadedModel:
    """Return a tiny model from a checkpoint, which is made once."""
    with TemporaryDirectory() as folder:
        return load_model(parts.checkpoint_file(Path(folder), parts.run()), parts.CPU)


def as_plain(model: GPT) -> PlainModel:
    """Return a model of ours in the words of plain_forward.py."""
    cfg = model.cfg
    positions = model.position_embedding
    return PlainModel(
        embedding=model.token_embedding.weight,
        positions=None if positions is None else positions.weight,
        blocks=[_block(cfg, block) for block in model.blocks],
        norm_final=_norm(model.norm),
        head=model.head.weight,
        n_head=cfg.n_head,
        n_kv_head=cfg.kv_heads,
        norm="rms" if cfg.architecture == "modern" else "layer",
        eps=cfg.layer_norm_eps,
        rope_base=cfg.rope_base,
        gelu="tanh" if cfg.activation == "gelu_tanh" else "erf",
    )


def _block(cfg: ModelConfig, block: Block) -> PlainBlock:
    attention = block.attention
    q, k, v = _parts(attention.qkv, list(attention.sizes))
    if cfg.architecture == "modern":
        gate, up = _parts(block.mlp.gate_up, [block.mlp.down.in_features] * 2)
    else:
        gate = None
        up = _linear(block.mlp.up)
    return PlainBlock(
        norm_attention=_norm(block.norm_attention),
        q=q,
        k=k,
        v=v,
        out=_linear(attention.proj),
        norm_mlp=_norm(block.norm_mlp),
        up=up,
        down=_linear(block.mlp.down),
        gate=gate,
        q_norm=None if attention.q_norm is None else _norm(attention.q_norm),
        k_norm=None if attention.k_norm is None else _norm(attention.k_norm),
    )


def _linear(layer: nn.Linear) -> PlainLinear:
    return PlainLinear(layer.weight, layer.bias)


def _parts(layer: nn.Linear, sizes: list[int]) -> list[PlainLinear]:
    """Return the layers that one layer of ours puts side by side."""
    weights = layer.weight.split(sizes)
    biases = [None] * len(sizes) if layer.bias is None else layer.bias.split(sizes)
    return [PlainLinear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _norm(norm: nn.Module) -> PlainNorm:
    return PlainNorm(norm.weight, getattr(norm, "bias", None))
