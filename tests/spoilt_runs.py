"""Tiny runs of the real script in which a loss is spoilt, memory runs out or a signal comes."""

import contextlib
import math
from collections.abc import Callable, Collection
from pathlib import Path

import harness
import torch

STEPS = 40
BASE = {
    "max_steps": STEPS, "save_checkpoint_steps": 4, "checkpoint_interval_minutes": None, "eval_interval": 40,
    "sample_interval_steps": None, "safety": {"rewind_skip_steps": 2}, "max_checkpoints_to_keep": 3, "learning_rate": 3e-3,
    "accumulate_grad_batches": 2,
}  # fmt: skip


def run(
    folder: Path, *arguments: str, spoil: Callable | None = None, stop_at: int | None = None,
    stop_when: Callable | None = None, poke: Callable | None = None,
) -> int:  # fmt: skip
    """Train here; `spoil(run, loss)` may return another loss for a micro-batch's place of the real one.

    A SIGTERM comes in the step after `stop_at`, or in the first one in which `stop_when(run)` holds. `poke(run, model)`
    may touch weights and gradients when a step's gradients are there.
    """
    script = harness.load_script()
    real = script.compute_gradients

    def compute_gradients(run):
        state = run.state
        if state.progress.global_step == stop_at or (stop_when and stop_when(state)):
            script.STOP.exit_code = 143
            script.STOP.signal_name = "SIGTERM"
        if poke:
            loss = real(run)
            poke(state, run.model)
            return loss
        if spoil is None:
            return real(run)
        forward = run.model.forward

        def spoilt(x, y=None, caches=None):
            logits, loss = forward(x, y, caches)
            if y is None or not run.model.training:
                return logits, loss
            return logits, spoil(state, loss)

        run.model.forward = spoilt
        try:
            return real(run)
        finally:
            del run.model.forward

    script.compute_gradients = compute_gradients
    threads = torch.get_num_threads()
    try:
        with contextlib.chdir(folder):
            return script.main(["--config", "tiny.yaml", *arguments])
    finally:
        torch.set_num_threads(threads)


def poison(positions: Collection[int], value: float = math.nan) -> Callable:
    """Spoil the loss of some positions of the data, whenever they are trained on."""
    fired = []

    def spoil(state, loss):
        if state.progress.position in positions:
            fired.append(state.progress.position)
            return loss * value
        return loss

    spoil.fired = fired
    return spoil


def new(folder: Path, **training) -> Path:
    folder.mkdir(exist_ok=True)
    harness.write_config(folder, training=harness.merged(BASE, training))
    return folder


def final(folder: Path) -> dict:
    return harness.load(harness.checkpoints(folder)[STEPS])


def log_of(folder: Path) -> str:
    (path,) = (folder / "logs").glob("train_*.log")
    return path.read_text(encoding="utf-8")
