"""What kind of file a source is: its encoding, and the reader that is surest of it."""

import codecs
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import IncrementalNewlineDecoder
from pathlib import Path

from chatgot.data import wide
from chatgot.data.encoding import detect_encoding
from chatgot.data.odd_characters import BYTE_ORDER_MARK
from chatgot.data.preparation.inputs import Found
from chatgot.data.preparation.known_readers import READERS
from chatgot.data.preparation.reader import Reader, UnreadableError
from chatgot.data.preparation.source import SAMPLE_BYTES, Source
from chatgot.data.preparation.zips import is_zip, kind_of_document, unpacked
from chatgot.errors import ConfigError

# How files of these kinds begin, for the reason why nobody reads them
KINDS = (
    (b"%PDF-", "a PDF"),
    (b"\x1f\x8b", "packed (gzip); unpack it, or pack the files as a zip"),
    (b"BZh", "packed (bzip2); unpack it, or pack the files as a zip"),
    (b"\xfd7zXZ\0", "packed (xz); unpack it, or pack the files as a zip"),
    (b"\x28\xb5\x2f\xfd", "packed (zstd); unpack it, or pack the files as a zip"),
    (b"7z\xbc\xaf\x27\x1c", "packed (7z); unpack it, or pack the files as a zip"),
    (b"Rar!\x1a\x07", "packed (rar); unpack it, or pack the files as a zip"),
    (b"\x89PNG", "a picture"),
    (b"GIF8", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"ID3", "a sound"),
    (b"OggS", "a sound"),
    (b"fLaC", "a sound"),
    (b"RIFF", "a picture, a sound or a film"),
    (b"\x1aE\xdf\xa3", "a film"),
    (b"SQLite format 3\0", "a database"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document; save it as .docx or .txt"),
)
FILM_MARK = slice(4, 8)  # of MP4 and its relatives
NO_TEXT = "binary: no text in any encoding"


@contextmanager
def opened(found: Found, encoding: str | None = None) -> Iterator[tuple[Source, str]]:
    """Yield a file as a source, and why it is no text; empty: it is one.

    A zip's member is unpacked for the block.
    encoding: of its text, as the user says; None: it is guessed.
    Raises: UnreadableError, also for what goes wrong in the block while the file is read;
    StorageError.
    """
    path = found.path
    try:
        if found.member is None:
            yield source_of(found.name, path, encoding)
            return
        assert found.allowance is not None, "each zip has one"
        with unpacked(path, found.member, found.allowance) as path:
            yield source_of(found.name, path, encoding)
    except (ConfigError, OSError) as error:
        raise UnreadableError(reason_of(error, path)) from error


def source_of(name: str, path: Path, encoding: str | None = None) -> tuple[Source, str]:
    """Return a file as a source, and why it is no text; empty: it is one.

    Raises: UnreadableError where it is not in the encoding that the user says; OSError.
    """
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
    no_text = _kind_of(head, path) or ("" if _may_be_text(head) else NO_TEXT)
    found_encoding = None
    if not no_text:
        try:
            found_encoding = encoding or detect_encoding(path)
        except ConfigError as error:
            no_text = reason_of(error, path)
    beginning = "" if found_encoding is None else beginning_of(head, found_encoding)
    size = path.stat().st_size
    return Source(name, path, size, found_encoding, head, beginning), no_text


def beginning_of(head: bytes, encoding: str) -> str:
    r"""Return the text of a file's first bytes, with "\n" as the only line end.

    Raises: UnreadableError where they are not in this encoding.
    """
    codec = "utf-8" if encoding == "utf-8-sig" else encoding
    try:
        text = codecs.getincrementaldecoder(codec)().decode(head)
    except UnicodeDecodeError as error:
        place = error.start
        raise UnreadableError(f"not {encoding} at byte offset {place}: {error.reason}") from error
    newlines = IncrementalNewlineDecoder(None, translate=True)
    return newlines.decode(text.removeprefix(BYTE_ORDER_MARK))


def reason_of(error: Exception, path: Path) -> str:
    """Return the words of an error without the path, which may be that of a temporary file."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    words = str(error).removeprefix(f"{path}: ").replace(str(path), "it")
    return words.replace("set data.encoding", "give --encoding")


def surest_reader(source: Source, readers: Sequence[Reader] = ()) -> Reader | None:
    """Return the reader that is surest of a source, of equal ones the first; None: nobody is.

    readers: None given: all that there are.
    """
    surest = None
    highest = 0.0
    for reader in readers or READERS:
        certainty = reader.certainty(source)
        if certainty > highest:
            surest = reader
            highest = certainty
    return surest


def _kind_of(head: bytes, path: Path) -> str:
    """Return in words what a file is by its first bytes; empty: it may be a text."""
    if is_zip(head):
        kind = kind_of_document(path)
        return f"{kind}, which no reader takes" if kind else "a zip within a zip; unpack it first"
    if head[FILM_MARK] == b"ftyp":
        return "a film or a picture"
    return next((kind for start, kind in KINDS if head.startswith(start)), "")


def _may_be_text(head: bytes) -> bool:
    """Return whether a file that begins so may be text; NULs are in UTF-16, and in torn logs."""
    if head and not head.strip(b"\0"):
        return False  # a file that a crash has emptied
    if b"\0" not in head or wide.mark_of(head) or wide.wide_encoding(head):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
