"""Find and mend mojibake: UTF-8 that was read in a wrong encoding and written again.

A line is mended where its characters, taken as bytes of one code page, are UTF-8, and where at
least one of them could not stand there in clean text (`mojibake_signs`). In cp1252 and Latin-1 the
line may also hold other characters, unless they are of the same kind: they show that the line was
written well, and that it quotes mojibake. In all other code pages the whole line has to be UTF-8.
"""

import codecs
import re
from functools import lru_cache
from itertools import pairwise

# It registers the code pages "sloppy-windows-...": what Windows lacks is a C1 control in them
import ftfy  # noqa: F401

from chatgot.log_fixer.mojibake_signs import (
    CJK,
    CONVINCING,
    LATIN,
    LONG_RUN,
    MARK,
    TYPOGRAPHIC,
    Unit,
    kind_of,
    points,
    without_lone_letters,
)

LONGEST_LINE = 1 << 16  # characters; mojibake in a longer line is not mended

# Bytes that begin a UTF-8 character, by its length, and bytes that continue one
_LEADS = {2: range(0xC2, 0xE0), 3: range(0xE0, 0xF0), 4: range(0xF0, 0xF5)}
_TAILS = range(0x80, 0xC0)
# The order counts: where two code pages fit, the first one is taken
_CODE_PAGES = (
    *(f"sloppy-windows-{number}" for number in (1251, 1250, 1253, 1254, 1257)),
    *("iso8859_2", "iso8859_15", "mac_roman", "cp850", "cp437", "cp852", "cp866", "koi8_r"),
    *(f"sloppy-windows-{number}" for number in (1255, 1256, 1258)),
)


def _table(encoding: str) -> str:
    """Return the characters of all 256 bytes."""
    return bytes(range(0x80)).decode("ascii") + bytes(range(0x80, 0x100)).decode(encoding)


_TABLES = [_table(encoding) for encoding in _CODE_PAGES]
_ENCODERS = [codecs.charmap_build(table) for table in _TABLES]


def _pages_of(bytes_: range) -> dict[str, int]:
    """Return for each character the code pages that have it at one of these bytes, as bits."""
    pages: dict[str, int] = {}
    for number, table in enumerate(_TABLES):
        for byte in bytes_:
            pages[table[byte]] = pages.get(table[byte], 0) | 1 << number
    return pages


_LEAD_PAGES = _pages_of(range(0xC2, 0xF5))
_TAIL_PAGES = _pages_of(_TAILS)

# cp1252 and Latin-1 in one: their characters above U+00FF are bytes that are controls in Latin-1
_CP1252 = _table("sloppy-windows-1252")
_WESTERN = {ord(_CP1252[byte]): byte for byte in range(0x80, 0xA0)} | {
    code: code for code in range(0x80, 0x100)
}
_WESTERN_TAILS = re.escape("".join(chr(code) for code, byte in _WESTERN.items() if byte in _TAILS))
# A C1 sequence with its parameters, and the introducer of one
_C1_SEQUENCE = (
    r"\x9b[0-9;?]+[A-Za-z]|\x9d[0-9]+;[^\x00-\x08\x0a-\x1f\x7f-\x9f]*(?:\x07|\x1b\\|\x9c)"
)
_TAIL = rf"(?!{_C1_SEQUENCE})[{_WESTERN_TAILS}]"
WESTERN_UNIT = re.compile(
    rf"[\xc2-\xdf]{_TAIL}|[\xe0-\xef](?:{_TAIL}){{2}}|[\xf0-\xf4](?:{_TAIL}){{3}}"
)
_WESTERN_PAIR = re.compile(rf"[\xc2-\xf4][{_WESTERN_TAILS}]")
HIDDEN = re.compile(_C1_SEQUENCE)
_SEQUENCE_OR_ESC = re.compile(rf"{_C1_SEQUENCE}|\x1b")
ANY_C1 = re.compile("[\x80-\x9f]")
# C1 controls that are a sign in cp1252 and begin no escape sequence
LONE_C1 = re.compile("[\x80\x82-\x8c\x8e\x91-\x97\x99\x9a\x9c\x9e]")
NEXT_LINE = "\x85"  # alone it is a control of its own, not an ellipsis of cp1252
# A letter of cp1252 whose next byte was lost: `Ã ` for `à` with a plain blank, `â€` before `�`
_TORN = re.compile(rf"[\xc2-\xf4](?=[{_WESTERN_TAILS}\ufffd])|[ÂÃ](?=[\x00-\x20\\?]|$)")
_ABOVE_ASCII = re.compile("[^\x00-\x7f]+")
_ODD_CAPITAL = re.compile("(?<=[a-z])[À-ÖØ-ÞĀĂĄĆĈĊČĎĐĒĔĖĘĚĜĞĠĢĤĦĨĪĬĮİĹĻĽŁŃŅŇŌŎŐŔŖŘŚŜŞŠŢŤŪŮŰŹŻŽ]")
_WORD = re.compile(r"[^\s\"'`“”‘’„«»()\[\]{}<>,;:=]+")

