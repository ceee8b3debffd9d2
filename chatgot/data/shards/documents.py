"""The documents of text files that may be larger than this machine, one after the other.

A file is plain UTF-8, in which `<|endoftext|>` on a line of its own ends a document, or JSON Lines,
each with the text of one document as `text`. Either may be packed by gzip. It lies wherever fsspec
reads.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

import fsspec

from chatgot.data.bpe import documents_of
from chatgot.data.shards.index import INDEX
from chatgot.data.shards.storage import file_system
from chatgot.data.vocabulary import split_documents
from chatgot.errors import ConfigError
from chatgot.logs.waiting import Advance

JSON_ENDINGS = (".jsonl", ".ndjson")
PACKED = ".gz"
CHUNK = 1 << 20  # characters that are read at a time
# Of a document: a longer one is cut into several, at the end of a line where there is one
LONGEST = 1 << 20
LONGEST_LINE = 1 << 28  # characters of a line of JSON
PIECES = 64  # of a sample
# What an iterator over files may raise for one that is damaged
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class TextFile:
    """A file with documents. size: in bytes, as it lies there."""

    files: fsspec.AbstractFileSystem
    path: str
    size: int

    @property
    def is_packed(self) -> bool:
        return self.path.lower().endswith(PACKED)

    @property
    def is_json(self) -> bool:
        return self.path.lower().removesuffix(PACKED).endswith(JSON_ENDINGS)


def text_files(inputs: Sequence[str]) -> list[TextFile]:
    """Return the files that paths, addresses, folders and patterns name, each in sorted order.

    Raises: ConfigError for what is missing, and where there is no file at all.
    """
    found: list[TextFile] = []
    for given in inputs:
        files, path = file_system(given)
        try:
            if files.isdir(path):
                paths = files.find(path)
            elif "*" in path or "?" in path:
                paths = [match for match in files.glob(path) if not files.isdir(match)]
            else:
                paths = [path]
            some = [
                TextFile(files, each, int(files.size(each) or 0))
                for each in sorted(paths)
                if _is_text(each)
            ]
        except FileNotFoundError as error:
            raise ConfigError(f"{given}: no such file or folder; name a text that is there") from (
                error
            )
        except OSError as error:
            raise ConfigError(f"{given}: cannot be read: {error}; name a readable text") from error
        if not some:
            raise ConfigError(f"{given}: found no file, expected texts; name others")
        found += some
    return found


def _is_text(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and name != INDEX and not name.endswith(".tokens")


def documents(file: TextFile, advance: Advance) -> Iterator[str]:
    """Yield the documents of a file, without line feeds around them; blank ones are left out.

    advance: is told the bytes that have been read. Raises: ConfigError.
    """
    with _open(file, advance) as text:
        found = _of_json(text, file.path) if file.is_json else _of_plain(text)
        for document in found:
            if document.strip():
                yield document.strip("\n")


def sample(files: Sequence[TextFile], size: int) -> Iterator[str]:
    """Yield pieces of files, evenly spread over all their bytes; about `size` bytes together.

    Of a packed file, the start is read. Raises: ConfigError.
    """
    total = sum(file.size for file in files)
    each = size // PIECES
    if total <= 2 * size:
        for file in files:
            yield from documents(file, lambda _: None)
        return
    ends = []
    end = 0
    for file in files:
        end += file.size
        ends.append(end)
    number = 0
    for piece in range(PIECES):
        place = total * piece // PIECES
        while ends[number] <= place:
            number += 1
        file = files[number]
        inside = place - (ends[number] - file.size)
        yield _piece(file, inside, each)


def _piece(file: TextFile, begin: int, size: int) -> str:
    """Return text of a file from about a byte on."""
    if file.is_packed:
        with _open(file, lambda _: None) as text:
            content = text.read(size)
    else:
        raw = file.files.cat_file(file.path, start=begin, end=begin + size)
        content = raw.decode(errors="ignore")
    if not file.is_json:
        return content
    texts = []
    for line in content.split("\n"):
        try:
            texts.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError):  # the cut ends of a piece
            continue
    return "\n".join(texts)


@contextmanager
def _open(file: TextFile, advance: Advance) -> Iterator[io.TextIOWrapper]:
    """Open a file as text. Raises: ConfigError for what the block cannot read of it."""
    try:
        with file.files.open(file.path, "rb") as raw:
            counted = _Counted(cast("BinaryIO", raw), advance)
            content = gzip.GzipFile(fileobj=counted) if file.is_packed else counted
            buffered = io.BufferedReader(cast("io.RawIOBase", content), CHUNK)
            yield io.TextIOWrapper(buffered, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file.path}: found the byte 0x{error.object[error.start]:02x}, expected UTF-8; "
            "make UTF-8 of it with prepare_data.py INPUT --output FILE"
        ) from error
    except DAMAGED as error:
        raise ConfigError(
            f"{file.path}: damaged gzip ({error}); fetch it again, or leave it out"
        ) from error
    except OSError as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}; leave it out") from error


class _Counted(io.RawIOBase):
    """A file that tells how many bytes have been read."""

    def __init__(self, raw: BinaryIO, advance: Advance) -> None:
        self._raw = raw
        self._advance = advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override] # a buffer
        content = self._raw.read(len(buffer))
        buffer[: len(content)] = content
        self._advance(len(content))
        return len(content)


def _of_json(text: io.TextIOWrapper, path: str) -> Iterator[str]:
    """Yield the texts of JSON Lines. Raises: ConfigError."""
    number = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise ConfigError(
                f"{path}: line {number}: no JSON ({error}); expected one object a line"
            ) from error
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            keys = ", ".join(map(str, found))[:80] if isinstance(found, dict) else "no object"
            raise ConfigError(
                f'{path}: line {number}: found {keys}, expected an object with a text as "text"'
            )
        # half a surrogate pair is no text, though JSON can write it
        plain = found["text"].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        for document in split_documents(plain.replace("\r\n", "\n").replace("\r", "\n")):
            yield from _cut(document)


def _of_plain(text: io.TextIOWrapper) -> Iterator[str]:
    """Yield the documents of a plain text."""
    held = ""
    chunks = iter(lambda: text.read(CHUNK), "")
    for parts in documents_of(chunks):
        for number, part in enumerate(parts):
            if number > 0:  # after an end-of-text token
                yield held
                held = ""
            held += part
            *whole, held = _cut(held)
            yield from whole
    yield held


def _cut(document: str) -> Iterator[str]:
    """Yield a document, cut into several where it is too long; the last may be empty."""
    while len(document) > LONGEST:
        end = document.rfind("\n", 0, LONGEST) + 1 or LONGEST
        yield document[:end]
        document = document[end:]
    yield document
