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
from collections.abc import Mapping
from pathlib import Path

import torch

from chatgot.machine.control_groups import cpu_quota
from chatgot.spinning import was_decided_by_user

MAPS = Path("/proc/self/maps")
OTHER_LIBRARIES = ("libiomp5", "libomp.so")
PARALLEL = 1 << 20  # elements: torch shares out that much work among all threads
MOST_TEAMS = 8  # more teams are needed only where a run uses few of the cores


def teams_needed(threads: int, cores: int) -> int:
    """Return how many idle teams make libgomp's threads outnumber the cores; 0: none can or need.

    threads: of one team. A team's first thread is not counted, except in the process's first team.
    """
    if threads < 2 or threads > cores:  # nobody waits; or libgomp's threads sleep by themselves
        return 0
    teams = -(-(cores - threads + 1) // (threads - 1))
    return teams if teams <= MOST_TEAMS else 0


def has_libgomp(maps: Path = MAPS) -> bool:
    """Return whether libgomp, and no other OpenMP, is loaded in this process. Only Linux tells."""
    try:
        loaded = maps.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "libgomp" in loaded and not any(name in loaded for name in OTHER_LIBRARIES)


class IdleTeams:
    """Idle teams of OpenMP's threads, which make those that wait for each other sleep at once.

    possible: threads can be made to sleep here, and the user has not decided how they wait.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()
        self._needed = 0
        if sys.platform == "linux" and has_libgomp() and not was_decided_by_user(environ):
            self._needed = _needed_here()

    @property
    def possible(self) -> bool:
        return self._needed > 0

    def start(self) -> None:
        """Let waiting threads sleep from now on; where no thread can be made, nothing changes."""
        self._end.clear()
        if not _can_start(self._needed * torch.get_num_threads()):
            self._needed = 0
            return
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
        try:
            torch.zeros(PARALLEL, dtype=torch.uint8).add_(1)
        except (RuntimeError, MemoryError):  # no memory for it: then there is no team
            return
        finally:
            ready.set()
        self._end.wait()


def _needed_here() -> int:
    """Return how many idle teams this process needs; 0: none, or limits are in their way.

    A thread that the kernel stops for its quota waits, too, but not for other programs. Where the
    address space is limited, libgomp ends the process if it cannot make a thread.
    """
    import resource  # exists on Unix alone

    threads = torch.get_num_threads()
    quota = cpu_quota()
    if quota is not None and quota < threads:
        return 0
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return 0
    return teams_needed(threads, len(os.sched_getaffinity(0)))


def _can_start(count: int) -> bool:
    """Return whether so many threads can be started: libgomp ends the process where they cannot."""
    end = threading.Event()
    started = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        return False
    finally:
        end.set()
        for thread in started:
            thread.join()
    return True
