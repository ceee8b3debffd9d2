"""A step went wrong: lower the precision, rewind and leave out the data, or stop. Single steps are skipped before."""

import copy
import logging
import math
from pathlib import Path
from typing import Any

from chatgot.checkpointing.run_files import checkpoint_path, files_after, newest_whole, run_files
from chatgot.errors import CheckpointRejected, Diverged
from chatgot.machine.memory import is_out_of_memory
from chatgot.numerics.gradient_checkpointing import (
    disable_gradient_checkpointing,
    recomputation_differs,
)
from chatgot.numerics.precision import autocast, next_lower, prove_mixed_precision
from chatgot.run.assembly import Training
from chatgot.run.fits import read_checkpoint
from chatgot.run.modes import change_precision
from chatgot.run.resuming import check_state
from chatgot.run.run_state import RunState, restore_state

logger = logging.getLogger(__name__)

KEPT = (  # of the run that is left behind; all else is as it was at the step gone back to
    "run_id", "precision", "asked_precision", "precision_raised", "recompute_off", "threads", "attention", "compiled",
    "muon_precision", "micro_batch_size", "eval_batch_size", "size_history", "sizes_rejected", "next_growth_step",
    "time_s", "skips",
)  # fmt: skip


def recover(training: Training) -> str:
    """Do what the steps so far call for; return "done" (nothing), "lowered", "raised" or "rewound".

    Raises: Diverged at the end of the ladder, with a report.
    """
    run, scaler, settings = training.run, training.scaler, training.config.training
    streak = len(run.bad_steps) - run.bad_before_rung >= settings.max_nan_before_fallback
    if (scaler.fallback_triggered or streak) and run.precision != "fp32":
        lower = next_lower(run.precision, training.device)
        logger.warning(
            "precision falls back from %s to %s from step %d on",
            run.precision,
            lower,
            run.global_step + 1,
        )
        change_precision(run, scaler, lower)
        return "lowered"
    if streak:
        rewind(training)
        return "rewound"
    below = run.precision != run.asked_precision and not run.precision_raised
    if below and run.good_steps >= settings.amp_retry_steps:
        return climb(training)
    return "done"


def climb(training: Training) -> str:
    """Go one rung up, once in a run, if that precision passes its proof again; return what was done."""
    run, windows = training.run, training.train_windows
    higher = run.asked_precision if run.precision == "bf16" else next_higher(training)
    run.precision_raised = True
    S = training.config.training.sequences_per_step
    batch = windows.batch(windows.starts(run.position, S)[: run.micro_batch_size])
    try:
        why = prove_mixed_precision(training.model, batch, higher)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        why = "out of memory in its proof"
    if why:
        logger.warning(
            "precision stays at %s: %s differs from fp32 (%s)", run.precision, higher, why
        )
        return "done"
    logger.info(
        "precision climbs back from %s to %s from step %d on",
        run.precision,
        higher,
        run.global_step + 1,
    )
    change_precision(run, training.scaler, higher)
    return "raised"


def prove_again(training: Training) -> None:
    """Repeat the proof of gradient checkpointing: a difference in values raises nothing by itself."""
    run, model, every = training.run, training.model, training.model.recompute_every
    if not every:
        return
    try:
        with autocast(training.device, run.precision):
            why = recomputation_differs(model, every)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(
            "gradient checkpointing could not be proven again at step %d: out of memory",
            run.global_step,
        )
        return
    if why:
        disable_gradient_checkpointing(model)
        run.recompute_off = True
        logger.warning(
            "gradient checkpointing is off from step %d on: %s; steps %d to %d were trained since the last proof",
            run.global_step + 1, why, run.last_proof_step + 1, run.global_step,
        )  # fmt: skip
    run.last_proof_step = run.global_step


def next_higher(training: Training) -> str:
    """Return the rung above fp32 on the way to the precision asked for."""
    asked = training.run.asked_precision
    return (
        next_lower(asked, training.device)
        if next_lower(asked, training.device) != "fp32"
        else asked
    )


