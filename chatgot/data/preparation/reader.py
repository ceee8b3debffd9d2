"""What a reader of one kind of file is, and what it is told and tells.

A module of `readers/` has one or several `Reader`s; `known_readers.py` lists them all.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.source import Source

KeepOrDrop = Literal["keep", "drop"]


@dataclass(frozen=True)
class ReadingOptions:
    """What a user says about how files are to be read.

    speaker_column, text_column: names of columns or JSON fields; None: guessed, and said.
    scenes, directions: scene headings and stage directions of plays and screenplays.
    pause_hours: in a messenger, a longer pause begins a new document.
    date_order: of days, months and years in a messenger's dates, such as "dmy"; None: guessed.
    """

    speaker_column: str | None = None
    text_column: str | None = None
    scenes: KeepOrDrop = "keep"
    directions: KeepOrDrop = "keep"
    pause_hours: float = 6.0
    date_order: Literal["dmy", "mdy", "ymd"] | None = None


@dataclass
class Findings:
    """What a reader tells about one file besides its pieces.

    left_out: how many things of a kind were not taken: {"media messages": 12}.
    remarks: what was guessed or is odd, each in one plain sentence without a full stop.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def remark(self, words: str) -> None:
        """Add a remark, unless it has been made."""
        if words not in self.remarks:
            self.remarks.append(words)


class UnreadableError(Exception):
    """A file cannot be read as what it seems to be; the reason, in words for the user."""


@dataclass(frozen=True)
class Reader:
    """How one kind of file is told from others, and read.

    kind: what a user calls it: "SRT subtitles".
    certainty: how sure it is that a file is of this kind, by its content above all: 0 no, 0.2 can
    read it if nobody else does (plain text), 0.5 likely, 0.9 sure, 1 a signature. It looks at
    `beginning` and `head` only, is fast, and never raises.
    read: yields the pieces of a file of this kind. It streams, unless a kept library needs the
    whole file. Raises: UnreadableError.
    """

    kind: str
    certainty: Callable[[Source], float]
    read: Callable[[Source, ReadingOptions, Findings], Iterator[Piece]]
