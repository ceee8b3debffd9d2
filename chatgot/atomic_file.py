"""How a file reaches the disk whole or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_file(path: Path, verify: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Open a new file beside `path`; when the block ends well it takes the place of `path`, else it is gone.

    The temporary file is created exclusively (a link planted under its name is never followed), flushed and fsynced;
    `verify` may look at it and raise; then it is renamed and the folder is fsynced, so that it survives a power cut.

    Raises: OSError with an errno when the disk refuses; whatever the block or `verify` raises.
    """
    temporary = temporary_name(path)
    flags = (
        os.O_RDWR
        | os.O_CREAT
        | os.O_EXCL
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_BINARY", 0)
    )
    with suppress(FileNotFoundError):
        temporary.unlink()  # left by a dead process that had this process id; of a planted link only the link goes
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w+b") as file:
            yield file
            file.flush()
            _set_mode_by_umask(file.fileno())
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        temporary.replace(path)
    except BaseException:  # also SystemExit from a signal: no half-written file stays behind
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_folder(path.parent)


def _set_mode_by_umask(descriptor: int) -> None:
    if hasattr(os, "fchmod"):
        umask = os.umask(0o077)
        os.umask(umask)
        try:
            os.fchmod(descriptor, 0o666 & ~umask)
        except OSError as error:
            if error.errno not in (
                errno.EPERM,
                errno.ENOTSUP,
                errno.ENOSYS,
            ):  # some file systems have no modes
                raise


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows cannot open folders, there it is skipped."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems have no such thing
            raise
    finally:
        os.close(descriptor)
