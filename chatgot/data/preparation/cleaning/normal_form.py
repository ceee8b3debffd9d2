"""The normal form of a text, NFC: a letter with its marks is one character where there is one."""

import unicodedata

# Characters that are normalised at once. Python sorts the marks of a letter in quadratic time, so a
# hostile text of marks alone would take for ever.
SEGMENT = 256
# parts of Korean syllables, which join the one before them
JAMO = range(0x1160, 0x1200)


def nfc(text: str) -> str:
    """Return a text in NFC, but for letters with more than SEGMENT marks."""
    if text.isascii():
        return text
    if len(text) <= SEGMENT:
        # the same object where there is nothing to do
        is_normal = unicodedata.is_normalized("NFC", text)
        return text if is_normal else unicodedata.normalize("NFC", text)
    parts = []
    start = 0
    while start + SEGMENT < len(text):
        place = harmless_place(text, start, start + SEGMENT)
        parts.append(unicodedata.normalize("NFC", text[start:place]))
        start = place
    parts.append(unicodedata.normalize("NFC", text[start:]))
    return "".join(parts)


def harmless_place(text: str, start: int, end: int) -> int:
    """Return the last place where a cut parts no letter from its marks, else `end`.

    start < place <= end < len(text).
    """
    for place in range(end, start, -1):
        character = text[place]
        if unicodedata.category(character)[0] != "M" and ord(character) not in JAMO:
            return place
    return end
