"""One save: check the state, set the marks, write the file, undo the marks if that fails.

In the background, a copy of the state is written by a thread while training goes on. Everything but
the writing is done by the thread that trains, before it and after it. A group of ranks whose state
is large saves folders (folder_saving.py).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from chatgot.checkpointing.host_copy import HostCopy
from chatgot.checkpointing.run_files import cleanup_old_checkpoints, new_path, set_aside
from chatgot.checkpointing.saver import CheckpointWriter
from chatgot.checkpointing.tensors import not_finite
from chatgot.errors import OutOfMemory, UserError
from chatgot.machine.memory import is_out_of_memory, too_full
from chatgot.run.assembly import Run
from chatgot.run.modes import prove_gradient_checkpointing_again
from chatgot.run.run_state import Marks
from chatgot.stopping import Stopped
from chatgot.training.due import is_new_best, step_save_due
from chatgot.training.folder_saving import FolderSaves, saves_folders
from chatgot.training.recovery import rewind

logger = logging.getLogger(__name__)


class Saver:
    """Saves one run; a failed save leaves the marks unchanged.

    A save in the background has ended when `finish` or `wait` says so, and not before. As a context
    manager, it waits for that at the end of the block.

    stopped: whether a signal has asked the run to stop.
    """

    def __init__(self, run: Run, stopped: Stopped) -> None:
        self.run = run
        self._stopped = stopped
        self._writer = CheckpointWriter(run.state.progress.global_step)
        self._host_copy = HostCopy()
        self._folders: FolderSaves | None = None
        if saves_folders(run):
            self._folders = FolderSaves(run, self._writer, self._remove_old)
        self._in_background = wants_background(run, folders=self._folders is not None)
        self._marks_before = run.state.marks  # before the save in the background
        self._has_said_no_room = False
        self._has_said_waits = False
        run.finish_saving = self._finish_saving

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.wait(goes_on=False)
            return
        if self._folders is not None:
            self._folders.abandon()  # the other ranks may not be there to end it
            return
        with _second_to(error):
            self.wait(goes_on=False)

    def save(self, last_chance: bool = False) -> bool:
        """Save a checkpoint, then remove old ones; return whether it is there now.

        In the background it is not there yet: then this only begins. An earlier save is waited for.
        A save that must not fail (`last_chance`, or the run's end) is never in the background.
        A state with NaN or infinity is not saved; the run is rewound instead, unless a signal asked
        it to stop. If the weights are the best so far, this step becomes the best step, and its
        file is kept.
        Raises: Diverged; StorageError if this save must not fail, or the third in a row has failed.
        """
        run = self.run
        must_not_fail = last_chance or run.ended()
        self._wait_for_earlier(goes_on=not must_not_fail)
        if must_not_fail:
            self._drop_copies()  # this save may need the memory, and it is the last one
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
        begun = False
        saved = False
        try:
            damaged = self._damaged()
            if not damaged:
                if by_steps:
                    # before the save, so that the file contains the result of the proof
                    prove_gradient_checkpointing_again(run.model, run.state, run.device, run.ranks)
                run.ranks.on_main(partial(set_aside, run.abandoned))
                run.abandoned = []
                begun, write = self._begin_or_not(best, must_not_fail)
                self._marks_before = before
                if begun and best:
                    run.best_before_saving = before.best_val_loss
                if not begun:
                    saved = write()
        finally:
            if not (begun or saved):
                self._undo_marks(step, before)
        if damaged:
            names = ", ".join(damaged[:3])
            logger.warning("step %d was not saved: found NaN or infinity in %s", step, names)
            if not self._stopped():
                rewind(run)
        return saved

    def finish(self) -> None:
        """If the save in the background has ended, log it and remove old checkpoints.

        Its failure is a warning, and its marks are undone.
        Raises: StorageError if it was the third failure in a row.
        """
        if self._writer.in_flight is not None and not self._is_writing():
            self.wait()

    def wait(self, goes_on: bool = True) -> None:
        """Wait until the save in the background has ended, if there is one; then do as `finish`.

        goes_on: training goes on afterwards, as far as the caller knows.
        """
        run = self.run
        save = self._writer.in_flight
        if save is None:
            return
        goes_on = goes_on and not (run.ended() or self._stopped())
        saved = False
        try:
            if self._folders is not None:
                saved = self._folders.end(goes_on=goes_on)
            else:
                saved = self._writer.end(run.config.training, goes_on=goes_on)
        finally:
            run.best_before_saving = None
            if not saved:
                self._undo_marks(save.step, self._marks_before)
            if save.error is not None and is_out_of_memory(save.error):
                self._host_copy.drop()
        if saved and self._folders is None:
            self._remove_old()

    def _is_writing(self) -> bool:
        """Return whether a save is still being written, by any rank."""
        if self._folders is not None:
            return self.run.ranks_are_saving  # as all knew after the last step
        return self._writer.is_writing()

    def _finish_saving(self) -> None:
        """As `wait`, for callers outside of the time of saving, which may end the run after it."""
        with self.run.times.of("saving"):
            self.wait(goes_on=False)

    def _wait_for_earlier(self, goes_on: bool) -> None:
        """Wait for an earlier save before another one begins; the first time, the log says so."""
        save = self._writer.in_flight
        if save is not None and self._is_writing() and not self._has_said_waits:
            self._has_said_waits = True
            logger.info(
                "step %d: the next checkpoint is due while that of step %d is still being written; "
                "training waits for it (said once)",
                self.run.state.progress.global_step,
                save.step,
            )
        self.wait(goes_on)

    def _damaged(self) -> list[str]:
        """Return the names of tensors with NaN or infinity; all ranks get the same answer.

        Each rank looks at what it keeps: nothing is gathered.
        """
        run = self.run
        if run.ranks.is_alone:
            return not_finite(run.checkpoint())
        if run.ranks.is_sharded or self._folders is not None:
            content, parts = run.parts()
            own = not_finite({**content, "parts": {part.name: part.tensor for part in parts}})
        else:
            own = not_finite(run.checkpoint())
        return list(dict.fromkeys(name for names in run.ranks.all(own) for name in names))

    def _begin_or_not(self, best: bool, must_not_fail: bool) -> tuple[bool, Callable[[], bool]]:
        """Begin a save in the background where it may be there; return whether it has begun.

        Where it has not, the other value saves while training waits, and returns whether it did.
        """
        run = self.run
        in_background = self._in_background and not must_not_fail
        if self._folders is not None:
            begun = self._folders.begin(best, in_background=in_background)
            if in_background and self._folders.no_room:
                self._say_no_room(self._folders.no_room)
            return begun, partial(self._folders.end, last_chance=must_not_fail)
        content = run.checkpoint()
        begun = in_background and self._begin(content, best)
        write = partial(self._write, content, best, must_not_fail)
        return begun, partial(run.ranks.on_main, write)

    def _drop_copies(self) -> None:
        self._host_copy.drop()
        if self._folders is not None:
            self._folders.drop()

    def _begin(self, content: dict[str, Any], best: bool) -> bool:
        """Begin to write a copy of the content; return False if there is no room for it."""
        start_s = time.monotonic()
        problem = self._no_room_for(content)
        if not problem:
            try:
                copy, arrived = self._host_copy.take(content)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = "out of memory"
        if not problem:
            if self._writer.begin(self._path(), copy, arrived, start_s, best):
                return True
            problem = "the system starts no thread"
        self._host_copy.drop()
        self._say_no_room(problem)
        return False

    def _say_no_room(self, problem: str) -> None:
        if self._has_said_no_room:
            return
        self._has_said_no_room = True
        logger.warning(
            "no room to save in the background (%s): training waits until the checkpoint of "
            "step %d is written (said once)",
            problem,
            self.run.state.progress.global_step,
        )

    def _no_room_for(self, content: dict[str, Any]) -> str:
        """Return why a copy of the content would leave too little memory; empty: it would not."""
        more = self._host_copy.more_bytes(content)
        if not more:
            return ""
        headroom = self.run.config.training.dynamic_batch_size.memory_headroom
        return too_full(torch.device("cpu"), headroom, more)

    def _write(self, content: dict[str, Any], best: bool, last_chance: bool) -> bool:
        """Write the checkpoint, then remove old ones; return whether it was written."""
        settings = self.run.config.training
        if not self._writer.save(self._path(), content, settings, last_chance, best=best):
            return False
        self._remove_old()
        return True

    def _path(self) -> Path:
        run = self.run
        return new_path(run.checkpoint_dir, run.state.run_id, run.state.progress.global_step)

    def _remove_old(self) -> None:
        """Remove the checkpoints that nothing needs any more."""
        run = self.run
        settings = run.config.training
        config_name, _, timestamp = run.state.run_id.rpartition("_")
        cleanup_old_checkpoints(
            run.checkpoint_dir,
            config_name,
            timestamp,
            settings.max_checkpoints_to_keep,
            keep=[run.state.marks.best_step],
            rewind_interval=settings.save_checkpoint_steps,
        )

    def _undo_marks(self, step: int, before: Marks) -> None:
        """Give the marks that a save of this step has set their earlier values."""
        marks = self.run.state.marks
        if marks.last_save_step == step:
            marks.last_save_step = before.last_save_step
        if marks.best_step == step:
            marks.best_val_loss = before.best_val_loss
            marks.best_step = before.best_step

    def save_before_leaving(self) -> None:
        """Save the last step, if this process made a step and has not saved it yet."""
        self.wait(goes_on=False)
        if self.run.steps_here and self._is_unsaved():
            self.save(last_chance=True)

    def save_what_is_whole(self, error: OutOfMemory) -> None:
        """Save the last finished step, unless the failed update has already changed weights.

        A group of ranks saves nothing where one rank alone has failed: the others wait elsewhere.
        """
        alone = self.run.ranks.is_alone or not error.of_one_rank
        if not error.unchanged or not alone:
            return
        with _second_to(error):
            self.wait(goes_on=False)
            if self._is_unsaved():
                self.save(last_chance=True)

    def _is_unsaved(self) -> bool:
        marks = self.run.state.marks
        return marks.last_save_step != self.run.state.progress.global_step


@contextmanager
def _second_to(first: BaseException) -> Iterator[None]:
    """Log an error of this block rather than raise it: the first one ends the run."""
    try:
        yield
    except UserError as error:
        logger.error("%s", error)
    except Exception as error:  # whatever it is, the first error decides the exit code
        logger.error("one more error, after %s:", type(first).__name__, exc_info=error)


def wants_background(run: Run, *, folders: bool = False) -> bool:
    """Return whether a run's checkpoints are written in the background.

    auto: only beside a GPU. On a CPU the thread would take a core from training, and a save costs
    little there: 0.4 % of the time for the 14M model, at one save in two minutes. Folders always:
    they are large. A file of a group of ranks never: rank 0 alone writes it, and all of them have
    to know how that ended.
    """
    wanted = run.config.training.background_saves
    if folders:
        return wanted is not False
    if not run.ranks.is_alone:
        return False
    if wanted == "auto":
        return run.device.type != "cpu"
    return wanted
