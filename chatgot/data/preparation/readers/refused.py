"""Knows kinds of documents that no reader takes, and says how to save them instead."""

from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.source import Source

SURE = 1.0
LOOKED_AT = 200  # bytes, in which a zip names its kind
ZIP = b"PK\x03\x04"
CONTENT_TYPES = b"[Content_Types].xml"
AS_DOCX = "save it as .docx or .txt"
AS_CSV = "save it as .csv"
OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
OPEN_DOCUMENT = b"mimetypeapplication/vnd.oasis.opendocument."
OLD_KINDS = {
    "doc": f"an old Word document; {AS_DOCX}",
    "xls": f"an old Excel workbook; {AS_CSV}",
    "docx": "a Word document with a password; save a copy without one",
    "xlsx": "an Excel workbook with a password; save a copy without one, as .csv",
}


def _kind_of(source: Source) -> str:
    """Return what a file is and what to do; empty: it is not refused."""
    head = source.head
    if head.lstrip()[:5] == b"{\\rtf":
        return f"an RTF document; {AS_DOCX}"
    if head.startswith(OLD_OFFICE):
        return OLD_KINDS.get(source.ending, f"an old Office document; {AS_DOCX}")
    if not head.startswith(ZIP):
        return ""
    if OPEN_DOCUMENT + b"spreadsheet" in head[:LOOKED_AT]:
        return f"an OpenDocument table; {AS_CSV}"
    if OPEN_DOCUMENT in head[:LOOKED_AT]:
        return f"an OpenDocument file; {AS_DOCX}"
    if CONTENT_TYPES in head and b"xl/" in head and b"word/" not in head:
        return f"an Excel workbook; {AS_CSV}"
    if CONTENT_TYPES in head and b"ppt/" in head and b"word/" not in head:
        return f"a PowerPoint file; {AS_DOCX}"
    return ""


def certainty(source: Source) -> float:
    """Return whether a file is of a kind that is refused."""
    return SURE if _kind_of(source) else 0.0


def read(source: Source, _options: ReadingOptions, _findings: Findings) -> Iterator[Piece]:
    """Read nothing. Raises: UnreadableError, always."""
    yield from ()  # a generator as all readers are: it raises where a piece is asked for
    raise UnreadableError(_kind_of(source))


REFUSED = Reader("document to be saved as another kind", certainty, read)
