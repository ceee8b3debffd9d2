"""Which micro-batch fits, pays and is proven equal: halved when memory runs out, raised after a validated trial.

One step trains on the same sequences with the same weighting whatever `micro_batch_size` is; it decides only how many
of them go through at once. Trials compute real sequences of the next step and throw their gradients away: generators,
data position, weights and counters stay as they are.
"""

import logging
import math
import time
from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from chatgot.config import Config, TrainingConfig
from chatgot.errors import OutOfMemory
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
from chatgot.run.assembly import Training
from chatgot.run.modes import give_up_recomputation
from chatgot.run.run_state import RunState

logger = logging.getLogger(__name__)

GRADIENT_TOLERANCE = {
    "fp32": 1e-5,
    "bf16": 2e-2,
    "fp16": 2e-2,
}  # between two cuts, relative to the gradient's norm
SEARCH_S, COMPARE_S = (
    12.0,
    3.0,
)  # seconds that the search at the start may take, and each pass of its comparison
TIMED_SEQUENCES = 6  # at least so many are timed, so that what comes once in a step does not count as much as a pass
ROUNDS = 3  # the first one finds out what fits, touches the memory, and takes one micro-batch only


def ladder(settings: TrainingConfig) -> list[int]:
    """Return the sizes that trials may choose, in ascending order: the maximum, its half, and so on to the minimum."""
    dynamic = settings.dynamic_batch_size
    sizes = [dynamic.maximum or settings.sequences_per_step]
    while sizes[-1] // 2 >= dynamic.minimum:
        sizes.append(sizes[-1] // 2)
    return sorted({*sizes, dynamic.minimum})


def shrink(run: RunState, config: Config, model: nn.Module) -> None:
    """Halve `micro_batch_size` after an out-of-memory error; the size that failed is not tried again for a while.

    Raises: OutOfMemory, with advice, at the minimum and where the batch size is not dynamic.
    """
    dynamic, size = config.training.dynamic_batch_size, run.micro_batch_size
    if not dynamic.enabled or size <= dynamic.minimum:
        raise OutOfMemory(advice(run, config, model), unchanged=True)
    reject(run, config, size, f"out of memory in step {run.global_step + 1}")
    smaller = max(dynamic.minimum, size // 2)
    logger.warning(
        "step %d: out of memory: micro_batch_size %d -> %d, the step is done again with the same %d sequences",
        run.global_step + 1, size, smaller, config.training.sequences_per_step,
    )  # fmt: skip
    change(run, smaller, "out of memory")
    run.next_growth_step = run.global_step + dynamic.growth_interval_steps


def change(run: RunState, size: int, why: str) -> None:
    run.size_history = [*run.size_history, [run.global_step, run.micro_batch_size, size, why]]
    run.micro_batch_size = size


def reject(run: RunState, config: Config, size: int, why: str) -> int:
    """Remember that a size is no good for now, each time for longer; return the step before which it is not tried."""
    dynamic = config.training.dynamic_batch_size
    times = next((row[1] for row in run.sizes_rejected if row[0] == size), 0) + 1
    wait = min(dynamic.growth_interval_steps * dynamic.growth_backoff ** min(times - 1, 64), 1e12)
    until = run.global_step + math.ceil(wait)
    others = [row for row in run.sizes_rejected if row[0] != size]
    run.sizes_rejected = sorted([*others, [size, times, until, why]])
    return until


def adapt(training: Training, stopped: Callable[[], bool]) -> bool:
    """Before a step: find the first size, or try the next larger one when its time has come.

    Returns False when `stopped` said so in between: nothing is decided then, and it begins again after a resume.
    Raises: OutOfMemory when not even the smallest size fits.
    """
    run, dynamic = training.run, training.config.training.dynamic_batch_size
    if not dynamic.enabled:
        return True
    sizes = ladder(training.config.training)
    asked = (
        run.micro_batch_size if dynamic.initial == "auto" or run.size_history else dynamic.initial
    )
    if (
        size := min(max(asked, sizes[0]), sizes[-1])
    ) != run.micro_batch_size:  # resumed with other settings
        logger.info(
            "micro_batch_size %d -> %d: initial, minimum or maximum ask for it",
            run.micro_batch_size,
            size,
        )
        change(run, size, "settings")
    with preserved_generators(training.device):
        if dynamic.initial == "auto" and not run.size_history:
            return find(training, sizes, stopped)
        larger = next((size for size in sizes if size > run.micro_batch_size), None)
        waiting = next((row[2] for row in run.sizes_rejected if row[0] == larger), 0)
        due = run.good_steps >= dynamic.growth_interval_steps and run.global_step >= max(
            run.next_growth_step, waiting
        )
        return grow(training, larger, stopped) if larger and due else True


def find(training: Training, sizes: list[int], stopped: Callable[[], bool]) -> bool:
    """Take the fastest size that fits and gives the gradient of the smallest one, tried from small to large."""
    run, config, begun = training.run, training.config, time.perf_counter()
    S = config.training.sequences_per_step
    seconds, rejected = measure(training, sizes, begun + SEARCH_S, stopped)
    if stopped():
        return False
    if not seconds:
        run.micro_batch_size = sizes[0]
        raise OutOfMemory(advice(run, config, training.model), unchanged=True)

    def step_seconds(size: int) -> float:
        rest = S % size
        return S // size * size * seconds[size] + rest * seconds.get(rest, seconds[size])

    chosen = sizes[0]
    for size in sorted(seconds, key=step_seconds):
        chosen = size
        compared = max(
            size, min(S, int(COMPARE_S / seconds[sizes[0]]))
        )  # a large step is compared in part
        if stopped():
            return False
        if size == sizes[0] or not (why := difference(training, compared, sizes[0], size)):
            break
        rejected[size] = why
    rates = {
        size: f"{size}: {training.train_windows.T / seconds[size]:,.0f} tokens/s"
        for size in sorted(seconds)
    }
    for size in (size for size in sizes if size > chosen):
        reject(run, config, size, rejected.get(size, "slower"))
    reasons = [f"{size}: {why}" for size, why in sorted(rejected.items())]
    logger.info(
        "micro_batch_size %d -> %d: the fastest valid size (%s), found in %.1f s",
        run.micro_batch_size, chosen, "; ".join([*rates.values(), *reasons]), time.perf_counter() - begun,
    )  # fmt: skip
    change(run, chosen, "fastest at the start")
    run.next_growth_step = (
        run.global_step + config.training.dynamic_batch_size.growth_interval_steps
    )
    return True


def grow(training: Training, larger: int, stopped: Callable[[], bool]) -> bool:
    """Try the next larger size on the next step's sequences; take it if it fits, pays and gives the same gradient."""
    run, config, begun = training.run, training.config, time.perf_counter()
    dynamic, size, S = (
        config.training.dynamic_batch_size,
        run.micro_batch_size,
        config.training.sequences_per_step,
    )
    seconds, rejected = measure(training, [size, larger], math.inf, stopped)
    if stopped():
        return False
    why = rejected.get(larger) or rejected.get(size, "")
    gain = 0.0 if why else seconds[size] / seconds[larger] - 1
    if not why and gain < dynamic.minimum_gain:
        why = f"tokens/s change by {gain:+.1%}, at least {dynamic.minimum_gain:+.1%} is wanted"
    if not why:
        why = difference(training, S, size, larger)
    trial_s = time.perf_counter() - begun
    if why:
        until = reject(run, config, larger, why)
        release_memory(training.device)  # what the larger size has touched
        logger.info(
            "micro_batch_size stays at %d: %d was tried before step %d and rejected: %s; not again before step %d "
            "(the trial took %.1f s)", size, larger, run.global_step + 1, why, until + 1, trial_s,
        )  # fmt: skip
        return True
    logger.info(
        "micro_batch_size %d -> %d from step %d on: %+.0f %% tokens/s, same gradient, it fits (the trial took %.1f s)",
        size, larger, run.global_step + 1, 100 * gain, trial_s,
    )  # fmt: skip
    change(run, larger, f"{gain:+.1%} tokens/s")
    run.next_growth_step = run.global_step  # the next one may follow at once
    return True


def measure(
    training: Training, sizes: list[int], deadline: float, stopped: Callable[[], bool]
) -> tuple[dict[int, float], dict[int, str]]:
    """Return the seconds per sequence of each size that fits, in ascending order, and why the others do not.

    What `memory_headroom` forbids is not tried: each size's need is foreseen from the one before. The first size has to
    fit only. No pass begins that would end after the deadline, a reading of time.perf_counter().
    """
    device, S = training.device, training.config.training.sequences_per_step
    headroom = training.config.training.dynamic_batch_size.memory_headroom
    seconds: dict[int, float] = {}
    rejected: dict[int, str] = {}
    release_memory(device)
    base = used_memory(device) + 4 * training.model.parameter_count()  # with the gradients
    for round_number in range(ROUNDS):
        for size in [size for size in sizes if size not in rejected]:
            n = min(S, size * math.ceil(min(S, TIMED_SEQUENCES) / size)) if round_number else size
            if stopped() or (
                seconds and time.perf_counter() + n * min(seconds.values()) > deadline
            ):
                return seconds, rejected | dict.fromkeys(
                    sizes[len(seconds) + len(rejected) :], "no time to try it"
                )
            looks = round_number == 0 and bool(seconds)  # at the memory
            more = (
                (used_memory(device) - base) / max(seconds) * (size - max(seconds))
                if looks
                else 0.0
            )
            found = (looks and too_full(device, headroom, max(0.0, more))) or attempt(
                training, n, size
            )
            if looks and not isinstance(found, str):
                found = too_full(device, headroom, 0) or found
            if isinstance(found, str):
                seconds = {smaller: s for smaller, s in seconds.items() if smaller < size}
                rejected |= dict.fromkeys(sizes[sizes.index(size) :], found)
                release_memory(device)
                break
            seconds[size] = min(
                found[1] / n, seconds.get(size, math.inf) if round_number > 1 else math.inf
            )
    return seconds, rejected


def attempt(training: Training, n: int, size: int) -> tuple[list[Tensor | None], float] | str:
    """Compute the first n sequences of the next step; return their gradients, taken off the model, and the seconds.

    Or why that failed; then what it held is given back.
    """
    model, windows, run, config = (
        training.model,
        training.train_windows,
        training.run,
        training.config,
    )
    starts = windows.starts(run.position, config.training.sequences_per_step)[:n]
    scale = min(training.scaler.get_scale(), PROOF_SCALE) if run.precision == "fp16" else 1.0
    begun = time.perf_counter()
    try:
        key = (config.seed, run.position)
        with autocast(windows.device, run.precision):
            add_gradients(model, windows, starts, size, key, lambda loss: loss * scale)
        synchronise(training.device)
        return [p.grad for p in model.parameters()], time.perf_counter() - begun
    except CheckpointError as error:
        give_up_recomputation(model, run, error)
        why = ""
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = "out of memory"
    finally:
        model.zero_grad(set_to_none=True)
    if not why:
        return attempt(training, n, size)
    release_memory(
        training.device
    )  # here: in the handler the error still holds what the attempt held
    return why


def difference(training: Training, n: int, size: int, other: int) -> str:
    """Return how the gradient of n sequences differs between two sizes, dropout off; empty: within the tolerance."""
    with without_dropout(training.model):
        expected = attempt(training, n, size)
        found = attempt(training, n, other)
    if isinstance(expected, str) or isinstance(found, str):
        return expected if isinstance(expected, str) else found
    pairs = [
        (a, b)
        for a, b in zip(expected[0], found[0], strict=True)
        if a is not None and b is not None
    ]
    norm = math.hypot(*(a.norm().item() for a, _ in pairs))
    apart = math.hypot(*(a.sub_(b).norm().item() for a, b in pairs))
    tolerance = GRADIENT_TOLERANCE[training.run.precision]
    if apart <= tolerance * norm:  # false for NaN
        return ""
    share = apart / norm if norm else math.inf
    return f"its gradient differs by {share:.2g} of the norm, at most {tolerance:g} is rounding"


def advice(run: RunState, config: Config, model: nn.Module) -> str:
    """Return what exit 6 says: where, how much memory there is and is needed, and which keys to change."""
    device = next(model.parameters()).device
    limits = memory_limits(device)
    used = f"{peak_memory_mib() if device.type == 'cpu' else used_memory(device) / MIB:,.0f}"
    used += f" of {limits[0][1] / MIB:,.0f} MiB were in use" if limits else " MiB were in use"
    fixed_mib = (
        16 * sum(p.numel() for p in model.parameters()) / MIB
    )  # weights, gradients, two moments, 4 bytes each
    dynamic = config.training.dynamic_batch_size
    keys = ["use a smaller model or model.max_seq_length"]
    if not config.training.gradient_checkpointing:
        keys.insert(0, "set training.gradient_checkpointing=true")
    if dynamic.enabled and dynamic.minimum > 1:
        keys.insert(0, "set a smaller training.dynamic_batch_size.minimum")
    if not dynamic.enabled and run.micro_batch_size > 1:
        keys.insert(
            0, "set training.dynamic_batch_size.enabled=true or a smaller training.batch_size"
        )
    return (
        f"step {run.global_step + 1}: out of memory at micro_batch_size {run.micro_batch_size}; at most {used}, "
        f"weights, gradients and optimizer alone take {fixed_mib:,.0f}\n{', or '.join(keys)}"
    )
