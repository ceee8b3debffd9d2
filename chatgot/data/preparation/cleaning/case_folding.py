"""A text without the difference of capitals and small letters, for large texts."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # characters that are folded at once
LEAST = 256  # characters from which on the table is faster
BEYOND = 0x10000  # from here on characters are not in the table
SEVERAL = np.uint32(0xFFFFFFFF)  # a character that becomes several


def casefolded(text: str) -> str:
    """Return what `text.casefold()` returns, which is slow beyond ASCII."""
    if len(text) < LEAST or text.isascii():
        return text.casefold()
    return "".join(
        _folded_block(text[start : start + BLOCK]) for start in range(0, len(text), BLOCK)
    )


def _folded_block(block: str) -> str:
    codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), np.uint32)
    if codes.max() >= BEYOND:
        return block.casefold()
    folded = np.take(_table(), codes)
    if folded.max() == SEVERAL:
        return block.casefold()
    return folded.tobytes().decode("utf-32-le", "surrogatepass")


@cache
def _table() -> NDArray[np.uint32]:
    """Return the folded code point of each one below BEYOND."""
    folded = [chr(code).casefold() for code in range(BEYOND)]
    codes = [ord(character) if len(character) == 1 else SEVERAL for character in folded]
    return np.array(codes, "<u4")
