"""What is chosen for a run (measured here, or remembered by its checkpoint), and how it changes.

The order of the choices: threads, precision, attention's kernel, then (once the model is there)
the proof of mixed precision and the precision of Muon's products, then (once the optimizer is
there, so that its memory counts) those of passes.py:

1. whether memory needs gradient checkpointing, for `batch_size` sequences in eager blocks
2. on a card: how many sequences go through at once, in eager blocks, recomputing or not
3. compilation, for that many sequences
4. the proof of gradient checkpointing, in the blocks that train: compiled or eager
5. on a card: whether micro-batches are replayed as CUDA graphs

Each one is measured in the modes that were chosen before it. A resumed run keeps what its
checkpoint says. On another device (a CPU instead of a card, or another card) the bits change in any
case: there, 1 to 5 are chosen anew.
"""

import logging
import math
import os
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from chatgot.config import MAX_THREADS, Config, TrainingConfig
from chatgot.data.windows import Batch, TrainingWindows
from chatgot.distributed.ranks import Ranks
from chatgot.errors import ConfigError
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.control_groups import cpu_quota
from chatgot.machine.device import DTYPES, card_name, set_threads
from chatgot.machine.measured import fast_threads
from chatgot.machine.memory import is_out_of_memory
from chatgot.model.attention import Kernel, pick_attention
from chatgot.model.gpt import GPT
from chatgot.numerics.compilation import OnACard, Work, choose_compile, run_eager
from chatgot.numerics.cuda_graphs import GraphedPass, choose_graph
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.gradient_checkpointing import (
    disable_gradient_checkpointing,
    enable_gradient_checkpointing,
    recomputation_differs,
)
from chatgot.numerics.muon import pick_muon_precision
from chatgot.numerics.optim import last_step
from chatgot.numerics.precision import (
    GRADIENT_TOLERANCE,
    Precision,
    autocast,
    pick_precision,
    prove_mixed_precision,
)
from chatgot.run.run_state import Modes, RunState, Stored

logger = logging.getLogger(__name__)

# how long a run is taken to last where only its evaluations end it: compiling pays within an hour
SECONDS_IF_UNKNOWN = 3600.0


def choose_modes(config: Config, device: torch.device, stored: Stored | None) -> Modes:
    """Choose threads, precision and attention's kernel; the threads are set from now on.

    Raises: ConfigError.
    """
    modes = Modes()
    threads = _wanted_threads(config, device, stored)
    modes.threads = set_threads(threads)
    if stored is not None and _asks_for_same_precision(config, stored):
        modes.precision = stored["state"]["modes"]["precision"]
    else:
        modes.precision = pick_precision(config, device)
    modes.attention = _choose_attention(config, device, modes.precision, stored)
    return modes


def prove_precision(
    modes: Modes, config: Config, model: GPT, windows: TrainingWindows, stored: Stored | None
) -> None:
    """Let the model use attention's kernel; prove mixed precision with it, or fall back to fp32.

    The proof is on the first micro-batch. Where it fails with attention by products, which rounds
    more, and the kernel was not asked for, sdpa is tried. A resumed run was proven before.
    """
    model.use_attention(modes.attention)
    if modes.precision == "fp32":
        return
    if stored is not None and _asks_for_same_precision(config, stored):
        return
    settings = config.training
    first = windows.starts(0, settings.sequences_per_step)[: settings.batch_size]
    batch = windows.batch(first)
    kernels = [modes.attention]
    if modes.attention == "products" and settings.attention == "auto" and stored is None:
        kernels.append("sdpa")
    for kernel in kernels:
        model.use_attention(kernel)
        difference = prove_mixed_precision(model, batch, modes.precision)
        if not difference:
            modes.attention = kernel
            return
    logger.warning(
        "mixed precision is off: %s with attention by %s differs from fp32 "
        "on the first micro-batch (%s)",
        modes.precision,
        kernel,
        difference,
        extra=event("precision", old=modes.precision, new="fp32", reason="proof failed"),
    )
    modes.precision = "fp32"
    modes.attention = _choose_attention(config, windows.device, "fp32", stored)
    model.use_attention(modes.attention)


