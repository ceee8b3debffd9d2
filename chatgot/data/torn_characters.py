"""Which bytes of a text with two bytes a character are torn off their characters?

After a torn character, a decoder reads the second byte of each character and the first one of the
next as one, up to the end of the word. Such readings consist of rare characters. So here all
cuttings of a word into characters and torn bytes are compared, and the most usual one is taken.

Letters: a cutting's surprise is counted in nats.
"""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import log

from chatgot.data.alphabets import common_characters

TORN = 15.0  # nats
AT_END = 2.0  # less surprising at the end of a word: lines are cut off
LEVEL_ONE = 10.0  # an ideograph or syllable of the part of the set that is in daily use
LEVEL_TWO = 13.0
UNUSUAL = 18.0  # of none of the old sets, or of another script
SIGN = 9.0
KANA = 7.0
SINGLE_KANA = 12.0  # half-width, one byte
# An ASCII character or half-width kana right after one of two bytes, or before one
SWITCH = 4.0
LONE = 8.0  # one of them between two others
START = "start"
CHARACTER = "character"
FIRST_NARROW = "first narrow one"
NARROW = "narrow"
# What is before, whether a narrow character follows -> what is before the next one, the surprise
_SWITCHES = {
    (START, False): (CHARACTER, 0.0),
    (START, True): (NARROW, 0.0),
    (CHARACTER, False): (CHARACTER, 0.0),
    (CHARACTER, True): (FIRST_NARROW, SWITCH),
    (FIRST_NARROW, False): (CHARACTER, SWITCH + LONE),
    (FIRST_NARROW, True): (NARROW, 0.0),
    (NARROW, False): (CHARACTER, SWITCH),
    (NARROW, True): (NARROW, 0.0),
}
SEEN_PRIOR = 500  # characters: so much text counts against what the log itself shows

_LANGUAGES = {
    "gb18030": "zh_CN",
    "gbk": "zh_CN",
    "gb2312": "zh_CN",
    "big5": "zh_TW",
    "cp950": "zh_TW",
    "big5hkscs": "zh_TW",
    "cp932": "ja",
    "shift_jis": "ja",
    "shift_jis_2004": "ja",
    "shift_jisx0213": "ja",
    "euc_jp": "ja",
    "euc_jis_2004": "ja",
    "euc_jisx0213": "ja",
    "cp949": "ko",
    "euc_kr": "ko",
    "johab": "ko",
}
# The set whose first rows have a language's ideographs of daily use, and the end of these rows
_FIRST_ROWS = {
    "zh_CN": ("gb2312", 0xD8),
    "zh_TW": ("big5", 0xC9),
    "ja": ("euc_jp", 0xD0),
    "ko": ("euc_kr", 0xC9),
}
_LONGER = {"gb18030": 4, "euc_jp": 3, "euc_jis_2004": 3, "euc_jisx0213": 3}
# Words with bytes above ASCII. No character of these encodings has a byte below 0x30, or one of
# `:;<=>?`, so each is whole.
_WORD = re.compile(rb"[\x30-\x39\x40-\x7e\x80-\xff]*[\x80-\xff][\x30-\x39\x40-\x7e\x80-\xff]*")
MANY_PARTS = 1 << 16
WINDOW_BYTES = 4096  # a longer word is read in parts
OVERLAP_BYTES = 64
_HIGH_BYTES_ONLY = ("gb2312", "euc_kr", "euc_jp", "euc_jis_2004", "euc_jisx0213")
# ASCII that may be the second byte of a character
_LONE_ASCII = re.compile(r"[@-~](?<=[^\x00-\x7f].)(?![!-~])")
_LONE_KANA = re.compile("[\uff61-\uff9f](?<![\uff61-\uff9f].)(?![\uff61-\uff9f])")
_NO_TEXT = re.compile("[\x80-\x9f\ue000-\uf8ff\U000f0000-\U0010ffff]")

_SIGNS = "、。，！？：；（）「」『』【】《》〈〉“”‘’…—·～￥・ー〜％"


@dataclass(frozen=True, slots=True)
class _Step:
    nats: float  # of all up to here
    before: str
    length: int  # of the last part, in bytes
    text: str


def is_double_byte(encoding: str) -> bool:
    """Return whether this is an encoding with two bytes a character that is ASCII below 0x80."""
    return _codec(encoding) in _LANGUAGES


