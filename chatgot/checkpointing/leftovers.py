"""Remove the unfinished files of processes that died: of this run, and of runs that nobody resumes.

A file is written under the name `.{name}.{pid}.tmp` and then renamed. If the process is killed, it
stays, with up to the size of a checkpoint. So does a checkpoint that is a folder; and one of which
only a part was removed, which has lost its manifest first.
"""

import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from chatgot.checkpointing.checkpoints import is_folder
from chatgot.checkpointing.names import FOLDER, NAME, REPLACED, RUN_ID
from chatgot.checkpointing.run_lock import is_being_trained

logger = logging.getLogger(__name__)

# Another machine's process may be alive, and clocks of two machines differ by some hours at most
AGE_S = 24 * 3600
MOST_NAMED = 3  # files in one line of the log
TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.tmp", re.ASCII | re.DOTALL)
PROBE = re.compile(r"probe|\.probe\.\d+\.tmp", re.ASCII)
RECORD = re.compile(r"(metrics|events|samples)\.jsonl|run\.json|report\.html|.+\.yaml", re.DOTALL)
CACHED = re.compile(
    r"[0-9a-f][^/]*\.(json|uint16|uint32|speakers|suffixes|arranged\.txt)", re.ASCII | re.DOTALL
)


@dataclass(frozen=True)
class Leftover:
    """An unfinished file or folder. run_id: of the run that it belongs to; empty: of none."""

    path: Path
    pid: int
    run_id: str


def sweep_temporaries(checkpoint_dir: Path, logs_dir: Path, cache_dir: Path, run_id: str) -> None:
    """Remove the unfinished files of processes that are gone, and log it in one line.

    The caller has this run's locks, so nobody writes its files. Any other file is removed only if
    it is a day old, no process has its id, and no process has its run's lock. Best effort.
    """
    names = []
    megabytes = 0.0
    for leftover in _leftovers(checkpoint_dir, logs_dir, cache_dir):
        with suppress(OSError):  # it is gone, or belongs to another user
            status = leftover.path.lstat()
            is_own = leftover.run_id == run_id
            if is_own or _is_dead(leftover, status.st_mtime, checkpoint_dir):
                size = _remove(leftover.path)
                names.append(str(leftover.path))
                megabytes += size / 1e6
    if names:
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        logger.info(
            "removed %d unfinished file%s of processes that are gone (%.1f MB): %s%s",
            len(names),
            "" if len(names) == 1 else "s",
            megabytes,
            ", ".join(names[:MOST_NAMED]),
            more,
        )


def _leftovers(checkpoint_dir: Path, logs_dir: Path, cache_dir: Path) -> Iterator[Leftover]:
    """Yield the unfinished files in a run's folders, only those with names that we give."""
    for path, name, pid in _temporaries(checkpoint_dir):
        if NAME.fullmatch(name.removesuffix(REPLACED)):
            yield Leftover(path, pid, name.rpartition("_step_")[0])
    for path in _without_manifest(checkpoint_dir):
        yield Leftover(path, os.getpid(), path.name.rpartition("_step_")[0])
    for folder in dict.fromkeys((checkpoint_dir, logs_dir)):
        for path, name, pid in _temporaries(folder):
            if PROBE.fullmatch(name):
                yield Leftover(path, pid, "")
    for folder in _folders_of_runs(logs_dir / "tensorboard"):
        for path, name, pid in _temporaries(folder):
            if RECORD.fullmatch(name):
                yield Leftover(path, pid, folder.name)
    for path, name, pid in _temporaries(cache_dir):
        if CACHED.fullmatch(name):
            yield Leftover(path, pid, "")


def _temporaries(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield each `.{name}.{pid}.tmp` of a folder, with its name and its process's id.

    Only a checkpoint is ever a folder.
    """
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            match = TEMPORARY.fullmatch(entry.name)
            if not match:
                continue
            name = match["name"]
            of_checkpoint = NAME.fullmatch(name.removesuffix(REPLACED))
            may_be_folder = of_checkpoint is not None and of_checkpoint["ending"] == FOLDER
            if may_be_folder or not entry.is_dir(follow_symlinks=False):
                yield Path(entry.path), name, int(match["pid"])


def _without_manifest(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints of a folder that are folders and have no manifest any more."""
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            match = NAME.fullmatch(entry.name)
            if not match or match["ending"] != FOLDER:
                continue
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False) and not is_folder(path):
                yield path


def _remove(path: Path) -> int:
    """Remove a file, or a folder with all that is in it; return how many bytes. Raises: OSError."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        path.unlink()
        return status.st_size
    size = sum(inner.lstat().st_size for inner in path.iterdir())
    shutil.rmtree(path)
    return size


def _folders_of_runs(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if RUN_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _is_dead(leftover: Leftover, mtime: float, checkpoint_dir: Path) -> bool:
    """Return whether nobody writes a file of another run any more."""
    # also where it seems to come from the future: then a clock was corrected since it was written
    if abs(time.time() - mtime) < AGE_S or _is_running(leftover.pid):
        return False
    return not (leftover.run_id and is_being_trained(checkpoint_dir, leftover.run_id))


def _is_running(pid: int) -> bool:
    """Return whether another process of this machine has this id; True if nobody knows."""
    if pid == os.getpid():  # in a container, each start may have the same one
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
