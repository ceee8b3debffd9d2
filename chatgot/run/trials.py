"""What a pass over the next step's sequences takes, cut into micro-batches of some size.

A trial computes real sequences and throws their gradients away: generators, data position, weights
and counters stay as they are.

Letters: S sequences of one optimizer step.
"""

import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from chatgot.config import Config
from chatgot.data.windows import TrainingWindows
from chatgot.distributed.ranks import Ranks
from chatgot.machine.measured import synchronise
from chatgot.machine.memory import is_out_of_memory, release_memory, too_full, used_memory
from chatgot.model.gpt import GPT, without_dropout
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.distillation import Teaching
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import GRADIENT_TOLERANCE, PROOF_SCALE, autocast
from chatgot.run.modes import give_up_gradient_checkpointing
from chatgot.run.run_state import RunState
from chatgot.stopping import Stopped

TIMED_SEQUENCES = 6  # to time at least, or per-step overhead would dominate
ROUNDS = 3  # the first is a warm-up that finds what fits; the next one replaces its times


class Trained(Protocol):
    """The parts of a run that a pass needs."""

    config: Config
    device: torch.device
    model: GPT
    scaler: SafeGradScaler
    state: RunState
    train_windows: TrainingWindows
    teaching: Teaching | None
    ranks: Ranks


def time_sizes(
    run: Trained, sizes: list[int], deadline: float, stopped: Stopped
) -> tuple[dict[int, float], dict[int, str]]:
    """Return the seconds per sequence of each size that fits, and why the others do not.

    sizes: ascending. A size predicted to break `memory_headroom` is not tried; the first is tried
    whatever is predicted. A pass that would end after `deadline` (time.perf_counter()) is not
    started.
    """
    S = run.config.training.sequences_per_step
    seconds: dict[int, float] = {}
    rejected: dict[int, str] = {}
    release_memory(run.device)
    base = used_memory(run.device) + 4 * run.model.trained_count()  # with the gradients
    for round_number in range(ROUNDS):
        is_first_round = round_number == 0
        for size in [size for size in sizes if size not in rejected]:
            sequences = size
            if not is_first_round:
                micro_batches = math.ceil(min(S, TIMED_SEQUENCES) / size)
                sequences = min(S, size * micro_batches)
            if stopped() or _ends_late(seconds, sequences, deadline):
                untried = sizes[len(seconds) + len(rejected) :]
                return seconds, rejected | dict.fromkeys(untried, "no time to try it")
            extra_bytes = None
            if is_first_round:
                extra_bytes = _expected_memory(run, seconds, size, base)
            trial = _try_size(run, sequences, size, extra_bytes)
            if isinstance(trial, str):
                seconds = {smaller: s for smaller, s in seconds.items() if smaller < size}
                rejected |= dict.fromkeys(sizes[sizes.index(size) :], trial)
                release_memory(run.device)
                break
            seconds_per_sequence = trial / sequences
            # the warm-up's time is replaced, not compared with
            if round_number > 1:
                seconds_per_sequence = min(seconds_per_sequence, seconds.get(size, math.inf))
            seconds[size] = seconds_per_sequence
    return seconds, rejected


def _ends_late(seconds: dict[int, float], sequences: int, deadline: float) -> bool:
    """Return whether a pass over so many sequences would end after the deadline."""
    if not seconds:
        return False
    return time.perf_counter() + sequences * min(seconds.values()) > deadline


def _expected_memory(run: Trained, seconds: dict[int, float], size: int, base: int) -> float | None:
    """Return the extra bytes a size is expected to need over the largest size tried.

    None for the first size.
    """
    if not seconds:
        return None
    largest = max(seconds)
    per_sequence = (used_memory(run.device) - base) / largest
    return max(0.0, per_sequence * (size - largest))


def _try_size(run: Trained, sequences: int, size: int, extra_bytes: float | None) -> float | str:
    """Return a pass's seconds, or the reason the size is rejected.

    extra_bytes: what it is expected to need; None: its memory is not checked.
    """
    headroom = run.config.training.dynamic_batch_size.memory_headroom
    if extra_bytes is not None:
        problem = too_full(run.device, headroom, extra_bytes)
        if problem:
            return problem
    trial = run_trial(run, sequences, size)
    if isinstance(trial, str):
        return trial
    if extra_bytes is not None:
        problem = too_full(run.device, headroom, 0)
        if problem:
            return problem
    return trial.seconds


@dataclass
class Trial:
    """A pass whose gradients are taken off the model."""

    gradients: list[Tensor | None]
    seconds: float


def run_trial(run: Trained, sequences: int, size: int) -> Trial | str:
    """Compute the gradients of the next step's first `sequences` sequences, `size` at once.

    Returns them and the seconds, or why that failed; on failure its memory is released.
    """
    state = run.state
    model = run.model
    position = state.progress.position
    S = run.config.training.sequences_per_step
    starts = run.train_windows.starts(position, S)[:sequences]
    scale = 1.0
    if state.modes.precision == "fp16":
        scale = min(run.scaler.get_scale(), PROOF_SCALE)
    start = time.perf_counter()
    out_of_memory = False
    try:
        key = (run.config.seed, position)
        with autocast(run.device, state.modes.precision):
            add_gradients(
                model,
                run.train_windows,
                starts,
                size,
                key,
                lambda loss: loss * scale,
                teaching=run.teaching,
                later=run.config.training.multi_token_weights,  # the most that a step takes
            )
        synchronise(run.device)
        gradients = [p.grad for p in model.parameters()]
        return Trial(gradients, time.perf_counter() - start)
    except CheckpointError as error:
        give_up_gradient_checkpointing(model, state, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    finally:
        model.zero_grad(set_to_none=True)
    if out_of_memory:
        # only now: inside the handler, the exception's traceback keeps the tensors alive
        release_memory(run.device)
        return "out of memory"
    return run_trial(run, sequences, size)


def compare_gradients(run: Trained, sequences: int, size: int, other: int) -> str:
    """Return how the gradient differs between two sizes, dropout off; empty: within tolerance."""
    with without_dropout(run.model):
        expected = run_trial(run, sequences, size)
        computed = run_trial(run, sequences, other)
    if isinstance(expected, str):
        return expected
    if isinstance(computed, str):
        return computed
    norms = []
    distances = []
    for a, b in zip(expected.gradients, computed.gradients, strict=True):
        if a is not None and b is not None:
            norms.append(a.norm().item())
            distances.append(a.sub_(b).norm().item())
    norm = math.hypot(*norms)
    distance = math.hypot(*distances)
    tolerance = GRADIENT_TOLERANCE[run.state.modes.precision]
    if distance <= tolerance * norm:  # false for NaN
        return ""
    share = distance / norm if norm else math.inf
    return f"its gradient differs by {share:.2g} of the norm, at most {tolerance:g} is rounding"
