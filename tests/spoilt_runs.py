"""Tiny runs of the real script with spoilt losses, out of memory, or a signal."""

import contextlib
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor, nn

from chatgot.run.assembly import Run
from chatgot.run.run_state import RunState

STEPS = 40
BASE = {
    "max_steps": STEPS,
    "save_checkpoint_steps": 4,
    "checkpoint_interval_minutes": None,
    "eval_interval": 40,
    "sample_interval_steps": None,
    "safety": {"rewind_skip_steps": 2},
    "max_checkpoints_to_keep": 3,
    "learning_rate": 3e-3,
    "accumulate_grad_batches": 2,
}

Spoil = Callable[[RunState, Tensor], Tensor]  # the loss of one micro-batch -> its replacement
Poke = Callable[[RunState, nn.Module], None]  # may change weights and gradients of a step


def run(
    folder: Path,
    *arguments: str,
    spoil: Spoil | None = None,
    poke: Poke | None = None,
    stop_at: int | None = None,
    stop_when: Callable[[RunState], bool] | None = None,
) -> int:
    """Train in this process, in `folder`; return the exit code.

    spoil: may return another loss for a micro-batch in place of the real one.
    poke: may change weights and gradients once a step's gradients are complete.
    A SIGTERM comes in the step after `stop_at`, or in the first one in which `stop_when` is true.
    """
    script = harness.load_script()
    real = script.compute_gradients

    def signal_comes(state: RunState) -> bool:
        if state.progress.global_step == stop_at:
            return True
        return stop_when is not None and stop_when(state)

    def compute_gradients(run: Run) -> Tensor:
        if signal_comes(run.state):
            script.STOP.exit_code = 143
            script.STOP.signal_name = "SIGTERM"
        if poke is not None:
            loss = real(run)
            poke(run.state, run.model)
            return loss
        if spoil is None:
            return real(run)
        with spoilt_losses(run, spoil):
            return real(run)

    script.compute_gradients = compute_gradients
    threads = torch.get_num_threads()
    try:
        with contextlib.chdir(folder):
            return script.main(["--config", "tiny.yaml", *arguments])
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def spoilt_losses(run: Run, spoil: Spoil):
    """Replace each training loss by `spoil` of it while the block runs."""
    forward = run.model.forward

    def spoilt(x, y=None, cache=None):
        logits, loss = forward(x, y, cache)
        if y is None or not run.model.training:
            return logits, loss
        return logits, spoil(run.state, loss)

    run.model.forward = spoilt
    try:
        yield
    finally:
        del run.model.forward


def poison(positions: Collection[int], value: float = math.nan) -> Spoil:
    """Return a Spoil that replaces the loss at some positions of the data, whenever they come."""
    fired = []

    def spoil(state: RunState, loss: Tensor) -> Tensor:
        if state.progress.position in positions:
            fired.append(state.progress.position)
            return loss * value
        return loss

    spoil.fired = fired
    return spoil


def new(folder: Path, **training: Any) -> Path:
    """Make a folder with a text and a YAML, and return it; keyword arguments are training keys."""
    folder.mkdir(exist_ok=True)
    harness.write_config(folder, training=harness.merged(BASE, training))
    return folder


def final(folder: Path) -> dict[str, Any]:
    """Return the checkpoint of the last step."""
    return harness.load(harness.checkpoints(folder)[STEPS])


def trained(folder: Path) -> dict[str, Any]:
    """Return what must be equal in two complete runs of the same steps."""
    return harness.trained(final(folder))
