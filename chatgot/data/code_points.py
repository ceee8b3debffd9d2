"""The tokens of a text as numbers: one, two or four bytes each, as few as its characters allow.

One byte a character is four times as fast to look up as four. In a block of text all numbers are as
wide as the widest of them.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from chatgot.data.vocabulary import END_OF_TEXT_ID, DocumentSplitter

CODE_POINTS = 0x110000  # Unicode's range
# Of the end-of-text token: no text has a carriage return, since every line end is a line feed
END_OF_TEXT_POINT = 0x0D

BLOCK = 1 << 15  # characters: few enough for the core's own cache, and that few are emoji

CodePoints = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]


def code_points(chunks: Iterable[str]) -> Iterator[list[CodePoints]]:
    r"""Yield the tokens of each chunk, in blocks, and of what is held back at the end.

    A token is the code point of a character, or END_OF_TEXT_POINT. The tokens do not depend on
    where the chunks end.

    chunks: their line ends are "\n".
    """
    splitter = DocumentSplitter()
    for chunk in chunks:
        assert "\r" not in chunk
        starts = range(0, len(chunk), BLOCK)
        yield [_as_array(splitter.feed(chunk[start : start + BLOCK])) for start in starts]
    yield [_as_array(splitter.end())]


def _as_array(documents: list[str]) -> CodePoints:
    text = chr(END_OF_TEXT_POINT).join(documents)
    try:
        return np.frombuffer(text.encode("latin-1"), dtype=np.uint8)
    except UnicodeEncodeError:
        in_utf_16 = text.encode("utf-16-le")
    if len(in_utf_16) == 2 * len(text):
        return np.frombuffer(in_utf_16, dtype="<u2")
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class CharacterSet:
    """Notes which characters a text has."""

    def __init__(self) -> None:
        self._has = np.zeros(CODE_POINTS, dtype=np.bool_)
        self._narrow = b""  # those of one byte that were noted

    def add(self, blocks: list[CodePoints]) -> None:
        """Note the characters of a chunk."""
        for points in blocks:
            self._add(points)

    def _add(self, points: CodePoints) -> None:
        if points.dtype == np.uint8:
            # far faster than to count them
            new = bytes({*points.tobytes().translate(None, self._narrow)})
            self._narrow += new
            self._has[np.frombuffer(new, dtype=np.uint8)] = True
        else:
            counts = np.bincount(points)
            self._has[: len(counts)] |= counts > 0

    def found(self) -> NDArray[np.int64]:
        """Return the code points of the characters, ascending; the end-of-text token is none."""
        is_character = self._has.copy()
        is_character[END_OF_TEXT_POINT] = False
        return np.flatnonzero(is_character)


class CharacterIds:
    """The ids of characters; those that are not listed must not come.

    characters: their code points, ascending; the first one has the id 1.
    """

    def __init__(self, characters: NDArray[np.int64]) -> None:
        self._id_of = np.zeros(CODE_POINTS, dtype="<u2")
        self._id_of[characters] = np.arange(1, len(characters) + 1)
        self._id_of[END_OF_TEXT_POINT] = END_OF_TEXT_ID
        # No more than 255 characters are one byte wide, so their ids are bytes, too, and
        # bytes.translate is three times as fast as an index
        self._narrow = self._id_of[:0x100].astype(np.uint8).tobytes()

    def ids(self, blocks: list[CodePoints]) -> NDArray[np.uint16]:
        """Return the id of each token of a chunk."""
        none = np.empty(0, dtype="<u2")
        return np.concatenate([none, *map(self._ids_of_block, blocks)])

    def _ids_of_block(self, points: CodePoints) -> NDArray[np.uint16]:
        if points.dtype == np.uint8:
            ids = points.tobytes().translate(self._narrow)
            return np.frombuffer(ids, dtype=np.uint8).astype("<u2")
        return self._id_of[points]
