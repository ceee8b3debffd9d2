"""How many cores may this process use?"""

import os


def usable_cores() -> int:
    """Return how many cores this process may use: a scheduler or `taskset` may give it a few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
