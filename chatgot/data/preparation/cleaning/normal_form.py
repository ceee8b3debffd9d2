"""The normal form of a text, NFC: a letter with its marks is one character where there is one."""

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Characters that are normalised at once. Python sorts the marks of a letter in quadratic time, so a
# hostile text of marks alone would take for ever.
SEGMENT = 256
# parts of Korean syllables, which join the one before them
JAMO = range(0x1160, 0x1200)
BLOCK = 1 << 16  # characters that are looked at together
FIRST_MARK = 0x300  # no character before it changes
BEYOND = 0x20000  # from here on rare Chinese characters, which are not looked up


def nfc(text: str) -> str:
    """Return a text in NFC, but for letters with more than SEGMENT marks."""
    if text.isascii():
        return text
    if len(text) <= SEGMENT:
        # the same object where there is nothing to do
        is_normal = unicodedata.is_normalized("NFC", text)
        return text if is_normal else unicodedata.normalize("NFC", text)
    if _is_surely_normal(text):
        return text
    parts = []
    start = 0
    while start + SEGMENT < len(text):
        place = harmless_place(text, start, start + SEGMENT)
        parts.append(unicodedata.normalize("NFC", text[start:place]))
        start = place
    parts.append(unicodedata.normalize("NFC", text[start:]))
    return "".join(parts)


def _is_surely_normal(text: str) -> bool:
    """Return whether no character of a text can change, whatever is beside it."""
    for start in range(0, len(text), BLOCK):
        block = text[start : start + BLOCK].encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(block, np.uint32)
        codes = codes[codes >= FIRST_MARK]
        if len(codes) and codes.max() >= BEYOND:
            return False
        if not np.take(_unchanging(), codes).all():
            return False
    return True


@cache
def _unchanging() -> NDArray[np.bool_]:
    """Return, for each code point below BEYOND, whether it stays as it is beside any other."""
    characters = map(chr, range(BEYOND))
    return np.array([_stays(character) for character in characters])


def _stays(character: str) -> bool:
    is_part = unicodedata.category(character)[0] == "M" or ord(character) in JAMO
    return not is_part and unicodedata.is_normalized("NFC", character)


def harmless_place(text: str, start: int, end: int) -> int:
    """Return the last place where a cut parts no letter from its marks, else `end`.

    start < place <= end < len(text).
    """
    for place in range(end, start, -1):
        character = text[place]
        if unicodedata.category(character)[0] != "M" and ord(character) not in JAMO:
            return place
    return end
