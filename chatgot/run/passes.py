"""How a run's passes are computed: sequences at once, recomputation, compiled blocks.

They depend on each other, so they are chosen together, in the order that modes.py gives.

Letters: S sequences of one optimizer step, T `max_seq_length`.
"""

import logging
import math
import time
from collections.abc import Mapping

import torch

from chatgot.config import TrainingConfig
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.device import card_name, preserved_generators
from chatgot.machine.measured import recalled, remember
from chatgot.machine.memory import MIB, memory_limits, release_memory, too_full, used_memory
from chatgot.numerics.cuda_graphs import GraphedPass
from chatgot.numerics.distillation import TEACHING_BYTES
from chatgot.numerics.gradient_checkpointing import bytes_for_backward
from chatgot.numerics.precision import autocast
from chatgot.run.modes import (
    choose_compilation,
    choose_cuda_graph,
    name_of_work,
    on_same_device,
    start_gradient_checkpointing,
)
from chatgot.run.run_state import Stored
from chatgot.run.trials import Trained, compare_gradients, run_trial, time_sizes
from chatgot.stopping import never

logger = logging.getLogger(__name__)

SEARCH_S = 12.0  # seconds for timing the sizes on a card
ALONE = 0.9  # of a card's memory: with less, another program holds the rest
LEAST_GROWTH = 0.03  # of tokens/s, for which a larger micro-batch is taken
# Gradient and two moments, 4 bytes each: a CPU has no memory for them before the first step.
BYTES_TO_COME = 12


def choose_passes(run: Trained, stored: Stored | None) -> GraphedPass | None:
    """Choose recomputation, micro-batch and compilation; switch on what is chosen and proven.

    Returns what replays micro-batches as CUDA graphs; None: nothing does.

    `run` has the micro-batch that is asked for; its state and its model get what is chosen.
    Weights, gradients and generators are left as they were.
    """
    modes = run.state.modes
    modes.card = card_name(run.device)
    kept = stored if stored is not None and on_same_device(stored, run.device) else None
    settings = run.config.training
    same_key = (
        kept is not None
        and kept["config"]["training"].get("micro_batch_size", "auto") == settings.micro_batch_size
    )
    if kept is not None and same_key:
        S = settings.sequences_per_step
        size = min(kept["state"]["micro_batch"]["size"], S)
        run.state.micro_batch.size = fair_size(size, S, run.ranks.size)
    every = _recompute_every(run, kept, stored)
    if not same_key and chooses_size(settings, run.device):
        size = fastest_size_on_card(run, every)
        run.state.micro_batch.size = fair_size(size, settings.sequences_per_step, run.ranks.size)
    if modes.gradient_checkpointing_failed:  # while the sizes were timed
        every = 0
    graphed = GraphedPass(run.model, run.device) if run.device.type == "cuda" else None
    if graphed is not None and settings.multi_token_weights:
        graphed.rule_out("a graph has the loss on the next token alone, without the later ones")
    if graphed is not None and run.teaching is not None:
        graphed.rule_out("a graph has the loss on the text alone, without the teachers' part")
    parts = (run.state, run.config, run.model, run.train_windows, stored)
    run.model.recompute_every = every or None  # the proof comes later: only time and memory count
    try:
        modes.compiled = choose_compilation(*parts, graphed)
    finally:
        run.model.recompute_every = None
    start_gradient_checkpointing(modes, run.config, run.model, run.device, every)
    return choose_cuda_graph(run.state, run.config, run.train_windows, stored, graphed)


def first_micro_batch(settings: TrainingConfig, ranks: int = 1) -> int:
    """Return the micro-batch size that is asked for, before anything is tried.

    ranks: that share a step; each gets as many micro-batches.
    """
    S = settings.sequences_per_step
    dynamic = settings.dynamic_batch_size
    if not dynamic.enabled:
        asked = settings.micro_batch_size
        return fair_size(settings.batch_size if asked == "auto" else asked, S, ranks)
    size = settings.batch_size if dynamic.initial == "auto" else dynamic.initial
    return fair_size(min(size, dynamic.maximum or S), S, ranks)


