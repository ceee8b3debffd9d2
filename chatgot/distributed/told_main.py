"""Warnings of other ranks, which rank 0 logs too."""

import logging
from collections import deque

from chatgot.distributed.ranks import Ranks
from chatgot.logs.logging_setup import LOGGERS

logger = logging.getLogger(__name__)

MOST = 20  # warnings that a rank keeps for rank 0; its own log has all


class ToldMain(logging.Handler):
    """Keeps a rank's warnings until rank 0 can log them.

    What all ranks say alike, such as that a step was skipped, rank 0 has said already: it keeps its
    own words to know them again.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(logging.WARNING)
        self._ranks = ranks
        self._kept: list[tuple[int, str]] = []
        self._lost = 0
        self._own_words: deque[str] = deque(maxlen=MOST)
        if not ranks.is_alone:
            for target in LOGGERS:
                target.addHandler(self)

    @property
    def has_some(self) -> bool:
        """Return whether there is something to tell."""
        return bool(self._kept)

    def emit(self, record: logging.LogRecord) -> None:
        if self._ranks.is_main:
            self._own_words.append(record.getMessage())
        elif len(self._kept) < MOST:
            self._kept.append((record.levelno, record.getMessage()))
        else:
            self._lost += 1

    def tell(self) -> None:
        """Let rank 0 log what all have kept; every rank calls this."""
        said = self._ranks.all((self._kept, self._lost))
        self._kept = []
        self._lost = 0
        if not self._ranks.is_main:
            return
        known = set(self._own_words)
        for rank, (kept, lost) in enumerate(said):
            for level, text in kept:
                if text not in known:
                    logger.log(level, "rank %d: %s", rank, text)
                known.add(text)
            if lost:
                logger.warning("rank %d: %d more warnings, which its own log has", rank, lost)

    def close(self) -> None:
        """Keep nothing any more."""
        for target in LOGGERS:
            target.removeHandler(self)
        super().close()
