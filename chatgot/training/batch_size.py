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
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from chatgot.config import TrainingConfig
from chatgot.errors import OutOfMemory
from chatgot.logs.events import event
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

logger = logging.getLogger(__name__)

# largest difference between the gradients of two cuts, relative to the gradient's norm
GRADIENT_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
SEARCH_S = 12.0  # the search at the start may take so long
COMPARE_S = 3.0  # and each pass of its comparison so long
TIMED_SEQUENCES = 6  # to time at least, or per-step overhead would dominate
ROUNDS = 3  # the first one finds what fits: it touches the memory, with one micro-batch only
BYTES_PER_PARAMETER = 16  # weights, gradients, two moments, 4 bytes each
LONGEST_WAIT = 1e12  # steps until a rejected size is tried again

Stopped = Callable[[], bool]  # whether a signal has asked the run to stop


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
        raise OutOfMemory(advice(run), unchanged=True)
    reject(run, size, f"out of memory in step {step}")
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


def reject(run: Run, size: int, reason: str) -> int:
    """Remember that a size is no good for now, each time for longer.

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

    Returns False when `stopped` said so in between: nothing is decided then, and it begins again
    after a resume.
    Raises: OutOfMemory when not even the smallest size fits.
    """
    dynamic = run.config.training.dynamic_batch_size
    if not dynamic.enabled:
        return True
    sizes = ladder(run.config.training)
    _obey_settings(run, sizes)
    with preserved_generators(run.device):
        if dynamic.initial == "auto" and not run.state.micro_batch.history:
            return find(run, sizes, stopped)
        larger = _size_to_try(run, sizes)
        return larger is None or grow(run, larger, stopped)


