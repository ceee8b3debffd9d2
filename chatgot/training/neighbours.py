"""Say when other programs take the cores, when they no longer do, and how long they did."""

import logging

from chatgot.logs.events import event
from chatgot.logs.timing import human_time
from chatgot.machine.contention import Contention
from chatgot.run.assembly import Run

logger = logging.getLogger(__name__)


class Neighbours:
    """The other programs on this machine, as one session of training meets them.

    Where a GPU computes, nobody looks: its threads of the CPU hardly wait for each other.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._contention = Contention() if run.device.type == "cpu" else None

    def look(self) -> None:
        """Let waiting threads sleep or spin as is best beside these programs; log each change."""
        contention = self._contention
        if contention is None or not contention.look():
            return
        seconds = round(contention.seconds, 1)
        if contention.is_on:
            logger.info(
                "other programs take the cores: a thread waited for one %.0f %% of the time; "
                "waiting threads sleep from now on",
                100 * contention.waited,
                extra=event(
                    "contention", on=True, waited=round(contention.waited, 3), seconds=seconds
                ),
            )
        else:
            self._run.peak_flops = None  # it may have been measured beside them
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
