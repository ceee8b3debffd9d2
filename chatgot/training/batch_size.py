"""Which micro-batch fits, pays and is proven equal.

It is halved when memory runs out, raised after a validated trial. One step trains on the same
sequences with the same weighting whatever its size; the size decides only how many of them go
through at once. Trials compute real sequences of the next step and throw their gradients away:
generators, data position, weights and counters stay as they are.

Letters: S sequences of one optimizer step.
"""

import logging
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from chatgot.config import TrainingConfig
from chatgot.errors import OutOfMemory
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.device import preserved_generators
from chatgot.machine.measured import synchronise
from chatgot.machine.memory import (
    MIB,
    is_out_of_memory,
    memory_limits,
    peak_memory_mib,
    release_memory,
    too_full,
    used_memory,
)
from chatgot.model.gpt import without_dropout
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.precision import PROOF_SCALE, autocast
from chatgot.run.assembly import Run
from chatgot.run.modes import give_up_gradient_checkpointing
from chatgot.run.run_state import RejectedSize, SizeChange
from chatgot.stopping import Stopped

logger = logging.getLogger(__name__)

# largest difference between the gradients of two micro-batch sizes, relative to the norm
GRADIENT_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
SEARCH_S = 12.0  # seconds for the search at the start
COMPARE_S = 3.0  # seconds for each pass of the gradient comparison
TIMED_SEQUENCES = 6  # to time at least, or per-step overhead would dominate
ROUNDS = 3  # the first is a warm-up that finds what fits; the next one replaces its times
TRAINING_BYTES_PER_PARAMETER = 16  # weights, gradients, two moments, 4 bytes each
FROZEN_BYTES_PER_PARAMETER = 4  # weights alone
LONGEST_WAIT = 1e12  # steps until a rejected size is tried again


