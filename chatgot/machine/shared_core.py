"""Put two threads that wait for each other on one core, and leave the other cores to others.

Beside two busy programs on two cores, each thread shares its core with one of them; whichever is
slowed keeps the other waiting. On one core they take turns: they never wait for a stranger, and the
kernel moves the strangers away, since it cannot move these threads. Together they get the whole
core. On more than two cores that would be less than a fair share.
Source: sched_setaffinity(2); the kernel's documentation of /proc/stat.
"""

import os
import random
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
STAT = Path("/proc/stat")
THREADS = 2
CROWDED = 0.8  # of a core: with less, another program cannot be moved away from it
# variables with which a user places threads
OWN_CHOICES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def idle_seconds(stat: Path = STAT) -> dict[int, float]:
    """Return for how long each core has been idle so far; empty: this system does not say."""
    seconds = {}
    with suppress(OSError, ValueError, IndexError):
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        for line in stat.read_text(encoding="ascii", errors="replace").splitlines():
            name, _, rest = line.partition(" ")
            if name.startswith("cpu") and name != "cpu":
                fields = rest.split()
                waits_for_disk = int(fields[4])
                seconds[int(name[3:])] = (int(fields[3]) + waits_for_disk) / ticks_per_s
    return seconds


class SharedCore:
    """Lets all threads of this process share one core, while other programs take the cores."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._masks: dict[int, set[int]] = {}  # of each thread, by its id
        self._own_choice = random.Random()  # seeded by the system: two runs shall not meet again
        self._core = -1
        self._idle: dict[int, float] = {}
        self._looked_s = 0.0
        self._used_s = 0.0
        self.possible = (
            sys.platform == "linux"
            and torch.get_num_threads() == THREADS
            and len(os.sched_getaffinity(0)) == THREADS
            and not any(name in environ for name in OWN_CHOICES)
            # in some containers /proc/stat numbers the cores in another way
            and os.sched_getaffinity(0) <= idle_seconds().keys()
        )

    def start(self) -> None:
        """Put all threads on one core."""
        self._masks = {}
        for thread in _threads():
            with suppress(OSError):  # it has ended
                self._masks[thread] = os.sched_getaffinity(thread)
        self._move()

    def stop(self) -> None:
        """Let each thread run where it could before; new ones where the main thread can."""
        everywhere = self._masks.get(os.getpid(), set(range(os.cpu_count() or 1)))
        for thread in _threads():
            with suppress(OSError):
                os.sched_setaffinity(thread, self._masks.get(thread, everywhere))
        self._masks = {}

    def look(self) -> float:
        """Return how idle the idlest other core was since the last look, as a share of the time.

        Moves to another core if this one is crowded.
        """
        now_s = time.monotonic()
        passed_s = max(now_s - self._looked_s, 1e-9)
        used = (time.process_time() - self._used_s) / passed_s
        after = idle_seconds()
        others = (self._masks.get(os.getpid()) or set()) - {self._core}
        known = [core for core in others if core in after and core in self._idle]
        idle = max(((after[core] - self._idle[core]) / passed_s for core in known), default=1.0)
        if used < CROWDED:
            self._move()
        else:
            self._begin_look()
        return idle

    def _move(self) -> None:
        """Put all threads on a core that chance picks: another run beside does the same."""
        cores = sorted(self._masks.get(os.getpid()) or os.sched_getaffinity(0))
        self._core = self._own_choice.choice(cores)
        for thread in _threads():
            with suppress(OSError):
                os.sched_setaffinity(thread, {self._core})
        self._begin_look()

    def _begin_look(self) -> None:
        self._looked_s = time.monotonic()
        self._used_s = time.process_time()
        self._idle = idle_seconds()


def _threads() -> list[int]:
    return [int(task.name) for task in TASKS.iterdir()]
