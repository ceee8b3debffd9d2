"""Saving one checkpoint after another: failures in a row, and what saving costs."""

import logging
import math
import time
from pathlib import Path
from typing import Any

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config import TrainingConfig
from chatgot.errors import StorageError
from chatgot.machine.memory import is_out_of_memory

logger = logging.getLogger(__name__)


MAX_FAILED_SAVES = 3  # in a row; then the run ends rather than go on without a safety net


SAVING_SHARE = (
    0.01  # of the time; where saving costs more, the log says once which interval would be cheaper
)


class CheckpointWriter:
    """Saves the checkpoints of one run: counts the failures in a row, and says what saving costs."""

    def __init__(self, step: int) -> None:
        self.failures = 0
        self._last_s, self._last_step, self._first_step = time.monotonic(), step, step
        self._said_the_cost = False

    def save(
        self,
        path: Path,
        checkpoint: dict[str, Any],
        settings: TrainingConfig,
        last_chance: bool = False,
    ) -> bool:
        """Save one checkpoint, or warn that it failed, for this time; return whether it is there now.

        Raises: StorageError at the third failure in a row, at the first one when there will be no other try.
        """
        begun = time.monotonic()
        since = begun - self._last_s  # seconds of training without a save
        try:
            # the file that this process began with may be replaced: what was evaluated late is added to it
            written = save_checkpoint(
                path, checkpoint, replace=checkpoint["global_step"] == self._first_step
            )
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            self.failures += 1
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if last_chance or self.failures >= MAX_FAILED_SAVES:
                count = (
                    f"{self.failures} saves in a row failed"
                    if self.failures > 1
                    else "the save failed"
                )
                raise StorageError(
                    f"{path}: not saved: {why} ({count}); make room, then resume"
                ) from error
            logger.warning(
                "%s: not saved: %s; training goes on, the next save comes as planned", path, why
            )
            return False
        cost = time.monotonic() - begun
        if written:
            size = path.stat().st_size / 1e6
            logger.info(
                "saved %s (%.1f MB in %.2f s, after %.0f s without)", path, size, cost, since
            )
            self._say_the_cost(cost, since, checkpoint["global_step"] - self._last_step, settings)
        else:
            logger.info("%s is there already and whole: left as it is", path)
        self.failures = 0
        self._last_s, self._last_step = time.monotonic(), checkpoint["global_step"]
        return True

    def _say_the_cost(
        self, cost: float, since: float, steps: int, settings: TrainingConfig
    ) -> None:
        if self._said_the_cost or steps < 1 or cost <= SAVING_SHARE * since:
            return
        needed_s = cost / SAVING_SHARE
        needed = {"save_checkpoint_steps": _round_up(needed_s / (since / steps))}
        if settings.checkpoint_interval_minutes is not None:
            needed["checkpoint_interval_minutes"] = math.ceil(needed_s / 60)
        short = {key: n for key, n in needed.items() if (getattr(settings, key) or math.inf) < n}
        if short:  # else this save came early, as the last one and the best one may
            self._said_the_cost = True
            advice = ", ".join(f"training.{key}={n}" for key, n in short.items())
            logger.warning(
                "saving takes %.1f %% of the time; %s would bring it under 1 %%",
                100 * cost / since,
                advice,
            )


def _round_up(steps: float) -> int:
    """Return at least `steps`, with two significant digits."""
    digit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return math.ceil(steps / digit) * digit
