"""How does a folder come into being whole or not at all? Under another name, then renamed."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chatgot.atomic_file import fsync_folder, set_mode_by_umask, temporary_name
from chatgot.errors import ConfigError


def check_folder(folder: Path) -> None:
    """Refuse a folder that must not be touched. Raises: ConfigError; OSError."""
    new = "give the name of a new folder"
    if folder.is_symlink():
        raise ConfigError(f"--to {folder}: is a link; {new}")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--to {folder}: is a file; {new}")
    if folder.samefile(Path.cwd()):
        raise ConfigError(f"--to {folder}: is the working folder; {new}")
    if next(folder.iterdir(), None) is not None:
        raise ConfigError(f"--to {folder}: is not empty; {new}")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder of the same name in a temporary one; it becomes `folder` if the block succeeds.

    Otherwise it is removed. It is made exclusively: a link planted under the temporary name is
    never followed. What a killed process left under its own temporary name is not in the way.
    Raises: OSError; ConfigError if `folder` is no longer empty.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 resolve() would follow links
    aside = temporary_name(folder)
    made: list[Path] = []
    try:
        _make_parents(folder.parent, made)
        _remove(aside)
        aside.mkdir()
        temporary = aside / folder.name
        temporary.mkdir()
        yield temporary
        _flush(temporary)
        _rename(temporary, folder)
        with suppress(OSError):  # it is empty, and does no harm
            aside.rmdir()
    except BaseException:  # also SystemExit from a signal: nothing half-made stays behind
        with suppress(OSError):
            _remove(aside)
        for parent in reversed(made):
            with suppress(OSError):
                parent.rmdir()
        raise
    fsync_folder(folder.parent)


def _make_parents(folder: Path, made: list[Path]) -> None:
    """Make a folder and those above it; append those that were missing, the outermost first."""
    if folder.is_dir():
        return
    _make_parents(folder.parent, made)
    folder.mkdir()
    made.append(folder)


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there; of a link the link alone."""
    try:
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()


def _flush(folder: Path) -> None:
    """Make all files and folders below a folder survive a power cut; files get the usual mode."""
    for parent, _, names in os.walk(folder):
        for name in names:
            flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            descriptor = os.open(Path(parent, name), flags)
            try:
                set_mode_by_umask(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(parent))


def _rename(temporary: Path, folder: Path) -> None:
    """Give a folder its name, at which an empty folder may be. Raises: OSError; ConfigError."""
    try:
        if os.name == "nt" and folder.is_dir():
            folder.rmdir()  # Windows renames onto nothing
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise ConfigError(
                f"--to {folder}: something was put there in the meantime; give another name"
            ) from error
        raise
