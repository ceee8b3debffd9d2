"""How much speaks for mojibake: what clean text would not have next to each other.

Every sequence of characters that may have been one UTF-8 character (a `Unit`) gets points. Clean
text has `Ã”` (a Portuguese word in capitals before a quotation mark) and `É®`, but no capital
between small letters and no `¼` inside a word.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

CONVINCING = 2  # points that one unit needs
# Alphabets besides Latin are written in runs; a single such letter is chance
SHORTEST_RUN = 2
LONG_RUN = 3

MARK = "mark"
LATIN = "LATIN"
CJK = "CJK"
_CJK_NAMES = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH", "IDEOGRAPHIC"}
_MARKS = (
    *((0x80, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x2C6, 0x2C7), (0x2D8, 0x2DD)),
    *(
        (0x200B, 0x2029),
        (0x202F, 0x2044),
        (0x20A0, 0x20BF),
        (0x2100, 0x214F),
        (0x2190, 0x23FF),
        (0x2500, 0x28FF),
    ),
    *((0x2B00, 0x2BFF), (0xFE0F, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFFD, 0xFFFD), (0x1F000, 0x1FAFF)),
)
_LATIN = (
    *((0xC0, 0x17F), (0x192, 0x192), (0x1A0, 0x1A1), (0x1AF, 0x1B0), (0x218, 0x21B)),
    *((0x300, 0x303), (0x306, 0x308), (0x30A, 0x30C), (0x327, 0x328), (0x1E80, 0x1EF9)),
)

TYPOGRAPHIC = "‐‑‒–—―‘’‚“”„†‡•…‹›«»\xa0"
QUOTES = "“”„«»‹›"
QUOTE_SET = frozenset(QUOTES)
# How the first byte of most three-byte signs (E2) and of emoji reads in the code pages
_SIGN_LEADS = "âïðвÔΓ‚"
_EMOJI = range(0x1F000, 0x1FB00)
# In drawings only a dash follows these
_BRANCHES = "┬├┼"
_DASHES = "─═"
_MATHS = "√≈∆¬"
# These follow a letter in clean text: the end of a quotation, a price, a trade mark, a range
_AFTER_LETTER = "–—’”»›…•†°©®™ªº²³¹€£¥¢·\xa0\xad"
# These stand before a letter in clean text
_BEFORE_LETTER = "–—‘’“„‚«‹…•°·¡¿€£¥¢\xa0\xad"
_BOXES = range(0x2500, 0x25A0)
_C1 = range(0x80, 0xA0)
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})\Z")  # what the fixer writes for a control
_SYMBOL_LETTERS = "ªºµ"  # str.isalpha says that they are letters


class Unit(NamedTuple):
    """Characters of a line that were the bytes of one UTF-8 character."""

    start: int
    end: int
    character: str
    kind: str


@lru_cache(maxsize=1 << 14)
def kind_of(character: str) -> str | None:
    """Return a character's alphabet, MARK for a sign, or None: no log writes it."""
    code = ord(character)
    if any(start <= code <= end for start, end in _MARKS):
        return MARK
    if any(start <= code <= end for start, end in _LATIN):
        return LATIN
    if code < 0x370 or unicodedata.category(character)[0] not in "LMNP":
        return None
    name = unicodedata.name(character).split()[0].partition("-")[0]
    if name == "LATIN":
        return None
    return CJK if name in _CJK_NAMES else name


def without_lone_letters(units: list[Unit]) -> list[Unit]:
    """Return the units but for letters of alphabets of which the line has no run."""
    in_runs = {MARK, LATIN}
    for before, unit in pairwise(units):
        if before.end == unit.start and before.kind == unit.kind:
            in_runs.add(unit.kind)
    return [unit for unit in units if unit.kind in in_runs]


def points(line: str, units: list[Unit], rest: str) -> list[int]:
    """Return how much speaks for each unit of a line.

    rest: the line's characters above ASCII that are in no unit.
    """
    totals = []
    run = 0  # units in a row before this one
    end = -1
    for unit in units:
        run = run + 1 if unit.start == end else 0
        end = unit.end
        source = line[unit.start : unit.end]
        total = _inner_points(source, unit)
        if source[-1] in "“‘" and not {"„", "‚"}.isdisjoint(rest):
            total -= _pair_points(source[-2], source[-1])  # German “ closes a quotation
        total += _border_points(line, unit, is_in_run=run > 0, rest=rest)
        total += _run_points(source, unit, run)
        totals.append(total)
    return totals


