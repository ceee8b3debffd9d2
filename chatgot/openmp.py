"""How torch's CPU threads wait for each other; to be decided before torch is imported."""

import os

SPINS = "1000"  # some microseconds: about the gap between two operations, far below a time slice


def wait_briefly() -> None:
    """Let idle threads of GNU OpenMP spin briefly and then sleep, unless the user's environment says otherwise.

    By default they spin for milliseconds. Where another program takes a core, each operation then waits for a thread
    that waits for a core: measured: a tenth of the speed and less. The numbers computed are the same.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
