"""Everything that changes while training, in one place: collect it, restore it."""

import copy
import math
import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.optim import allocate_state


@dataclass
class RunState:
    """The counters of a run; weights, optimizer and scaler keep their own state."""

    run_id: str  # {config}_{timestamp}
    precision: str  # fp32, bf16 or fp16: what is in force
    micro_batch_size: int  # sequences per forward and backward
    threads: int  # CPU threads: other numbers give other bits
    attention: str = "sdpa"  # the kernel: another one gives other bits, and so does compiling
    compiled: bool = False  # the blocks run compiled
    muon_precision: str = "fp32"  # of the products of Muon's updates
    eval_batch_size: int = 1  # sequences per forward of an evaluation
    size_history: list = field(
        default_factory=list
    )  # [step, from, to, why] of each change of micro_batch_size
    sizes_rejected: list = field(default_factory=list)  # [size, times, not before this step, why]
    next_growth_step: int = 0  # no larger size is tried before this step
    asked_precision: str = "fp32"  # what the run began with; a fallback may lower `precision`
    global_step: int = 0  # optimizer updates attempted
    position: int = 0  # index of the group of sequences that the next step trains on
    tokens: int = 0  # tokens trained on
    time_s: float = 0.0  # seconds in the training loop, over all resumes
    skipped_steps: int = 0  # of the steps up to global_step: those whose update was left out
    skips: int = 0  # the same, with those that a rewind has undone
    bad_steps: list = field(
        default_factory=list
    )  # those in a row: [step, position, loss, gradient norm] of each
    best_train_loss: float = math.inf  # lowest loss of a step so far
    recent_losses: list = field(
        default_factory=list
    )  # of the last good steps, for the spike statistic
    rewinds: int = 0
    rewound_to: int = -1  # step of the last rewind's file, 0 for the start
    skipped_ranges: list = field(
        default_factory=list
    )  # [first, end): positions that rewinds leave out
    good_steps: int = 0  # in a row, since the precision in force was taken up
    bad_before_rung: int = 0  # of `bad_steps`: those before the precision was lowered
    precision_raised: bool = False  # after a fallback it may climb back once
    from_seed: bool = True  # began with fresh weights, not with another run's
    last_proof_step: int = 0  # gradient checkpointing's last proof
    recompute_off: bool = False  # gradient checkpointing failed its proof, or a step, and stays off
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

    def advance(self) -> None:
        """Go to the next group of sequences, past those that a rewind leaves out."""
        self.position += 1
        self.leave_out()

    def leave_out(self) -> None:
        """Move the position out of the ranges that are left out, which are in order."""
        for first, end in self.skipped_ranges:
            if first <= self.position < end:
                self.position = end

    def due(self, interval: int | None, last: int) -> bool:
        """Return whether something done every `interval` steps, last at step `last`, is to be done now."""
        return (
            interval is not None and self.global_step % interval == 0 and last != self.global_step
        )


def collect_state(
    run: RunState, model: nn.Module, optimizer: Optimizer, scaler: SafeGradScaler
) -> dict[str, Any]:
    """Return everything that changes while training, as plain values and tensors (shared, not copied)."""
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        "run": asdict(run),
        "rng": generator_states(),
    }


def restore_state(
    stored: dict[str, Any],
    run: RunState,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: SafeGradScaler,
) -> None:
    """Put a collected state back, generators last. The caller has checked that it fits."""
    model.load_state_dict(stored["model_state_dict"], strict=True)
    optimizer.load_state_dict(stored["optimizer_state_dict"])
    allocate_state(optimizer)  # a state from before the first update has none
    scaler.load_state_dict(stored["scaler_state_dict"])
    for item in fields(RunState):
        setattr(run, item.name, copy.deepcopy(stored["run"][item.name]))
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
