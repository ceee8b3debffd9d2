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

import torch

from chatgot.config import TrainingConfig
from chatgot.errors import OutOfMemory
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.device import preserved_generators
from chatgot.machine.memory import (
    MIB,
    memory_limits,
    peak_memory_mib,
    release_memory,
    used_memory,
)
from chatgot.run.assembly import Run
from chatgot.run.modes import compile_for_smaller_size, give_up_gradient_checkpointing
from chatgot.run.passes import chooses_size, smaller_size
from chatgot.run.run_state import RejectedSize, change_size
from chatgot.run.trials import compare_gradients, time_sizes
from chatgot.stopping import Stopped

logger = logging.getLogger(__name__)

SEARCH_S = 12.0  # seconds for the search at the start
COMPARE_S = 3.0  # seconds for each pass of the gradient comparison
TRAINING_BYTES_PER_PARAMETER = 16  # weights, gradients, two moments, 4 bytes each
FROZEN_BYTES_PER_PARAMETER = 4  # weights alone
LONGEST_WAIT = 1e12  # steps until a rejected size is tried again


def ladder(settings: TrainingConfig, ranks: int = 1) -> list[int]:
    """Return the sizes that trials may choose, ascending: the maximum, its half and so on.

    ranks: that share a step; none is left without a micro-batch.
    """
    dynamic = settings.dynamic_batch_size
    sizes = [dynamic.maximum or settings.sequences_per_step]
    if ranks > 1:
        sizes = [max(1, min(sizes[0], settings.sequences_per_step // ranks))]
    while sizes[-1] // 2 >= dynamic.minimum:
        sizes.append(sizes[-1] // 2)
    return sorted({*sizes, dynamic.minimum})


def shrink(run: Run) -> None:
    """Halve the micro-batch after an out-of-memory error; remember the size that failed.

    Compiled blocks are compiled anew for the smaller one.
    Raises: OutOfMemory, with advice, at the minimum and where the size is fixed.
    """
    state = run.state
    settings = run.config.training
    dynamic = settings.dynamic_batch_size
    size = state.micro_batch.size
    step = state.progress.global_step + 1
    may_shrink = dynamic.enabled or chooses_size(settings, run.device)
    minimum = dynamic.minimum if dynamic.enabled else 1
    if not may_shrink or size <= minimum:
        raise OutOfMemory(memory_advice(run), unchanged=True)
    if dynamic.enabled:
        reject_size(run, size, f"out of memory in step {step}")
        smaller = max(minimum, size // 2)
    else:
        smaller = smaller_size(size, settings.sequences_per_step, run.ranks.size)
    logger.warning(
        "step %d: out of memory: micro_batch_size %d -> %d, "
        "the step is done again with the same %d sequences",
        step,
        size,
        smaller,
        settings.sequences_per_step,
        extra=event("micro_batch", old=size, new=smaller, reason="oom"),
    )
    change_size(run.state, smaller, "out of memory")
    state.micro_batch.next_growth_step = state.progress.global_step + dynamic.growth_interval_steps
    compile_for_smaller_size(state, run.config, run.model, run.train_windows)


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
    sizes = ladder(run.config.training, run.ranks.size)
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
    change_size(run.state, size, "settings")


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


def _timed_by_all(
    run: Run, sizes: list[int], deadline: float, stopped: Stopped
) -> tuple[dict[int, float], dict[int, str]]:
    """Return what `time_sizes` finds: of several ranks the slowest one's seconds.

    What one rank rejects, all reject; where one gives up gradient checkpointing, all do.
    """
    found = run.ranks.all(time_sizes(run, sizes, deadline, stopped))
    modes = run.state.modes
    gave_up = any(run.ranks.all(modes.gradient_checkpointing_failed))
    if gave_up and not modes.gradient_checkpointing_failed:
        give_up_gradient_checkpointing(run.model, run.state, "on another rank")
    rejected = {size: why for _, rejected in found for size, why in rejected.items()}
    timed = set.intersection(*(set(seconds) for seconds, _ in found)) - set(rejected)
    return {size: max(s[size] for s, _ in found) for size in sorted(timed)}, rejected


def _compared_by_all(run: Run, sequences: int, size: int, other: int) -> str:
    """Return the first rank's reason why two sizes do not give one gradient; empty: they do."""
    return run.ranks.first_problem(compare_gradients(run, sequences, size, other))


def find_fastest_size(run: Run, sizes: list[int], stopped: Stopped) -> bool:
    """Take the fastest size that fits and gives the gradient of the smallest one.

    Returns False when stopped: then no size is taken.
    Raises: OutOfMemory when not even the smallest size fits.
    """
    state = run.state
    start = time.perf_counter()
    seconds, rejected = _timed_by_all(run, sizes, start + SEARCH_S, stopped)
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
    change_size(run.state, chosen, "fastest at the start")
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
        problem = _compared_by_all(run, sequences, smallest, size)
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
    seconds, rejected = _timed_by_all(run, [size, larger], math.inf, stopped)
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
        problem = _compared_by_all(run, run.config.training.sequences_per_step, size, larger)
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
    change_size(run.state, larger, f"{gain:+.1%} tokens/s")
    state.micro_batch.next_growth_step = state.progress.global_step  # the next may follow at once
    return True


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
    sharing = run.ranks.size if run.ranks.is_sharded else 1
    fixed_mib = fixed / MIB / sharing
    keys = []
    if run.ranks.is_sharded:
        if size > 1:
            keys.append(f"set training.micro_batch_size={size // 2}")
        keys.append("start more ranks")
    elif not dynamic.enabled and size > 1:
        keys.append("set training.dynamic_batch_size.enabled=true or a smaller training.batch_size")
        if settings.micro_batch_size != "auto":
            keys.append("set a smaller training.micro_batch_size")
    if dynamic.enabled and dynamic.minimum > 1:
        keys.append("set a smaller training.dynamic_batch_size.minimum")
    if settings.gradient_checkpointing in (False, "auto") and not run.model.recompute_every:
        keys.append("set training.gradient_checkpointing=true")
    keys.append("use a smaller model or model.max_seq_length")
    return (
        f"step {run.state.progress.global_step + 1}: out of memory at micro_batch_size {size}; "
        f"{used}; weights, gradients and optimizer alone take {fixed_mib:,.0f} MiB\n"
        f"{', or '.join(keys)}"
    )
