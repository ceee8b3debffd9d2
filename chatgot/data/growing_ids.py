"""Ids that are written batch by batch into one file: after a kill, writing goes on where it was.

Beside the file is a note: how many batches and bytes are on the disk for certain, and a checksum of
them. Whoever goes on makes the same batches again, as far as that is cheap, and writes those that
are missing.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from zlib import crc32

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from chatgot.atomic_file import (
    atomic_file,
    fsync_folder,
    mode_of_new_files,
    set_mode,
    temporary_name,
)

NOTE_BYTES = 1 << 26  # are written between two notes
READ_BYTES = 1 << 20


class GrowingIds:
    """The file that grows; `batches`: how many are in it for certain, from an earlier process.

    crc32, bytes: of all ids so far.
    """

    def __init__(self, file: BinaryIO, note_path: Path | None, identity: str) -> None:
        self.batches = 0
        self.bytes = 0
        self.crc32 = 0
        self._file = file
        self._note_path = note_path
        self._identity = identity
        self._noted = 0  # bytes at the last note
        if note_path is not None:
            self._go_on(note_path)
        file.seek(self.bytes)
        file.truncate()

    def write(self, batches: Iterable[NDArray[np.unsignedinteger]]) -> None:
        """Write the batches that follow those that are in the file. Raises: OSError."""
        for batch in batches:
            content = batch.tobytes()
            self._file.write(content)
            self.bytes += len(content)
            self.crc32 = crc32(content, self.crc32)
            self.batches += 1
            if self.bytes - self._noted >= NOTE_BYTES:
                self._note()

    @property
    def is_noted(self) -> bool:
        """Whether the next process can go on from what is on the disk."""
        return self._noted > 0

    def forget(self) -> None:
        """Let nobody go on from here: what was read has changed meanwhile."""
        self._noted = 0
        if self._note_path is not None:
            with suppress(FileNotFoundError):
                self._note_path.unlink()

    def _note(self) -> None:
        if self._note_path is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        about = [self._identity, self.batches, self.bytes, self.crc32]
        with atomic_file(self._note_path) as file:
            file.write(json.dumps(about).encode())
        self._noted = self.bytes

    def _go_on(self, note_path: Path) -> None:
        """Take over what an earlier process wrote, if it is what its note says."""
        try:
            identity, batches, length, checksum = json.loads(note_path.read_bytes())
            if identity != self._identity:
                return
            if _crc32_of_first(self._file, int(length)) != checksum:
                return
        except (OSError, ValueError, TypeError):
            return
        self.batches = int(batches)
        self.bytes = self._noted = int(length)
        self.crc32 = int(checksum)


@contextmanager
def growing_ids(path: Path, identity: str) -> Iterator[GrowingIds]:
    """Open the file that becomes `path` when the block succeeds.

    When the block fails, or the process is killed, the batches that were noted stay for the next
    one; a small file has no note. Where another process writes the same file, this one writes a
    file of its own.

    identity: of all that the ids depend on; batches of another identity are not taken over.
    Raises: OSError.
    """
    part = path.with_name(f".{path.name}.part")
    note: Path | None = path.with_name(f".{path.name}.note")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        part = temporary_name(path)
        note = None
    ids: GrowingIds | None = None
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(part, flags, 0o600), "r+b") as file:
            ids = GrowingIds(file, note, identity)
            yield ids
            file.flush()
            set_mode(file.fileno(), mode_of_new_files())
            os.fsync(file.fileno())
        part.replace(path)
        _remove(note)
    except BaseException:  # also SystemExit from a signal: what nobody can go on from is removed
        if ids is None or not ids.is_noted:
            _remove(part)
        raise
    finally:
        if lock.is_locked:
            lock.release()
            # whoever takes it in between makes the same ids; their checksum is looked at
            _remove(Path(lock.lock_file))
    fsync_folder(path.parent)


def _remove(path: Path | None) -> None:
    """Remove a file if it is there, best effort."""
    if path is not None:
        with suppress(OSError):
            path.unlink()


def _crc32_of_first(file: BinaryIO, length: int) -> int | None:
    """Return the checksum of a file's first bytes; None: it has fewer."""
    checksum = 0
    file.seek(0)
    left = length
    while left:
        block = file.read(min(left, READ_BYTES))
        if not block:
            return None
        checksum = crc32(block, checksum)
        left -= len(block)
    return checksum
