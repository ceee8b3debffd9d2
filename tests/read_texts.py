"""A file of any kind for the tests of readers, how it is read, and the play that is in it."""

from dataclasses import dataclass
from pathlib import Path

from chatgot.data.encoding import detect_encoding
from chatgot.data.preparation.pieces import DocumentStart, Piece, Speech
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.source import SAMPLE_BYTES, Source
from chatgot.errors import ConfigError

# Two scenes; each speech has what one kind of file or another has trouble with
PLAY = [
    [
        ("ANN", "Good evening, keeper; is the lamp lit?"),
        ("BOB", 'It is, and "bright" too.'),
        ("ANN", "Then we wait | and watch."),
        ("OLD TOM", "Aye."),
        ("BOB", "Tom & I <both> saw the café's sail.\nTwice."),
    ],
    [
        ("ANN", "Look: a ship!"),
        ("OLD TOM", "Where?"),
        ("BOB", "North by north-east."),
        ("ANN", "I see nothing."),
        ("OLD TOM", "Wait."),
    ],
]
SPEECHES = [speech for scene in PLAY for speech in scene]


@dataclass(frozen=True)
class Reading:
    """What a reader told of a file."""

    pieces: list[Piece]
    findings: Findings

    @property
    def speeches(self) -> list[tuple[str, str]]:
        return [(piece.name, piece.text) for piece in self.pieces if isinstance(piece, Speech)]

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces if not isinstance(piece, DocumentStart)]

    @property
    def titles(self) -> list[str]:
        return [piece.title for piece in self.pieces if isinstance(piece, DocumentStart)]

    @property
    def said(self) -> str:
        return "; ".join(self.findings.remarks)


def written(folder: Path, content: str | bytes, name: str) -> Source:
    """Return a file with this content as a source; text is UTF-8."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    path = folder / "written"
    path.write_bytes(data)
    head = data[:SAMPLE_BYTES]
    is_binary = data.startswith((b"PK\x03\x04", b"%PDF-", b"\xd0\xcf\x11\xe0"))
    try:
        encoding = None if is_binary or not data else detect_encoding(path)
    except ConfigError:
        encoding = None
    beginning = "" if encoding is None else head.decode(encoding, "ignore")
    beginning = beginning.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return Source(name, path, len(data), encoding, head, beginning)


def reading_of(source: Source, reader: Reader, options: ReadingOptions | None = None) -> Reading:
    """Return all that a reader yields and finds. Raises: UnreadableError."""
    findings = Findings()
    return Reading(list(reader.read(source, options or ReadingOptions(), findings)), findings)