# Encodings with two bytes a character: signs that only mojibake has so often
_GBK_LEADS = range(0xC2, 0xF5)
_GBK_SIGNS = "鈥馃"  # most punctuation and emoji of UTF-8 begin with these in GBK
_KANA_SIGNS = "縺繧繝"  # all kana of UTF-8 begin with these in Shift-JIS


def _gbk_characters() -> str:
    """Return the characters of GBK whose two bytes begin or are UTF-8."""
    pairs = (bytes([lead, tail]) for lead in _GBK_LEADS for tail in _TAILS)
    return "".join(pair.decode("gbk", "ignore") for pair in pairs)


_DOUBLE_BYTE = re.compile(f"(?:^|(?<= ))[{re.escape(_gbk_characters())}{_KANA_SIGNS}]")

_ASCII_TO_BLANK = bytes([0x20] * 0x80) + bytes(range(0x80, 0x100))
# Up to this many suspects, one regex of all suspects is faster than a look at each line. With more
# it would take quadratic time.
FEW_SUSPECTS = 64


def may_hold_mojibake(utf8: bytes) -> bool:
    """Return whether one of these lines has to be mended, or quotes mojibake.

    Looking only once at each distinct run above ASCII is many times faster than at each line.
    """
    distinct = set(utf8.translate(_ASCII_TO_BLANK).split())
    strong, weak = _suspects(b" ".join(distinct).decode())
    if not strong and not weak:
        return False
    text = utf8.decode()
    pattern = None
    if len(strong) + len(weak) <= FEW_SUSPECTS:
        pattern = _suspects_pattern(strong, weak)
        if not pattern.search(text):
            return False
    lines = text.split("\n")
    if pattern:
        lines = [line for line in lines if pattern.search(line)]
    return any(is_suspect(line) or quoted_words(line) for line in lines if not line.isascii())


def _suspects(runs: str) -> tuple[set[str], set[str]]:
    """Return the runs above ASCII that may be mojibake, and those that may be next to a letter."""
    distinct = runs.split(" ")
    strong: set[str] = set()
    weak: set[str] = set()
    for run in distinct:
        if len(run) > 1 and _LEAD_PAGES.get(run[0], 0) & _TAIL_PAGES.get(run[1], 0):
            promise = _promise(run)
            if promise:
                (strong if promise > 1 else weak).add(run)
    if WESTERN_UNIT.search(runs) or ANY_C1.search(runs):
        strong |= {
            run
            for run in distinct
            if ANY_C1.search(run) or without_lone_letters(_western_units(run))
        }
    if _DOUBLE_BYTE.search(runs):
        strong |= {run for run in distinct if _may_be_double_bytes(run)}
    return strong, weak - strong


def _suspects_pattern(strong: set[str], weak: set[str]) -> re.Pattern[str]:
    alternatives = [re.escape(run) for run in strong]
    for run in map(re.escape, weak):
        alternatives.append(f"{run}(?:(?=[A-Za-z])|(?<=[0-9A-Za-z]{run}))")
    return re.compile("|".join(alternatives))


@lru_cache(maxsize=1 << 12)
def _promise(run: str) -> int:
    """Return 2 if a run may convince in some code page, 1 if it may only next to ASCII letters."""
    promise = 0
    for number in _numbers(_pages_of_run(run)):
        text = _read_again(run, number)
        assert text is not None  # it is UTF-8 there
        units = without_lone_letters(_units_of_page(text))
        if units:
            promise = max(promise, 2 if max(points(run, units, "")) > 0 else 1)
    return promise


def _pages_of_run(run: str) -> int:
    """Return in which code pages a run above ASCII is a run of whole UTF-8 characters, as bits."""
    if len(run) == 1:
        return 0
    pages = _LEAD_PAGES.get(run[0], 0) & _TAIL_PAGES.get(run[1], 0)
    return _whole_pages(run, pages) if pages else 0


@lru_cache(maxsize=1 << 12)
def _whole_pages(run: str, pages: int) -> int:
    left = 0
    for number in _numbers(pages):
        text = _read_again(run, number)
        if text is not None and all(map(kind_of, text)):
            left |= 1 << number
    return left


def _numbers(pages: int) -> list[int]:
    return [number for number in range(len(_CODE_PAGES)) if pages >> number & 1]


def _read_again(text: str, number: int) -> str | None:
    """Return a text written in a code page and read as UTF-8, or None: it cannot be."""
    try:
        return codecs.charmap_encode(text, "strict", _ENCODERS[number])[0].decode()
    except UnicodeError:
        return None


