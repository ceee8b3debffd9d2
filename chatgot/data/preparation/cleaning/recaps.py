"""Recaps: the lines at the beginning of a document that earlier ones have, "previously on"."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from chatgot.data.preparation.cleaning.keys import SHORT, key_of
from chatgot.data.preparation.pieces import Passage, Piece, PlainText, Speech

LEAST_KNOWN = 3  # lines of a recap that earlier documents have
LEAST_SHARE = 0.75  # of its lines, without the short ones
MOST_NEW = 2  # lines in a row that only the recap has
MOST_UNITS = 300  # of a recap; what is longer is a document that repeats another
MOST_CHARACTERS = 30_000


@dataclass(frozen=True, slots=True)
class Unit:
    """What is compared: a speech, a passage, a line of a plain text.

    key: of what it says; None: too short to show anything.
    """

    piece: Piece
    key: int | None


def units_of(piece: Piece) -> Iterator[Unit]:
    """Yield the parts of a piece that are compared one by one."""
    if isinstance(piece, PlainText):
        start = 0
        while start < len(piece.text):
            end = piece.text.find("\n", start) + 1 or len(piece.text)
            line = piece.text[start:end]
            yield Unit(PlainText(line), _key_of(line.removesuffix("\n")))
            start = end
    elif isinstance(piece, Speech | Passage):
        yield Unit(piece, _key_of(piece.text))
    else:
        yield Unit(piece, None)


def _key_of(text: str) -> int | None:
    return key_of(text) if len(text) >= SHORT else None


class Opening:
    """The beginning of a document, held until it is known where a recap ends."""

    def __init__(self, known: Collection[int]) -> None:
        """Compare with the keys of earlier documents."""
        self._known = known
        self._held: list[Unit] = []
        self._characters = 0
        self._end = 0  # units up to the last known one
        self._compared = 0  # of them
        self._found = 0
        self._new_in_row = 0

    def take(self, unit: Unit) -> bool:
        """Hold a part of the document; return whether a recap has ended, or there is none."""
        self._held.append(unit)
        if isinstance(unit.piece, Speech | Passage | PlainText):
            self._characters += len(unit.piece.text)
        if unit.key is None:
            return self._is_too_long()
        if unit.key in self._known:
            self._found += 1
            self._compared += 1 + self._new_in_row
            self._new_in_row = 0
            self._end = len(self._held)
            return self._is_too_long()
        self._new_in_row += 1
        return self._new_in_row > MOST_NEW

    def parts(self) -> tuple[list[Piece], list[Piece]]:
        """Return the recap, empty if there is none, and what follows."""
        pieces = [unit.piece for unit in self._held]
        is_recap = (
            self._new_in_row > MOST_NEW
            and self._found >= LEAST_KNOWN
            and self._found >= LEAST_SHARE * self._compared
        )
        end = self._end_of_paragraph(pieces) if is_recap else 0
        return pieces[:end], pieces[end:]

    def all(self) -> list[Piece]:
        """Return all that is held: the document ends here, so that it has no recap."""
        return [unit.piece for unit in self._held]

    def _is_too_long(self) -> bool:
        return len(self._held) >= MOST_UNITS or self._characters >= MOST_CHARACTERS

    def _end_of_paragraph(self, pieces: list[Piece]) -> int:
        """Return where the recap ends; in a plain text, before a speech that is new in part."""
        end = self._end
        if not isinstance(pieces[end], PlainText):
            return end
        if not _is_blank(pieces[end]):
            blank = [place for place in range(end) if _is_blank(pieces[place])]
            return blank[-1] + 1 if blank else end
        while end < len(pieces) and _is_blank(pieces[end]):
            end += 1
        return end


def _is_blank(piece: Piece) -> bool:
    return isinstance(piece, PlainText) and not piece.text.strip()
