"""Saving one checkpoint after another: failures in a row, and what saving costs."""

import errno
import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatgot.atomic_file import mode_of_new_files
from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.checkpointing.host_copy import Arrived
from chatgot.config import TrainingConfig
from chatgot.errors import StorageError
from chatgot.logs.events import event
from chatgot.logs.waiting import Advance, waiting
from chatgot.machine.memory import is_out_of_memory

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3  # in a row; then the run ends rather than go on without a safety net
SAVING_SHARE = 0.01  # of the time; above it, the log says once which interval would be long enough
# of a network file system whose server has restarted or is away, or of a disk that was removed
MOUNT_IS_STALE = (errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT)
SIGNALS_S = 0.1  # a wait for a thread lets signals in as often as this
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass
class Save:
    """The save of one checkpoint, and how it ended.

    replace: write the file even if there is a whole one of this name.
    thread: writes the file in the background; None: training stands still for the whole save.
    """

    path: Path
    step: int
    best: bool
    replace: bool
    start_s: float
    since_last_s: float  # before this save
    is_written: bool = False  # False after a success: there was a whole file of this name already
    megabytes: float = 0.0
    cost_s: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = None
    waited_s: float = 0.0  # how long training stood still for a save in the background
    go_on_s: float = 0.0  # when training went on beside it


class CheckpointWriter:
    """Writes the checkpoints of one run: counts the failures in a row, and says what saving costs.

    A checkpoint is written while the caller waits (`save`), or by a thread (`begin`, `end`). The
    thread logs nothing, counts nothing and computes nothing with tensors: it writes bytes.

    step: the step that this process begins with.
    """

    def __init__(self, step: int) -> None:
        self.failures = 0
        self._first_step = step
        self._last_step = step
        self._last_s = time.monotonic()
        self._has_warned_of_cost = False
        self.in_flight: Save | None = None  # begun in the background, and not counted yet

    def save(
        self,
        path: Path,
        checkpoint: dict[str, Any],
        settings: TrainingConfig,
        last_chance: bool = False,
        *,
        best: bool = False,
    ) -> bool:
        """Save one checkpoint; return whether it is there now. A failure is a warning at first.

        last_chance: no other save will come. best: the event says that these weights are the best.

        Raises: StorageError at the third failure in a row, with `last_chance` at the first.
        """
        assert self.in_flight is None, "one save at a time"
        save = self.new_save(path, checkpoint["global_step"], best, time.monotonic())
        _write(save, checkpoint)
        return self.count(save, settings, last_chance)

    def begin(
        self, path: Path, checkpoint: dict[str, Any], arrived: Arrived, start_s: float, best: bool
    ) -> bool:
        """Begin to write a checkpoint that nobody changes any more; return whether it began.

        It does not begin if the system has no room for a thread.

        arrived: waits for the checkpoint's values. start_s: when the copy was begun.
        """
        assert self.in_flight is None, "one save at a time"
        save = self.new_save(path, checkpoint["global_step"], best, start_s)
        mode = mode_of_new_files()  # here: asked by the thread, it would change for a moment
        save.thread = threading.Thread(
            target=_write_beside, args=(save, checkpoint, arrived, mode), name="saving"
        )
        try:
            save.thread.start()
        except (RuntimeError, MemoryError):  # no room for a thread
            return False
        self.in_flight = save
        save.go_on_s = time.monotonic()
        save.waited_s = save.go_on_s - start_s
        return True

    def is_writing(self) -> bool:
        """Return whether a thread is still writing."""
        save = self.in_flight
        return save is not None and save.thread is not None and save.thread.is_alive()

    def end(self, settings: TrainingConfig, *, goes_on: bool = True) -> bool:
        """Wait until the save in the background has ended; then do as `save` does at its end.

        Returns whether the checkpoint is there now.
        goes_on: training goes on for sure; otherwise a failure's warning does not say so.
        Raises: StorageError at the third failure in a row; any error that is a mistake of ours.
        """
        save = self.in_flight
        assert save is not None, "no save has begun"
        assert save.thread is not None
        if save.thread.is_alive():
            before_s = time.monotonic()
            with waiting(f"saving {save.path.name}"):
                join(save.thread)
            save.waited_s += time.monotonic() - before_s
        self.in_flight = None
        return self.count(save, settings, goes_on=goes_on)

    def new_save(self, path: Path, step: int, best: bool, start_s: float) -> Save:
        """Return the save of a step that begins now; start_s: when its copy was begun."""
        # The file that this process began with is replaced: it may lack the last evaluation
        replace = step == self._first_step
        return Save(path, step, best, replace, start_s, start_s - self._last_s)

    def count(
        self,
        save: Save,
        settings: TrainingConfig,
        last_chance: bool = False,
        *,
        goes_on: bool = True,
    ) -> bool:
        """Log a save that has ended, or count its failure; return whether the file is there."""
        error = save.error
        if error is not None:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise error
            self._count_failure(save.path, error, last_chance, goes_on)
            return False
        if save.is_written:
            logger.info("%s", _line(save), extra=_event(save))
            stood_still_s = save.cost_s if save.thread is None else save.waited_s
            steps = save.step - self._last_step
            self._warn_save_cost(stood_still_s, save.since_last_s, steps, settings)
        else:
            logger.info("%s exists already and is whole: not written again", save.path)
        self.failures = 0
        self._last_s = time.monotonic() if save.thread is None else save.go_on_s
        self._last_step = save.step
        return True

    def _count_failure(
        self, path: Path, error: BaseException, last_chance: bool, goes_on: bool
    ) -> None:
        """Warn of a failed save. Raises: StorageError when the run must not go on without one."""
        self.failures += 1
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if last_chance or self.failures >= MAX_FAILED_SAVES:
            count = "the save failed"
            if self.failures > 1:
                count = f"{self.failures} saves in a row failed"
            raise StorageError(
                f"{path}: not saved: {reason} ({count}); {_advice(error, path)}, then resume"
            ) from error
        then = "this file is missing"
        if goes_on:
            then = "training continues, the next save comes as planned"
        logger.warning("%s: not saved: %s; %s", path, reason, then)

    def _warn_save_cost(
        self, cost_s: float, since_last_s: float, steps: int, settings: TrainingConfig
    ) -> None:
        """Warn once when saves take too much of the time, with the intervals that would not."""
        if self._has_warned_of_cost or steps < 1 or since_last_s <= 0:  # coarse clocks give 0
            return
        if cost_s <= SAVING_SHARE * since_last_s:
            return
        needed_s = cost_s / SAVING_SHARE
        needed = {"save_checkpoint_steps": _round_up(needed_s / (since_last_s / steps))}
        if settings.checkpoint_interval_minutes is not None:
            needed["checkpoint_interval_minutes"] = math.ceil(needed_s / 60)
        too_short = {}
        for key, value in needed.items():
            interval = getattr(settings, key)
            if interval is not None and interval < value:
                too_short[key] = value
        # Otherwise the intervals are long enough: this save came early, as the last or a best one
        if too_short:
            self._has_warned_of_cost = True
            logger.warning(
                "saving takes %.1f %% of the time; %s would bring it under 1 %%",
                100 * cost_s / since_last_s,
                ", ".join(f"training.{key}={value}" for key, value in too_short.items()),
            )


