"""Write a file completely or not at all."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Errors of file systems without modes, and of network file systems that cannot fsync a folder.
NO_MODES = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
NO_FSYNC = (errno.EINVAL, errno.ENOTSUP)
WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # between two tries to rename on Windows


def temporary_name(path: Path) -> Path:
    """Return the path, in the same folder, that this process writes to before it becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(
    path: Path, verify: Callable[[Path], None] | None = None, mode: int | None = None
) -> Iterator[BinaryIO]:
    """Open a temporary file; it replaces `path` if the block succeeds, else it is removed.

    The file is created exclusively: a link planted under its name is never followed. After the
    block it is flushed and fsynced, and `verify` may read it and raise. Then it is renamed and the
    folder is fsynced: the new file survives a power cut.

    mode: of the new file. None: as the umask says; a thread beside others needs the mode, because
        reading the umask changes it for a moment.
    Raises: OSError with an errno if the disk refuses; any error of the block or of `verify`.
    """
    temporary = temporary_name(path)
    flags = (
        os.O_RDWR
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    # left by a dead process with the same id; if it is a link, only the link is removed
    with suppress(FileNotFoundError):
        temporary.unlink()
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w+b") as file:
            yield file
            file.flush()
            set_mode(file.fileno(), mode_of_new_files() if mode is None else mode)
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        _replace(temporary, path)
    except BaseException:  # also SystemExit from a signal: no half-written file stays behind
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    """Rename; on Windows again for a while, where another program has one of the files open.

    Virus scanners and search indexes look at each new file there, for some tenths of a second.
    """
    for wait_s in WAITS_S if os.name == "nt" else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(wait_s)
    temporary.replace(path)


def set_mode_by_umask(descriptor: int) -> None:
    """Give an open file the mode that a new file has; nothing where files have no modes."""
    set_mode(descriptor, mode_of_new_files())


def mode_of_new_files() -> int:
    """Return the mode that the umask gives a new file; for a moment the umask is another one."""
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file a mode; nothing where files have no modes."""
    if hasattr(os, "fchmod"):
        try:
            os.fchmod(descriptor, mode)
        except OSError as error:
            if error.errno not in NO_MODES:
                raise


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut.

    Does nothing on Windows, which cannot open folders. Raises: OSError if the disk refuses.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(descriptor)
