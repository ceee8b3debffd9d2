"""What the bytes of a file add up to; for a large file it is remembered while the file stays as is.

A large file is taken for unchanged if its size, its time of change and its number in the file
system are the same. So two things are given up above LARGE bytes: a program that sets the old time
again after it changed a text is not noticed, and neither is a disk that damages the ids of a text
after they were checked once. A small file is read each time.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from chatgot.atomic_file import atomic_file
from chatgot.data.text_file import HASHED_BYTES, file_sha256
from chatgot.errors import ConfigError
from chatgot.logs.waiting import waiting

LARGE = 1 << 28  # bytes: reading so many takes a fifth of a second
# A file that has just changed may change again within one tick of the file system's clock; FAT's
# takes 2 s
SETTLED_S = 3.0

SHA_256_DIGITS = 64
CRC_32_DIGITS = 8


def file_hash(path: Path, cache_dir: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex.

    Side effect: for a large file, a note in the cache, best effort. Raises: ConfigError.
    """
    try:
        name = sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return _known(path, cache_dir / f"{name}.hash.json", file_sha256, SHA_256_DIGITS)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def ids_checksum(ids_path: Path) -> int:
    """Return the CRC-32 of a file of ids: a damaged one would train on other letters.

    Side effect: for a large file, a note beside it, best effort. Raises: OSError.
    """
    note = ids_path.with_name(f"{ids_path.name}.crc.json")
    return int(_known(ids_path, note, _crc32_of, CRC_32_DIGITS), 16)


def _known(path: Path, note: Path, add_up: Callable[[Path], str], digits: int) -> str:
    """Return what is noted of a file, or else add it up and note it. Raises: OSError.

    digits: of the result.
    """
    status = path.stat()
    if status.st_size < LARGE:
        return add_up(path)
    is_settled = abs(time.time() - status.st_mtime) > SETTLED_S
    facts = [status.st_size, status.st_mtime_ns, status.st_ino]
    known = _noted(note, facts)
    if known is not None and len(known) == digits:
        return known
    result = add_up(path)
    if is_settled:
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(note) as file:
                file.write(json.dumps([facts, result]).encode())
    return result


def _noted(note: Path, facts: list[int]) -> str | None:
    """Return what a note says of a file with these facts; None: there is none that can be used."""
    try:
        noted_facts, result = json.loads(note.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return result if noted_facts == facts and isinstance(result, str) else None


def _crc32_of(path: Path) -> str:
    checksum = 0
    with (
        path.open("rb") as file,
        waiting(f"reading {path.name}", os.fstat(file.fileno()).st_size) as advance,
    ):
        while block := file.read(HASHED_BYTES):
            checksum = crc32(block, checksum)
            advance(len(block))
    return f"{checksum:0{CRC_32_DIGITS}x}"
