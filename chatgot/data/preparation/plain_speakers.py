"""Who speaks in a plain text, and in how many lines: as chatgot.data.prompts.SPEAKER, but fast."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chatgot.data.preparation.blanks import Codes, is_blank

LONGEST_NAME = 40  # characters, as SPEAKER has it
LINE_FEED = ord("\n")
COLON = ord(":")
Places = NDArray[np.int64]


def speeches_in(text: str) -> Iterator[tuple[str, int]]:
    """Yield the name of each line that names a speaker, and how many lines follow it.

    A speech ends at a blank line, or at the end of the text.
    """
    if ":\n" not in text:
        return
    codes = _codes_of(text)
    line_ends = np.flatnonzero(codes == LINE_FEED)
    lines = _lines_with_colons(codes, line_ends)
    ends = line_ends[lines] - 1
    starts = _starts_of(lines, line_ends)
    counts = _lines_after(lines, line_ends, text.endswith("\n"))
    places = zip(starts.tolist(), ends.tolist(), strict=True)
    names = [text[start:end] for start, end in places]
    yield from zip(names, counts.tolist(), strict=True)


def _codes_of(text: str) -> Codes:
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _lines_with_colons(codes: Codes, line_ends: Places) -> Places:
    """Return the numbers of the lines that end with their only colon, before a line with text."""
    is_named = (codes[line_ends - 1] == COLON) & (line_ends > 0) & (line_ends + 1 < len(codes))
    lines = np.flatnonzero(is_named)
    colons = np.flatnonzero(codes == COLON)
    starts = _starts_of(lines, line_ends)
    ends = line_ends[lines] - 1
    lengths = ends - starts
    has_name = (lengths > 0) & (lengths <= LONGEST_NAME) & ~is_blank(codes[starts])
    earlier = np.searchsorted(colons, ends) - 1  # the colon before; -1: there is none
    is_only = (earlier < 0) | (colons[earlier] < starts)
    return lines[is_only & has_name & ~is_blank(codes[ends + 2])]


def _starts_of(lines: Places, line_ends: Places) -> Places:
    """Return where lines begin, by their numbers."""
    return np.where(lines > 0, line_ends[lines - 1] + 1, 0)


def _lines_after(lines: Places, line_ends: Places, ends_with_line: bool) -> Places:
    """Return how many lines there are after each one, up to the next blank one."""
    last = len(line_ends) - 1 if ends_with_line else len(line_ends)
    before_blank = np.append(np.flatnonzero(np.diff(line_ends) == 1), last)
    return before_blank[np.searchsorted(before_blank, lines + 1)] - lines
