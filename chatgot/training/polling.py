"""How do the ranks of a group stop, or give up, before the same piece of long work?

One process alone asks itself before each piece, at no cost.
"""

import time

from chatgot.distributed.ranks import Ranks

POLL_S = 0.5  # about how often the ranks of a group ask each other
MOST_PIECES = 1 << 20  # between two exchanges
GROWTH = 4  # at most so many times as many pieces as before the last exchange
MICROSECONDS = 1_000_000  # in a second
# From here on the number that a rank says is a signal, and then a failure
SIGNALLED = 1 << 40
FAILED = 1 << 60


class FailedElsewhere(Exception):
    """Another rank has run out of memory in this work: nobody goes on with it."""


class Polls:
    """Lets all ranks stop, or give up, before the same piece of work.

    Each rank calls `before_piece` before each piece, and `failed` after the last one or after a
    failure. They exchange a word before the first piece, then about every POLL_S. How many pieces
    go between, they agree on each time, by the clock of the slowest rank.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._left = 0  # pieces until the next exchange
        self._pieces = 0  # since the last exchange
        self._since_s = time.monotonic()
        self._failed = False

    def before_piece(self) -> None:
        """Let the ranks agree whether a signal has come, when it is time.

        Raises: FailedElsewhere.
        """
        if self._ranks.is_alone:
            return
        if self._left == 0:
            self._exchange(failed=False)
            if self._failed:
                raise FailedElsewhere
        self._left -= 1
        self._pieces += 1

    def failed(self, here: bool) -> bool:
        """Return whether a rank has failed; every rank asks at its end. here: this one has."""
        if self._ranks.is_alone:
            return here
        if not self._failed:  # else all know it already
            self._exchange(here)
        return self._failed

    def _exchange(self, failed: bool) -> None:
        """Tell the others of a failure or a signal, and agree on the next exchange."""
        largest = self._ranks.largest(self._number(failed))
        self._failed = largest >= FAILED
        if SIGNALLED <= largest < FAILED:
            self._ranks.stop_together(*divmod(largest - SIGNALLED, self._ranks.size))
        slowest_s = largest / MICROSECONDS
        # not many more than before: the first ones may be the fast ones
        most = min(GROWTH * self._pieces, MOST_PIECES)
        in_time = most if slowest_s == 0 else int(POLL_S * self._pieces / slowest_s)
        self._left = max(1, min(in_time, most))
        self._pieces = 0
        self._since_s = time.monotonic()

    def _number(self, failed: bool) -> int:
        """Return what this rank says; of all ranks the largest counts, in one small message.

        A failure, else a signal and the rank that got it, else the time since the last exchange.
        """
        if failed:
            return FAILED
        exit_code = self._ranks.own_signal()
        if exit_code is not None:
            return SIGNALLED + exit_code * self._ranks.size + self._ranks.rank
        return min(int((time.monotonic() - self._since_s) * MICROSECONDS), SIGNALLED - 1)
