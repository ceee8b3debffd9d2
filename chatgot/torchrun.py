"""What torchrun tells a process that it starts as one rank of a group."""

import re
from collections.abc import Mapping

NUMBER = re.compile(r"\d{1,6}", re.ASCII)
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


def torchrun_words(environ: Mapping[str, str]) -> list[str]:
    """Return the words that start such a group again on one machine, in the place of `python`."""
    return ["torchrun", f"--nproc_per_node={environ.get('LOCAL_WORLD_SIZE', '1')}"]
