"""Any text file: whether it can be read, and its characters piece by piece."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from io import IncrementalNewlineDecoder
from pathlib import Path

from chatgot.data.encoding import CHUNK_BYTES, decoded_chunks
from chatgot.data.odd_characters import BYTE_ORDER_MARK
from chatgot.errors import ConfigError
from chatgot.logs.waiting import Advance, waiting

# http://, s3://, file://; a Path holds one slash of them. Not a drive such as C:/
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")
HASHED_BYTES = 1 << 20  # read at a time


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex. Raises: OSError."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        waiting(f"reading {path.name}", os.fstat(file.fileno()).st_size) as advance,
    ):
        while block := file.read(HASHED_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def check_text_file(
    path: Path, advice: str = "set data.path to", yaml_path: Path | None = None
) -> int:
    """Return the size of a text file, in bytes.

    advice: how the user names another file, for the messages.
    yaml_path: the YAML that names the text. A relative path is not relative to it, but a message
    says where there is such a file near it.
    Raises: ConfigError for a file that is missing, not regular, not readable or empty. It does not
    wait for a FIFO's writer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            message = (
                f"{path}: expected a text file, found {_kind(status.st_mode)}; {advice} a text file"
            )
            raise ConfigError(message)
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    except FileNotFoundError as error:
        if ADDRESS.match(str(path)):
            raise ConfigError(
                f"{path}: found an address, expected a file on this machine: "
                f"download it, then {advice} that file"
            ) from error
        near = _near_yaml(path, yaml_path)
        if near is not None:
            raise ConfigError(
                f"{path}: no such file: paths start in the current folder, so "
                f"{Path.cwd() / path} was looked for; {advice} {near}, which exists"
            ) from error
        absolute = "" if path.is_absolute() else f", as {Path.cwd() / path} does not exist"
        message = f"{path}: no such file{absolute}{_hint(path)}; {advice} a text file"
        raise ConfigError(message) from error
    except OSError as error:
        message = (
            f"{path}: cannot be read: {error.strerror or error}; {advice} a readable text file"
        )
        raise ConfigError(message) from error
    if status.st_size == 0:
        raise ConfigError(f"{path}: is empty; {advice} a file with text in it")
    return status.st_size


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _near_yaml(path: Path, yaml_path: Path | None) -> Path | None:
    """Return the file that a relative path names from a YAML's folder, or from one above it."""
    if yaml_path is None or path.is_absolute():
        return None
    candidates = (folder / path for folder in yaml_path.absolute().parents)
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), None)  # noqa: PTH113 Path's own raises where a folder may not be searched


def _hint(path: Path) -> str:
    """Return what may help to find a missing file: the nearest name, or a missing folder."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return f" (and no folder {path.parent})"
    nearest = get_close_matches(path.name, names, n=1)
    return f", did you mean {path.with_name(nearest[0])}?" if nearest else ""


def text_chunks(
    path: Path,
    encoding: str,
    chunk_bytes: int = CHUNK_BYTES,
    advance: Advance | None = None,
    count_marks: Callable[[int], object] = int,
) -> Iterator[str]:
    r"""Yield a file's text piece by piece, every line end as "\n", without byte order marks.

    Memory grows neither with the file nor with its lines.

    advance: is told the bytes of each piece that has been read and used; of the last one too many.
    count_marks: is told how many byte order marks were dropped, but for the first of the file:
    files that were joined had them.

    Raises: ConfigError at the first byte that does not decode.
    """
    # It keeps a carriage return until it sees what follows
    newlines = IncrementalNewlineDecoder(None, translate=True)
    at_start = True
    for chunk in decoded_chunks(path, encoding, chunk_bytes):
        characters = chunk
        if at_start and chunk:
            characters = chunk.removeprefix(BYTE_ORDER_MARK)
            at_start = False
        if BYTE_ORDER_MARK in characters:
            count_marks(characters.count(BYTE_ORDER_MARK))
            characters = characters.replace(BYTE_ORDER_MARK, "")
        text = newlines.decode(characters)
        if text:
            yield text
        if advance is not None:
            advance(chunk_bytes)
    text = newlines.decode("", final=True)
    if text:
        yield text
