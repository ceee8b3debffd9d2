r"""Writes pieces as one text: `NAME:`, lines, a blank line; `<|endoftext|>` between documents.

A plain text is written as it is, to the byte.
"""

from typing import Protocol

from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, PlainText, Speech
from chatgot.data.vocabulary import END_OF_TEXT

END_LINE = f"{END_OF_TEXT}\n"
TAIL = len(END_LINE) + 1  # characters at the end that decide what may follow


class Sink(Protocol):
    """What is written to: a file that is opened for bytes."""

    def write(self, content: bytes, /) -> int: ...
    def seek(self, offset: int, /) -> int: ...
    def truncate(self) -> int: ...


class Nowhere:
    """A sink that keeps nothing, for a dry run."""

    def write(self, content: bytes, /) -> int:
        return len(content)

    def seek(self, offset: int, /) -> int:
        return offset

    def truncate(self) -> int:
        return 0


class Writer:
    """Writes one piece after the other; memory does not grow.

    documents: those with text that were written and are finished.
    size: bytes so far. characters: so far.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.documents = 0
        self.size = 0
        self.characters = 0
        self._tail = ""  # the last characters written
        self._has_text = False  # in the document at hand
        self._is_begun = False  # something of it is written
        self._after_plain_text = False
        self._before = (0, 0, "")  # size, characters and tail before the document at hand

    def write(self, piece: Piece) -> None:
        """Write a piece. Raises: OSError."""
        if isinstance(piece, DocumentStart):
            self.end_document()
        elif isinstance(piece, PlainText):
            self._put(piece.text)
            self._after_plain_text = True
        elif isinstance(piece, Passage):
            self._put_paragraph(piece.text)
        elif isinstance(piece, Speech):
            self._put_paragraph(f"{piece.name}:\n{piece.text}")
        else:
            self.drop_document()

    def end_document(self) -> None:
        """End the document at hand; one without text leaves no trace. Raises: OSError."""
        if not self._has_text:
            self.drop_document()
            return
        self.documents += 1
        self._begin()

    def drop_document(self) -> None:
        """Remove what was written of the document at hand. Raises: OSError."""
        if self._is_begun:
            self.size, self.characters, self._tail = self._before
            self.sink.seek(self.size)
            self.sink.truncate()
        self._begin()

    def _begin(self) -> None:
        """Remember where a document begins."""
        self._before = (self.size, self.characters, self._tail)
        self._has_text = False
        self._is_begun = False
        self._after_plain_text = False

    def _put_paragraph(self, text: str) -> None:
        """Write a text and a blank line, on lines of their own."""
        if self._after_plain_text:
            self._after_plain_text = False
            line_feeds = 2 - min(2, len(self._tail) - len(self._tail.rstrip("\n")))
            self._put("\n" * line_feeds)
        self._put(f"{text}\n\n")

    def _put(self, text: str) -> None:
        if not text:
            return
        if not self._is_begun:
            self._is_begun = True
            if self.documents:
                self._append(self._separator(text))
        if not self._has_text:
            self._has_text = text.strip() not in ("", END_OF_TEXT)
        self._append(text)

    def _append(self, text: str) -> None:
        content = text.encode()
        self.sink.write(content)
        self.size += len(content)
        self.characters += len(text)
        self._tail = text[-TAIL:] if len(text) >= TAIL else (self._tail + text)[-TAIL:]

    def _separator(self, text: str) -> str:
        """Return what is written between the last document and one that begins so."""
        line_end = "" if self._tail.endswith("\n") else "\n"
        ends_with_token = f"\n{self._tail}{line_end}".endswith(f"\n{END_LINE}")
        if ends_with_token or text.startswith(END_LINE):
            return line_end
        return f"{line_end}{END_LINE}"
