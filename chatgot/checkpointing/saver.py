"""Saving one checkpoint after another: failures in a row, and what saving costs."""

import errno
import logging
import math
import time
from pathlib import Path
from typing import Any

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config import TrainingConfig
from chatgot.errors import StorageError
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3  # in a row; then the run ends rather than go on without a safety net
SAVING_SHARE = 0.01  # of the time; above it, the log says once which interval would be long enough
# of a network file system whose server has restarted or is away, or of a disk that was removed
MOUNT_IS_STALE = (errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


class CheckpointWriter:
    """Writes the checkpoints of one run: counts the failures in a row, and says what saving costs.

    step: the step that this process begins with.
    """

    def __init__(self, step: int) -> None:
        self.failures = 0
        self._first_step = step
        self._last_step = step
        self._last_s = time.monotonic()
        self._has_warned_of_cost = False

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
        step = checkpoint["global_step"]
        start_s = time.monotonic()
        since_last_s = start_s - self._last_s
        try:
            # The file that this process began with is replaced: it may lack the last evaluation
            is_written = save_checkpoint(path, checkpoint, replace=step == self._first_step)
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            self._count_failure(path, error, last_chance)
            return False
        cost_s = time.monotonic() - start_s
        if is_written:
            megabytes = path.stat().st_size / 1e6
            logger.info(
                "saved %s (%.1f MB in %.2f s, %.0f s after the last save)",
                path,
                megabytes,
                cost_s,
                since_last_s,
                extra=event(
                    "save",
                    step,
                    path=str(path),
                    megabytes=round(megabytes, 3),
                    seconds=round(cost_s, 3),
                    best=best,
                ),
            )
            self._warn_save_cost(cost_s, since_last_s, step - self._last_step, settings)
        else:
            logger.info("%s exists already and is whole: not written again", path)
        self.failures = 0
        self._last_s = time.monotonic()
        self._last_step = step
        return True

    def _count_failure(self, path: Path, error: Exception, last_chance: bool) -> None:
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
        logger.warning(
            "%s: not saved: %s; training continues, the next save comes as planned", path, reason
        )

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


def _advice(error: Exception, path: Path) -> str:
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