def on_same_device(stored: Stored, device: torch.device) -> bool:
    """Return whether a stored state was computed on this kind of device: on a card, of this name.

    A checkpoint from before cards had names counts as one of this card.
    """
    kind = stored.get("versions", {}).get("device", device.type)
    card = stored["state"]["modes"].get("card", "")
    return bool(kind == device.type and card in ("", card_name(device)))


def choose_compilation(
    state: RunState,
    config: Config,
    model: GPT,
    windows: TrainingWindows,
    stored: Stored | None,
    graphed: GraphedPass | None = None,
) -> bool:
    """Compile the blocks where it is asked for, or saves more time in the rest than it costs.

    Returns whether they are compiled now.

    graphed: on a card, where whole micro-batches are timed, with and without it.
    """
    work = _work(state, config, model, windows, stored, bool(model.recompute_every))
    if graphed is not None:
        work = replace(work, card=OnACard(graphed, _first_micro_batch(state, config, windows)))
    return choose_compile(work, _stored_way(config, stored, "compiled", windows.device))


def compile_for_smaller_size(
    state: RunState, config: Config, model: GPT, windows: TrainingWindows
) -> None:
    """Compile the blocks anew after the micro-batch has shrunk, where they are compiled.

    Otherwise torch would do it within the next step, where a failure would end the run. Where it
    fails here, the blocks run eager from now on.
    """
    if not state.modes.compiled:
        return
    work = _work(state, config, model, windows, None, bool(model.recompute_every))
    try:
        reason = f"for micro_batch_size {state.micro_batch.size}"
        state.modes.compiled = choose_compile(work, True, reason)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        run_eager(model, "out of memory while compiling", logging.WARNING)
        state.modes.compiled = False


def name_of_work(state: RunState, config: Config, model: GPT, windows: TrainingWindows) -> str:
    """Return the name of what is measured of this model, micro-batch and precision."""
    compiled = f"compile {str(config.training.compile).lower()}"
    return f"{_work(state, config, model, windows, None, False).name}, {compiled}"


def choose_cuda_graph(
    state: RunState,
    config: Config,
    windows: TrainingWindows,
    stored: Stored | None,
    graphed: GraphedPass | None,
) -> GraphedPass | None:
    """Return what replays micro-batches where that is faster on this card; None: they are not.

    `training.compile: false` asks for neither compiled blocks nor graphs.
    """
    if graphed is None or config.training.compile is False:
        return None
    modes = state.modes
    model = graphed.model
    name = _work(state, config, model, windows, stored, False).name_of_pass
    model.train()
    with autocast(windows.device, modes.precision):
        batch = _first_micro_batch(state, config, windows)
        before = _stored_way(config, stored, "graphed", windows.device)
        modes.graphed = choose_graph(graphed, batch, name, before)
    graphed.on_failure = partial(setattr, modes, "graphed", False)
    return graphed if modes.graphed else None


def _stored_way(
    config: Config, stored: Stored | None, way: str, device: torch.device
) -> bool | None:
    """Return whether a checkpoint's run computed in that way; None: choose anew."""
    if stored is None or stored["config"]["training"]["compile"] != config.training.compile:
        return None
    if not on_same_device(stored, device):
        return None
    before: bool = stored["state"]["modes"].get(way, False)
    return before


def _first_micro_batch(state: RunState, config: Config, windows: TrainingWindows) -> Batch:
    starts = windows.starts(0, config.training.sequences_per_step)
    return windows.batch(starts[: state.micro_batch.size])


