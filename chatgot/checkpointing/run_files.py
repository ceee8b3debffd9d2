"""The checkpoints of a run: find the newest complete one, remove old ones, set some aside."""

import logging
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from chatgot.atomic_file import atomic_file, fsync_folder
from chatgot.checkpointing.checkpoints import (
    digest_of,
    is_named,
    is_there,
    is_whole,
    remove,
)
from chatgot.checkpointing.names import FILE, FOLDER, NAME
from chatgot.errors import CheckpointRejected, StorageError

logger = logging.getLogger(__name__)

REWIND_FILES = 2  # checkpoints kept for rewinds: the newest two
MAX_SET_ASIDE = 1000  # superseded files of one name


def new_path(checkpoint_dir: Path, run_id: str, step: int, ending: str = FILE) -> Path:
    """Return the path of a run's checkpoint of one step, which may not exist.

    ending: FILE or FOLDER.
    """
    return checkpoint_dir / f"{run_id}_step_{step}{ending}"


def checkpoint_path(checkpoint_dir: Path, run_id: str, step: int) -> Path:
    """Return where a run's checkpoint of one step is; where there is none, where its file would be.

    Of a file and a folder it is the one that is whole, and the file first.
    """
    file = new_path(checkpoint_dir, run_id, step)
    folder = new_path(checkpoint_dir, run_id, step, FOLDER)
    return preferred(file, folder) if is_there(folder) else file


def preferred(file: Path, folder: Path) -> Path:
    """Return which of a file and a folder of one step counts; the folder exists."""
    if not is_there(file):
        return folder
    return folder if not is_whole(file) and is_whole(folder) else file


def probe_folder(folder: Path) -> None:
    """Make `folder` with its parents, and test that a file can be written into it.

    Raises: StorageError with the reason.
    """
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            # otherwise a power cut could remove the folder with all its files
            fsync_folder(path.parent)
        try:
            with atomic_file(probe) as file:
                file.write(b"\0")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        if os.path.islink(folder) and not os.path.exists(folder):  # noqa: PTH110, PTH114 never raise
            reason = f"it is a link to {os.readlink(folder)}, and that is not there"  # noqa: PTH115
        raise StorageError(
            f"{folder}: cannot be written: {reason}; choose another folder"
        ) from error


def run_files(checkpoint_dir: Path, config_name: str) -> dict[str, dict[int, Path]]:
    """Return a configuration's checkpoints as {timestamp: {step: path}}; only names are examined.

    Raises: OSError.
    """
    runs = all_runs(checkpoint_dir, config_name)
    return {run_id.rpartition("_")[2]: files for run_id, files in runs.items()}


def all_runs(checkpoint_dir: Path, config_name: str | None = None) -> dict[str, dict[int, Path]]:
    """Return a folder's checkpoints as {run_id: {step: path}}; only names are examined.

    A step that has a file and a folder is examined closer, see `preferred`.
    config_name: of a configuration, whose runs alone count.
    Raises: OSError.
    """
    runs: dict[str, dict[int, Path]] = {}
    with os.scandir(checkpoint_dir) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match is None or config_name not in (None, match["config"]) or not is_named(entry):
                continue
            files = runs.setdefault(entry.name.rpartition("_step_")[0], {})
            step = int(match["step"])
            path = checkpoint_dir / entry.name
            if step in files:
                file, folder = sorted([path, files[step]], key=lambda both: both.suffix)
                path = preferred(file, folder)
            files[step] = path
    return runs


def files_of_run(checkpoint_dir: Path, run_id: str) -> dict[int, Path]:
    """Return one run's checkpoints as {step: path}; only names are examined. Raises: OSError."""
    config_name, _, timestamp = run_id.rpartition("_")
    return run_files(checkpoint_dir, config_name).get(timestamp, {})


