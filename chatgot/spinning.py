"""How long OpenMP's threads spin before they sleep; to be set before torch is imported.

At the end of each operation, torch's threads wait for the slowest one. They spin first, because
waking a sleeping thread takes long. libgomp's own limit is about 3 ms. If another program needs a
core, the spinning thread keeps it from the thread it waits for, for 3 ms in each operation. So
training falls to 0.3 of its speed beside one busy program, and to 0.03 beside two. A tenth of a
millisecond is as fast on a quiet machine.
"""

from collections.abc import Mapping, MutableMapping

VARIABLE = "GOMP_SPINCOUNT"
POLICY = "OMP_WAIT_POLICY"
ROUNDS = "10000"  # of the loop in which a thread spins: 0.05 to 0.2 ms


def spin_briefly(environ: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads spin for a short time only, unless the user sets how they wait.

    environ: `os.environ` of a process that has not imported torch yet.
    Source: libgomp's manual, GOMP_SPINCOUNT.
    """
    if POLICY not in environ:
        environ.setdefault(VARIABLE, ROUNDS)


def was_decided_by_user(environ: Mapping[str, str]) -> bool:
    """Return whether the user has set how threads wait for each other."""
    return POLICY in environ or environ.get(VARIABLE, ROUNDS) != ROUNDS
