"""Small parts for unit tests, each made in milliseconds: a configuration, ids, a whole run."""

import contextlib
import io
import signal
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chosen_device import device_name
from harness import same as same

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config import Config
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Characters
from chatgot.data.windows import TrainingWindows
from chatgot.run.assembly import Run, assemble
from chatgot.run.resuming import find_latest

CPU = torch.device("cpu")
DEVICE = torch.device(device_name())  # of the runs that `run` returns
ALPHABET = "\n abcdefghijklmnop"
RUN_ID = "tiny_20250102-030405"

SECTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "d_model": 16,
        "n_layers": 2,
        "n_head": 2,
        "d_hid": 24,
        "max_seq_length": 8,
        "dropout": 0.0,
    },
    "training": {
        "max_steps": 10,
        "batch_size": 4,
        "accumulate_grad_batches": 2,
        "warmup_steps": 2,
        "threads": 1,
        # on a busy machine `auto` would measure slow blocks and compile: seconds of work, no hooks
        "compile": False,
    },
}


def config(**sections: Any) -> Config:
    """Return a tiny configuration; keyword arguments are sections to merge, or top-level keys."""
    values: dict[str, Any] = {
        "seed": 5,
        "device": DEVICE.type,
        **{name: dict(keys) for name, keys in SECTIONS.items()},
    }
    for name, value in sections.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    return Config(**values)


def made_up_ids(n: int, seed: int = 0, characters: int = len(ALPHABET)) -> np.ndarray:
    """Return n random ids of characters, without the end-of-text token."""
    return np.random.default_rng(seed).integers(1, characters + 1, n).astype("<u2")


def tokens(n: int = 2000, seed: int = 0, alphabet: str = ALPHABET) -> Tokens:
    """Return a made-up text as tokens, with its vocabulary and hash."""
    ids = made_up_ids(n, seed, min(len(ALPHABET), len(alphabet)))
    return Tokens(ids, Characters(alphabet), sha256(ids.tobytes()).hexdigest(), "utf-8")


def run(stored: dict[str, Any] | None = None, precision: str = "fp32", **sections: Any) -> Run:
    """Return a new run on made-up text, in training mode."""
    if precision != "fp32":
        mixed = {"mixed_precision": True, "precision_dtype": precision}
        sections["training"] = {**mixed, **sections.get("training", {})}
    run = assemble(config(**sections), tokens(), DEVICE, stored)
    run.state.run_id = RUN_ID
    run.model.train()
    return run


def windows(T: int = 8, n: int = 1000, seed: int = 5) -> TrainingWindows:
    """Return the training windows of a made-up text."""
    return TrainingWindows(made_up_ids(n), T, len(ALPHABET) + 1, CPU, seed)


def checkpoint_file(folder: Path, run: Run) -> Path:
    """Save `run` under its own name in `folder` and return the path."""
    path = folder / f"{run.state.run_id}_step_{run.state.progress.global_step}.pt"
    save_checkpoint(path, run.checkpoint())
    return path


def latest(checkpoint_dir: Path, config_path: Path = Path("tiny.yaml")) -> tuple[Path, dict]:
    """Return what `--resume_from latest` finds in a folder of checkpoints."""
    folders = {"checkpoints": str(checkpoint_dir), "logs": str(checkpoint_dir / "no logs")}
    path, content, _ = find_latest(config(paths=folders), config_path)
    return path, content


def with_digest(plain: bytes) -> bytes:
    """Return a zip with the right SHA-256 as its comment, as an attacker could write it."""
    assert plain[-22:-18] == b"PK\x05\x06"
    body = plain[:-2] + struct.pack("<H", 64)
    return body + sha256(body).hexdigest().encode()


def forge(path: Path, content: Any) -> None:
    """Write a checkpoint that a save would refuse to write, with the right SHA-256."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(with_digest(buffer.getvalue()))


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a nested state that shares no tensor with it."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Make a block that hangs fail after 10 s."""

    def too_late(number: int, frame: object) -> None:
        # pytest.fail raises no Exception, so that no handler on the way catches it
        pytest.fail("this took more than 10 s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
