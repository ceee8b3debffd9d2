"""Let OpenMP's waiting threads sleep at once instead of spinning, and undo that; not one other bit.

libgomp counts its threads in all teams of the process. When there are more of them than cores,
waiting threads spin for a microsecond only. Idle teams raise that number: threads of Python that
have run one operation in parallel, and sleep. When such a thread ends, its team goes with it.
The teams that compute stay as they are, and so does every result.
Source: gomp_managed_threads and gomp_throttled_spin_count_var in libgomp's team.c and env.c.
"""

import os
import sys
import threading
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
LIBRARY = "libgomp"
PARALLEL = 1 << 20  # elements: torch shares out that much work among all threads
MOST_TEAMS = 8  # more would be needed only where a run leaves most cores to others


def teams_needed(threads: int, cores: int) -> int:
    """Return how many idle teams make libgomp's threads outnumber the cores; 0: it cannot be done.

    threads: of one team. A team's first thread does not count, but for the process's first team.
    """
    if threads < 2:  # it never waits for another thread
        return 0
    more = max(1, cores - threads + 1)
    teams = -(-more // (threads - 1))
    return teams if teams <= MOST_TEAMS else 0


def has_libgomp(maps: Path = MAPS) -> bool:
    """Return whether libgomp is loaded in this process. Only Linux tells."""
    try:
        return LIBRARY in maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


class IdleTeams:
    """Idle teams of OpenMP's threads, which make those that wait for each other sleep at once."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()
        self._needed = 0
        if sys.platform == "linux" and has_libgomp():
            self._needed = teams_needed(torch.get_num_threads(), len(os.sched_getaffinity(0)))

    @property
    def possible(self) -> bool:
        """Return whether threads can be made to sleep here."""
        return self._needed > 0

    def start(self) -> None:
        """Let waiting threads sleep from now on."""
        self._end.clear()
        for _ in range(self._needed):
            ready = threading.Event()
            thread = threading.Thread(target=self._idle, args=(ready,), name="idle", daemon=True)
            thread.start()
            ready.wait()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let waiting threads spin again."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _idle(self, ready: threading.Event) -> None:
        """Make a team by one operation in parallel, then sleep until the end."""
        torch.zeros(PARALLEL, dtype=torch.uint8).add_(1)
        ready.set()
        self._end.wait()
