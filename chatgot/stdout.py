"""Write results to stdout, even if its reader has exited or a standard stream is closed."""

import errno
import os
import sys
from collections.abc import Iterable

from chatgot.errors import StorageError


def write_to_stdout(chunks: Iterable[bytes]) -> bool:
    """Write bytes to stdout; return whether its reader is still there (`| head -1` exits early).

    Raises: StorageError if stdout cannot be written for another reason.
    """
    try:
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except OSError as error:
        silence_stdout()
        if not reader_has_gone(error):
            raise StorageError(f"stdout cannot be written: {error.strerror or error}") from error
        return False
    return True


def reader_has_gone(error: OSError) -> bool:
    """Return whether a write failed because nobody reads the pipe any more.

    Windows says "invalid argument" then.
    """
    if os.name == "nt" and error.errno == errno.EINVAL:
        return True
    return isinstance(error, BrokenPipeError)


def open_closed_streams() -> None:
    """Open the null device for each standard stream that was closed at the start.

    Otherwise the next file opened would get the stream's number, and C code would print into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def silence_stdout() -> None:
    """Send stdout to the null device, so that the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
