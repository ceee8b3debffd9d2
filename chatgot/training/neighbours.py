"""Say when other programs take the cores, when they no longer do, and how long they did."""

import logging
import math
import time

from chatgot.logs.events import event
from chatgot.logs.timing import human_time
from chatgot.machine.contention import Contention
from chatgot.run.assembly import Run

logger = logging.getLogger(__name__)


LOG_S = 600.0  # at least between two times that a log tells of other programs


class Neighbours:
    """The other programs on this machine, as one session of training meets them.

    Where a GPU computes, contention is not watched: the CPU's threads hardly wait for each other.
    """

    def __init__(self, run: Run) -> None:
        self._contention = Contention() if run.device.type == "cpu" else None
        self._said_s = -math.inf
        self._has_said = False  # of the present contention

    @property
    def take_the_cores(self) -> bool:
        """Return whether other programs take the cores now."""
        return self._contention is not None and self._contention.is_on

    def look(self) -> None:
        """Let waiting threads sleep or spin as is best beside these programs; log some changes."""
        contention = self._contention
        if contention is None or not contention.look():
            return
        seconds = round(contention.seconds, 1)
        if contention.is_on:
            self._has_said = time.monotonic() - self._said_s >= LOG_S
        if not self._has_said:
            return
        if contention.is_on:
            self._said_s = time.monotonic()
            logger.info(
                "other programs take the cores: a thread waited %.0f %% of the time; "
                "waiting threads now sleep instead of spinning",
                100 * contention.waited,
                extra=event(
                    "contention", on=True, waited=round(contention.waited, 3), seconds=seconds
                ),
            )
        else:
            logger.info(
                "the cores are free again: waiting threads spin as before",
                extra=event("contention", on=False, seconds=seconds),
            )

    def close(self) -> None:
        """Let threads spin again; say how long other programs took the cores, if they did."""
        contention = self._contention
        if contention is None:
            return
        contention.close()
        if not contention.seconds:
            return
        logger.info(
            "other programs took the cores for %s, %.0f %% of the time",
            human_time(contention.seconds),
            100 * contention.share,
            extra=event("contention", on=False, seconds=round(contention.seconds, 1)),
        )
