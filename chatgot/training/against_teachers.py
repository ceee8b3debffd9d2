"""Was it worth it? The held-out loss of a student beside that of each teacher, and of all together.

All are measured in the same way at the end of the run, over every held-out token. A student counts
with its best checkpoint, as its teachers do.

Letters: B batch, T time (tokens), V vocabulary; K models.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from chatgot.checkpointing.run_files import checkpoint_path
from chatgot.data.windows import NOT_LEARNED, Batch
from chatgot.errors import CheckpointRejected
from chatgot.exchange.importing import read_start
from chatgot.logs.events import event
from chatgot.model.gpt import GPT, evaluating
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.sampling.loading import load_model
from chatgot.stopping import Stopped
from chatgot.training.evaluation import Readings, halving_batches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Losses:
    """Held-out losses in nats per token. together: of the mean of the teachers' probabilities."""

    student: float
    teachers: list[float]
    together: float


def compare_with_teachers(run: Run, stopped: Stopped) -> None:
    """Log how a finished student compares with its teachers; without teachers do nothing.

    Best effort: when stopped, or where memory runs out, nothing is logged.
    """
    if not run.teachers:
        return
    with run.times.of("evaluation"):
        student, step = _best_student(run)
        losses = losses_of_all(run, student, stopped)
    if losses is not None:
        _log(run, losses, step)


def _best_student(run: Run) -> tuple[GPT, int]:
    """Return the student of the lowest held-out loss, and its step; it may be the present one."""
    run.finish_saving()  # its file may be the best one
    now = run.state.progress.global_step
    best = run.state.marks.best_step
    if best in (now, -1):
        return run.model, now
    path = checkpoint_path(run.checkpoint_dir, run.state.run_id, best)
    try:
        model = load_model(path, run.device, read_start).model
    except CheckpointRejected as error:
        logger.warning("%s; the student of step %d is measured instead", error, now)
        return run.model, now
    model.use_attention(run.state.modes.attention)
    return model, best


def losses_of_all(run: Run, student: GPT, stopped: Stopped) -> Losses | None:
    """Return the losses over every held-out token that is learned from.

    Where each source has a loss of its own, they are weighted as those of the run.
    None: stopped, or not even one sequence fits into the memory.
    """
    models = [student, *(teacher.model for teacher in run.teachers)]
    parts = [(1.0, run.val_windows)]
    if run.held_out:
        parts = [(source.weight, source.windows) for source in run.held_out if source.weight]
    totals = [0.0] * (len(models) + 1)
    for weight, windows in parts:
        losses = halving_batches(
            run,
            windows.every_token,
            partial(_mean_losses, run, models, stopped),
            None,
            words="comparing the student with its teachers",
            tokens=len(windows.ids) - 1,
        )
        if losses is None:
            return None
        totals = [total + weight * loss for total, loss in zip(totals, losses, strict=True)]
    return Losses(totals[0], totals[1:-1], totals[-1])


def _mean_losses(
    run: Run, models: Sequence[GPT], stopped: Stopped, batches: Iterable[Batch]
) -> list[float] | None:
    """Return the mean loss of each model, and then that of all but the first one together."""
    sums = [Readings(run.device) for _ in range(len(models) + 1)]
    targets = Readings(run.device)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(autocast(run.device, run.state.modes.precision))
        for x, y in batches:
            if stopped():
                return None
            losses = _summed_losses(models, x, y, len(run.vocabulary))
            for of_model, loss in zip(sums, losses, strict=True):
                of_model.add(loss)
            targets.add((y != NOT_LEARNED).sum())
        count = math.fsum(targets.read())
        return [math.fsum(of_model.read()) / count for of_model in sums]


def _summed_losses(models: Sequence[GPT], x: Tensor, y: Tensor, n_tokens: int) -> list[Tensor]:
    """Return the sums of the losses over x and y (B, T), () each: of each model, then together."""
    losses = []
    total: Tensor | None = None  # the log of the sum of the teachers' probabilities, (B, T, V)
    for number, model in enumerate(models):
        log_p = F.log_softmax(model(x)[0].float()[..., :n_tokens], dim=-1)  # (B, T, V)
        losses.append(_sum(log_p, y))
        if number > 0:
            total = log_p if total is None else torch.logaddexp(total, log_p)
    assert total is not None, "there is a teacher"
    losses.append(_sum(total - math.log(len(models) - 1), y))
    return losses


def _sum(log_p: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the losses of log-probabilities (B, T, V) over the targets y (B, T)."""
    return F.nll_loss(log_p.flatten(0, 1), y.flatten(), reduction="sum")


def _log(run: Run, losses: Losses, step: int) -> None:
    own_minutes = run.state.progress.time_s / 60
    minutes = own_minutes + math.fsum(teacher.minutes for teacher in run.teachers)
    best_teacher = min(losses.teachers)
    logger.info(
        "student, step %d: %s over every held-out token, %+.4f against the best teacher; "
        "all teachers together: %s; %.1f minutes of training in all, %.1f of them the student's",
        step,
        _in_both_units(run, losses.student),
        losses.student - best_teacher,
        _in_both_units(run, losses.together),
        minutes,
        own_minutes,
        extra=event(
            "distillation",
            student={"step": step, **_facts(run, losses.student), "minutes": own_minutes},
            teachers=[
                {
                    "run_id": teacher.run_id,
                    "step": teacher.step,
                    "path": str(teacher.path),
                    **_facts(run, loss),
                    "minutes": teacher.minutes,
                }
                for teacher, loss in zip(run.teachers, losses.teachers, strict=True)
            ],
            together=_facts(run, losses.together),
            minutes=minutes,
        ),
    )
    for number, (teacher, loss) in enumerate(
        zip(run.teachers, losses.teachers, strict=True), start=1
    ):
        shown = _in_both_units(run, loss)
        logger.info(
            "teacher %d, %s: %s, %.1f minutes", number, teacher.name, shown, teacher.minutes
        )


def _in_both_units(run: Run, loss: float) -> str:
    return f"{loss:.4f} ({run.bits_per_byte(loss):.4f} bits per byte)"


def _facts(run: Run, loss: float) -> dict[str, float]:
    return {"val_loss_full": loss, "val_bits_per_byte_full": run.bits_per_byte(loss)}