def _run_points(source: str, unit: Unit, run: int) -> int:
    if run == 0:
        return 0
    if unit.kind == CJK and source.isalpha() and (source.islower() or source.isupper()):
        return 0  # Russian words in cp866 can be ideographs in UTF-8
    return 2 if run + 1 >= LONG_RUN else 1


def _inner_points(source: str, unit: Unit) -> int:
    """Return what the unit's own characters say."""
    total = 0
    if any(ord(character) in _C1 for character in source):
        total += 2
    code = ord(unit.character)
    is_general_punctuation = 0x2010 <= code <= 0x2044
    is_closed = all(character in _AFTER_LETTER for character in source[1:])
    is_sign = is_general_punctuation or source[0] in _SIGN_LEADS or code in _EMOJI
    if unit.kind == MARK and is_sign and not is_closed:
        total += 2
    if "\xa1" <= unit.character <= "\xbf" and unit.character not in QUOTES and len(source) == 2:
        total += source[0] != "Â" or source[1] == unit.character
    return total + sum(_pair_points(left, right) for left, right in pairwise(source))


def _pair_points(left: str, right: str) -> int:
    """Return how odd it is that one character follows the other inside a unit."""
    is_box = ord(left) in _BOXES
    if is_box != (ord(right) in _BOXES):
        return 1
    if is_box:
        return int(left in _BRANCHES and right not in _DASHES)
    if left in _MATHS and not right.isalnum():
        return 1
    if not _is_letter(left):
        return 0 if _is_letter(right) or right in _AFTER_LETTER + _BEFORE_LETTER else 1
    if _is_letter(right):
        if right in "šœžƒŠŒŽŸ" and left.isupper():
            return 2
        is_mixed = kind_of(left) != kind_of(right)
        return int(is_mixed or (left.islower() and right.isupper()))
    if right in "¡¿":
        return 2
    return 0 if right in _AFTER_LETTER else 1


def _border_points(line: str, unit: Unit, *, is_in_run: bool, rest: str) -> int:
    """Return what the characters next to the unit say."""
    total = 0 if is_in_run else _left_points(line, unit, rest)
    after = line[unit.end : unit.end + 1]
    if after.isascii() and after.isalpha():
        total += _right_points(line, unit, after, rest)
    return total


def _left_points(line: str, unit: Unit, rest: str) -> int:
    """Return what the character before the unit says."""
    before = line[unit.start - 1] if unit.start else ""
    if _ESCAPE.search(line[max(unit.start - 6, 0) : unit.start]):
        before = ""
    lead = line[unit.start]
    if _is_letter(before):
        if before.islower() and lead.isupper():
            return 2
        return int(not _is_letter(lead) and lead not in _AFTER_LETTER + _BEFORE_LETTER)
    if lead not in "ÃÂ":
        return 0
    total = 1  # no word consists of this letter
    if before.isdecimal() and before.isascii():
        total += 1
    is_a_grave = line[unit.start : unit.end] == "Ã\xa0" and line[unit.end : unit.end + 1].isspace()
    if is_a_grave and QUOTE_SET.isdisjoint(rest):
        total += 1
    return total


def _right_points(line: str, unit: Unit, after: str, rest: str) -> int:
    """Return what an ASCII letter after the unit says."""
    last = line[unit.end - 1]
    total = int(unit.character == "°" and after in "CF")
    if kind_of(last) not in (MARK, LATIN, None):
        return total + 1  # a Russian or Greek letter, say
    if _is_letter(last):
        return total
    if last not in _BEFORE_LETTER or (line[unit.start] == "Ã" and after.islower() and last in "–—"):
        total += 1
    is_inside_word = unit.start > 0 and _is_letter(line[unit.start - 1])
    if last in "“”" and is_inside_word and QUOTE_SET.isdisjoint(rest):
        total += 1
    return total


def _is_letter(character: str) -> bool:
    return character.isalpha() and character not in _SYMBOL_LETTERS
