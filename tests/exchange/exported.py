"""Tiny trained-looking models for tests of exports, and formats that do what a test needs."""

from pathlib import Path

import harness
import parts
import torch

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
