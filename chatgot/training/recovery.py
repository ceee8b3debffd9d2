"""React to steps that went wrong: fall back to a safer precision, rewind and skip data, or stop.

A single bad step is only skipped (step.py).
"""

import copy
import enum
import logging
import math
from collections.abc import Iterator
from functools import partial

from chatgot.checkpointing.checkpoints import is_there
from chatgot.checkpointing.run_files import (
    checkpoint_path,
    files_after,
    files_of_run,
    newest_whole,
)
from chatgot.errors import CheckpointRejected, Diverged
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory
from chatgot.numerics.precision import Precision, next_lower, prove_mixed_precision
from chatgot.run.assembly import Run
from chatgot.run.fits import read_checkpoint
from chatgot.run.modes import change_precision
from chatgot.run.resuming import check_state
from chatgot.run.run_state import RunState, Stored, after_rewind, overwrite, restore_state

logger = logging.getLogger(__name__)


class Outcome(enum.Enum):
    """Where the run is after a step."""

    GOES_ON = "goes on"
    REWOUND = "rewound"


def recover(run: Run) -> Outcome:
    """React to the last steps: do nothing, change the precision, or rewind.

    Returns whether the run continues after this step or was rewound to an earlier one.

    Raises: Diverged, with a report, if nothing is left to try.
    """
    health = run.state.health
    modes = run.state.modes
    settings = run.config.training
    bad_on_this_rung = len(health.bad_steps) - health.bad_before_rung
    too_many_bad_steps = bad_on_this_rung >= settings.max_nan_before_fallback
    if (run.scaler.fallback_triggered or too_many_bad_steps) and modes.precision != "fp32":
        _lower_precision(run)
        return Outcome.GOES_ON
    if too_many_bad_steps:
        rewind(run)
        return Outcome.REWOUND
    was_lowered = modes.precision != modes.asked_precision
    may_be_raised = was_lowered and not modes.precision_raised
    if may_be_raised and health.good_steps >= settings.safety.amp_retry_steps:
        raise_precision(run)
    return Outcome.GOES_ON


def _lower_precision(run: Run) -> None:
    old = run.state.modes.precision
    lower = next_lower(old, run.device)
    logger.warning(
        "too many bad steps: precision falls back from %s to %s, starting with step %d",
        old,
        lower,
        run.state.progress.global_step + 1,
        extra=event(
            "precision",
            old=old,
            new=lower,
            reason="bad steps",
        ),
    )
    change_precision(run.state, run.scaler, lower)


def raise_precision(run: Run) -> None:
    """Return to mixed precision, one rung of the ladder, if it passes its proof again.

    This is tried once in a run.
    """
    modes = run.state.modes
    windows = run.train_windows
    higher = modes.asked_precision
    if modes.precision == "fp32":
        higher = next_higher(run)
    modes.precision_raised = True
    starts = windows.starts(run.state.progress.position, run.config.training.sequences_per_step)
    batch = windows.batch(starts[: run.state.micro_batch.size])
    problem: str | None = ""
    try:
        problem = prove_mixed_precision(run.model, batch, higher)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        problem = "out of memory"
    # for all ranks or for none
    problem = run.ranks.first_problem(problem)
    if problem:
        logger.warning(
            "precision stays at %s: the check of %s failed (%s)", modes.precision, higher, problem
        )
        return
    logger.info(
        "precision returns from %s to %s, starting with step %d",
        modes.precision,
        higher,
        run.state.progress.global_step + 1,
        extra=event("precision", old=modes.precision, new=higher, reason="proven again"),
    )
    change_precision(run.state, run.scaler, higher)


def next_higher(run: Run) -> Precision:
    """Return the precision one rung above fp32, towards the configured one."""
    asked = run.state.modes.asked_precision
    lower = next_lower(asked, run.device)
    return asked if lower == "fp32" else lower


def rewind(run: Run) -> None:
    """Go back to the newest good checkpoint; skip the data of the bad steps, and some more.

    If there is no new good checkpoint since the last rewind, go back one checkpoint further. If
    there is no checkpoint, go back to the start.
    Raises: Diverged if `max_rewinds` are used up, or there is nothing to go back to; StorageError
    of a save that was still being written.
    """
    run.finish_saving()  # its file may be the one to go back to
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
        words = f", data positions {left_out[0]} to {left_out[1] - 1} are skipped"
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
    # renamed at the next save: until then the run has no others
    run.abandoned = files_after(checkpoint_dir, state.run_id, state.progress.global_step)
    best_path = checkpoint_path(checkpoint_dir, state.run_id, state.marks.best_step)
    if not run.ranks.from_main(is_there(best_path)):
        _forget_best(run)


