"""How do the ranks of a group stop, or give up, before the same piece of long work?

One process alone asks itself before each piece, at no cost.
"""

import time

from chatgot.distributed.ranks import Ranks

POLL_S = 0.5  # about how often the ranks of a group ask each other
MOST_PIECES = 1 << 20  # between two exchanges


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
        """Tell the others of a failure and of a signal, and agree on the next exchange."""
        seconds = time.monotonic() - self._since_s
        said = self._ranks.all((self._ranks.own_signal(), failed, seconds))
        self._ranks.take_signals([signal for signal, _, _ in said])
        self._failed = any(failed for _, failed, _ in said)
        slowest_s = max(seconds for _, _, seconds in said)
        # at most twice as many as before: the first ones may be the fast ones
        most = min(2 * self._pieces, MOST_PIECES)
        in_time = most if slowest_s == 0 else int(POLL_S * self._pieces / slowest_s)
        self._left = max(1, min(in_time, most))
        self._pieces = 0
        self._since_s = time.monotonic()