def _write(save: Save, checkpoint: dict[str, Any], **beside: Any) -> None:
    """Write a checkpoint, and note in `save` how that ended.

    beside: arguments of `save_checkpoint`, for a thread beside others.
    """
    try:
        save.is_written = save_checkpoint(save.path, checkpoint, replace=save.replace, **beside)
        save.cost_s = time.monotonic() - save.start_s
        save.megabytes = save.path.stat().st_size / 1e6
    except BaseException as error:  # noqa: BLE001 whoever waits for the save raises it
        save.error = error


def _write_beside(save: Save, checkpoint: dict[str, Any], arrived: Arrived, mode: int) -> None:
    """Write a checkpoint in a thread of its own, once its values are there."""
    try:
        arrived()
    except BaseException as error:  # noqa: BLE001 as above
        save.error = error
        return
    _write(save, checkpoint, shown=unseen, mode=mode)


def join(thread: threading.Thread) -> None:
    """Wait for a thread, but let signals in: the second one ends the process at once.

    A longer wait would not notice a signal that the other thread receives.
    """
    while thread.is_alive():
        thread.join(SIGNALS_S)


@contextmanager
def unseen(words: str, total: float | None = None) -> Iterator[Advance]:
    """Show nothing of a work that nobody waits for; in the place of `waiting`."""
    yield _ignore


def _ignore(amount: float) -> None:
    pass


def _line(save: Save) -> str:
    """Return what the log says of a checkpoint that was written."""
    waited = ""
    if save.thread is not None:
        waited = f", of which training waited {save.waited_s:.2f} s"
    return (
        f"saved {save.path} ({save.megabytes:.1f} MB in {save.cost_s:.2f} s{waited}, "
        f"{save.since_last_s:.0f} s after the last save)"
    )


def _event(save: Save) -> dict[str, object]:
    """Return the event of a checkpoint that was written."""
    facts: dict[str, object] = {
        "path": str(save.path),
        "megabytes": round(save.megabytes, 3),
        "seconds": round(save.cost_s, 3),
        "best": save.best,
    }
    if save.thread is not None:
        facts["waited_seconds"] = round(save.waited_s, 3)
    return event("save", save.step, **facts)


def _advice(error: BaseException, path: Path) -> str:
    """Return what the user has to do before a save can succeed."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return f"make {path.parent} again, or bring it back"
    if number in MOUNT_IS_STALE:
        return f"mount the file system of {path.parent} again"
    if number in NOT_WRITABLE:
        return f"make {path.parent} writable"
    return "make room"


def _round_up(steps: float) -> int:
    """Return at least `steps`, with two significant digits."""
    digit = int(10 ** max(0, math.floor(math.log10(steps)) - 1))
    return math.ceil(steps / digit) * digit