def _forget_best(run: Run) -> None:
    """Forget the best checkpoint, because its file is gone.

    The checkpoint of this step becomes the best one, if it was evaluated.
    """
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
    """Load a stored state, except for the counters that a rewind does not change."""
    state = run.state
    before = state.model_copy(deep=True)
    restore_state(run.own_part(stored), state, run.model, run.optimizer, run.scaler)
    if state.modes.precision != before.modes.precision:
        change_precision(state, run.scaler, before.modes.precision)
    overwrite(state, after_rewind(before, state))
    state.health.rewinds += 1
    state.health.rewound_to = step
    # the steps of the next trials move back with the run
    back = before.progress.global_step - step
    micro_batch = state.micro_batch
    micro_batch.next_growth_step = max(0, micro_batch.next_growth_step - back)
    for rejected in micro_batch.rejected:
        rejected.until = max(0, rejected.until - back)
    state.progress.skipped_ranges = ranges
    state.progress.leave_out()


def ranges_to_skip(run: Run) -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """Return all ranges of positions [first, end) to skip, and the new one of them.

    The new range is None if the weights contain NaN although no step was bad.
    """
    ranges = run.state.progress.skipped_ranges
    bad_steps = run.state.health.bad_steps
    if not bad_steps:
        return ranges, None
    first = bad_steps[0].position
    last = bad_steps[-1].position
    end = last + 1 + run.config.training.safety.rewind_skip_steps
    ranges = merge_ranges([*ranges, (first, end)])
    end = next(end for start, end in ranges if start <= first < end)
    return ranges, (first, end)


def rewind_target(run: Run) -> tuple[int, Stored] | None:
    """Return the step to go back to and its stored state, from a checkpoint or from the start.

    None: there is nothing to go back to.
    """
    # the files may be on rank 0's machine alone
    target = run.ranks.on_main(partial(_checkpoint_to_go_back_to, run))
    if target is None and run.start is not None:
        start = copy.deepcopy(run.start)
        return start["state"]["progress"]["global_step"], start
    return target


def _checkpoint_to_go_back_to(run: Run) -> tuple[int, Stored] | None:
    """Return the step and the content of a checkpoint; None: there is none to go back to."""
    health = run.state.health
    target: tuple[int, Stored] | None = None
    for step, stored in _good_checkpoints(run):
        is_first = target is None
        target = (step, stored)
        # if a rewind already used this checkpoint, take the next older one, if any
        was_used = health.rewinds > 0 and step <= health.rewound_to
        if not (is_first and was_used):
            break
    return target


def _good_checkpoints(run: Run) -> Iterator[tuple[int, Stored]]:
    """Yield (step, content) of the checkpoints that a rewind may use, newest first."""
    rewind_interval = run.config.training.save_checkpoint_steps
    if rewind_interval is None:
        return
    files = files_of_run(run.checkpoint_dir, run.state.run_id)
    for step in sorted(files, reverse=True):
        path = files[step]
        is_for_rewinds = step % rewind_interval == 0
        is_later = step > run.state.progress.global_step
        if not is_for_rewinds or is_later or path in run.abandoned:
            continue
        try:
            stored = read_checkpoint(path)
            check_state(run, stored, path, data_may_change=True)
        except CheckpointRejected as error:
            logger.warning("%s; the rewind ignores this checkpoint", error)
            continue
        bad_steps = stored["state"]["health"]["bad_steps"]
        if not bad_steps and not stored["scaler_state_dict"].get("nan_counter"):
            yield step, stored


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges [first, end) in order, with overlapping or adjacent ones joined."""
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
    """Return the message of exit 4: the step, its numbers, what was tried, and what to do."""
    state = run.state
    ranges = [f"{first} to {end - 1}" for first, end in state.progress.skipped_ranges]
    lr = state.progress.lr
    rate = "none"
    if lr is not None and math.isfinite(lr):
        rate = f"{lr:.3g}"
    advice = "lower training.learning_rate"
    # checkpoints after the last rewind's may be damaged, though they are finite
    path = checkpoint_path(run.checkpoint_dir, state.run_id, state.health.rewound_to)
    newest = path if is_there(path) else newest_whole(run.checkpoint_dir, state.run_id)
    if newest is not None:
        advice += f" and resume from {newest}"
    lines = [
        f"diverged at step {state.progress.global_step}: {last_bad_numbers(state)}; "
        f"learning rate {rate}",
        f"tried: {state.health.skips} steps skipped, precision {state.modes.asked_precision} -> "
        f"{state.modes.precision}, {state.health.rewinds} rewinds, "
        f"data positions skipped: {', '.join(ranges) or 'none'}",
        advice,
    ]
    return "\n".join(lines)