def _obey_settings(run: Run, sizes: list[int]) -> None:
    """Take the size that initial, minimum and maximum ask for: a resume may have changed them."""
    dynamic = run.config.training.dynamic_batch_size
    micro_batch = run.state.micro_batch
    asked = micro_batch.size
    if dynamic.initial != "auto" and not micro_batch.history:
        asked = dynamic.initial
    size = min(max(asked, sizes[0]), sizes[-1])
    if size == micro_batch.size:
        return
    logger.info(
        "micro_batch_size %d -> %d: initial, minimum or maximum ask for it",
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


def find(run: Run, sizes: list[int], stopped: Stopped) -> bool:
    """Take the fastest size that fits and gives the gradient of the smallest one."""
    state = run.state
    start = time.perf_counter()
    seconds, rejected = measure(run, sizes, start + SEARCH_S, stopped)
    if stopped():
        return False
    if not seconds:
        state.micro_batch.size = sizes[0]
        raise OutOfMemory(advice(run), unchanged=True)
    chosen = _fastest_equal(run, sizes, seconds, rejected, stopped)
    if chosen is None:
        return False
    for size in sizes:
        if size > chosen:
            reject(run, size, rejected.get(size, "slower"))
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

    Adds to `rejected` why faster ones are not taken. None: stopped in between.
    """
    S = run.config.training.sequences_per_step

    def step_seconds(size: int) -> float:
        rest = S % size
        return S // size * size * seconds[size] + rest * seconds.get(rest, seconds[size])

    smallest = sizes[0]
    for size in sorted(seconds, key=step_seconds):
        if stopped():
            return None
        if size == smallest:
            return size
        # a large step is compared in part
        sequences = max(size, min(S, int(COMPARE_S / seconds[smallest])))
        problem = difference(run, sequences, smallest, size)
        if not problem:
            return size
        rejected[size] = problem
    return smallest


def grow(run: Run, larger: int, stopped: Stopped) -> bool:
    """Try the next larger size on the next step's sequences.

    It is taken if it fits, pays and gives the same gradient. Returns False when stopped.
    """
    state = run.state
    start = time.perf_counter()
    size = state.micro_batch.size
    seconds, rejected = measure(run, [size, larger], math.inf, stopped)
    if stopped():
        return False
    problem = rejected.get(larger) or rejected.get(size, "")
    gain = 0.0
    if not problem:
        gain = seconds[size] / seconds[larger] - 1
        minimum_gain = run.config.training.dynamic_batch_size.minimum_gain
        if gain < minimum_gain:
            problem = f"tokens/s change by {gain:+.1%}, at least {minimum_gain:+.1%} is wanted"
    if not problem:
        problem = difference(run, run.config.training.sequences_per_step, size, larger)
    trial_s = time.perf_counter() - start
    step = state.progress.global_step + 1
    if problem:
        until = reject(run, larger, problem)
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


def measure(
    run: Run, sizes: list[int], deadline: float, stopped: Stopped
) -> tuple[dict[int, float], dict[int, str]]:
    """Return the seconds per sequence of each size that fits, and why the others do not.

    sizes: ascending. What `memory_headroom` forbids is not tried: each size's need is foreseen
    from the one before. The first size has to fit only. No pass begins that would end after the
    deadline, a reading of time.perf_counter().
    """
    S = run.config.training.sequences_per_step
    seconds: dict[int, float] = {}
    rejected: dict[int, str] = {}
    release_memory(run.device)
    base = used_memory(run.device) + 4 * run.model.parameter_count()  # with the gradients
    for round_number in range(ROUNDS):
        is_first_round = round_number == 0
        for size in [size for size in sizes if size not in rejected]:
            sequences = size
            if not is_first_round:
                sequences = min(S, size * math.ceil(min(S, TIMED_SEQUENCES) / size))
            if stopped() or _ends_late(seconds, sequences, deadline):
                untried = sizes[len(seconds) + len(rejected) :]
                return seconds, rejected | dict.fromkeys(untried, "no time to try it")
            look_at = _expected_memory(run, seconds, size, base) if is_first_round else None
            trial = _try_size(run, sequences, size, look_at)
            if isinstance(trial, str):
                seconds = {smaller: s for smaller, s in seconds.items() if smaller < size}
                rejected |= dict.fromkeys(sizes[sizes.index(size) :], trial)
                release_memory(run.device)
                break
            best = seconds.get(size, math.inf) if round_number > 1 else math.inf
            seconds[size] = min(trial / sequences, best)
    return seconds, rejected


def _ends_late(seconds: dict[int, float], sequences: int, deadline: float) -> bool:
    """Return whether a pass over so many sequences would end after the deadline."""
    if not seconds:
        return False
    return time.perf_counter() + sequences * min(seconds.values()) > deadline


def _expected_memory(run: Run, seconds: dict[int, float], size: int, base: int) -> float | None:
    """Return the bytes that a size needs more than the largest one so far; None for the first."""
    if not seconds:
        return None
    largest = max(seconds)
    per_sequence = (used_memory(run.device) - base) / largest
    return max(0.0, per_sequence * (size - largest))


def _try_size(run: Run, sequences: int, size: int, more: float | None) -> float | str:
    """Return the seconds of a pass, or why the size does not do; more: bytes that it may need."""
    headroom = run.config.training.dynamic_batch_size.memory_headroom
    if more is not None:
        problem = too_full(run.device, headroom, more)
        if problem:
            return problem
    trial = attempt(run, sequences, size)
    if isinstance(trial, str):
        return trial
    if more is not None:
        problem = too_full(run.device, headroom, 0)
        if problem:
            return problem
    return trial.seconds


@dataclass
class Trial:
    """A pass whose gradients are taken off the model."""

    gradients: list[Tensor | None]
    seconds: float


def attempt(run: Run, sequences: int, size: int) -> Trial | str:
    """Compute the first so many sequences of the next step, `size` at once.

    Returns their gradients and the seconds, or why that failed; then what it held is given back.
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
        release_memory(run.device)  # only here: in the handler the error still holds the attempt's
        return "out of memory"
    return attempt(run, sequences, size)


def difference(run: Run, sequences: int, size: int, other: int) -> str:
    """Return how the gradient differs between two sizes, dropout off; empty: within tolerance."""
    with without_dropout(run.model):
        expected = attempt(run, sequences, size)
        computed = attempt(run, sequences, other)
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


def advice(run: Run) -> str:
    """Return what exit 6 says: where, how much memory there is and is needed, what to change."""
    device = run.device
    settings = run.config.training
    dynamic = settings.dynamic_batch_size
    size = run.state.micro_batch.size
    used_mib = peak_memory_mib() if device.type == "cpu" else used_memory(device) / MIB
    used = f"{used_mib:,.0f} MiB were in use"
    limits = memory_limits(device)
    if limits:
        used = f"{used_mib:,.0f} of {limits[0][1] / MIB:,.0f} MiB were in use"
    parameters = sum(p.numel() for p in run.model.parameters())
    fixed_mib = BYTES_PER_PARAMETER * parameters / MIB
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
        f"at most {used}, weights, gradients and optimizer alone take {fixed_mib:,.0f}\n"
        f"{', or '.join(keys)}"
    )
