"""A step went wrong: lower the precision, rewind and leave out the data, or stop.

Single steps are skipped before any of that.
"""

import copy
import enum
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from chatgot.checkpointing.run_files import checkpoint_path, files_after, newest_whole, run_files
from chatgot.errors import CheckpointRejected, Diverged
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory
from chatgot.numerics.gradient_checkpointing import (
    disable_gradient_checkpointing,
    recomputation_differs,
)
from chatgot.numerics.precision import Precision, autocast, next_lower, prove_mixed_precision
from chatgot.run.assembly import Run
from chatgot.run.fits import read_checkpoint
from chatgot.run.modes import change_precision
from chatgot.run.resuming import check_state
from chatgot.run.run_state import RunState, after_rewind, overwrite, restore_state

logger = logging.getLogger(__name__)

Stored = Mapping[str, Any]


class Outcome(enum.Enum):
    """What recovery did after a step."""

    NOTHING = "nothing"
    LOWERED = "lowered"
    RAISED = "raised"
    REWOUND = "rewound"


def recover(run: Run) -> Outcome:
    """Do what the steps so far call for: nothing, another precision, or a rewind.

    Raises: Diverged at the end of the ladder, with a report.
    """
    health = run.state.health
    modes = run.state.modes
    settings = run.config.training
    bad_on_this_rung = len(health.bad_steps) - health.bad_before_rung
    streak = bad_on_this_rung >= settings.max_nan_before_fallback
    if (run.scaler.fallback_triggered or streak) and modes.precision != "fp32":
        _lower_precision(run)
        return Outcome.LOWERED
    if streak:
        rewind(run)
        return Outcome.REWOUND
    below = modes.precision != modes.asked_precision and not modes.precision_raised
    if below and health.good_steps >= settings.safety.amp_retry_steps:
        return climb(run)
    return Outcome.NOTHING


def _lower_precision(run: Run) -> None:
    old = run.state.modes.precision
    lower = next_lower(old, run.device)
    logger.warning(
        "precision falls back from %s to %s from step %d on",
        old,
        lower,
        run.state.progress.global_step + 1,
        extra=event(
            "precision",
            step=run.state.progress.global_step + 1,
            old=old,
            new=lower,
            reason="non-finite steps",
        ),
    )
    change_precision(run.state, run.scaler, lower)


def climb(run: Run) -> Outcome:
    """Go one rung up, once in a run, if that precision passes its proof again."""
    modes = run.state.modes
    windows = run.train_windows
    higher = modes.asked_precision
    if modes.precision == "fp32":
        higher = next_higher(run)
    modes.precision_raised = True
    starts = windows.starts(run.state.progress.position, run.config.training.sequences_per_step)
    batch = windows.batch(starts[: run.state.micro_batch.size])
    try:
        problem = prove_mixed_precision(run.model, batch, higher)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = "out of memory in its proof"
    if problem:
        logger.warning(
            "precision stays at %s: %s differs from fp32 (%s)", modes.precision, higher, problem
        )
        return Outcome.NOTHING
    logger.info(
        "precision climbs back from %s to %s from step %d on",
        modes.precision,
        higher,
        run.state.progress.global_step + 1,
        extra=event("precision", old=modes.precision, new=higher, reason="proven again"),
    )
    change_precision(run.state, run.scaler, higher)
    return Outcome.RAISED


def next_higher(run: Run) -> Precision:
    """Return the rung above fp32 on the way to the precision asked for."""
    asked = run.state.modes.asked_precision
    lower = next_lower(asked, run.device)
    return asked if lower == "fp32" else lower


def prove_again(run: Run) -> None:
    """Repeat the proof of gradient checkpointing: other values alone raise no error."""
    every = run.model.recompute_every
    if not every:
        return
    marks = run.state.marks
    step = run.state.progress.global_step
    try:
        with autocast(run.device, run.state.modes.precision):
            difference = recomputation_differs(run.model, every)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(
            "gradient checkpointing could not be proven again at step %d: out of memory", step
        )
        return
    if difference:
        disable_gradient_checkpointing(run.model)
        run.state.modes.gradient_checkpointing_failed = True
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


def rewind(run: Run) -> None:
    """Go back to the newest good checkpoint; leave out the data that went wrong, and some more.

    A second rewind without a good checkpoint in between goes one further back; before the first
    checkpoint is the start.
    Raises: Diverged when `max_rewinds` are used up, or there is nothing to go back to.
    """
    state = run.state
    if state.health.rewinds >= run.config.training.safety.max_rewinds:
        raise Diverged(failure_report(run))
    target = rewind_target(run)
    if target is None:
        raise Diverged(failure_report(run))
    step, stored = target
    ranges, left_out = ranges_to_skip(run)
    words = ""
    if left_out is not None:
        words = f", data positions {left_out[0]} to {left_out[1] - 1} are left out"
    reason = last_bad_numbers(state)
    logger.warning(
        "diverged at step %d (%s): rewinding to step %d%s",
        state.progress.global_step,
        reason,
        step,
        words,
        extra=event("rewind", to=step, skipped=left_out, reason=reason),
    )
    _go_back(run, step, stored, ranges)
    checkpoint_dir = run.checkpoint_dir
    # they stay in place until there is something to put in their place
    run.abandoned = files_after(checkpoint_dir, state.run_id, state.progress.global_step)
    best_path = checkpoint_path(checkpoint_dir, state.run_id, state.marks.best_step)
    if not best_path.is_file():
        _forget_best(run)


