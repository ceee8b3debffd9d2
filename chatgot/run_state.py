"""Everything that changes while training, in one place: collect it, restore it."""

import math
import random
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer


@dataclass
class RunState:
    """The counters of a run; weights, optimizer and scaler keep their own state."""

    run_id: str  # {config}_{timestamp}
    precision: str  # fp32, bf16 or fp16: what is in force
    micro_batch_size: int  # sequences per forward and backward
    threads: int  # CPU threads: other numbers give other bits
    global_step: int = 0  # optimizer updates attempted
    position: int = 0  # index of the group of sequences that the next step trains on
    tokens: int = 0  # tokens trained on
    time_s: float = 0.0  # seconds in the training loop, over all resumes
    nan_counter: int = 0  # non-finite steps in a row
    skipped_steps: int = 0  # steps whose update was left out
    train_loss: float | None = None  # of the last step: token-weighted mean, nats per token
    grad_norm: float | None = None  # of the last step, before clipping
    lr: float | None = None  # of the last step
    tokens_per_s: float | None = None  # of the steps between the last two rows
    val_loss: float | None = None  # of the last evaluation, nats per token
    best_val_loss: float = math.inf
    best_step: int = -1
    last_eval_step: int = -1
    last_sample_step: int = 0  # untrained weights are not sampled, and not saved
    last_save_step: int = 0

    def due(self, interval: int | None, last: int) -> bool:
        """Return whether something done every `interval` steps, last at step `last`, is to be done now."""
        return interval is not None and self.global_step % interval == 0 and last != self.global_step


def collect_state(run: RunState, model: nn.Module, optimizer: Optimizer, scaler: GradScaler) -> dict[str, Any]:
    """Return everything that changes while training, as plain values and tensors (shared, not copied)."""
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        "run": asdict(run),
        "rng": generator_states(),
    }


def restore_state(
    stored: dict[str, Any], run: RunState, model: nn.Module, optimizer: Optimizer, scaler: GradScaler
) -> None:
    """Put a collected state back, generators last. The caller has checked that it fits."""
    model.load_state_dict(stored["model_state_dict"], strict=True)
    optimizer.load_state_dict(stored["optimizer_state_dict"])
    if scaler.is_enabled() and stored["scaler_state_dict"]:  # a disabled scaler has no state
        scaler.load_state_dict(stored["scaler_state_dict"])
    for field in fields(RunState):
        setattr(run, field.name, stored["run"][field.name])
    set_generator_states(stored["rng"])


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators as tensors, lists and plain numbers."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