def _work(
    state: RunState,
    config: Config,
    model: GPT,
    windows: TrainingWindows,
    stored: Stored | None,
    recomputes: bool,
) -> Work:
    """Return what a block computes in a micro-batch, and how much of it is left after `stored`."""
    settings = config.training
    steps_done = 0
    seconds_done = 0.0
    if stored is not None:
        steps_done = stored["state"]["progress"]["global_step"]
        seconds_done = stored["state"]["progress"]["time_s"]
    steps_left = math.inf
    seconds_left = math.inf
    last = last_step(settings, windows.per_epoch)
    if last is not None:
        steps_left = max(0, last - steps_done)
    if settings.max_minutes is not None:
        seconds_left = max(0.0, 60 * settings.max_minutes - seconds_done)
    if steps_left == seconds_left == math.inf:
        seconds_left = SECONDS_IF_UNKNOWN
    return Work(
        config,
        model,
        windows.device,
        state.modes.precision,
        state.micro_batch.size,
        steps_left=steps_left,
        seconds_left=seconds_left,
        recomputes=recomputes,
    )


def start_gradient_checkpointing(
    modes: Modes, config: Config, model: GPT, device: torch.device, every: int
) -> None:
    """Switch gradient checkpointing on where it is proven, for every `every`-th block; 0: for none.

    On a card, `compile: auto` gives way where the proof fails with compiled blocks: without
    gradient checkpointing memory might run out, without compiling it is only slower.
    """
    if not every:
        return
    tolerance = recomputation_tolerance(modes, device)
    with autocast(device, modes.precision):
        if enable_gradient_checkpointing(model, every, tolerance):
            return
        if modes.compiled and device.type == "cuda" and config.training.compile == "auto":
            run_eager(model, "gradient checkpointing cannot be proven with it")
            modes.compiled = False
            enable_gradient_checkpointing(model, every)


def recomputation_tolerance(modes: Modes, device: torch.device) -> float:
    """Return how far recomputation may change loss and gradient, relative to them; 0: not one bit.

    Compiled blocks round differently when they recompute. On a card that is allowed, within the
    rounding of the precision.
    """
    if modes.compiled and device.type == "cuda":
        return GRADIENT_TOLERANCE[modes.precision]
    return 0.0


def choose_muon_precision(
    modes: Modes, config: Config, model: GPT, device: torch.device, stored: Stored | None
) -> None:
    """Choose the precision of the products of Muon's updates, where Muon is the optimizer."""
    if not config.training.uses_muon:
        return
    if stored is not None:
        modes.muon_precision = stored["state"]["modes"]["muon_precision"]
        return
    with waiting("measuring how fast bf16 is for Muon"):
        modes.muon_precision = pick_muon_precision(model, device)


def change_precision(state: RunState, scaler: SafeGradScaler, precision: Precision) -> None:
    """Switch precision from the next step; only fp16 uses loss scaling."""
    state.modes.precision = precision
    state.health.good_steps = 0
    state.health.bad_before_rung = len(state.health.bad_steps)
    scaler.set_rung(enabled=precision == "fp16")


def give_up_gradient_checkpointing(
    model: nn.Module, state: RunState, error: CheckpointError | str
) -> None:
    """Switch gradient checkpointing off for the rest of the run: a recomputation differed.

    error: what torch says about it; its first line is logged.
    """
    disable_gradient_checkpointing(model)
    state.modes.gradient_checkpointing_failed = True
    reason = str(error).strip().splitlines()[0]
    logger.warning(
        "step %d is done again without gradient checkpointing, which stays off: "
        "a recomputation differed (%s)",
        state.progress.global_step + 1,
        reason,
        extra=event("gradient_checkpointing", on=False, reason=reason),
    )