def _forget_best(run: Run) -> None:
    """Let the checkpoint just gone back to be the best, if it was evaluated: no better is left."""
    marks = run.state.marks
    step = run.state.progress.global_step
    marks.best_val_loss = math.inf
    marks.best_step = -1
    if step == 0 or marks.last_eval_step != step or marks.val_loss is None:
        return
    if math.isfinite(marks.val_loss):
        marks.best_val_loss = marks.val_loss
        marks.best_step = step


def _go_back(run: Run, step: int, stored: Stored, ranges: list[tuple[int, int]]) -> None:
    """Put a stored state in force, except for the counters that a rewind leaves as they are."""
    state = run.state
    before = state.model_copy(deep=True)
    restore_state(stored, state, run.model, run.optimizer, run.scaler)
    if state.modes.precision != before.modes.precision:
        change_precision(state, run.scaler, before.modes.precision)
    overwrite(state, after_rewind(before, state))
    state.health.rewinds += 1
    state.health.rewound_to = step
    # what waits for a step waits as long as before
    back = before.progress.global_step - step
    micro_batch = state.micro_batch
    micro_batch.next_growth_step = max(0, micro_batch.next_growth_step - back)
    for rejected in micro_batch.rejected:
        rejected.until = max(0, rejected.until - back)
    state.progress.skipped_ranges = ranges
    state.progress.leave_out()


def ranges_to_skip(run: Run) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """Return all ranges of positions to leave out, and the one that is new.

    None is new where the weights were found damaged though every step was good: then no data is
    to blame.
    """
    ranges = run.state.progress.skipped_ranges
    bad_steps = run.state.health.bad_steps
    if not bad_steps:
        return ranges, None
    first = bad_steps[0].position
    last = bad_steps[-1].position
    end = last + 1 + run.config.training.safety.rewind_skip_steps
    ranges = merged([*ranges, (first, end)])
    end = next(end for start, end in ranges if start <= first < end)
    return ranges, (first, end)


def rewind_target(run: Run) -> tuple[int, Stored] | None:
    """Return the step to go back to, and its state: of a checkpoint, or of the start.

    None: there is nothing to go back to.
    """
    health = run.state.health
    target: tuple[int, Stored] | None = None
    for step, stored in _good_checkpoints(run):
        is_first = target is None
        target = (step, stored)
        # nothing good was saved since the last rewind: one further back, if there is one
        if not (is_first and health.rewinds and step <= health.rewound_to):
            break
    if target is None and run.start is not None:
        start = copy.deepcopy(run.start)
        return start["state"]["progress"]["global_step"], start
    return target


def _good_checkpoints(run: Run) -> Iterator[tuple[int, Stored]]:
    """Yield (step, content) of the checkpoints that a rewind may go back to, the newest first."""
    every = run.config.training.save_checkpoint_steps
    if every is None:
        return
    config_name, _, timestamp = run.state.run_id.rpartition("_")
    files = run_files(run.checkpoint_dir, config_name).get(timestamp, {})
    for step in sorted(files, reverse=True):
        path = files[step]
        if step % every or step > run.state.progress.global_step or path in run.abandoned:
            continue
        try:
            stored = read_checkpoint(path)
            check_state(run, stored, path, data_may_change=True)
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        bad = stored["state"]["health"]["bad_steps"]
        if not bad and not stored["scaler_state_dict"].get("nan_counter"):
            yield step, stored


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges [first, end) in order, those that touch joined."""
    result: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((first, end))
    return result


def last_bad_numbers(state: RunState) -> str:
    """Return the losses and gradient norms of the bad steps."""
    bad_steps = state.health.bad_steps
    if not bad_steps:
        return "NaN or infinity in the weights or the optimizer's state"
    losses = ", ".join(f"{bad.loss:g}" for bad in bad_steps)
    norms = ", ".join(f"{bad.grad_norm:g}" for bad in bad_steps)
    return f"losses {losses}; gradient norms {norms}"


def failure_report(run: Run) -> str:
    """Return what exit 4 says: where, with which numbers, what was tried, what to resume from."""
    state = run.state
    ranges = [f"{first} to {end - 1}" for first, end in state.progress.skipped_ranges]
    lr = state.progress.lr
    rate = "none" if lr is None or not math.isfinite(lr) else f"{lr:.3g}"
    advice = "lower training.learning_rate"
    # later checkpoints than the last rewind's may be ruined, though finite
    path = checkpoint_path(run.checkpoint_dir, state.run_id, state.health.rewound_to)
    newest = path if path.is_file() else newest_whole(run.checkpoint_dir, state.run_id)
    if newest is not None:
        advice += f" and resume from {newest}"
    lines = [
        f"diverged at step {state.progress.global_step}: {last_bad_numbers(state)}; "
        f"learning rate {rate}",
        f"tried: {state.health.skips} steps skipped, precision {state.modes.asked_precision} -> "
        f"{state.modes.precision}, {state.health.rewinds} rewinds, "
        f"data positions left out: {', '.join(ranges) or 'none'}",
        advice,
    ]
    return "\n".join(lines)
