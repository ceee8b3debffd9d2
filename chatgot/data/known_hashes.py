"""The hash of a file's bytes; that of a large one is remembered while the file stays as it is.

A large file is taken for unchanged if its size, its time of change and its number in the file
system are the same. Only a program that sets the old time again after it changed the bytes is not
noticed. A small file is read each time.
"""

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.data.text_file import file_sha256
from chatgot.errors import ConfigError

LARGE = 1 << 28  # bytes: reading so many takes a fifth of a second


def file_hash(path: Path, cache_dir: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Side effect: for a large file, a note in the cache, best effort. Raises: ConfigError.
    """
    try:
        status = path.stat()
        facts = [status.st_size, status.st_mtime_ns, status.st_ino]
        if status.st_size < LARGE:
            return file_sha256(path)
        name = sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        note = cache_dir / f"{name}.hash.json"
        known = _read(note)
        if known is not None and known[0] == facts:
            return known[1]
        digest = file_sha256(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    with suppress(OSError), atomic_file(note) as file:
        file.write(json.dumps([facts, digest]).encode())
    return digest


def _read(note: Path) -> tuple[list[int], str] | None:
    """Return what a note says; None: there is none that can be used."""
    try:
        facts, digest = json.loads(note.read_bytes())
        return (facts, digest) if len(digest) == sha256().digest_size * 2 else None
    except (OSError, ValueError, TypeError):
        return None