def _codec(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        return encoding


class TornReader:
    """Reads words in one encoding.

    seen: how often each character is in text of the same log that is surely read well.
    """

    def __init__(self, encoding: str, seen: Mapping[str, int] | None = None) -> None:
        self.encoding = _codec(encoding)
        self._language = _LANGUAGES[self.encoding]
        self._longest = _LONGER.get(self.encoding, 2)
        self._usual = _usual(self._language, seen or {})
        self._known_parts: dict[bytes, list[tuple[float, str]]] = {}
        characters = re.escape("".join(self._usual))
        # Two in a row that are rare in this log and in the language
        self._odd = [re.compile(f"[^\x00-\x7f{characters}]{{2}}"), _NO_TEXT]
        if self.encoding not in _HIGH_BYTES_ONLY:
            self._odd.append(_LONE_ASCII)
        if self._language == "ja":
            self._odd.append(_LONE_KANA)
        self._word_text = lru_cache(1 << 12)(self._read_word)

    def is_odd(self, text: str) -> bool:
        """Return whether strictly decoded text may come from torn bytes after all."""
        return any(pattern.search(text) for pattern in self._odd)

    def is_usual(self, data: bytes) -> bool:
        """Return whether bytes are whole characters that are usual in the language or the log."""
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError:
            return False
        return all(character in self._usual for character in text if character > "\x7f")

    def text(self, data: bytes) -> str:
        """Decode bytes; a torn byte becomes one of U+DC80 to U+DCFF, as in `surrogateescape`."""
        parts = []
        end = 0
        for word in _WORD.finditer(data):
            parts.append(data[end : word.start()].decode("ascii"))
            parts.append(self._word_text(word[0]))
            end = word.end()
        parts.append(data[end:].decode("ascii"))
        return "".join(parts)

    def _read_word(self, word: bytes) -> str:
        try:
            text = word.decode(self.encoding)
        except UnicodeDecodeError:
            pass
        else:
            if not self.is_odd(text):
                return text
        parts = []
        start = 0
        while start < len(word):
            window = word[start : start + WINDOW_BYTES]
            is_last = start + len(window) == len(word)
            cutting = self._cut(window)
            lengths = [length for length, _ in cutting]
            ends = list(accumulate(lengths))
            limit = len(window) if is_last else len(window) - OVERLAP_BYTES
            kept = sum(end <= limit for end in ends)
            parts += [text for _, text in cutting[:kept]]
            start += ends[kept - 1]
        return "".join(parts)

    def _cut(self, word: bytes) -> list[tuple[int, str]]:
        """Return the least surprising cutting: the length in bytes and the text of each part."""
        # For each place and for what is before it: the nats up to here, and the last part
        best: list[dict[str, _Step]] = [{} for _ in range(len(word) + 1)]
        best[0][START] = _Step(0.0, START, 0, "")
        for start, steps in enumerate(best):
            parts = []
            for length in range(1, min(self._longest, len(word) - start) + 1):
                at_end = start + length == len(word)
                for nats, text in self._parts(word[start : start + length]):
                    discount = AT_END if at_end and "\udc80" <= text <= "\udcff" else 0.0
                    parts.append((length, nats - discount, text))
            for before, step in steps.items():
                for length, nats, text in parts:
                    after, switch_nats = _SWITCHES[before, _is_narrow(text)]
                    total = step.nats + nats + switch_nats
                    there = best[start + length]
                    if after not in there or total < there[after].nats:
                        there[after] = _Step(total, before, length, text)
        cutting = []
        end = len(word)
        state = min(best[end], key=lambda state: best[end][state].nats)
        while end:
            step = best[end][state]
            cutting.append((step.length, step.text))
            end -= step.length
            state = step.before
        return cutting[::-1]

    def _parts(self, data: bytes) -> list[tuple[float, str]]:
        """Return the surprise and the text of some bytes as one character, and as a torn byte."""
        if data not in self._known_parts:
            if len(self._known_parts) > MANY_PARTS:
                self._known_parts.clear()
            self._known_parts[data] = self._new_parts(data)
        return self._known_parts[data]

    def _new_parts(self, data: bytes) -> list[tuple[float, str]]:
        if data[0] < 0x80:
            return [(0.0, data.decode("ascii"))] if len(data) == 1 else []
        parts = [(TORN, chr(0xDC00 + data[0]))] if len(data) == 1 else []
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError:
            return parts
        if self._is_one_character(text, data) and not _NO_TEXT.search(text):
            nats = sum(self._usual.get(c) or _rare_nats(c, self._language) for c in text)
            parts.append((nats, text))
        return parts

    def _is_one_character(self, text: str, data: bytes) -> bool:
        """Return whether bytes are one character, or a letter with a mark, not several ones."""
        if len(text) == 1:
            return True
        return (
            len(text) == 2 and text[0] > "\x7f" and text[1] > "\x7f" and not self._is_singles(data)
        )

    def _is_singles(self, data: bytes) -> bool:
        """Return whether each of these bytes is a character of its own."""
        try:
            return all(len(data[i : i + 1].decode(self.encoding)) == 1 for i in range(len(data)))
        except UnicodeDecodeError:
            return False


def _is_narrow(text: str) -> bool:
    """Return whether a character is ASCII or half-width kana: neither is alone among others."""
    return text.isascii() or "\uff61" <= text <= "\uff9f"


def _usual(language: str, seen: Mapping[str, int]) -> dict[str, float]:
    """Return the nats of the characters that are usual in a language, or in this log."""
    usual = dict.fromkeys(_SIGNS, SIGN)
    if language == "ja":
        usual |= {chr(code): KANA for code in range(0x3041, 0x30FF)}
    usual |= common_characters(language)
    total = sum(seen.values()) + SEEN_PRIOR
    for character, count in seen.items():
        usual[character] = min(usual.get(character, UNUSUAL), -log(count / total) + 1)
    return {character: nats for character, nats in usual.items() if character > "\x7f"}


@lru_cache(maxsize=1 << 14)
def _rare_nats(character: str, language: str) -> float:
    """Return the surprise of a character that is not usual."""
    if "\uff61" <= character <= "\uff9f":
        return SINGLE_KANA if language == "ja" else UNUSUAL
    if not ("\u4e00" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7a3"):
        is_sign = "\u2000" <= character < "\u2700" or "\u3000" <= character < "\u3020"
        return LEVEL_TWO if is_sign or character >= "\uff00" else UNUSUAL
    codec, end = _FIRST_ROWS[language]
    try:
        lead = character.encode(codec)[0]
    except UnicodeEncodeError:
        return UNUSUAL
    return LEVEL_ONE if lead < end else LEVEL_TWO