def is_suspect(line: str) -> bool:
    """Return whether mending would change this line; its complete C1 sequences do not count."""
    text = HIDDEN.sub("\x1b", line)
    return mended(text) != text


def mended(line: str) -> str:
    """Return a line with all layers of mojibake undone; the same line where there is none.

    Complete C1 sequences stay. Each layer that is undone makes the line shorter, or leaves fewer
    C1 controls, so this ends.
    """
    sequences: list[str] = []

    def hide(match: re.Match[str]) -> str:
        sequences.append(match[0])
        return "\x1b"

    if HIDDEN.search(line):
        text = mended(_SEQUENCE_OR_ESC.sub(hide, line))
        return re.sub("\x1b", lambda _: sequences.pop(0), text)
    while True:
        before = line
        line = _undone_once(line)
        if line == before:
            return line


def _undone_once(line: str) -> str:
    if line.isascii() or len(line) > LONGEST_LINE:
        return line
    western, is_whole = _western(line)
    if is_whole:
        return western
    pages = ~0
    runs = _ABOVE_ASCII.findall(line)
    for run in runs:
        pages &= _pages_of_run(run)
        if not pages:
            break
    texts = [_text_of_page(line, number) for number in (_numbers(pages) if pages else [])]
    convincing = [text for text in texts if text is not None]
    if convincing:
        return min(convincing, key=lambda text: len(_ODD_CAPITAL.findall(text)))
    double_byte = _double_byte_text(line)
    if double_byte is not None:
        return double_byte
    return western if western != line else _with_cp1252_signs(line)


# cp1252 and Latin-1


def _western(line: str) -> tuple[str, bool]:
    """Undo UTF-8 that was read as cp1252 or Latin-1, where it convinces.

    Returns the line, and whether all its characters above ASCII were such mojibake.
    """
    units = without_lone_letters(_western_units(line))
    if not units:
        return line, False
    rest = _rest(line, units)
    totals = points(line, units, rest)
    if max(totals) < CONVINCING or _is_quoted(units, line, rest):
        return line, False
    parts = []
    end = 0
    for unit, total in zip(units, totals, strict=True):
        source = line[unit.start : unit.end]
        # a capital before a quotation mark, in a line that has other such marks
        is_clean = total == 0 and source[-1] in TYPOGRAPHIC and rest
        parts.append(line[end : unit.start])
        parts.append(source if is_clean else unit.character)
        end = unit.end
    return "".join([*parts, line[end:]]), not rest


def _western_units(line: str) -> list[Unit]:
    units = []
    for match in WESTERN_UNIT.finditer(line):
        data = bytes(_WESTERN[ord(character)] for character in match[0])
        try:
            character = data.decode()
        except UnicodeDecodeError:
            continue
        kind = kind_of(character)
        if kind is not None:
            units.append(Unit(match.start(), match.end(), character, kind))
    return units


def _rest(line: str, units: list[Unit]) -> str:
    """Return the characters above ASCII that are in no unit."""
    ends = [0, *(unit.end for unit in units)]
    starts = [*(unit.start for unit in units), len(line)]
    between = [line[end:start] for end, start in zip(ends, starts, strict=True)]
    return "".join("".join(_ABOVE_ASCII.findall(text)) for text in between)


def _is_quoted(units: list[Unit], line: str, rest: str) -> bool:
    """Return whether well-encoded characters of the same kind stand beside the mojibake."""
    if not rest:
        return False
    mended_characters = {unit.character for unit in units} - {"\xa0"}
    if mended_characters.intersection(rest):
        return True
    if mended_characters <= set(TYPOGRAPHIC):
        return not set(TYPOGRAPHIC).isdisjoint(rest)
    alphabets = {unit.kind for unit in units} - {MARK}
    return not alphabets.isdisjoint(_alphabets_written_well(line, units))


def _alphabets_written_well(line: str, units: list[Unit]) -> set[str]:
    """Return the alphabets of the letters above ASCII in no unit; a torn unit's do not count."""
    in_units = {place for unit in units for place in range(unit.start, unit.end)}
    torn = {match.start() for match in _TORN.finditer(line)}
    alphabets = set()
    for match in _ABOVE_ASCII.finditer(line):
        for place in range(match.start(), match.end()):
            if line[place].isalpha() and place not in in_units and place not in torn:
                alphabets.add(kind_of(line[place]) or LATIN)
    return alphabets - {MARK}


def quoted_words(line: str) -> set[str]:
    """Return the words of mojibake that a line quotes: it also has them written well."""
    if not _WESTERN_PAIR.search(line) or len(line) > LONGEST_LINE:
        return set()
    quoted = set()
    for word in mojibake_words(line):
        units = _western_units(word)
        well = word
        for unit in reversed(units):
            well = well[: unit.start] + unit.character + well[unit.end :]
        if well in line.replace(word, ""):
            quoted.add(word)
    return quoted


