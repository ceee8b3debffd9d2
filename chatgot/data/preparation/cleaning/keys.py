"""Keys: numbers for what lines and paragraphs say, whatever their capitals, many at a time.

A key is a polynomial of the characters modulo 2**64. A sum over a block gives the keys of all its
parts as differences, so that no line becomes a string of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from chatgot.data.near_duplicates import BASE, BLOCK, INVERSE_POWERS, POWERS, Hashes
from chatgot.data.preparation.blanks import is_blank

SHORT = 12  # characters; such a line, "What?", is said everywhere and shows nothing
LONG_PASSAGE = 200  # characters of a paragraph; a shorter one may well be said twice
BEYOND = 0x10000  # from here on characters have no capitals, but in scripts of old times
LINE_FEED = ord("\n")
MODULUS = 1 << 64
Codes = NDArray[np.uint32]
Places = NDArray[np.int64]
Paragraph = tuple[int, int, int]  # of a plain text: where it begins and ends, and its key


@dataclass(frozen=True)
class PlainKeys:
    """The keys of a part of a plain text.

    lines: of all that are long enough.
    paragraphs: the long ones that a blank line ends; the first may have begun before.
    first_end: where the first paragraph ends, in characters; -1: none does.
    """

    lines: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    paragraphs: list[Paragraph] = field(default_factory=list)
    first_end: int = -1


def key_of(text: str) -> int:
    """Return the key of a text without the blanks around it; a line feed is a blank."""
    codes = _codes_of(text.strip())
    key = 0
    for start in range(0, len(codes), BLOCK):
        block = _folded(codes[start : start + BLOCK])
        part = int((block * POWERS[: len(block)]).sum())
        key = (key + part * pow(BASE, start, MODULUS)) % MODULUS
    return key


def line_keys_of(text: str) -> Hashes:
    """Return the keys of all lines that are long enough."""
    return _joined([_Block(text[start:end]).line_keys() for start, end in _blocks_of(text)])


def keys_of(text: str) -> PlainKeys:
    """Return the keys of the lines and long paragraphs of a plain text."""
    lines = []
    paragraphs: list[Paragraph] = []
    first_end = -1
    begun = 0  # where the paragraph at hand begins
    for start, end in _blocks_of(text):
        block = _Block(text[start:end])
        lines.append(block.line_keys())
        starts, ends = block.paragraphs()
        if len(ends):
            if first_end < 0:
                first_end = start + int(ends[0])
            if begun < start:
                paragraphs += _long_paragraph(text, begun, start + int(ends[0]))
                starts = starts[1:]
                ends = ends[1:]
            paragraphs += block.long_paragraphs(starts, ends, start)
            begun = start + block.last_start
    return PlainKeys(_joined(lines), paragraphs, first_end)


def _long_paragraph(text: str, start: int, end: int) -> list[Paragraph]:
    """Return one paragraph if it is long, else nothing."""
    return [(start, end, key_of(text[start:end]))] if end - start >= LONG_PASSAGE else []


def _joined(keys: list[Hashes]) -> Hashes:
    return np.concatenate(keys) if keys else np.empty(0, np.uint64)


def _blocks_of(text: str) -> Iterator[tuple[int, int]]:
    """Yield where blocks begin and end: at a blank line, else at a line's end, else anywhere."""
    start = 0
    while start < len(text):
        end = min(start + BLOCK, len(text))
        if end < len(text):
            end = _good_end(text, start, end)
        yield start, end
        start = end


def _good_end(text: str, start: int, end: int) -> int:
    blank = text.rfind("\n\n", start, end)
    if blank >= 0:
        return blank + 2
    line_end = text.rfind("\n", start + 1, end)
    if line_end < 0:
        return end
    return line_end if text[line_end + 1] == "\n" else line_end + 1


class _Block:
    """BLOCK characters at most. last_start: of the paragraph that the block does not end."""

    def __init__(self, text: str) -> None:
        self._codes = _codes_of(text)
        self._line_ends = np.flatnonzero(self._codes == LINE_FEED)
        self._sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum(_folded(self._codes) * POWERS[: len(text)], out=self._sums[1:])
        self.last_start = 0

    def line_keys(self) -> Hashes:
        """Return the keys of all lines that are long enough."""
        starts = np.concatenate([[0], self._line_ends + 1])
        ends = np.append(self._line_ends, len(self._codes))
        is_long = ends - starts >= SHORT
        return self._keys(starts[is_long], ends[is_long])

    def paragraphs(self) -> tuple[Places, Places]:
        """Return where the paragraphs that a blank line ends begin and end."""
        line_ends = self._line_ends
        is_adjacent = np.diff(line_ends) == 1
        if not is_adjacent.any():
            return line_ends[:0], line_ends[:0]
        begins_run = np.append(is_adjacent, False)
        ends_run = np.append(False, is_adjacent)
        ends = line_ends[begins_run & ~ends_run]
        after = line_ends[ends_run & ~begins_run] + 1
        self.last_start = int(after[-1])
        return np.append([0], after[:-1]), ends

    def long_paragraphs(self, starts: Places, ends: Places, shift: int) -> Iterator[Paragraph]:
        """Yield the long ones of some paragraphs, with their places moved by `shift`."""
        is_long = ends - starts >= LONG_PASSAGE
        starts = starts[is_long]
        ends = ends[is_long]
        keys = self._keys(starts, ends)
        return zip((starts + shift).tolist(), (ends + shift).tolist(), keys.tolist(), strict=True)

    def _keys(self, starts: Places, ends: Places) -> Hashes:
        """Return the keys of stretches, without the blanks around each."""
        if len(starts):
            starts, ends = self._without_blanks(starts, ends)
        sums = self._sums
        return (sums[ends] - sums[starts]) * INVERSE_POWERS[np.minimum(starts, BLOCK - 1)]

    def _without_blanks(self, starts: Places, ends: Places) -> tuple[Places, Places]:
        """Return where stretches begin and end without the blanks around each."""
        codes = self._codes
        last = len(codes) - 1
        outer = np.append(codes[np.minimum(starts, last)], codes[np.maximum(ends - 1, 0)])
        if not is_blank(outer).any():
            return starts, ends
        shown = np.flatnonzero(~is_blank(codes))
        if not len(shown):
            return starts, starts
        first = shown[np.searchsorted(shown, starts).clip(max=len(shown) - 1)]
        end = shown[(np.searchsorted(shown, ends) - 1).clip(min=0)] + 1
        is_empty = (first >= ends) | (end <= starts)
        return np.where(is_empty, starts, first), np.where(is_empty, starts, end)


def _codes_of(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _folded(codes: Codes) -> Codes:
    """Return a number above 0 for each character, the same for capitals and small letters."""
    if not len(codes) or codes.max() < BEYOND:
        return np.take(_fold_table(), codes)
    is_beyond = codes >= BEYOND
    folded = np.take(_fold_table(), np.where(is_beyond, 0, codes))
    return np.where(is_beyond, codes + np.uint32(1), folded)


@cache
def _fold_table() -> NDArray[np.uint32]:
    """Return the number of each character below BEYOND; what becomes two letters stays."""
    folded = np.arange(1, BEYOND + 1, dtype=np.uint32)
    for code in range(BEYOND):
        small = chr(code).casefold()
        if len(small) != 1:
            small = chr(code).lower()
        if len(small) == 1:
            folded[code] = ord(small) + 1
    folded[LINE_FEED] = ord(" ") + 1
    return folded
