r"""Writes pieces as one text: `NAME:`, lines, a blank line; `<|endoftext|>` between documents.

A plain text is written as it is, to the byte.
"""

from typing import Protocol

from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, PlainText, Speech
from chatgot.data.vocabulary import END_OF_TEXT

END_LINE = f"{END_OF_TEXT}\n"
TAIL = len(END_LINE) + 1  # characters at the end that decide what may follow
HELD = 1 << 16  # characters that are written at once


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
    size: bytes of them. characters: of them.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.documents = 0
        self.size = 0
        self.characters = 0
        self._tail = ""  # the last characters written
        self._held: list[str] = []  # texts that are not yet written
        self._held_length = 0
        self._has_text = False  # in the document at hand
        self._is_begun = False  # something of it is written
        self._after_plain_text = False
        self._before = (0, 0, "")  # size, characters and tail before the document at hand

    def write(self, piece: Piece) -> None:
        """Write a piece. Raises: OSError."""
        if isinstance(piece, Speech):
            self._put_paragraph(f"{piece.name}:\n{piece.text}\n\n")
        elif isinstance(piece, PlainText):
            self._put(piece.text)
            self._after_plain_text = True
        elif isinstance(piece, Passage):
            self._put_paragraph(f"{piece.text}\n\n")
        elif isinstance(piece, DocumentStart):
            self.end_document()
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
        self._held.clear()
        self._held_length = 0
        if self._is_begun:
            self.size, self.characters, self._tail = self._before
            self.sink.seek(self.size)
            self.sink.truncate()
        self._begin()

    def _begin(self) -> None:
        """Remember where a document begins. Raises: OSError."""
        self._write_held()
        self._before = (self.size, self.characters, self._tail)
        self._has_text = False
        self._is_begun = False
        self._after_plain_text = False

    def _put_paragraph(self, text: str) -> None:
        """Write a text that ends with a blank line, on lines of its own."""
        if self._after_plain_text:
            self._after_plain_text = False
            self._write_held()
            line_feeds = 2 - min(2, len(self._tail) - len(self._tail.rstrip("\n")))
            self._put("\n" * line_feeds)
        self._put(text)

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
        self._held.append(text)
        self._held_length += len(text)
        if self._held_length >= HELD:
            self._write_held()

    def _write_held(self) -> None:
        if not self._held:
            return
        text = "".join(self._held)
        self._held.clear()
        self._held_length = 0
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