def mojibake_words(line: str) -> set[str]:
    """Return the words of a line that hold a unit of cp1252 or Latin-1."""
    return {word for word in _WORD.findall(line) if WESTERN_UNIT.search(word)}


def _with_cp1252_signs(line: str) -> str:
    """Return a line with C1 controls as the signs that cp1252 has there."""
    if not ANY_C1.search(line):
        return line
    kept = [match.span() for match in HIDDEN.finditer(line)]
    kept += [(unit.start, unit.end) for unit in _western_units(line)]
    places = [
        match.start()
        for match in LONE_C1.finditer(line)
        if not any(start <= match.start() < end for start, end in kept)
    ]
    if all(line[place] == NEXT_LINE for place in places):
        return line
    characters = list(line)
    for place in places:
        characters[place] = _CP1252[ord(line[place])]
    return "".join(characters)


# Code pages in which the whole line has to be UTF-8


def _text_of_page(line: str, number: int) -> str | None:
    """Return a line written in a code page and read as UTF-8; None: it does not convince."""
    text = _read_again(line, number)
    if text is None or codecs.charmap_decode(text.encode(), "strict", _TABLES[number])[0] != line:
        return None
    units = _units_of_page(text)
    if not all(unit.kind for unit in units) or len(without_lone_letters(units)) < len(units):
        return None
    totals = points(line, units, "")
    is_drawing = any("─" <= line[unit.start] <= "╬" for unit in units)
    convinces = (max(totals) if is_drawing else sum(totals)) >= CONVINCING
    return text if convinces else None


def _units_of_page(text: str) -> list[Unit]:
    """Return the units of a line in a one-byte code page, from the text that it is in UTF-8."""
    units = []
    place = 0
    for character in text:
        length = len(character.encode())
        if length > 1:
            units.append(Unit(place, place + length, character, kind_of(character) or ""))
        place += length
    return units


# Encodings with two bytes a character


def _may_be_double_bytes(run: str) -> bool:
    """Return whether a line with this run above ASCII may be GBK or Shift-JIS."""
    for encoding in ("gbk", "cp932"):
        try:
            text = run.encode(encoding).decode()
        except UnicodeError:
            continue
        kinds = {kind_of(character) for character in text if not character.isascii()}
        if None not in kinds and (kinds & {LATIN, MARK} or _longest_run(text) >= CONVINCING):
            return True
    return False


def _double_byte_text(line: str) -> str | None:
    """Return a line written in GBK or Shift-JIS and read as UTF-8; None: it does not convince."""
    for encoding in ("gbk", "cp932"):
        try:
            data = line.encode(encoding)
            text = data.decode()
            is_same = data.decode(encoding) == line
        except UnicodeError:
            continue
        if is_same and text != line and _convinces_in_double_bytes(line, text, encoding):
            return text
    return None


def _convinces_in_double_bytes(line: str, text: str, encoding: str) -> bool:
    kinds = [kind_of(character) for character in text if not character.isascii()]
    has_sign = any(sign in line for sign in _GBK_SIGNS)
    if None in kinds or (MARK in kinds and not has_sign and LATIN not in kinds):
        return False
    if encoding == "cp932":
        return sum(line.count(sign) for sign in _KANA_SIGNS) >= CONVINCING
    if set(kinds) <= {LATIN, MARK}:
        return has_sign or _letters_beside(line) >= CONVINCING
    longest = _longest_run(text)
    needed = CONVINCING if CJK in kinds else LONG_RUN
    return longest >= needed and not _is_encodable(line, "gb2312") and _is_common(text)


def _letters_beside(line: str) -> int:
    """Return how often an ASCII letter stands next to a run above ASCII."""
    return sum(
        left.isascii() != right.isascii() and (left if left.isascii() else right).isalpha()
        for left, right in pairwise(line)
    )


def _longest_run(text: str) -> int:
    """Return the length of the longest run of letters of one alphabet that is not Latin."""
    longest = 0
    run = 0
    before: str | None = None
    for character in text:
        kind = None if character.isascii() else kind_of(character)
        is_letter = kind not in (None, MARK, LATIN)
        run = (run + 1 if kind == before else 1) if is_letter else 0
        before = kind
        longest = max(longest, run)
    return longest


def _is_common(text: str) -> bool:
    """Return whether all ideographs are among the common ones of some country."""
    ideographs = "".join(character for character in text if kind_of(character) == CJK)
    return any(
        _is_encodable(ideographs, encoding) for encoding in ("gb2312", "big5", "euc_jp", "euc_kr")
    )


def _is_encodable(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
