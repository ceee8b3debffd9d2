"""Recognise UTF-16 and UTF-32: by a byte order mark that holds, by their structure, line by line.

A byte order mark is only a claim: an empty file that PowerShell wrote has one, too, and noise on a
serial line looks like one. So what follows it is looked at.
"""

import codecs
import re
import unicodedata
from collections import Counter
from functools import cache

# UTF-32 before UTF-16: the mark of UTF-32-LE begins with that of UTF-16-LE
WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
PEEK_BYTES = 4096  # examined after a mark or a line, to see whether a wide encoding goes on
# Unicode's categories of control, unassigned and private characters, and of surrogates
NO_TEXT = ("Cc", "Cn", "Co", "Cs")
BLANKS = "\t\n\r\f"  # the control characters that text has
TERMINAL = "\a\b\x1b"  # and those that a terminal's output has as well
ASCII = bytes(range(0x80))
ASCII_LETTERS = range(0x40, 0x7F)
# Blanks, line ends, and the commas and full stops of Chinese and Japanese
SEPARATORS = " \n\r\u3000\u3001\u3002\uff0c"
# As UTF-16 these 16 bytes would be 8 ideographs that all look like pairs of ASCII characters.
# A tab or a carriage return for every other byte are letters of India's alphabets.
_NOT_INDIC = rb"(?!(?:[^\t\r][\t\r]){4}|(?:[\t\r][^\t\r]){4})"
ASCII_RUN = rb"(?=[\t\r\x20-\x7e]{16})" + _NOT_INDIC + rb"[\t\r\x20-\x7e]{16}"
# No bytes of UTF-16 are so many characters of UTF-8 by chance
UTF8_RUN = re.compile(
    rb"(?=[\t\r\n\x20-\xff]{32})"  # the quicker test first
    rb"(?:(?<![\t\r\n\x20-\x7e])|\A)"
    + _NOT_INDIC
    + rb"(?:[\t\r\n\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}"
    rb"|[\xf0-\xf4][\x80-\xbf]{3}){32}"
)
EIGHT_BIT_LINE = re.compile(rb"[^\0\n]*?(?:(?<![\t\r\x20-\x7e])|\A)" + ASCII_RUN)
# Control characters that 8-bit text does not contain, not even terminal output
CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\a\b\t\n\f\r\x1b"})
# Not more than one character in so many is none in a text: newer emoji, symbols of some fonts
STRANGE_SHARE = 16
LATIN = rb"[\t\n\r\x1b\x20-\x7e\xa0-\xff]"
LE = rb"(?:%s\0)" % LATIN
BE = rb"(?:\0%s)" % LATIN
LATIN_LE_START = re.compile(rb"%s{4}" % LE)
LATIN_START = re.compile(rb"%s{4}|%s{4}" % (LE, BE))
SURROGATE = re.compile("[\ud800-\udfff]")
ASTRAL = re.compile("[\U00010000-\U0010ffff]")
# Two or three characters of UTF-16 may be pairs of ASCII characters by chance
SHORT_BYTES = 8
SURE_UTF8 = 4  # bytes of UTF-8 characters in a line with broken ones
SHORTEST_LINE = 4  # bytes of an 8-bit line that is more than a chance
LONG_LINE = 128  # bytes; 8-bit lines are shorter on average
IDEOGRAPHS = 3  # that have the byte of a line feed, in a short line


def marked_encoding(head: bytes, is_whole: bool) -> str | None:
    """Return the wide encoding whose mark `head` begins with, if what follows the mark is text.

    is_whole: `head` has all bytes up to the end; else it should have PEEK_BYTES at least.
    """
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            rest = head[len(mark) : len(mark) + PEEK_BYTES]
            if len(mark) == 2 and rest.startswith(b"\0\0"):
                continue
            is_cut = not is_whole or len(head) > len(mark) + PEEK_BYTES
            if not rest or reads_as(rest, encoding, not is_cut):
                return encoding
    return None


def mark_of(head: bytes) -> tuple[bytes, str] | None:
    """Return the mark of UTF-16 or UTF-32 that `head` begins with, and its encoding, unchecked."""
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark):
            return mark, encoding
    return None


