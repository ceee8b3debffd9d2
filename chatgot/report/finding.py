"""Which folder is the run that a word names?"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from chatgot.errors import CheckpointRejected, ConfigError
from chatgot.logs.origins import origin, run_of_name

RUNS = Path("logs", "tensorboard")


def find_run(run: str, command_for: Callable[[str], str]) -> Path:
    """Return the folder of a run named by its folder, its id, or its configuration.

    Of a configuration it is the newest run; see `run_of_name`.
    command_for: the command that names this run by its id.
    Raises: ConfigError; CheckpointRejected where several YAMLs or texts of that name began runs.
    """
    for folder in (Path(run), RUNS / run):
        if os.path.isdir(folder):  # noqa: PTH112 Path's own raises for names that are too long
            return folder
    name = re.compile(re.escape(run) + r"_\d{8}-\d{6}")
    folders = [
        folder for folder in RUNS.glob("*") if name.fullmatch(folder.name) and folder.is_dir()
    ]
    if not folders:
        place = RUNS.resolve()
        raise ConfigError(
            f"{run}: no such folder, and no run of that name in {place}; give a run's folder"
        )
    newest_first = sorted(folders, key=lambda folder: folder.name, reverse=True)
    meant, several = run_of_name([(folder, origin(folder)) for folder in newest_first])
    if meant is None:
        commands = [
            f"{began_from}: {command_for(folder.name)}" for began_from, folder in several.items()
        ]
        raise CheckpointRejected(
            f"{run}: {len(several)} files of that name began runs in {RUNS}; "
            f"the newest run of {'; of '.join(commands)}"
        )
    return meant
