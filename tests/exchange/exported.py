"""Tiny trained-looking models for tests of exports, and formats that do what a test needs."""

from pathlib import Path

import harness
import parts
import torch
from torch import Tensor

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.data.token_cache import load_tokens
from chatgot.exchange.plain_safetensors import PlainSafetensors
from chatgot.run.assembly import Run, assemble
from chatgot.sampling.loading import LoadedModel, load_model

RUN_ID = "tiny_20250102-030405"
TEXT = "text.txt"


def write_text(folder: Path) -> Path:
    """Write a made-up dialogue; return its path."""
    path = folder / TEXT
    path.write_text(harness.make_text(3000), encoding="utf-8")
    return path


def a_run(folder: Path, **model: object) -> Run:
    """Return a run on a made-up dialogue in `folder`, with weights that are not tiny."""
    text = write_text(folder)
    config = parts.config(
        model={"max_seq_length": 32, **model},
        data={"path": str(text)},
        paths={"cache": str(folder / "cache")},
    )
    run = assemble(config, load_tokens(text, folder / "cache"), parts.CPU, None)
    run.state.run_id = RUN_ID
    grow(run.model)
    return run


def grow(model: torch.nn.Module) -> None:
    """Make the weights large enough that each one matters to the logits."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise)


def checkpoint(folder: Path, **model: object) -> Path:
    """Save a run's checkpoint in `folder`/checkpoints; return its path."""
    place = folder / "checkpoints"
    place.mkdir(exist_ok=True)
    path = place / f"{RUN_ID}_step_0.pt"
    save_checkpoint(path, a_run(folder, **model).checkpoint())
    return path


def loaded(folder: Path, **model: object) -> LoadedModel:
    """Return the model of such a checkpoint."""
    return load_model(checkpoint(folder, **model), parts.CPU)


class Spoilt(PlainSafetensors):
    """The plain format with a mistake: `spoil(folder)` changes what was written."""

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def write(self, loaded, dtype, folder):
        remarks = super().write(loaded, dtype, folder)
        self.spoil(folder)
        return remarks


def plain_logits(model, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of a PlainModel."""
    x = model.embedding[ids]
    T = len(ids)
    if model.positions is not None:
        x = x + model.positions[:T]
    for block in model.blocks:
        x = x + attention(model, block, normal(model, x, block.norm_attention))
        h = normal(model, x, block.norm_mlp)
        up = linear(block.up, h)
        if block.gate is None:
            approximate = "tanh" if model.gelu == "tanh" else "none"
            hidden = torch.nn.functional.gelu(up, approximate=approximate)
        else:
            gate = linear(block.gate, h)
            hidden = gate * torch.sigmoid(gate) * up
        x = x + linear(block.down, hidden)
    return normal(model, x, model.norm_final) @ model.head.T


def linear(layer, x):
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def normal(model, x, norm):
    if model.norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + model.eps).sqrt() * norm.weight
    return x if norm.bias is None else x + norm.bias


def attention(model, block, x):
    T = len(x)
    heads = []
    D = block.q.weight.shape[0] // model.n_head
    q = linear(block.q, x).view(T, model.n_head, D)
    k = linear(block.k, x).view(T, model.n_kv_head, D)
    v = linear(block.v, x).view(T, model.n_kv_head, D)
    if block.q_norm is not None:
        q = normal(model, q, block.q_norm)
        k = normal(model, k, block.k_norm)
    if model.positions is None:
        q = turned(q, model.rope_base)
        k = turned(k, model.rope_base)
    future = torch.full((T, T), -torch.inf).triu(1)
    for head in range(model.n_head):
        group = head * model.n_kv_head // model.n_head
        scores = q[:, head] @ k[:, group].T / D**0.5 + future
        heads.append(scores.softmax(-1) @ v[:, group])
    return linear(block.out, torch.cat(heads, dim=-1))


def turned(x, base):
    T, _, D = x.shape
    angle = torch.arange(T)[:, None] / base ** (torch.arange(D // 2) * 2 / D)
    cosine = angle.cos()[:, None]
    sine = angle.sin()[:, None]
    low = x[..., : D // 2]
    high = x[..., D // 2 :]
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
