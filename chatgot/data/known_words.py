r"""A text's words by a regex of Python, and the ids of each word looked up: the fast way to encode.

The package `tokenizers` merges the bytes of each word again and again: 2 MB/s of English on one
core. Most words of a text have come before, so looking them up is four times as fast (measured:
7.3 to 8.4 MB/s). The words are exactly the same: characters that Python and `tokenizers` may judge
by different versions of Unicode are odd, and whoever encodes leaves those to `tokenizers`.

Only for the words of Qwen2's regex. A word by itself has the ids that it has within a text, as no
part of that regex looks further than at the next character, and that matters for white space alone.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain

MOST_WORDS = 1 << 17  # that are remembered: about 30 MB
LONGEST_KNOWN = 64  # characters of a word that is remembered
# Python's re looks classes up in a table up to here; above, it compares range by range
_LAST_IN_TABLE = 0xFFFF
# Pictures, such as emoji; all else above the table is odd
_PICTURES = range(0x1F000, 0x1FB00)


class KnownWords:
    """Encodes texts without odd characters.

    encode_word: returns the ids of one word.
    """

    def __init__(self, encode_word: Callable[[str], Iterable[int]]) -> None:
        self._ids_of = _IdsOfWords(encode_word)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        words = regexes()[0].findall(text)
        return list(chain.from_iterable(map(self._ids_of.__getitem__, words)))


class _IdsOfWords(dict[str, tuple[int, ...]]):
    """Encodes a word when it comes for the first time."""

    def __init__(self, encode_word: Callable[[str], Iterable[int]]) -> None:
        super().__init__()
        self._encode_word = encode_word

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(self._encode_word(word))
        if len(word) <= LONGEST_KNOWN and len(self) < MOST_WORDS:
            self[word] = ids
        return ids


def odd_characters(text: str) -> list[int]:
    """Return the places of the characters that are odd."""
    if text.isascii():
        return []
    _, odd, odd_above = regexes()
    places = [match.start() for match in odd.finditer(text)]
    if len(text.encode("utf-16-le", "surrogatepass")) > 2 * len(text):  # some are above the table
        places += [match.start() for match in odd_above.finditer(text)]
    return sorted(places)


@lru_cache(maxsize=1)
def regexes() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return what matches a word of QWEN2_WORDS, and an odd character in the table and above."""
    kinds: dict[str, list[int]] = {"L": [], "N": [], "Z": [], "odd": [], "other": []}
    for point in range(_LAST_IN_TABLE + 1):
        kinds[_kind(chr(point))].append(point)
    pictures = [point for point in _PICTURES if _kind(chr(point)) == "other"]
    L, N, s = (_ranges(kinds[kind]) for kind in "LNZ")
    # QWEN2_WORDS, with classes that Python's re can say
    words = (
        rf"'(?:[sS\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])|[^\r\n{L}{N}]?[{L}]+|[{N}]"
        rf"| ?[^{s}{L}{N}]+[\r\n]*|[{s}]*[\r\n]+|[{s}]+(?![^{s}])|[{s}]+"
    )
    return (
        re.compile(words),
        re.compile(f"[{_ranges(kinds['odd'])}]"),
        re.compile(f"[^{chr(0)}-{chr(_LAST_IN_TABLE)}{_ranges(pictures)}]"),
    )


def _kind(character: str) -> str:
    """Return L (a letter), N (a number), Z (white space), "other", or "odd"."""
    now = _kind_of_category(character, unicodedata.category(character))
    before = unicodedata.ucd_3_2_0.category(character)
    if now == "odd":
        return now
    if before == "Cn":  # what was added later is clear only if it is neither
        return now if now == "other" else "odd"
    return now if now == _kind_of_category(character, before) else "odd"


def _kind_of_category(character: str, category: str) -> str:
    if character in "\t\n\v\f\r\x85":
        return "Z"
    if category in ("Cn", "Cs"):
        return "odd"
    return category[0] if category[0] in "LNZ" else "other"


def _ranges(points: list[int]) -> str:
    """Return the inside of a regex's class of these code points, which ascend."""
    return "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in _spans(points))


def _spans(points: list[int]) -> Iterator[tuple[int, int]]:
    first = last = points[0]
    for point in points[1:]:
        if point != last + 1:
            yield first, last
            first = point
        last = point
    yield first, last