def prove_gradient_checkpointing_again(
    model: GPT, state: RunState, device: torch.device, ranks: Ranks
) -> None:
    """Repeat the proof of gradient checkpointing; switch it off for good when that fails.

    A step notices other shapes or types of a recomputation, not other values. It holds for all
    ranks or for none.
    """
    every = model.recompute_every
    if not every:
        return
    marks = state.marks
    step = state.progress.global_step
    no_memory = False
    difference: str | None = ""
    try:
        with autocast(device, state.modes.precision):
            tolerance = recomputation_tolerance(state.modes, device)
            difference = recomputation_differs(model, every, tolerance).problem
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        no_memory = True
    difference = ranks.first_problem(difference)
    if ranks.largest(no_memory):
        logger.warning(
            "gradient checkpointing could not be proven again at step %d: out of memory", step
        )
        return
    if difference:
        disable_gradient_checkpointing(model)
        state.modes.gradient_checkpointing_failed = True
        logger.warning(
            "gradient checkpointing is off from step %d on: %s; "
            "steps %d to %d were trained since the last proof",
            step + 1,
            difference,
            marks.last_proof_step + 1,
            step,
            extra=event("gradient_checkpointing", on=False, reason=difference),
        )
    marks.last_proof_step = step


def asked_for_another_precision(before: TrainingConfig, now: TrainingConfig) -> bool:
    """Return whether the user wants another precision than the stored configuration."""
    asked_before = (before.mixed_precision, before.precision_dtype)
    return asked_before != (now.mixed_precision, now.precision_dtype)


def _asks_for_same_precision(config: Config, stored: Stored) -> bool:
    before = TrainingConfig(**stored["config"]["training"])
    return not asked_for_another_precision(before, config.training)


def _wanted_threads(config: Config, device: torch.device, stored: Stored | None) -> int | None:
    """Return the threads that the user asks for or a checkpoint has; None: torch's own number."""
    wanted = config.training.threads
    variable = os.environ.get("OMP_NUM_THREADS", "")
    if wanted is None and variable.isdecimal():
        wanted = _threads_of(variable)
    if stored is None:
        if wanted is None and device.type == "cpu":
            return _measure_threads(config.model.d_model)
        if wanted is not None and wanted > MAX_THREADS:
            raise ConfigError(
                f"OMP_NUM_THREADS: found {variable:.20}, expected at most {MAX_THREADS}"
            )
        return wanted
    threads: int = stored["state"]["modes"]["threads"]
    if wanted not in (None, threads):
        logger.warning(
            "%d threads as in the checkpoint, not %d: another number would give other bits",
            threads,
            wanted,
        )
    return threads


def _threads_of(variable: str) -> int | None:
    """Return the threads that OMP_NUM_THREADS names, at most one above MAX_THREADS; None for 0.

    Python refuses to read thousands of digits as a number.
    """
    digits = variable.lstrip("0")
    if len(digits) > len(str(MAX_THREADS)):
        return MAX_THREADS + 1
    return min(int(digits or 0), MAX_THREADS + 1) or None


def _measure_threads(d_model: int) -> int:
    _leave_threads_to_quota()
    with waiting("measuring how many threads are fast"):
        threads, seconds = fast_threads(d_model)
    words = [f"{1000 * s:.2f} ms with {n}" for n, s in sorted(seconds.items())]
    if words:
        logger.info(
            "threads: %d; some products take %s",
            threads,
            ", ".join(words),
            extra=event("choice", what="threads", chosen=threads, measured=seconds),
        )
    return threads


def _leave_threads_to_quota() -> None:
    """Take no more threads than the CPU time that the control groups leave, if they limit it.

    With more threads, all of them would wait for one that the kernel has stopped.
    """
    quota = cpu_quota()
    if quota is None or quota >= torch.get_num_threads():
        return
    threads = max(1, int(quota))
    logger.info(
        "threads: at most %d of %d: this container or group may use the time of %.3g CPUs",
        threads,
        torch.get_num_threads(),
        quota,
    )
    torch.set_num_threads(threads)


def _choose_attention(
    config: Config, device: torch.device, precision: str, stored: Stored | None
) -> Kernel:
    """Return attention's kernel: the checkpoint's, else the one asked for or measured fast."""
    asked = config.training.attention
    if stored is None:
        shape = config.model
        return pick_attention(asked, shape, config.training.batch_size, device, DTYPES[precision])
    kernel: Kernel = stored["state"]["modes"]["attention"]
    if asked not in ("auto", kernel):
        logger.warning(
            "attention by %s as in the checkpoint: another kernel would give other bits", kernel
        )
    return kernel
