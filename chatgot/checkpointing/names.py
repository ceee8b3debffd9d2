"""The names of a run and its files."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

# local time, to the second; of two runs with one name, the later one has the greater timestamp
TIMESTAMP = "%Y%m%d-%H%M%S"
RUN_ID = re.compile(r"(?P<config>[^/\\\0]+)_(?P<timestamp>\d{8}-\d{6})", re.ASCII)
# a checkpoint is one file, or a folder of several
FILE = ".pt"
FOLDER = ".sharded"
# of such a folder: its last file, without which it is unfinished, and the list of its tensors
MANIFEST = "manifest.json"
PARTS = "parts.json"
REPLACED = ".replaced"  # ends the temporary name of a folder in whose place another one comes
# steps are written without padding; 18 digits fit an int64
NAME = re.compile(
    RUN_ID.pattern + r"_step_(?P<step>0|[1-9]\d{0,17})(?P<ending>\.pt|\.sharded)", re.ASCII
)
LOCK_NAME = re.compile(r"\." + RUN_ID.pattern + r"\.lock", re.ASCII)


def lock_path(folder: Path, run_id: str) -> Path:
    """Return the path of a run's lock file, which may not exist."""
    return folder / f".{run_id}.lock"


def newest_timestamp(folders: Iterable[Path], config_name: str) -> str | None:
    """Return the greatest timestamp among a configuration's runs; None: there is no run.

    Only the names of checkpoints, lock files and run folders are examined. A folder that does not
    exist has no runs. Raises: OSError.
    """
    timestamps = {timestamp for folder in folders for timestamp in _timestamps(folder, config_name)}
    return max(filter(_is_time, timestamps), default=None)


def second_after(timestamp: str) -> str:
    """Return the timestamp of the next second.

    Raises: OverflowError after the last second of the year 9999.
    """
    moment = _read(timestamp) + timedelta(seconds=1)
    return moment.isoformat().replace("-", "").replace(":", "").replace("T", "-")


def _timestamps(folder: Path, config_name: str) -> Iterator[str]:
    for path in folder.iterdir() if folder.exists() else ():
        for pattern in (NAME, LOCK_NAME, RUN_ID):
            match = pattern.fullmatch(path.name)
            if match and match["config"] == config_name:
                yield match["timestamp"]


def _is_time(timestamp: str) -> bool:
    """Return whether a timestamp is a real date and time; a name may say 20259999-999999."""
    try:
        _read(timestamp)
    except ValueError:
        return False
    return True


def _read(timestamp: str) -> datetime:
    """Return a timestamp as a datetime. Raises: ValueError."""
    return datetime.fromisoformat(timestamp.replace("-", "T"))