def older_files(path: Path) -> Iterator[Path]:
    """Yield the same run's checkpoints of lower steps, newest first; only names are examined."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return
    try:
        files = run_files(path.parent, match["config"]).get(match["timestamp"], {})
    except OSError:
        return
    for step in sorted(files, reverse=True):
        if step < int(match["step"]):
            yield files[step]


def newest_whole(checkpoint_dir: Path, run_id: str, without: Collection[Path] = ()) -> Path | None:
    """Return the newest complete checkpoint of a run; None: there is none, or the folder is gone.

    without: files to ignore.
    """
    try:
        files = files_of_run(checkpoint_dir, run_id)
    except OSError:
        return None
    newest_first = (files[step] for step in sorted(files, reverse=True))
    newest_first = (path for path in newest_first if path not in without)
    return next(filter(is_whole, newest_first), None)


def files_after(checkpoint_dir: Path, run_id: str, global_step: int) -> list[Path]:
    """Return this run's checkpoints of later steps; only names are examined. Raises: OSError."""
    files = files_of_run(checkpoint_dir, run_id)
    return [files[step] for step in sorted(files) if step > global_step]


def superseded_by(
    checkpoint_dir: Path, run_id: str, global_step: int, resumed_from: Path
) -> list[Path]:
    """Return the checkpoints to set aside when a run is resumed from an older one.

    These are the checkpoints of later steps, and also the one of this step if the run was resumed
    from another file with the same step.
    """
    later = files_after(checkpoint_dir, run_id, global_step)
    others = []
    for ending in (FILE, FOLDER):
        own = new_path(checkpoint_dir, run_id, global_step, ending)
        with suppress(OSError, CheckpointRejected):
            if not is_there(own):
                continue
            is_the_same = is_whole(own) and digest_of(own) == digest_of(resumed_from)
            if not is_the_same:
                others.append(own)
    return [*others, *later]


def set_aside(paths: list[Path]) -> None:
    """Rename checkpoints to NAME.superseded, and log their names.

    Raises: StorageError if they cannot be renamed.
    """
    try:
        for path in filter(is_there, paths):
            path.replace(_free_name(path))
    except OSError as error:
        raise StorageError(
            f"{paths[0].parent}: checkpoints cannot be renamed to .superseded: {error.strerror}; "
            "make the folder writable"
        ) from error
    if paths:
        names = ", ".join(path.name for path in paths)
        logger.info("no longer part of this run, renamed to .superseded: %s", names)


def _free_name(path: Path) -> Path:
    """Return a free name for a superseded file, so that no earlier one is overwritten."""
    names = [f"{path.name}.superseded"]
    names += [f"{path.name}.superseded.{number}" for number in range(2, MAX_SET_ASIDE)]
    return next(path.with_name(name) for name in names if not path.with_name(name).exists())


def cleanup_old_checkpoints(
    checkpoint_dir: Path,
    config_name: str,
    timestamp: str,
    max_to_keep: int = 5,
    keep: Collection[int] = (),
    rewind_interval: int | None = None,
) -> list[Path]:
    """Remove all but the newest `max_to_keep` checkpoints of one run; return the removed paths.

    Only complete checkpoints of this run are counted and removed. Damaged ones, links and those of
    other runs stay untouched. One that cannot be removed is logged as a warning.

    keep: steps whose checkpoints are kept in addition (the best evaluation).
    rewind_interval: rewinds use the steps that are multiples of it; the newest two are kept too.
    Raises: ValueError for `max_to_keep` below 1.
    """
    if max_to_keep < 1:
        raise ValueError(f"max_to_keep must be at least 1, found {max_to_keep}")
    try:
        files = run_files(checkpoint_dir, config_name).get(timestamp, {})
    except OSError as error:
        logger.warning(
            "%s cannot be listed (%s): old checkpoints are not removed",
            checkpoint_dir,
            error.strerror,
        )
        return []
    whole_steps = [step for step in sorted(files, reverse=True) if is_whole(files[step])]
    stays = set(keep)
    if rewind_interval:
        rewind_steps = [step for step in whole_steps if step % rewind_interval == 0]
        stays.update(rewind_steps[:REWIND_FILES])
    removed = []
    for step in whole_steps[max_to_keep:]:
        if step in stays:
            continue
        try:
            remove(files[step])
            removed.append(files[step])
        except OSError as error:
            logger.warning(
                "old checkpoint %s could not be removed: %s", files[step], error.strerror
            )
    return removed


def open_to_others(folder: Path) -> str | None:
    """Return why other users can add and remove files in a folder; None: they cannot."""
    if os.name == "nt":
        return None
    status = folder.stat()
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return "every user can write to this folder"
    if status.st_uid not in (0, os.getuid()):
        return "this folder belongs to another user"
    return None
