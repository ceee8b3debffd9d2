"""Plain text that was cut anywhere, in whole lines: what is done to it then depends on no cut."""

from collections.abc import Iterable, Iterator

from chatgot.data.preparation.cleaning.normal_form import harmless_place
from chatgot.data.preparation.pieces import Piece, PlainText

LONG_LINE = 1 << 16  # characters; a longer line is cut
LONGEST_NAME = 64  # characters of a line that may name a speaker


def in_whole_lines(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the pieces; each plain text ends with a line's end, or is the last one of its kind.

    A line that may be a speaker's is in one piece with the line after it. Only a line of more than
    LONG_LINE characters is cut, at places that depend on the line alone.
    """
    held = ""  # a line that may be a speaker's
    rest = ""  # the beginning of a line
    for piece in pieces:
        if isinstance(piece, PlainText):
            text = rest + piece.text
            end = text.rfind("\n") + 1
            rest = text[end:]
            if end:
                text = held + text[:end]
                held = _speaker_at_end(text)
                yield from _without_long_lines(text[: len(text) - len(held)])
            while len(rest) > LONG_LINE:
                place = harmless_place(rest, 0, LONG_LINE)
                yield PlainText(held + rest[:place])
                held = ""
                rest = rest[place:]
            continue
        if held or rest:
            yield PlainText(held + rest)
            held = ""
            rest = ""
        yield piece
    if held or rest:
        yield PlainText(held + rest)


def _speaker_at_end(text: str) -> str:
    """Return the last line of whole lines, with its end, if it may be a speaker's; else nothing."""
    if not text.endswith(":\n"):
        return ""
    line = text[text.rfind("\n", 0, len(text) - 1) + 1 :]
    return line if len(line) <= LONGEST_NAME + 1 else ""


def _without_long_lines(text: str) -> Iterator[PlainText]:
    """Yield whole lines in one piece, or one by one where there is a long line."""
    if not text:
        return
    if not _has_long_line(text):
        yield PlainText(text)
        return
    for line in text.removesuffix("\n").split("\n"):
        while len(line) > LONG_LINE:
            place = harmless_place(line, 0, LONG_LINE)
            yield PlainText(line[:place])
            line = line[place:]
        yield PlainText(f"{line}\n")


def _has_long_line(text: str) -> bool:
    """Return whether whole lines have a long one; few of the line ends are looked at."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + LONG_LINE + 1)
        if end < 0:
            return True
        start = end + 1
    return False
