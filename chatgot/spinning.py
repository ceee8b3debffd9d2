"""How long OpenMP's threads spin before they sleep; to be set before torch is imported.

At the end of each operation, torch's threads wait for the slowest one. They spin first, because
waking a sleeping thread takes long. libgomp's own limit is about 3 ms: where another program needs
the core, that is 3 ms lost for each operation, and training falls to a fiftieth of its speed. A
tenth of a millisecond is enough on a quiet machine.
"""

from collections.abc import MutableMapping

VARIABLE = "GOMP_SPINCOUNT"
ROUNDS = 10_000  # of the loop in which a thread spins: 0.05 to 0.2 ms
OWN_CHOICES = (VARIABLE, "OMP_WAIT_POLICY")  # by which a user decides how threads wait


def spin_briefly(environ: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads spin for a short time only, unless the user has decided otherwise.

    environ: `os.environ` of a process that has not imported torch yet.
    Source: libgomp's manual, GOMP_SPINCOUNT.
    """
    if not any(name in environ for name in OWN_CHOICES):
        environ[VARIABLE] = str(ROUNDS)