def rewind(training: Training) -> None:
    """Go back to the newest checkpoint that was good, and leave out the data that went wrong with some more.

    A second rewind without a good checkpoint in between goes one further back; before the first one lies the start.
    Raises: Diverged when `max_rewinds` are used up.
    """
    run, settings = training.run, training.config.training
    if run.rewinds >= settings.max_rewinds:
        raise Diverged(report(training))
    found = rewind_target(training)
    if found is None:
        raise Diverged(report(training))
    target, stored = found
    ranges, what = run.skipped_ranges, ""
    if (
        run.bad_steps
    ):  # else the weights were found damaged though every step was good: no data is to blame
        first, last = (int(run.bad_steps[i][1]) for i in (0, -1))
        ranges = merged([*ranges, [first, last + 1 + settings.rewind_skip_steps]])
        end = next(end for start, end in ranges if start <= first < end)
        what = f", data positions {first} to {end - 1} are left out"
    logger.warning(
        "diverged at step %d (%s): rewinding to step %d%s", run.global_step, seen_last(run), target, what,
    )  # fmt: skip
    kept = {name: getattr(run, name) for name in KEPT}
    back = run.global_step - target  # what waits for a step waits as long as before
    kept["next_growth_step"] = max(0, run.next_growth_step - back)
    kept["sizes_rejected"] = [
        [size, n, max(0, until - back), why] for size, n, until, why in run.sizes_rejected
    ]
    kept |= {"rewinds": run.rewinds + 1, "rewound_to": target, "skipped_ranges": ranges}
    precision = run.precision
    restore_state(stored, run, training.model, training.optimizer, training.scaler)
    if run.precision != precision:
        change_precision(run, training.scaler, precision)
    for name, value in kept.items():
        setattr(run, name, value)
    run.leave_out()
    checkpoint_dir = Path(training.config.paths.checkpoints)
    # they stay until there is something to put in their place
    training.abandoned = files_after(checkpoint_dir, run.run_id, run.global_step)
    if not checkpoint_path(checkpoint_dir, run.run_id, run.best_step).is_file():
        run.best_val_loss, run.best_step = math.inf, -1  # what has no file is not the best


def rewind_target(training: Training) -> tuple[int, dict[str, Any]] | None:
    """Return the step to go back to, and its state: of a checkpoint, or of the start when there never was one.

    None: there is nothing to go back to.
    """
    run, every = training.run, training.config.training.save_checkpoint_steps
    config_name, _, timestamp = run.run_id.rpartition("_")
    files = run_files(Path(training.config.paths.checkpoints), config_name).get(timestamp, {})
    found = None
    for step in sorted(files, reverse=True):
        if (
            every is None
            or step % every
            or step > run.global_step
            or files[step] in training.abandoned
        ):
            continue
        try:
            stored = read_checkpoint(files[step])
            check_state(training, stored, files[step], data_may_change=True)
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        if stored["run"]["bad_steps"] or stored["scaler_state_dict"].get("nan_counter"):
            continue
        first, found = found is None, (step, stored)
        if not (first and run.rewinds and step <= run.rewound_to):
            break  # else nothing good has been saved since the last rewind: one further back, if there is one
    if found is None and training.start:
        found = training.start["run"]["global_step"], copy.deepcopy(training.start)
    return found


def merged(ranges: list[list[int]]) -> list[list[int]]:
    """Return ranges [first, end) in order, those that touch joined."""
    result: list[list[int]] = []
    for first, end in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1][1] = max(result[-1][1], end)
        else:
            result.append([first, end])
    return result


def seen_last(run: RunState) -> str:
    """Return the losses and gradient norms of the bad steps."""
    if not run.bad_steps:
        return "NaN or infinity in the weights or the optimizer's state"
    columns = (
        (name, [row[i] for row in run.bad_steps])
        for i, name in ((2, "losses"), (3, "gradient norms"))
    )
    return "; ".join(
        f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in columns
    )


def report(training: Training) -> str:
    """Return what exit 4 says: where, with which numbers, what was tried, and what to resume from."""
    run = training.run
    left_out = ", ".join(f"{first} to {end - 1}" for first, end in run.skipped_ranges) or "none"
    lr = "none" if run.lr is None or not math.isfinite(run.lr) else f"{run.lr:.3g}"
    checkpoint_dir = Path(training.config.paths.checkpoints)
    path = checkpoint_path(
        checkpoint_dir, run.run_id, run.rewound_to
    )  # later ones may be ruined, though finite
    path = path if path.is_file() else newest_whole(checkpoint_dir, run.run_id)
    return "\n".join(
        (
            f"diverged at step {run.global_step}: {seen_last(run)}; learning rate {lr}",
            f"tried: {run.skips} steps skipped, precision {run.asked_precision} -> {run.precision}, "
            f"{run.rewinds} rewinds, data positions left out: {left_out}",
            f"lower training.learning_rate and resume from {path}"
            if path
            else "lower training.learning_rate",
        )
    )
