"""Whether a launcher has started this program several times: as a group, or each as its own run."""

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


# What torchrun sets for each rank of a group
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# How often torchrun has started this group again, and Slurm this job
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_rank(environ: Mapping[str, str]) -> bool:
    """Return whether torchrun has started this process as a rank of a group."""
    return all(name in environ for name in RANK_VARIABLES)


def speaks_for_its_machine(environ: Mapping[str, str]) -> bool:
    """Return whether this process is the one of its machine that tells the user of mistakes."""
    return not is_rank(environ) or environ["LOCAL_RANK"] == "0"


def quiet_rank(environ: Mapping[str, str]) -> int | None:
    """Return the number of a rank whose log is not the main one; None: this log is."""
    if not is_rank(environ) or environ["RANK"] == "0":
        return None
    return int(environ["RANK"])


def was_started_again(environ: Mapping[str, str]) -> bool:
    """Return whether the group was lost before, and this is another try."""
    counts = (environ.get(name, "") for name in RESTARTS)
    return any(NUMBER.fullmatch(count) and int(count) > 0 for count in counts)
