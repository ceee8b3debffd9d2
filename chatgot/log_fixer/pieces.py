"""Cut a log into pieces that are either 8-bit text or UTF-16.

The pieces together have all bytes of the file. UTF-16 is recognised by its byte order mark,
anywhere in the file, or by four Latin characters in a row. The other lines of such a stretch may be
in any script. A stretch without a mark and without four Latin characters in a row (Chinese,
Russian) is not recognised. The pieces' kinds do not depend on how many bytes are read at once. The
memory needed does not depend on the length of the file or of its lines.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from chatgot.data.encoding import ASCII, NO_TEXT

READ_BYTES = 1 << 20
LINE_BYTES = 1 << 21  # a longer line is judged in parts
EIGHT_BIT = "8-bit"
UNKNOWN = "unknown"  # UTF-16 ends here, and the bytes after it have not been examined yet
# Twice the shortest stretch of UTF-16, so that the end of the buffer never cuts one in two
HOLD_BYTES = 16
# How far before its first Latin characters a UTF-16 stretch may begin (Cyrillic, other alphabets)
EARLIER_BYTES = 256
PEEK_BYTES = 4096  # examined after a line of UTF-16, to see whether UTF-16 continues

LATIN = rb"[\t\n\r\x1b\x20-\x7e\xa0-\xff]"
LE = rb"(?:%s\0)" % LATIN
BE = rb"(?:\0%s)" % LATIN
# Four Latin characters in a row make a stretch. In "\n\0h\0" the line feed ends an 8-bit line
# before big-endian text.
WIDE_START = re.compile(
    rb"(?P<LE>(?<=\n)\xff\xfe|\xff\xfe(?=%s{2})|(?!\n\0)%s{4})" % (LE, LE)
    + rb"|(?P<BE>(?<=\n)\xfe\xff|\xfe\xff(?=%s{2})|%s{4})" % (BE, BE)
)
WIDE_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Latin, and the alphabets of U+0100 to U+06FF: their high byte never occurs in 8-bit text
ALPHABETIC = {
    "utf-16-le": re.compile(rb"(?:%s|[\x00-\xff][\x01-\x06])*" % LE, re.DOTALL),
    "utf-16-be": re.compile(rb"(?:%s|[\x01-\x06][\x00-\xff])*" % BE, re.DOTALL),
}
# As UTF-16 these 16 bytes would be 8 ideographs that all look like pairs of ASCII characters.
ASCII_RUN = rb"[\t\r\x20-\x7e]{16}"
# 8-bit text after UTF-16, which may have been cut off in the middle of a line feed
EIGHT_BIT_AGAIN = re.compile(rb"(?<=\0)\n?" + ASCII_RUN)
EIGHT_BIT_LINE = re.compile(rb"[^\0\n]*" + ASCII_RUN)
# Control characters that terminal output does not contain
CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\a\b\t\n\f\r\x1b"})


class SeekableFile(Protocol):
    """The methods that an open log needs: seek and read, in bytes."""

    def seek(self, offset: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...


@dataclass
class Piece:
    """Consecutive bytes of one kind.

    They are complete lines, unless the kind changes within a line or a line is very long.
    """

    offset: int
    kind: str  # EIGHT_BIT, "utf-16-le" or "utf-16-be"
    data: bytes


def pieces(
    file: SeekableFile, start: int = 0, read_bytes: int = READ_BYTES, line_bytes: int = LINE_BYTES
) -> Iterator[Piece]:
    """Yield the pieces of a file from `start` on.

    start: 0, or where a line of 8-bit text begins.
    """
    buffer = b""
    offset = start
    at_end = False
    kind = EIGHT_BIT
    marked = False  # this UTF-16 began with a byte order mark
    at_line_start = True
    just_left_wide = False
    while True:
        kind_before = kind
        follows = None
        if kind == EIGHT_BIT:
            mark = WIDE_MARKS.get(buffer[:2]) if at_line_start and not just_left_wide else None
            end = 0
            wide = mark
            if mark is None:
                end, wide = _eight_bit_end(buffer, at_end, line_bytes, int(just_left_wide))
            if wide is not None and end == 0:
                kind = wide
                marked = buffer[:2] in WIDE_MARKS
        else:
            end, follows = _wide_end(buffer, at_end, kind, marked, at_line_start, line_bytes)
            if follows and end == 0:
                other = _wide_start(buffer)
                marked = buffer[:2] in WIDE_MARKS
                kind = EIGHT_BIT if other is None or other == kind else other
                just_left_wide = kind == EIGHT_BIT
        if end:
            data = buffer[:end]
            buffer = buffer[end:]
            yield Piece(offset, kind, data)
            offset += end
            at_line_start = data.endswith(b"\n" if kind == EIGHT_BIT else (b"\n\0", b"\0\n"))
            just_left_wide = False
            # it was recognised by the NUL before it, which is no longer in the buffer
            if kind != EIGHT_BIT and follows == EIGHT_BIT:
                kind = EIGHT_BIT
                just_left_wide = True
        elif kind == kind_before:  # more bytes are needed to decide
            if at_end:
                return
            file.seek(offset + len(buffer))
            more = file.read(read_bytes)
            buffer += more
            at_end = not more


def _eight_bit_end(data: bytes, at_end: bool, line_bytes: int, skip: int) -> tuple[int, str | None]:
    """Return up to where `data` is certainly 8-bit lines, and the encoding of UTF-16 after that.

    None: no UTF-16 follows.
    """
    wide_start = None
    if b"\0" in data or codecs.BOM_UTF16_LE in data or codecs.BOM_UTF16_BE in data:
        wide_start = WIDE_START.search(data, skip)
    if wide_start:
        is_little_endian = bool(wide_start["LE"])
        earliest = max(skip, wide_start.start() - EARLIER_BYTES)
        end = _before_alphabets(data, wide_start.start(), earliest, is_little_endian)
        return end, "utf-16-le" if is_little_endian else "utf-16-be"
    if at_end:
        return len(data), None
    end = data.rfind(b"\n", 0, max(len(data) - HOLD_BYTES, 0)) + 1
    if end == 0 and len(data) > line_bytes + HOLD_BYTES:
        end = part_end(data, line_bytes)
    return end, None


def _before_alphabets(data: bytes, end: int, earliest: int, is_little_endian: bool) -> int:
    """Return where the UTF-16 in alphabets of U+0100 to U+06FF begins that ends at `end`."""
    high_byte = 1 if is_little_endian else 0
    while end - 2 >= earliest:
        character = data[end - 2 : end]
        if not 1 <= character[high_byte] <= 6 or b"\n" in character:
            break
        end -= 2
    return end


def part_end(line: bytes, line_bytes: int) -> int:
    """Return where to cut a line that is too long.

    It is cut after a carriage return, else between two characters of UTF-8.
    """
    end = line.rfind(b"\r", 0, line_bytes) + 1
    if end:
        return end
    end = line_bytes
    while end > max(line_bytes - 3, 1) and 0x80 <= line[end] < 0xC0:
        end -= 1
    return end


def _wide_end(
    data: bytes, at_end: bool, encoding: str, marked: bool, at_line_start: bool, line_bytes: int
) -> tuple[int, str | None]:
    """Return up to where `data` is certainly UTF-16 lines, and the kind of the bytes after that.

    None: UTF-16 continues, or more bytes are needed to decide.
    """
    end = 0
    while end < len(data):
        if at_line_start and (end or WIDE_MARKS.get(data[:2]) != encoding):
            is_eight_bit = _is_eight_bit(data[end : end + PEEK_BYTES], at_end, encoding)
            if is_eight_bit is None:
                return end, None
            if is_eight_bit:
                return end, UNKNOWN
        line_end = _wide_line_end(data, end, encoding)
        limit = end + line_bytes - line_bytes % 2
        if line_end == 0 or line_end > limit:
            if len(data) <= limit and not at_end:
                return end, None
            line_end = _wide_part_end(data, limit, encoding)
        line = data[end:line_end]
        eight_bit = EIGHT_BIT_AGAIN.search(line)
        if eight_bit:
            return end + eight_bit.start(), EIGHT_BIT
        if not marked and not _is_wide(line, encoding):
            alphabetic = ALPHABETIC[encoding].match(line)
            assert alphabetic is not None  # it also matches the empty string
            return end + alphabetic.end(), UNKNOWN
        end = line_end
        at_line_start = line.endswith((b"\n\0", b"\0\n"))
        if end >= READ_BYTES:
            break
    return end, None


def _wide_line_end(data: bytes, start: int, encoding: str) -> int:
    """Return the end of the UTF-16 line that starts at `start`; 0 if `data` does not contain it."""
    newline = "\n".encode(encoding)
    place = data.find(newline, start)
    while place >= 0:
        if (place - start) % 2 == 0:
            return place + 2
        place = data.find(newline, place + 1)
    return 0


def _wide_part_end(data: bytes, limit: int, encoding: str) -> int:
    """Return where to cut a UTF-16 line that is too long or has no end: between two characters."""
    if limit >= len(data):
        return len(data)
    high_byte = limit - 1 if encoding == "utf-16-le" else limit - 2
    cuts_surrogate_pair = 0xD8 <= data[high_byte] <= 0xDB
    return limit - 2 if cuts_surrogate_pair else limit


def _is_wide(line: bytes, encoding: str) -> bool:
    """Return whether a line after UTF-16 without a mark is UTF-16: half Latin or more, or text."""
    high_bytes = line[1::2] if encoding == "utf-16-le" else line[0::2]
    if 4 * high_bytes.count(0) >= len(line):
        return True
    return line.endswith("\n".encode(encoding)) and _is_text_in(line, encoding)


def _is_text_in(data: bytes, encoding: str) -> bool:
    """Return whether the first line of `data` is text when decoded as UTF-16.

    Its last character may be cut off, its line end may not.
    """
    characters = codecs.getincrementaldecoder(encoding)("surrogatepass").decode(data)
    line, line_end, _ = characters.partition("\n")
    if not line_end and b"\n" in data:
        return False
    return not any(unicodedata.category(c) in NO_TEXT for c in set(line) - set("\t\r\x1b"))


def _wide_start(data: bytes) -> str | None:
    """Return the encoding of UTF-16 at the start of `data`; None: there is no UTF-16."""
    if data[:2] in WIDE_MARKS:
        return WIDE_MARKS[data[:2]]
    wide_start = WIDE_START.match(data)
    if wide_start is None:
        return None
    return "utf-16-le" if wide_start["LE"] else "utf-16-be"


def _is_eight_bit(data: bytes, at_end: bool, encoding: str) -> bool | None:
    """Return whether 8-bit text begins after a line of UTF-16.

    A line without NULs is 8-bit text if it is UTF-8, nearly ASCII, or not text when decoded as
    UTF-16. A line of fewer than 8 bytes could be ideographs in UTF-16, so the next line is examined
    as well.

    None: more bytes are needed to decide.
    """
    if len(data) < PEEK_BYTES and not at_end:
        return None
    while True:
        if data.startswith(codecs.BOM_UTF8) or _wide_start(data) not in (None, encoding):
            return True
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
        try:
            codecs.utf_8_decode(line, "strict", line.endswith(b"\n") or at_end)
        except UnicodeDecodeError:
            above_ascii = len(line.translate(None, ASCII))
            if above_ascii > len(line) / 4 and _is_text_in(line + data, encoding):
                return False
        if len(line) >= 8 or not data:
            return True
        if _wide_start(data) is not None:  # a byte order mark, too, whatever follows it
            return True
