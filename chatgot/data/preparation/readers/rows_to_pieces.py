"""Rows of a table, or flat records, as speeches and passages with their documents."""

from collections.abc import Iterator, Sequence

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings
from chatgot.data.preparation.readers.columns import Columns
from chatgot.data.preparation.readers.speeches import passage_of, shown, speech_of

LONGEST_TITLE = 60  # characters of each part


class RowsToPieces:
    """Turns rows into pieces; it remembers in which document the last one was."""

    def __init__(self, columns: Columns, findings: Findings) -> None:
        self._columns = columns
        self._findings = findings
        self._place: tuple[str, ...] | None = None

    def pieces_of(self, row: Sequence[str]) -> Iterator[Piece]:
        """Yield what a row says, after the start of a document where one begins."""
        columns = self._columns
        text = row[columns.text] if columns.text < len(row) else ""
        if columns.speaker is None:
            piece: Piece | None = passage_of(text)
        else:
            name = row[columns.speaker] if columns.speaker < len(row) else ""
            piece = speech_of(name, text)
        if piece is None:
            self._findings.left_out["rows without text"] += 1
            return
        if columns.documents:
            place = tuple([row[at] if at < len(row) else "" for at in columns.documents])
            if place != self._place:
                self._place = place
                yield DocumentStart(self._title(place))
        elif columns.speaker is None:
            yield DocumentStart()
        yield piece

    def _title(self, place: tuple[str, ...]) -> str:
        parts = []
        for at, value in zip(self._columns.documents, place, strict=True):
            if value.strip():
                parts.append(shown(f"{self._columns.names[at]} {value}", LONGEST_TITLE))
        return ", ".join(parts)
