"""Whether other programs take the cores; then torch's threads sleep while they wait, not spin.

Two threads share one core, too (see shared_core.py).

Linux counts, for each thread, how long it was ready to run but had no core. On a quiet machine that
is 1 or 2 % of the time, beside one busy program on two cores a third.
Source: the kernel's sched-stats.rst, /proc/<pid>/schedstat.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from chatgot.machine.idle_teams import IdleTeams
from chatgot.machine.shared_core import SharedCore

TASKS = Path("/proc/self/task")
LOOK_S = 0.5  # at least between two looks; a look costs 50 microseconds
BUSY = 0.15  # share of the time that one thread waits for a core: other programs take the cores
QUIET = 0.05  # if every thread waits less than this, no other program takes the cores
FREE = 0.6  # share of the time that another core is idle: no other program needs it
QUIET_S = 5.0  # of quiet, before threads spin again
LONGEST_S = 60.0  # between two looks that counts: the process may have been stopped meanwhile

Delays = dict[str, float]  # seconds that each thread waited for a core so far


class Teams(Protocol):
    """What makes waiting threads sleep."""

    @property
    def possible(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class Core(Protocol):
    """What lets all threads share one core."""

    possible: bool

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def look(self) -> float: ...


def delays(tasks: Path = TASKS) -> Delays:
    """Return how long each computing thread has waited for a core; empty: this system does not say.

    These are this thread and those that OpenMP has started for it. Python's other threads write
    files: what they wait for is the computing.
    """
    seconds = {}
    this = threading.get_native_id()
    writing = {str(thread.native_id) for thread in threading.enumerate()} - {str(this)}
    with suppress(OSError):  # there is no such folder
        for task in tasks.iterdir():
            if task.name in writing:
                continue
            with suppress(OSError, ValueError, IndexError):  # the thread has ended
                fields = (task / "schedstat").read_text().split()
                seconds[task.name] = int(fields[1]) / 1e9
    return seconds


def most_waited_s(before: Delays, after: Delays) -> float:
    """Return how long the thread that waited most has waited between two readings."""
    return max((s - before[name] for name, s in after.items() if name in before), default=0.0)


class Contention:
    """Watches whether other programs take the cores, and lets threads sleep or spin accordingly.

    It changes no result: the teams that compute stay the same.

    is_on: other programs take the cores.
    waited: share of the time that one thread waited for a core, at the last look.
    seconds: how long other programs have taken the cores so far.
    """

    def __init__(
        self,
        *,
        teams: Teams | None = None,
        core: Core | None = None,
        read: Callable[[], Delays] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._teams = IdleTeams() if teams is None else teams
        self._core = SharedCore() if core is None else core
        self._read = delays if read is None else read
        self._clock = clock
        self._before = self._read()
        self._began_s = clock()
        self._looked_s = self._began_s
        self._quiet_since_s = self._began_s
        self.is_on = False
        self.waited = 0.0
        self.seconds = 0.0

    @property
    def share(self) -> float:
        """Return the share of the time since the beginning in which others took the cores."""
        return self.seconds / max(self._clock() - self._began_s, self.seconds, 1e-9)

    def look(self) -> bool:
        """Look whether other programs take the cores, if the last look is long enough ago.

        Returns whether that has changed.
        """
        now_s = self._clock()
        passed_s = now_s - self._looked_s
        if passed_s < LOOK_S or not self._teams.possible:
            return False
        after = self._read()
        self.waited = most_waited_s(self._before, after) / passed_s
        self._before = after
        self._looked_s = now_s
        if self._others_run():
            self._quiet_since_s = now_s
            if self.is_on:
                self.seconds += min(passed_s, LONGEST_S)
        if not self.is_on and self.waited > BUSY:
            return self._begin()
        if self.is_on and now_s - self._quiet_since_s >= QUIET_S:
            self.close()
            return True
        return False

    def _begin(self) -> bool:
        """Let threads sleep, and share a core where that helps; return whether they do."""
        self._teams.start()
        if not self._teams.possible:  # no thread could be started
            return False
        if self._core.possible:
            self._core.start()
        self.is_on = True
        return True

    def close(self) -> None:
        """Let threads spin as at the beginning."""
        if self.is_on:
            if self._quiet_since_s == self._looked_s:  # they ran until now
                self.seconds += min(self._clock() - self._looked_s, LONGEST_S)
            if self._core.possible:
                self._core.stop()
            self._teams.stop()
            self.is_on = False

    def _others_run(self) -> bool:
        """Return whether other programs run; on one core, threads wait for each other all along."""
        if self.is_on and self._core.possible:
            return self._core.look() < FREE
        return self.waited > QUIET