def fair_size(size: int, S: int, ranks: int) -> int:
    """Return the largest micro-batch, up to `size`, with which all ranks have equally many.

    Where no size does that, no rank is left without one.
    """
    if ranks == 1:
        return size
    largest = max(1, min(size, S // ranks))
    sizes = range(largest, 0, -1)
    return next((fair for fair in sizes if -(-S // fair) % ranks == 0), largest)


def smaller_size(size: int, S: int, ranks: int) -> int:
    """Return the micro-batch to try where `size`, above 1, has not fitted into the memory.

    It is the largest one, up to half of that, which divides S, or less if ranks had unequally many.
    A smaller micro-batch at a step's end would be compiled for itself.
    """
    without_rest = next(half for half in range(size // 2, 0, -1) if S % half == 0)
    return fair_size(without_rest, S, ranks)


def chooses_size(settings: TrainingConfig, device: torch.device) -> bool:
    """Return whether the micro-batch is measured at the start, and shrinks when memory runs out."""
    is_asked = settings.micro_batch_size != "auto" or settings.dynamic_batch_size.enabled
    return device.type == "cuda" and not is_asked


# --------------------------------------------------------------------------------------------------
# Recomputation


def _recompute_every(run: Trained, kept: Stored | None, stored: Stored | None) -> int:
    """Return which blocks are to recompute, 1: all, 2: every second one, 0: none."""
    asked = run.config.training.gradient_checkpointing
    modes = run.state.modes
    if kept is not None:
        known = kept["state"]["modes"].get("gradient_checkpointing_chosen")
        modes.gradient_checkpointing_chosen = known
    if stored is not None and stored["state"]["modes"]["gradient_checkpointing_failed"]:
        return 0
    if asked != "auto":
        return 2 if asked == "every_2" else int(asked)
    if modes.gradient_checkpointing_chosen is None:
        modes.gradient_checkpointing_chosen = memory_needs_recomputation(run)
    return int(modes.gradient_checkpointing_chosen)


def memory_needs_recomputation(run: Trained) -> bool:
    """Return whether a micro-batch leaves too little memory free if nothing is recomputed.

    On a card it is tried; elsewhere its bytes are counted, because a CPU that runs out of memory
    swaps, or the system ends the process.
    """
    dynamic = run.config.training.dynamic_batch_size
    size = dynamic.minimum if dynamic.enabled else run.state.micro_batch.size
    with waiting("measuring the memory of a micro-batch"):
        if run.device.type == "cuda":
            needed = _bytes_on_card(run, size)
        else:
            with autocast(run.device, run.state.modes.precision):
                needed = bytes_for_backward(run.model, size)
            if run.teaching is not None:
                needed += size * run.train_windows.T * run.model.vocab_size * TEACHING_BYTES
            needed += BYTES_TO_COME * run.model.trained_count()
    problem = too_full(run.device, dynamic.memory_headroom, needed)
    chosen = bool(problem)
    needed_mib = None if math.isinf(needed) else round(needed / MIB, 1)
    free_mib = [round(free / MIB, 1) for free, _ in memory_limits(run.device)]
    logger.info(
        "gradient checkpointing: %s by memory: without it a micro-batch of %d takes %s, %s",
        "on" if chosen else "off",
        size,
        "more than there is" if needed_mib is None else f"{needed_mib:,.0f} MiB",
        problem
        or (f"{free_mib[0]:,.0f} MiB are free" if free_mib else "it is not known how much is free"),
        extra=event(
            "choice",
            what="gradient_checkpointing",
            chosen=chosen,
            measured={"micro_batch": size, "needed_mib": needed_mib, "free_mib": free_mib},
        ),
    )
    return chosen


def _bytes_on_card(run: Trained, size: int) -> float:
    """Return the bytes that a pass over one micro-batch takes on the card; inf: it does not fit."""
    release_memory(run.device)
    before = torch.cuda.memory_reserved(run.device)
    torch.cuda.reset_peak_memory_stats(run.device)
    with preserved_generators(run.device):
        failed = isinstance(run_trial(run, size, size), str)
    peak = torch.cuda.max_memory_reserved(run.device)
    release_memory(run.device)
    return math.inf if failed else float(peak - before)


# --------------------------------------------------------------------------------------------------
# Sequences at once


def fastest_size_on_card(run: Trained, every: int) -> int:
    """Return the micro-batch size at which the speed stops growing, measured once per card.

    From `batch_size` upwards, as far as memory allows; below it, if that does not fit. All sizes
    divide S, so that no smaller micro-batch is left over, which would be compiled for itself.

    every: which blocks recompute while the sizes are timed, as in the run.
    """
    settings = run.config.training
    S = settings.sequences_per_step
    shape = (
        f"micro-batch of {S} from {settings.batch_size}, {run.config.model.n_layers} layers, "
        f"vocabulary {run.model.vocab_size}, recomputing {every}, "
        f"headroom {settings.dynamic_batch_size.memory_headroom:g}"
    )
    name = name_of_work(run.state, run.config, run.model, run.train_windows)

    what = f"{shape}, {name}"
    numbers = recalled(what)
    if numbers is None:
        has_card_alone = _has_memory_alone(run.device)
        with preserved_generators(run.device), waiting("finding the fastest micro_batch_size"):
            measured = _rates_of_sizes(run, every)
        numbers = [number for size in sorted(measured) for number in (float(size), measured[size])]
        # beside another program, less may fit than later
        if has_card_alone and any(measured.values()):
            remember(what, numbers)
    rates = {int(numbers[i]): numbers[i + 1] for i in range(0, len(numbers), 2)}
    chosen = where_growth_ends(rates)
    logger.info(
        "micro_batch_size: %d of the %d sequences of a step at once (%s)",
        chosen,
        S,
        "; ".join(f"{size}: {rate:,.0f} tokens/s" for size, rate in rates.items()),
        extra=event("choice", what="micro_batch", chosen=chosen, measured=rates),
    )
    return chosen


def _has_memory_alone(device: torch.device) -> bool:
    """Return whether nearly all memory that this process does not use is free."""
    used = used_memory(device)
    return all(free + used >= ALONE * total for free, total in memory_limits(device))


def where_growth_ends(rates: Mapping[int, float]) -> int:
    """Return the size after which the next larger one is not LEAST_GROWTH faster.

    rates: tokens/s by size.
    """
    sizes = sorted(rates)
    chosen = sizes[0]
    for size in sizes[1:]:
        if rates[size] < (1 + LEAST_GROWTH) * rates[chosen]:
            break
        chosen = size
    return chosen


def sizes_to_try(S: int, batch_size: int) -> tuple[list[int], list[int]]:
    """Return the divisors of S from `batch_size` upwards, and those below it downwards.

    Neighbours are a factor of at least 1.5 apart. S is a multiple of `batch_size`.
    """
    low = [size for size in range(1, math.isqrt(S) + 1) if S % size == 0]
    divisors = sorted({*low, *(S // size for size in low)})
    upwards = [batch_size]
    for size in divisors:
        if size >= 1.5 * upwards[-1]:
            upwards.append(size)
    downwards: list[int] = []
    for size in reversed(divisors):
        if 1.5 * size <= (downwards[-1] if downwards else batch_size):
            downwards.append(size)
    return upwards, downwards


def _rates_of_sizes(run: Trained, every: int) -> dict[int, float]:
    """Return the tokens/s of each size that fits and gives the gradient of the smallest one.

    The smallest size is there in any case, with a rate of 0 if not even that fits.
    """
    settings = run.config.training
    upwards, downwards = sizes_to_try(settings.sequences_per_step, settings.batch_size)
    setting = run.model.recompute_every
    run.model.recompute_every = every or None  # the proof comes later: only time and memory count
    try:
        seconds, _ = time_sizes(run, upwards, time.perf_counter() + SEARCH_S, never)
        for size in downwards:
            if seconds:
                break
            seconds, _ = time_sizes(run, [size], math.inf, never)
        rates = {size: run.train_windows.T / seconds[size] for size in seconds}
        if not rates:
            return {1: 0.0}
        _leave_out_other_gradients(run, rates)
        return rates
    finally:
        run.model.recompute_every = setting
        release_memory(run.device)


def _leave_out_other_gradients(run: Trained, rates: dict[int, float]) -> None:
    """Remove the size that would be chosen while its gradient is not that of the smallest size."""
    smallest = min(rates)
    chosen = where_growth_ends(rates)
    while chosen != smallest:
        problem = compare_gradients(run, chosen, smallest, chosen)
        if not problem:
            return
        logger.warning("micro_batch_size %d is not taken: %s", chosen, problem)
        del rates[chosen]
        chosen = where_growth_ends(rates)
