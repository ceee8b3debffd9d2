"""Read a checkpoint, whether it is one file or a folder.

Whoever is given a checkpoint's path comes through here. What a folder needs is imported when there
is one: most runs have none.
"""

import os
import stat
from pathlib import Path
from typing import Any

from torch import Tensor

from chatgot.checkpointing import checkpoint_file
from chatgot.checkpointing.checkpoint_file import DIGEST
from chatgot.checkpointing.names import FILE, FOLDER, MANIFEST, NAME, PARTS


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder that a finished save may have written; links are none."""
    try:
        is_dir = stat.S_ISDIR(path.lstat().st_mode)
    except (OSError, ValueError):
        return False
    return is_dir and os.path.lexists(path / MANIFEST)


def is_meant_as_folder(path: Path) -> bool:
    """Return whether a path is a folder that has the name or the files of a checkpoint.

    So is a link with such a name. Whether it is a whole checkpoint is examined when it is read.
    """
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return False
    if stat.S_ISLNK(status.st_mode):
        return path.name.endswith(FOLDER)
    # other folders have a manifest.json, too
    has_files = is_folder(path) and os.path.lexists(path / PARTS)
    return stat.S_ISDIR(status.st_mode) and (path.name.endswith(FOLDER) or has_files)


def is_there(path: Path) -> bool:
    """Return whether a path is a regular file, or a folder as `is_folder` says."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) or is_folder(path)
    except (OSError, ValueError):
        return False


def is_named(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry of a folder is a checkpoint, by its name and its kind alone."""
    match = NAME.fullmatch(entry.name)
    if match is None:
        return False
    if match["ending"] == FILE:
        return entry.is_file(follow_symlinks=False)
    return is_folder(Path(entry.path))


def is_whole(path: Path) -> bool:
    """Return whether `path` is what a finished save wrote under this name.

    Its bytes are verified once, and again when they may have changed.
    """
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        return checkpoint_folder.is_whole(path)
    return checkpoint_file.is_whole(path)


def read_outline(path: Path) -> dict[str, Any]:
    """Return a checkpoint's plain values, without its tensors; its bytes are verified first.

    Raises: CheckpointRejected naming file and reason.
    """
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        return checkpoint_folder.read_outline(path)
    return checkpoint_file.read_outline(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume; nothing from it is executed.

    Raises: CheckpointRejected naming file and reason.
    """
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        return checkpoint_folder.load_checkpoint(path)
    return checkpoint_file.load_checkpoint(path)


def load_weights(path: Path) -> tuple[dict[str, Tensor], str | list[str] | None]:
    """Read weights for a new run: (named tensors, vocabulary or None).

    Raises: CheckpointRejected.
    """
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        return checkpoint_folder.load_weights(path)
    return checkpoint_file.load_weights(path)


def digest_of(path: Path) -> bytes:
    """Return what tells a whole checkpoint from any other. Raises: OSError, CheckpointRejected."""
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        return checkpoint_folder.digest_of(path).encode()
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - DIGEST))
        return file.read()


def remove(path: Path) -> None:
    """Remove a checkpoint. Raises: OSError."""
    if is_meant_as_folder(path):
        from chatgot.checkpointing import checkpoint_folder

        checkpoint_folder.remove_folder(path)
    else:
        path.unlink()
