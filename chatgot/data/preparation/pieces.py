r"""What a prepared text consists of: speeches, passages, and where documents begin.

A reader yields pieces in the order of its file; memory grows with neither. In the prepared text a
speech is `NAME:`, its lines and a blank line; a passage is its lines and a blank line.
"""

from dataclasses import dataclass


@dataclass(slots=True, unsafe_hash=True)  # not frozen: that takes as long as all else of a message
class Speech:
    r"""What somebody says.

    name: as the source has it, without a colon; never empty.
    text: at least one line; "\n" between lines, no blank line within, none at the ends.
    time: seconds since 1970 by the source's own clock, for pauses and order; None: it has none.
    """

    name: str
    text: str
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    r"""Text that nobody speaks: prose, a scene heading, a stage direction, an unnamed subtitle.

    text: at least one line; "\n" between lines, none at the ends; blank lines within stay.
    time: as for a speech.
    """

    text: str
    time: float | None = None


@dataclass(frozen=True, slots=True)
class PlainText:
    r"""A part of a plain text, which is written as it is.

    text: any characters, with "\n" as the only line end. A plain text comes in many of these, cut
    anywhere.
    """

    text: str


@dataclass(frozen=True, slots=True)
class DocumentStart:
    """A new document begins: an episode, a chapter, a row, a conversation after a long pause.

    The first one of a file need not be announced. One without any text after it is dropped.

    title: for the look at the text, never written into it.
    """

    title: str = ""


@dataclass(frozen=True, slots=True)
class DocumentDropped:
    """What came since the last document began is not written: an earlier one says the same.

    No reader yields it. What comes next begins a new document.
    """


Piece = Speech | Passage | PlainText | DocumentStart | DocumentDropped