def reads_as(data: bytes, encoding: str, is_whole: bool) -> bool:
    """Tell whether text in a wide encoding begins at the start of `data`, not 8-bit text.

    A line that is text in UTF-16 with a line end of UTF-16 counts, unless it is long and UTF-8 as
    well. Else a line without NULs is 8-bit text if it is UTF-8, nearly ASCII, or no text in UTF-16.
    A line of fewer than 8 bytes could be ideographs, so the next line is examined as well.

    is_whole: `data` goes up to the end of the file; else the last line in it may be a part.
    """
    if encoding.startswith("utf-32"):
        return _reads_as_utf32(data, encoding)
    if data.startswith(codecs.BOM_UTF8) or EIGHT_BIT_LINE.match(data):
        return False
    line = first_line(data, encoding)
    if line and is_text(line, encoding):
        if _begins_with_eight_bit_line(line, encoding) or _has_many_ends(line[:-2], encoding):
            return False
        body = line[:-2]
        is_windows_line = body.endswith("\r".encode(encoding))
        return is_windows_line or len(body) < SHORT_BYTES or not is_utf8_text(body)
    return not _is_eight_bit(data, encoding, is_whole)


def _begins_with_eight_bit_line(line: bytes, encoding: str) -> bool:
    """Tell whether a line of UTF-16 consists of an 8-bit line and of more.

    A line feed's byte is half of a few ideographs. In little-endian order it is the second half
    only in the scripts of U+0A00 to U+0AFF.
    """
    length = line.find(b"\n") + 1
    is_little_endian = encoding == "utf-16-le"
    eight_bit = line[:length]
    goes_on_wide = mark_of(line[length:]) or (
        not is_little_endian and LATIN_LE_START.match(line, length)
    )
    if goes_on_wide and is_utf8_line(eight_bit):
        return True
    if 0 < 4 * eight_bit.count(0) < length:  # half of UTF-16 are NULs
        eight_bit = eight_bit.replace(b"\0", b"")
    if length >= len(line) - 1 or not is_utf8_line(eight_bit):
        return False
    if is_little_endian and length % 2 == 0:
        return 4 * line[1::2].count(b"\n") < len(line)
    return length >= SHORTEST_LINE or _begins_with_eight_bit_text(line[length:])


def _begins_with_eight_bit_text(data: bytes) -> bool:
    """Tell whether the first line that is not very short is UTF-8, and those before it, too."""
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n") or not is_utf8_line(line):
            return False
        if len(line) >= SHORT_BYTES:
            return True
    return False


def is_utf8_line(line: bytes) -> bool:
    """Tell whether a line is UTF-8 without NULs and the like; some of its bytes may be broken."""
    if len(line.translate(None, CONTROLS)) < len(line):
        return False
    above_ascii = len(line.translate(None, ASCII))
    kept = len(line.decode(errors="ignore").encode()) - (len(line) - above_ascii)
    stray = above_ascii - kept
    return stray == 0 or kept >= max(SURE_UTF8, 2 * stray)


def eight_bit_place(data: bytes, encoding: str) -> int | None:
    """Return where 8-bit text begins in what should be UTF-16, as far as that is plain to see.

    data: from a character's start on.
    """
    if encoding.startswith("utf-32"):
        return None  # it does not decode
    run = UTF8_RUN.search(data)
    return run.start() if run else None


def _reads_as_utf32(data: bytes, encoding: str) -> bool:
    whole = len(data) & ~3
    try:
        text = data[:whole].decode(encoding)
    except UnicodeDecodeError as error:
        text = data[: error.start].decode(encoding)
        if not text:
            return False
    return len(data) >= 4 and is_mostly_text(text.partition("\n")[0])


def first_line(data: bytes, encoding: str) -> bytes:
    """Return the first line of UTF-16 with its line end; nothing where `data` has no line end."""
    end = line_end(data, 0, encoding)
    return data[:end]


def line_end(data: bytes, start: int, encoding: str) -> int:
    """Return the end of the UTF-16 line that starts at `start`; 0 if `data` does not contain it."""
    newline = "\n".encode(encoding)
    place = data.find(newline, start)
    while place >= 0:
        if (place - start) % 2 == 0:
            return place + 2
        place = data.find(newline, place + 1)
    return 0


def is_text(data: bytes, encoding: str) -> bool:
    """Tell whether nearly all characters that `data` has in UTF-16 may be those of a text.

    Its last character may be cut off.
    """
    return is_mostly_text(codecs.getincrementaldecoder(encoding)("surrogatepass").decode(data))


def is_mostly_text(text: str) -> bool:
    """Tell whether nearly all characters may be those of a text, or of a terminal's output.

    Half a pair of surrogates belongs to none.
    """
    if SURROGATE.search(text):
        return False
    return strange_characters(text) <= len(text) / STRANGE_SHARE


def strange_characters(text: str) -> int:
    """Return how many characters no text and no terminal's output has."""
    strange = len(_strange_characters().findall(text))
    if ASTRAL.search(text):
        strange += sum(unicodedata.category(c) in NO_TEXT for c in ASTRAL.findall(text))
    return strange