def ladder(settings: TrainingConfig) -> list[int]:
    """Return the sizes that trials may choose, ascending: the maximum, its half and so on."""
    dynamic = settings.dynamic_batch_size
    sizes = [dynamic.maximum or settings.sequences_per_step]
    while sizes[-1] // 2 >= dynamic.minimum:
        sizes.append(sizes[-1] // 2)
    return sorted({*sizes, dynamic.minimum})


def shrink(run: Run) -> None:
    """Halve the micro-batch after an out-of-memory error; remember the size that failed.

    Raises: OutOfMemory, with advice, at the minimum and where the batch size is not dynamic.
    """
    state = run.state
    dynamic = run.config.training.dynamic_batch_size
    size = state.micro_batch.size
    step = state.progress.global_step + 1
    if not dynamic.enabled or size <= dynamic.minimum:
        raise OutOfMemory(memory_advice(run), unchanged=True)
    reject_size(run, size, f"out of memory in step {step}")
    smaller = max(dynamic.minimum, size // 2)
    logger.warning(
        "step %d: out of memory: micro_batch_size %d -> %d, "
        "the step is done again with the same %d sequences",
        step,
        size,
        smaller,
        run.config.training.sequences_per_step,
        extra=event("micro_batch", old=size, new=smaller, reason="oom"),
    )
    change_size(run, smaller, "out of memory")
    state.micro_batch.next_growth_step = state.progress.global_step + dynamic.growth_interval_steps


def change_size(run: Run, size: int, reason: str) -> None:
    """Take another micro-batch from the next step on, and remember why."""
    micro_batch = run.state.micro_batch
    change = SizeChange(
        step=run.state.progress.global_step, old=micro_batch.size, new=size, reason=reason
    )
    micro_batch.history = [*micro_batch.history, change]
    micro_batch.size = size


def reject_size(run: Run, size: int, reason: str) -> int:
    """Reject a size; each rejection lasts longer than the one before.

    Returns the step before which it is not tried again.
    """
    micro_batch = run.state.micro_batch
    dynamic = run.config.training.dynamic_batch_size
    times = 1 + sum(rejected.times for rejected in micro_batch.rejected if rejected.size == size)
    waits = dynamic.growth_backoff ** min(times - 1, 64)
    wait = min(dynamic.growth_interval_steps * waits, LONGEST_WAIT)
    until = run.state.progress.global_step + math.ceil(wait)
    others = [rejected for rejected in micro_batch.rejected if rejected.size != size]
    others.append(RejectedSize(size=size, times=times, until=until, reason=reason))
    micro_batch.rejected = sorted(others, key=lambda rejected: rejected.size)
    return until


def fit_micro_batch(run: Run, stopped: Stopped) -> bool:
    """Before a step: find the first size, or try the next larger one when its time has come.

    Returns False when `stopped` said so in between: nothing is decided then, and the search or the
    trial begins again after a resume.
    Raises: OutOfMemory when not even the smallest size fits.
    """
    dynamic = run.config.training.dynamic_batch_size
    if not dynamic.enabled:
        return True
    sizes = ladder(run.config.training)
    _obey_settings(run, sizes)
    with preserved_generators(run.device):
        if dynamic.initial == "auto" and not run.state.micro_batch.history:
            with waiting("finding the fastest micro_batch_size"):
                return find_fastest_size(run, sizes, stopped)
        larger = _size_to_try(run, sizes)
        if larger is None:
            return True
        with waiting(f"trying micro_batch_size {larger}"):
            return try_larger_size(run, larger, stopped)


def _obey_settings(run: Run, sizes: list[int]) -> None:
    """Apply `initial`, then clamp to `minimum` and `maximum`, which a resume may have changed."""
    dynamic = run.config.training.dynamic_batch_size
    micro_batch = run.state.micro_batch
    asked = micro_batch.size
    if dynamic.initial != "auto" and not micro_batch.history:
        asked = dynamic.initial
    size = min(max(asked, sizes[0]), sizes[-1])
    if size == micro_batch.size:
        return
    logger.info(
        "micro_batch_size %d -> %d: set by dynamic_batch_size.initial, minimum or maximum",
        micro_batch.size,
        size,
        extra=event("micro_batch", old=micro_batch.size, new=size, reason="settings"),
    )
    change_size(run, size, "settings")


def _size_to_try(run: Run, sizes: list[int]) -> int | None:
    """Return the next larger size when the time for a trial has come, else None."""
    state = run.state
    dynamic = run.config.training.dynamic_batch_size
    larger = next((size for size in sizes if size > state.micro_batch.size), None)
    if larger is None or state.health.good_steps < dynamic.growth_interval_steps:
        return None
    waits = [rejected.until for rejected in state.micro_batch.rejected if rejected.size == larger]
    earliest = max([state.micro_batch.next_growth_step, *waits])
    return larger if state.progress.global_step >= earliest else None


def find_fastest_size(run: Run, sizes: list[int], stopped: Stopped) -> bool:
    """Take the fastest size that fits and gives the gradient of the smallest one.

    Returns False when stopped: then no size is taken.
    Raises: OutOfMemory when not even the smallest size fits.
    """
    state = run.state
    start = time.perf_counter()
    seconds, rejected = time_sizes(run, sizes, start + SEARCH_S, stopped)
    if stopped():
        return False
    if not seconds:
        state.micro_batch.size = sizes[0]
        raise OutOfMemory(memory_advice(run), unchanged=True)
    chosen = _fastest_equal(run, sizes, seconds, rejected, stopped)
    if chosen is None:
        return False
    for size in sizes:
        if size > chosen:
            reject_size(run, size, rejected.get(size, "slower"))
    T = run.train_windows.T
    rates = {size: T / seconds[size] for size in sorted(seconds)}
    words = [f"{size}: {rate:,.0f} tokens/s" for size, rate in rates.items()]
    words += [f"{size}: {reason}" for size, reason in sorted(rejected.items())]
    old = state.micro_batch.size
    logger.info(
        "micro_batch_size %d -> %d: the fastest valid size (%s), found in %.1f s",
        old,
        chosen,
        "; ".join(words),
        time.perf_counter() - start,
        extra=event("micro_batch", old=old, new=chosen, reason="fastest", tokens_per_s=rates),
    )
    change_size(run, chosen, "fastest at the start")
    interval = run.config.training.dynamic_batch_size.growth_interval_steps
    state.micro_batch.next_growth_step = state.progress.global_step + interval
    return True


def _fastest_equal(
    run: Run,
    sizes: list[int],
    seconds: dict[int, float],
    rejected: dict[int, str],
    stopped: Stopped,
) -> int | None:
    """Return the size with the fastest step whose gradient equals the smallest size's.

    Adds to `rejected` the faster sizes whose gradient differs. None when stopped.
    """
    S = run.config.training.sequences_per_step

    def step_seconds(size: int) -> float:
        # the last micro-batch of a step may be smaller, and have a rate of its own
        rest = S % size
        rest_s = rest * seconds.get(rest, seconds[size])
        return (S - rest) * seconds[size] + rest_s

    smallest = sizes[0]
    for size in sorted(seconds, key=step_seconds):
        if stopped():
            return None
        if size == smallest:
            return size
        # compare on what fits into COMPARE_S, one micro-batch at least
        in_time = int(COMPARE_S / seconds[smallest])
        sequences = max(size, min(S, in_time))
        problem = compare_gradients(run, sequences, smallest, size)
        if not problem:
            return size
        rejected[size] = problem
    return smallest


def try_larger_size(run: Run, larger: int, stopped: Stopped) -> bool:
    """Try the next larger size on the next step's sequences.

    It is taken if it fits, pays and gives the same gradient. Returns False when stopped.
    """
    state = run.state
    start = time.perf_counter()
    size = state.micro_batch.size
    seconds, rejected = time_sizes(run, [size, larger], math.inf, stopped)
    if stopped():
        return False
    # a size that fails rejects the larger ones with it
    problem = rejected.get(larger, "")
    gain = 0.0
    if not problem:
        gain = seconds[size] / seconds[larger] - 1
        minimum_gain = run.config.training.dynamic_batch_size.minimum_gain
        if gain < minimum_gain:
            problem = f"it gains {gain:+.1%} tokens/s, minimum_gain is {minimum_gain:+.1%}"
    if not problem:
        problem = compare_gradients(run, run.config.training.sequences_per_step, size, larger)
    trial_s = time.perf_counter() - start
    step = state.progress.global_step + 1
    if problem:
        until = reject_size(run, larger, problem)
        release_memory(run.device)  # what the larger size has touched
        logger.info(
            "micro_batch_size stays at %d: %d was tried before step %d and rejected: %s; "
            "not again before step %d (the trial took %.1f s)",
            size,
            larger,
            step,
            problem,
            until + 1,
            trial_s,
            extra=event("micro_batch", old=size, new=size, reason="rejected", tried=larger),
        )
        return True
    logger.info(
        "micro_batch_size %d -> %d from step %d on: %+.0f %% tokens/s, same gradient, it fits "
        "(the trial took %.1f s)",
        size,
        larger,
        step,
        100 * gain,
        trial_s,
        extra=event("micro_batch", old=size, new=larger, reason="trial"),
    )
    change_size(run, larger, f"{gain:+.1%} tokens/s")
    state.micro_batch.next_growth_step = state.progress.global_step  # the next may follow at once
    return True


def time_sizes(
    run: Run, sizes: list[int], deadline: float, stopped: Stopped
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


def _expected_memory(run: Run, seconds: dict[int, float], size: int, base: int) -> float | None:
    """Return the extra bytes a size is expected to need over the largest size tried.

    None for the first size.
    """
    if not seconds:
        return None
    largest = max(seconds)
    per_sequence = (used_memory(run.device) - base) / largest
    return max(0.0, per_sequence * (size - largest))


def _try_size(run: Run, sequences: int, size: int, extra_bytes: float | None) -> float | str:
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


def run_trial(run: Run, sequences: int, size: int) -> Trial | str:
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
            add_gradients(model, run.train_windows, starts, size, key, lambda loss: loss * scale)
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


def compare_gradients(run: Run, sequences: int, size: int, other: int) -> str:
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


def most_memory_mib(device: torch.device) -> float:
    """Return the MiB in use: on a CPU the process's peak so far, else what it has of the device."""
    if device.type == "cpu":
        return peak_memory_mib()
    return used_memory(device) / MIB


def memory_advice(run: Run) -> str:
    """Return what exit 6 says: where, how much memory there is and is needed, what to change."""
    device = run.device
    settings = run.config.training
    dynamic = settings.dynamic_batch_size
    size = run.state.micro_batch.size
    used_mib = most_memory_mib(device)
    used = f"{used_mib:,.0f} MiB were in use"
    limits = memory_limits(device)
    if limits:
        used = f"{used_mib:,.0f} of {limits[0][1] / MIB:,.0f} MiB were in use"
    trained = run.model.trained_count()
    frozen = run.model.parameter_count() - trained
    fixed = TRAINING_BYTES_PER_PARAMETER * trained + FROZEN_BYTES_PER_PARAMETER * frozen
    fixed_mib = fixed / MIB
    keys = []
    if not dynamic.enabled and size > 1:
        keys.append("set training.dynamic_batch_size.enabled=true or a smaller training.batch_size")
    if dynamic.enabled and dynamic.minimum > 1:
        keys.append("set a smaller training.dynamic_batch_size.minimum")
    if not settings.gradient_checkpointing:
        keys.append("set training.gradient_checkpointing=true")
    keys.append("use a smaller model or model.max_seq_length")
    return (
        f"step {run.state.progress.global_step + 1}: out of memory at micro_batch_size {size}; "
        f"{used}; weights, gradients and optimizer alone take {fixed_mib:,.0f} MiB\n"
        f"{', or '.join(keys)}"
    )
