"""One small conversation with known truth, and how a reader reads a file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chatgot.data.encoding import detect_encoding
from chatgot.data.preparation.pieces import DocumentStart, Piece, Speech
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.source import SAMPLE_BYTES, Source
from chatgot.data.text_file import text_chunks
from chatgot.errors import ConfigError


@dataclass(frozen=True)
class Said:
    """A message: by whom, what and when."""

    name: str
    text: str
    when: datetime

    @property
    def speech(self) -> tuple[str, str, float]:
        return self.name, self.text, self.when.timestamp()


def _at(day: int, hour: int, minute: int, second: int = 0, month: int = 12) -> datetime:
    return datetime(2023, month, day, hour, minute, second, tzinfo=UTC)


CHAT = (
    Said("Anna", "Are you there?", _at(30, 9, 5, 1)),
    Said("Björn 🎈", "Yes: in a minute", _at(30, 9, 6, 2)),
    Said("Anna", "First this\nthen: that\n- and a third line", _at(30, 9, 7, 3)),
    Said("مريم", "أهلا وسهلا 👋", _at(30, 12, 0, 4)),
    Said("Björn 🎈", "At 12.12.2023, 10:15 it was - as I said", _at(30, 12, 30, 5)),
    Said("Anna", "👩‍👩‍👧 https://example.org/a?b=1", _at(31, 0, 10, 6)),
    Said("مريم", "Good night <3", _at(31, 22, 15, 7)),
)
DOCUMENTS = ("2023-12-30", "2023-12-31", "2023-12-31")  # begun by messages 0, 5 and 6


def source_of(path: Path, name: str = "") -> Source:
    """Return a file as a reader gets it."""
    head = path.read_bytes()[:SAMPLE_BYTES]
    try:
        encoding = detect_encoding(path)
        beginning = next(text_chunks(path, encoding, SAMPLE_BYTES), "")
    except ConfigError:
        encoding = None
        beginning = ""
    return Source(name or path.name, path, path.stat().st_size, encoding, head, beginning)


class Reading:
    """What a reader makes of a file: `pieces`, `findings`, `speeches`, `titles`."""

    def __init__(self, reader: Reader, path: Path, options: ReadingOptions | None = None) -> None:
        self.source = source_of(path)
        self.certainty = reader.certainty(self.source)
        self.findings = Findings()
        self.pieces: list[Piece] = list(
            reader.read(self.source, options or ReadingOptions(), self.findings)
        )

    @property
    def speeches(self) -> list[tuple[str, str, float | None]]:
        return [(p.name, p.text, p.time) for p in self.pieces if isinstance(p, Speech)]

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(name, text) for name, text, _ in self.speeches]

    @property
    def titles(self) -> list[str]:
        return [piece.title for piece in self.pieces if isinstance(piece, DocumentStart)]


def truth(to_minutes: bool = False) -> list[tuple[str, str, float]]:
    """Return the speeches of the chat; to_minutes: as an export without seconds has them."""
    step = 60 if to_minutes else 1
    return [(name, text, time // step * step) for name, text, time in (s.speech for s in CHAT)]


def rendered(line: Callable[[Said], str]) -> Iterator[str]:
    """Yield the lines of the chat."""
    for said in CHAT:
        yield line(said)
