"""Whether a launcher has started this program several times, each time as a run of its own."""

import re
from collections.abc import Mapping

# How many copies there are: torchrun and accelerate, srun, Open MPI, other MPIs.
# Not SLURM_NTASKS: the script of a batch job, which runs once, has it too.
COUNTS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
NUMBER = re.compile(r"\d{1,6}", re.ASCII)


def launched_copies(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the variable that says so and how many copies were started; None: just this one."""
    for name in COUNTS:
        value = environ.get(name, "")
        if NUMBER.fullmatch(value) and int(value) > 1:
            return name, int(value)
    return None
