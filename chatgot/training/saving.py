"""One save: check the state, set the marks, write the file, undo the marks if that fails."""

import logging

from chatgot.checkpointing.run_files import checkpoint_path, cleanup_old_checkpoints, set_aside
from chatgot.checkpointing.saver import CheckpointWriter
from chatgot.checkpointing.tensors import not_finite
from chatgot.errors import OutOfMemory, StorageError
from chatgot.run.assembly import Run
from chatgot.run.modes import prove_gradient_checkpointing_again
from chatgot.stopping import Stopped
from chatgot.training.due import is_new_best, step_save_due
from chatgot.training.recovery import rewind

logger = logging.getLogger(__name__)


class Saver:
    """Saves one run; a failed save leaves the marks unchanged.

    stopped: whether a signal has asked the run to stop.
    """

    def __init__(self, run: Run, stopped: Stopped) -> None:
        self.run = run
        self._stopped = stopped
        self._writer = CheckpointWriter(run.state.progress.global_step)

    def save(self, last_chance: bool = False) -> bool:
        """Save a checkpoint, then remove old ones; return whether it was saved.

        A state with NaN or infinity is not saved; the run is rewound instead, unless a signal asked
        it to stop. If the weights are the best so far, this step becomes the best step, and its
        file is kept.
        Raises: Diverged; StorageError if this save must not fail (`last_chance`, or the run's end).
        """
        run = self.run
        marks = run.state.marks
        step = run.state.progress.global_step
        before = marks.model_copy()
        best = is_new_best(run)
        by_steps = step_save_due(run)
        # set before the save, because the file contains the marks
        marks.last_save_step = step
        if best:
            assert marks.val_loss is not None
            marks.best_val_loss = marks.val_loss
            marks.best_step = step
        saved = False
        try:
            damaged = not_finite(run.checkpoint())
            if not damaged:
                if by_steps:
                    # before the save, so that the file contains the result of the proof
                    prove_gradient_checkpointing_again(run.model, run.state, run.device)
                saved = self._write(best, last_chance or run.ended())
        finally:
            if not saved:
                marks.last_save_step = before.last_save_step
                marks.best_val_loss = before.best_val_loss
                marks.best_step = before.best_step
        if damaged:
            names = ", ".join(damaged[:3])
            logger.warning("step %d was not saved: found NaN or infinity in %s", step, names)
            if not self._stopped():
                rewind(run)
        return saved

    def _write(self, best: bool, last_chance: bool) -> bool:
        """Write the checkpoint, then remove old ones; return whether it was written."""
        run = self.run
        settings = run.config.training
        run_id = run.state.run_id
        path = checkpoint_path(run.checkpoint_dir, run_id, run.state.progress.global_step)
        set_aside(run.abandoned)
        run.abandoned = []
        if not self._writer.save(path, run.checkpoint(), settings, last_chance, best=best):
            return False
        config_name, _, timestamp = run_id.rpartition("_")
        cleanup_old_checkpoints(
            path.parent,
            config_name,
            timestamp,
            settings.max_checkpoints_to_keep,
            keep=[run.state.marks.best_step],
            rewind_interval=settings.save_checkpoint_steps,
        )
        return True

    def save_before_leaving(self) -> None:
        """Save the last step, if this process made a step and has not saved it yet."""
        run = self.run
        unsaved = run.state.marks.last_save_step != run.state.progress.global_step
        if run.steps_here and unsaved:
            self.save(last_chance=True)

    def save_what_is_whole(self, error: OutOfMemory) -> None:
        """Save the last finished step, unless the failed update has already changed weights."""
        run = self.run
        unsaved = run.state.marks.last_save_step != run.state.progress.global_step
        if not error.unchanged or not unsaved:
            return
        try:
            self.save(last_chance=True)
        except StorageError as storage_error:
            logger.error("%s", storage_error)
