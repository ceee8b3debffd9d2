"""Members of a zipped document, whose sizes are counted as they come: headers may lie."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatgot.data.preparation.reader import UnreadableError

MOST_RATIO = 200  # bytes of a member for each packed one, and FREE_BYTES more
FREE_BYTES = 1 << 20
COPY_BYTES = 1 << 16
MOST_MEMBERS = 100_000
# What zipfile raises for a damaged archive
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,  # an odd way of packing
    RuntimeError,  # with a password
    ValueError,
    OverflowError,
)


@contextmanager
def opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zipped document for the block. Raises: UnreadableError."""
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise UnreadableError(f"its zip is broken: {_words(error)}") from error
    with archive:
        if len(archive.namelist()) > MOST_MEMBERS:
            raise UnreadableError(f"it has more than {MOST_MEMBERS:,} members")
        yield archive


class CountedMembers:
    """Reads members of an archive; all together they are at most so many bytes."""

    def __init__(self, archive: zipfile.ZipFile, most: int) -> None:
        self._archive = archive
        self._most = most
        self._left = most

    def read(self, name: str, most: int) -> bytes:
        """Return the bytes of a member.

        Raises: KeyError where there is none; UnreadableError.
        """
        info = self._archive.NameToInfo.get(name)
        if info is None:
            raise KeyError(name)  # zipfile's own has a sentence in it
        return b"".join(self._blocks(info, most))

    def count_all(self, most: int) -> None:
        """Read all members and forget them. Raises: UnreadableError."""
        for info in self._archive.infolist():
            for _ in self._blocks(info, most):
                pass

    def _blocks(self, info: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
        most = min(most, MOST_RATIO * info.compress_size + FREE_BYTES)
        count = 0
        try:
            with self._archive.open(info) as member:
                while block := member.read(COPY_BYTES):
                    count += len(block)
                    self._left -= len(block)
                    if count > most:
                        raise UnreadableError(
                            f"{_shown(info.filename)} in it is unpacked to more than {most:,} bytes"
                        )
                    if self._left < 0:
                        raise UnreadableError(f"it is unpacked to more than {self._most:,} bytes")
                    yield block
        except DAMAGE as error:
            raise UnreadableError(
                f"{_shown(info.filename)} in it is broken: {_words(error)}"
            ) from error


def _shown(name: str) -> str:
    """Return a member's name on one line."""
    return "".join(c if c.isprintable() else "?" for c in name)[-100:]


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
