"""Who speaks in a plain text, and in how many lines."""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from chatgot.data.prompts import SPEAKER

# The same as SPEAKER but for the first line of a text. It begins with a line feed, which is found
# ten times as fast as the beginning of a line.
AFTER_LINE = re.compile(r"\n([^\s:][^\n:]{0,39}):(?=\n\S)")
LINE_FEED = ord("\n")
Places = NDArray[np.int64]


def speeches_in(text: str) -> Iterator[tuple[str, int]]:
    """Yield the name of each line that names a speaker, and how many lines follow it.

    A speech ends at a blank line, or at the end of the text.
    """
    if ":\n" not in text:
        return
    names = []
    starts = []  # of the speeches
    first = SPEAKER.match(text)
    if first is not None:
        names.append(first[1])
        starts.append(first.end())
    for match in AFTER_LINE.finditer(text):
        names.append(match[1])
        starts.append(match.end() + 1)
    if names:
        yield from zip(names, _lines_from(np.array(starts), text).tolist(), strict=True)


def _lines_from(starts: Places, text: str) -> Places:
    """Return how many lines there are from each place up to the next blank one."""
    line_ends = _line_ends(text)
    is_before_blank = np.diff(line_ends, append=-1) == 1
    blank = np.append(np.flatnonzero(is_before_blank), _last_end(line_ends, text))
    first = np.searchsorted(line_ends, starts)
    return 1 + blank[np.searchsorted(blank, first)] - first


def _line_ends(text: str) -> Places:
    """Return the places of all line feeds."""
    if text.isascii():
        return np.flatnonzero(np.frombuffer(text.encode("ascii"), np.uint8) == LINE_FEED)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.flatnonzero(codes == LINE_FEED)


def _last_end(line_ends: Places, text: str) -> int:
    """Return the number of the line feed that ends the last line, whether it is there or not."""
    return len(line_ends) - 1 if text.endswith("\n") else len(line_ends)
