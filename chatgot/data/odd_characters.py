"""Characters that no text has: control characters, noncharacters, and the mark of a lost letter.

A model learns them like letters, and shows them in its samples. So they are counted while a text is
read, and said.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import TypedDict

BYTE_ORDER_MARK = "\ufeff"
NAMES = {"\0": "NUL", "\a": "BEL", "\b": "backspace", "\x1b": "ESC", "\ufffd": "a lost letter"}
MOST_NAMED = 8  # characters in one warning
# Not tab, line feed, carriage return and form feed. U+FDD0 and the like are no characters at all;
# U+FFFD stands where a program could not read a letter.
ODD = re.compile("[\0-\x08\x0b\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffd-\uffff]+")

ODD_BYTES = bytes(byte for byte in range(0x100) if ODD.match(chr(byte)))
BLOCK = 1 << 15  # characters that are looked at together


@cache
def odd_code_points() -> list[int]:
    """Return the code points of all odd characters."""
    return [point for point in range(0x10000) if ODD.match(chr(point))]


def has_odd_characters(text: str) -> bool:
    """Return whether a text has odd characters; where a byte is a character it is fast."""
    for start in range(0, len(text), BLOCK):
        block = text[start : start + BLOCK]
        try:
            narrow = block.encode("latin-1")
        except UnicodeEncodeError:
            if ODD.search(block):
                return True
            continue
        if len(narrow.translate(None, ODD_BYTES)) < len(narrow):
            return True
    return False


class OddCharacter(TypedDict):
    """One odd character of a text."""

    character: str
    count: int
    line: int  # of the first one, from 1
    place: int  # of the first one, in characters from 1


class OddCharacters:
    """Counts the odd characters of a text that comes in chunks."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, tuple[int, int]] = {}  # line and place, from 0
        self._lines = 0  # line feeds so far
        self._characters = 0  # characters so far

    def watch(self, chunks: Iterable[str]) -> Iterator[str]:
        """Yield the chunks as they are."""
        for chunk in chunks:
            if has_odd_characters(chunk):
                self._count(chunk)
            self._lines += chunk.count("\n")
            self._characters += len(chunk)
            yield chunk

    def _count(self, chunk: str) -> None:
        counts = Counter("".join(ODD.findall(chunk)))
        for character in counts.keys() - self._first.keys():
            place = chunk.index(character)
            line = self._lines + chunk.count("\n", 0, place)
            self._first[character] = (line, self._characters + place)
        self._counts += counts

    def found(self) -> list[OddCharacter]:
        """Return what was found so far, in the order of the first places."""
        in_order = sorted(self._first, key=lambda character: self._first[character][1])
        return [
            {
                "character": character,
                "count": self._counts[character],
                "line": self._first[character][0] + 1,
                "place": self._first[character][1] + 1,
            }
            for character in in_order
        ]


def describe(found: list[OddCharacter]) -> str:
    """Return the odd characters of a text in words, with count and first place."""
    words = [_describe_one(odd) for odd in found[:MOST_NAMED]]
    if len(found) > MOST_NAMED:
        words.append(f"{len(found) - MOST_NAMED} more such characters")
    return "; ".join(words)


def _describe_one(odd: OddCharacter) -> str:
    character = odd["character"]
    name = NAMES.get(character) or unicodedata.name(character, "")
    named = f"U+{ord(character):04X} {name}".rstrip()
    times = "once" if odd["count"] == 1 else f"{odd['count']:,} times"
    first = "" if odd["count"] == 1 else "first in "
    return f"{named} {times} ({first}line {odd['line']:,}, character {odd['place']:,} of the text)"
