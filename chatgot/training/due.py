"""Whether an evaluation, samples or a checkpoint is due: by steps, by minutes, or at the end."""

import time

from chatgot.run.assembly import Run


def evaluation_due(run: Run) -> bool:
    """Return whether an evaluation of the current weights is due, by steps or at the run's end."""
    interval = run.config.training.eval_interval
    if interval is None or run.state.marks.last_eval_step == run.state.progress.global_step:
        return False
    return run.ended() or run.state.progress.global_step % interval == 0


def step_save_due(run: Run) -> bool:
    """Return whether `save_checkpoint_steps` asks for a checkpoint that is not saved yet."""
    interval = run.config.training.save_checkpoint_steps
    if interval is None or run.state.marks.last_save_step == run.state.progress.global_step:
        return False
    return run.state.progress.global_step % interval == 0


def is_new_best(run: Run) -> bool:
    """Return whether the current weights are the best so far, but are not saved as the best yet.

    If so, a save is due, which makes this step the best one. Untrained weights never count, nor do
    weights after a bad step. While better weights are being written in the background, and these
    would be the best without them, it waits: that save may fail.
    Raises: StorageError if it was the third failure in a row.
    """
    marks = run.state.marks
    step = run.state.progress.global_step
    if step == 0 or marks.last_eval_step != step or marks.best_step == step:
        return False
    if marks.val_loss is None or run.state.health.bad_steps:
        return False
    before = run.best_before_saving
    if before is not None and marks.best_val_loss <= marks.val_loss < before:
        run.finish_saving()
    return marks.val_loss < marks.best_val_loss


class Due:
    """Decides what is due. It keeps the clocks; run.state.marks keeps the steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last_samples_s = self._now_s()
        self._last_save_s = self._now_s()
        self._saved_marks = self._marks()

    def evaluation(self) -> bool:
        """Return whether an evaluation is due now: by steps, or at the end of the run."""
        return evaluation_due(self._run)

    def samples(self) -> bool:
        """Return whether samples are due now: by steps, by minutes, or at the end of the run."""
        settings = self._run.config.training
        steps = settings.sample_interval_steps
        minutes = settings.sample_interval_minutes
        global_step = self._run.state.progress.global_step
        if self._run.state.marks.last_sample_step == global_step:
            return False
        if self._run.ended():
            return steps is not None or minutes is not None
        if steps is not None and global_step % steps == 0:
            return True
        return self._passed(self._last_samples_s, minutes)

    def checkpoint(self) -> bool:
        """Return whether a checkpoint is due now: by steps, by minutes, the best, or at the end.

        After a bad step no save is due, because the weights may be damaged. At the end, an existing
        checkpoint of this step is replaced if there was an evaluation or a sample since.
        """
        run = self._run
        marks = run.state.marks
        if is_new_best(run):
            return True
        if marks.last_save_step == run.state.progress.global_step:
            return run.ended() and self._marks() != self._saved_marks
        if run.ended():
            return True
        if run.state.health.bad_steps:
            return False
        minutes = run.config.training.checkpoint_interval_minutes
        return step_save_due(run) or self._passed(self._last_save_s, minutes)

    def sampled(self) -> None:
        """Restart the clock of the samples."""
        self._last_samples_s = self._now_s()

    def saved(self) -> None:
        """Restart the clock of the checkpoints, even if the save failed."""
        self._last_save_s = self._now_s()
        self._saved_marks = self._marks()

    def _marks(self) -> tuple[int, int]:
        marks = self._run.state.marks
        return marks.last_eval_step, marks.last_sample_step

    def _now_s(self) -> float:
        """Return a clock's time; in a group it is rank 0's training time, which all ranks know."""
        if self._run.ranks.is_alone:
            return time.monotonic()
        return self._run.state.progress.time_s

    def _passed(self, since_s: float, minutes: float | None) -> bool:
        """Return whether this many minutes have passed since `since_s`; None: never."""
        if minutes is None:
            return False
        return self._now_s() - since_s >= 60 * minutes
