"""Reads any text as it is; it is asked last."""

from collections.abc import Iterator

from chatgot.data.preparation.pieces import PlainText
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.source import Source

CERTAINTY = 0.2  # it can read what nobody else does


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a text."""
    return 0.0 if source.encoding is None else CERTAINTY


def read(source: Source, _options: ReadingOptions, _findings: Findings) -> Iterator[PlainText]:
    """Yield the text in large pieces. Raises: ConfigError."""
    for chunk in source.chunks():
        yield PlainText(chunk)


PLAIN_TEXT = Reader("plain text", certainty, read)
