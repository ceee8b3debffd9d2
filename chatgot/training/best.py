"""The best checkpoint at the end of a run: its loss over every held-out token.

The best evaluation may be an old one, and it saw only `eval_batches`. chat, serve and export take
that checkpoint, so the end of a run says how good it really is. Observation only: the weights are
read into a model of their own.
"""

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

from chatgot.checkpointing.run_files import checkpoint_path
from chatgot.distributed.ranks import Ranks
from chatgot.errors import UserError
from chatgot.exchange.importing import read_start
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.run.assembly import Run
from chatgot.sampling.loading import load_model
from chatgot.stopping import Stopped
from chatgot.training.evaluation import Evaluation, full_loss_of

logger = logging.getLogger(__name__)


def best_step_with(run: Run, val_loss: float) -> int:
    """Return the best step of a run whose present weights have this loss; -1: there is none."""
    marks = run.state.marks
    step = run.state.progress.global_step
    if step > 0 and not run.state.health.bad_steps and val_loss < marks.best_val_loss:
        return step
    return marks.best_step


def measure_best(run: Run, found: Evaluation) -> bool:
    """At the end of a run, measure the best checkpoint too; return False when stopped.

    found: the evaluation of the present weights, which is not noted yet.
    Side effect: `run.full_loss` and `run.best_full_loss` are set. Not being able to measure is one
    warning.
    Raises: StorageError of a save that was still being written.
    """
    if run.end_reason(found.plateau) is None:
        return True
    run.finish_saving()  # of the best, perhaps
    step = best_step_with(run, found.loss)
    run.full_loss = found.full_loss
    run.best_full_loss = None
    if step == run.state.progress.global_step:
        run.best_full_loss = found.full_loss
    elif step > 0:
        with run.times.of("evaluation"):
            measure = partial(_loss_of_checkpoint, run, path_of(run, step))
            loss = run.ranks.long_on_main(measure)
        if loss is None:
            return False
        run.best_full_loss = loss
    return True


def path_of(run: Run, step: int) -> Path:
    """Return the path of a run's checkpoint."""
    return checkpoint_path(run.checkpoint_dir, run.state.run_id, step)


def _loss_of_checkpoint(run: Run, path: Path, stopped: Stopped) -> float | None:
    """Return a checkpoint's loss over every held-out token; NaN: not measured; None: stopped."""
    problem: object = "out of memory"
    try:
        model = load_model(path, run.device, read_start).model
        model.use_attention(run.state.modes.attention)
        alone = replace(run, ranks=Ranks())  # the file may be on this machine alone
        return full_loss_of(alone, model, stopped)
    except UserError as error:
        problem = error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(run.device)  # not in the handler: the exception keeps the tensors alive
    logger.warning("the best checkpoint could not be evaluated: %s", problem)
    return math.nan


def log_best(run: Run, step: int) -> None:
    """Log the loss of the best checkpoint over every held-out token, if it is another step's."""
    loss = run.best_full_loss
    if loss is None or not math.isfinite(loss) or step == run.state.progress.global_step:
        return
    last = "" if run.full_loss is None else f"; {run.full_loss:.4f} at the last step"
    logger.info(
        "the best weights, of step %d: val_loss_full %.4f over every validation token%s",
        step,
        loss,
        last,
        extra=event(
            "best",
            best_step=step,
            val_loss_full=loss,
            val_bits_per_byte_full=run.bits_per_byte(loss),
            last_val_loss_full=run.full_loss,
            path=str(path_of(run, step)),
        ),
    )


def best_line(run: Run) -> str:
    """Return the log's last words on the best checkpoint; empty: it is the last one."""
    step = run.state.marks.best_step
    loss = run.best_full_loss
    if loss is None or not math.isfinite(loss) or step == run.state.progress.global_step:
        return ""
    return (
        f"best: step {step:,}, held-out loss {loss:.4f} over every token; "
        f"file {path_of(run, step).resolve()}; chat, serve and export take it"
    )