@cache
def _strange_characters() -> re.Pattern[str]:
    """Return what matches a character up to U+FFFF that no text and no terminal's output has."""
    strange = [
        c
        for c in map(chr, range(0x10000))
        if unicodedata.category(c) in NO_TEXT and c not in BLANKS and c not in TERMINAL
    ]
    return re.compile(f"[{re.escape(''.join(strange))}]")


def is_utf8_text(data: bytes) -> bool:
    """Tell whether these bytes are UTF-8 without NULs and the like; the end may be cut off."""
    if len(data.translate(None, CONTROLS)) < len(data):
        return False
    try:
        codecs.utf_8_decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _is_eight_bit(data: bytes, encoding: str, is_whole: bool) -> bool:
    """Tell whether 8-bit text begins where no whole line of UTF-16 is."""
    while True:
        if data.startswith(codecs.BOM_UTF8):
            return True
        rest = data
        length = data.find(b"\n") + 1 or len(data)
        line = data[:length]
        data = data[length:]
        if EIGHT_BIT_LINE.match(line):
            return True
        if data.startswith(b"\0"):
            return False
        if 0 < 4 * line.count(0) < len(line) and line.endswith(b"\n"):  # half of UTF-16 are NULs
            line = line.replace(b"\0", b"")
        if len(line.translate(None, CONTROLS)) < len(line):
            return False
        is_complete = line.endswith(b"\n") or is_whole
        if not (is_utf8_line(line) if is_complete else is_utf8_text(line)):
            above_ascii = len(line.translate(None, ASCII))
            has_nuls = b"\0" in rest[:length]
            if (above_ascii > len(line) / 4 or has_nuls) and _goes_on(rest, encoding):
                return False
        if len(line) >= SHORT_BYTES or not data:
            return True
        if mark_of(data) or LATIN_START.match(data):
            return True


def _goes_on(data: bytes, encoding: str) -> bool:
    """Tell whether the first line of `data` is text in UTF-16, or all of it where no line ends."""
    line = first_line(data, encoding)
    if not line and _has_many_ends(data, encoding):
        return False
    return is_text(line or data, encoding)


def _has_many_ends(data: bytes, encoding: str) -> bool:
    """Tell whether the ends of 8-bit lines are there, more than ideographs have such bytes."""
    is_indic = 8 * data[encoding == "utf-16-le" :: 2].count(b"\n") >= len(data)
    if is_indic:
        return False
    if encoding == "utf-16-le" and b"\n" in data[1::2]:
        return True
    ends = data.count(b"\n")
    if len(data) % 2 and data.endswith(b"\n"):  # half of a line feed
        ends -= 1
    return ends > IDEOGRAPHS + len(data) / LONG_LINE


def wide_encoding(head: bytes) -> str | None:
    """Recognise UTF-16 and UTF-32 without a mark, in any script, but no 8-bit text with NULs.

    Read in a wrong width or byte order, a text consists of control, private and unassigned
    characters, or of ideographs from many blocks. UTF-32 has a zero in every fourth byte. Most
    UTF-16 consists of alphabets, all below U+2100; other UTF-16 must have separators, must not be
    UTF-8, and must not consist of pairs of ASCII letters.
    """
    readings = []
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        try:
            counts = Counter(decoder.decode(head))
        except UnicodeDecodeError:
            continue
        if _reads_as_text(counts, encoding, head):
            blocks = len({ord(c) >> 8 for c in counts})
            readings.append((blocks, encoding))
    return min(readings)[1] if readings else None


def _reads_as_text(counts: Counter[str], encoding: str, head: bytes) -> bool:
    """Tell whether the characters that `head` has in this wide encoding may be those of a text."""
    total = counts.total()
    if total == 0:
        return False
    no_text = sum(
        n for c, n in counts.items() if unicodedata.category(c) in NO_TEXT and c not in BLANKS
    )
    if no_text > total / 50:
        return False
    if encoding.startswith("utf-32"):
        return True
    alphabetic = sum(n for c, n in counts.items() if c < "\u2100")
    if alphabetic > 0.8 * total:
        return True
    separators = sum(counts[c] for c in SEPARATORS)
    ascii_pairs = sum(n for c, n in counts.items() if _is_ascii_pair(c))
    return separators > total / 100 and ascii_pairs < total / 2 and not _is_mostly_utf8(head)


def _is_ascii_pair(character: str) -> bool:
    high, low = divmod(ord(character), 0x100)
    return high in ASCII_LETTERS and low < 0x80


def _is_mostly_utf8(data: bytes) -> bool:
    """Tell whether at least half of what is above ASCII are characters of UTF-8."""
    above = data.decode(errors="ignore").translate(dict.fromkeys(range(0x80)))
    stray = len(data.translate(None, ASCII)) - len(above.encode())
    return len(above) >= stray
