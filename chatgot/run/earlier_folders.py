"""Where the files of a resumed run are so far, so that none of them is split in two unnoticed.

A run's folders are mostly relative paths. When it is resumed from another working folder, they mean
other folders than before.
"""

from collections.abc import Iterator
from pathlib import Path

from chatgot.checkpointing.names import NAME
from chatgot.checkpointing.run_files import files_of_run
from chatgot.command_line import as_typed
from chatgot.config import PathsConfig
from chatgot.run.resuming import ResumePoint


def split_warnings(point: ResumePoint, paths: PathsConfig) -> list[str]:
    """Return a warning for each kind of a resumed run's files that is in another folder so far.

    It names both folders, and what to set so that there is one.
    """
    earlier = {
        "checkpoints": ("checkpoints are", _earlier_checkpoints(point)),
        "logs": ("log and curves are", _earlier_logs(point)),
    }
    warnings = []
    for key, (what, folder) in earlier.items():
        present = Path(getattr(paths, key)).resolve()
        if folder is None or folder == present:
            continue
        advice = as_typed(["--set", f"paths.{key}={folder}"])
        warnings.append(
            f"until now, this run's {what} in {folder}, from now on they are in {present}; "
            f"to keep them in one folder, resume with {advice}"
        )
    return warnings


def _earlier_checkpoints(point: ResumePoint) -> Path | None:
    """Return the folder with this run's other checkpoints; None: nobody knows."""
    if NAME.fullmatch(point.path.name):
        return point.path.resolve().parent
    for folder in _folders(point, "checkpoints"):
        try:
            if files_of_run(folder, point.content["run_id"]):
                return folder
        except OSError:
            continue
    return None


def _earlier_logs(point: ResumePoint) -> Path | None:
    """Return the folder of logs that has this run's curves; None: nobody knows."""
    for folder in _folders(point, "logs"):
        if (folder / "tensorboard" / point.content["run_id"]).is_dir():
            return folder
    return None


def _folders(point: ResumePoint, key: str) -> Iterator[Path]:
    """Yield where a folder of the run may be, the likeliest first."""
    path = Path(point.content["config"]["paths"][key])
    for working_dir in _working_dirs(point):
        yield Path(working_dir, path).resolve()


def _working_dirs(point: ResumePoint) -> Iterator[Path]:
    """Yield where the run may have been started.

    The folder that its checkpoints lie in comes first: it may have moved, with all that is in it.
    """
    checkpoints = Path(point.content["config"]["paths"]["checkpoints"])
    folder = point.path.resolve().parent
    if not checkpoints.is_absolute():
        count = len(checkpoints.parts)
        if folder.parts[len(folder.parts) - count :] == checkpoints.parts:
            yield Path(*folder.parts[: len(folder.parts) - count])
    stored = point.content.get("working_dir")
    if stored:
        yield Path(stored)
    yield Path()
