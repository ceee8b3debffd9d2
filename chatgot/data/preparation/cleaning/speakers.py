"""Which speakers there are, and which are one and the same: `--merge ALICE=Alice,alice_99`."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from chatgot.data.preparation.cleaning.options import CleaningFindings
from chatgot.data.preparation.pieces import Piece, PlainText, Speech
from chatgot.data.prompts import SPEAKER

MOST_REMEMBERED = 10_000  # names, among which the nearest one is looked for


def speakers_of(piece: Piece) -> Iterator[str]:
    """Yield the names that begin speeches in a piece, those of a plain text's lines too."""
    if isinstance(piece, Speech):
        yield piece.name
    elif isinstance(piece, PlainText):
        for match in SPEAKER.finditer(piece.text):
            yield match[1]


class Merging:
    """Gives speakers the names that a user wants."""

    def __init__(self, merge: Mapping[str, str]) -> None:
        """Merge by {name: the name it gets}."""
        self._merge = merge
        self._names: dict[str, None] = {}
        names = "|".join(map(re.escape, sorted(merge, key=len, reverse=True)))
        self._lines = re.compile(rf"^(?:{names})(?=:$)", re.MULTILINE)

    def watch(self, piece: Piece) -> None:
        """Remember who speaks in a piece."""
        if self._merge:
            for name in speakers_of(piece):
                if len(self._names) < MOST_REMEMBERED or name in self._merge:
                    self._names[name] = None

    def name(self, name: str) -> str:
        """Return the name that a speaker gets."""
        return self._merge.get(name, name)

    def plain_text(self, text: str) -> str:
        """Return a plain text in which the speakers' lines have the names that they get."""
        if not self._merge:
            return text
        return self._lines.sub(lambda match: self._merge[match[0]], text)

    def say_unknown(self, findings: CleaningFindings) -> None:
        """Remark which names nobody has, each with the nearest one."""
        for name in self._merge.keys() - self._names.keys():
            near = get_close_matches(name, self._names, n=1, cutoff=0.0)
            nearest = f"; the nearest name is {near[0]}" if near else ""
            findings.remark(f"--merge: nobody is called {name}{nearest}")
