"""What is due now: an evaluation, samples, a checkpoint; by steps, by minutes, at the run's end."""

import time

from chatgot.run.assembly import Run


def evaluation_due(run: Run) -> bool:
    """Return whether the present weights are still to be evaluated: by steps, or at the end."""
    interval = run.config.training.eval_interval
    if interval is None or run.state.marks.last_eval_step == run.state.progress.global_step:
        return False
    return run.ended() or run.state.progress.global_step % interval == 0


def step_save_due(run: Run) -> bool:
    """Return whether `save_checkpoint_steps` asks for a checkpoint of this step, not saved yet."""
    interval = run.config.training.save_checkpoint_steps
    if interval is None or run.state.marks.last_save_step == run.state.progress.global_step:
        return False
    return run.state.progress.global_step % interval == 0


def is_new_best(run: Run) -> bool:
    """Return whether the weights were evaluated as the best so far, and not saved as best yet.

    If so, a save is due, and that save makes this step the best one.
    Untrained weights are not, nor are those of a step after which the loss went wrong.
    """
    marks = run.state.marks
    step = run.state.progress.global_step
    if step == 0 or marks.last_eval_step != step or marks.best_step == step:
        return False
    if marks.val_loss is None or run.state.health.bad_steps:
        return False
    return marks.val_loss < marks.best_val_loss


class Due:
    """Decides what is due: it has the clocks, run.state.marks the steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._last_samples_s = time.monotonic()
        self._last_save_s = time.monotonic()
        self._saved_marks = self._marks()

    def evaluation(self) -> bool:
        """Return whether the present weights are to be evaluated now."""
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
        return _passed(self._last_samples_s, minutes)

    def checkpoint(self) -> bool:
        """Return whether a checkpoint is due now: by steps, by minutes, the best, or at the end.

        While bad steps follow each other nobody knows whether the weights are any good. At the end
        a file that is there already is replaced when more has been evaluated or sampled since.
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
        return step_save_due(run) or _passed(self._last_save_s, minutes)

    def sampled(self) -> None:
        """Start the clock of the samples again."""
        self._last_samples_s = time.monotonic()

    def saved(self) -> None:
        """Start the clock of the checkpoints again, whether or not the save succeeded."""
        self._last_save_s = time.monotonic()
        self._saved_marks = self._marks()

    def _marks(self) -> tuple[int, int]:
        marks = self._run.state.marks
        return marks.last_eval_step, marks.last_sample_step


def _passed(since_s: float, minutes: float | None) -> bool:
    """Return whether so many minutes have passed; None: never."""
    if minutes is None:
        return False
    return time.monotonic() - since_s >= 60 * minutes
