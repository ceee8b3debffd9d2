"""Where a log changes between 8-bit text and UTF-16: pieces of one kind each, whose bytes together are the file.

UTF-16 is seen by its byte order mark, wherever that stands, and without one by its structure: four Latin characters in
a row. Lines of such a stretch may be in any script; one without a mark that never has four Latin characters in a row
(Chinese, Russian) is not seen. The pieces' kinds do not depend on how many bytes are read at once, and memory not on
the length of the file or of its lines.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from chatgot.data.encoding import ASCII, NO_TEXT

READ_BYTES = 1 << 20
LINE_BYTES = 1 << 21  # a longer line is decided on in parts
EIGHT_BIT = "8-bit"
UNKNOWN = "unknown"  # what follows UTF-16 has yet to be looked at
HOLD_BYTES = (
    16  # twice the shortest stretch of UTF-16: none is cut by the end of what has been read
)
EARLIER_BYTES = 256  # how far Cyrillic and other alphabets before the first Latin of a UTF-16 stretch are taken into it
PEEK_BYTES = 4096  # of what follows a line of UTF-16, to see whether it is UTF-16 still

LATIN = rb"[\t\n\r\x1b\x20-\x7e\xa0-\xff]"
LE, BE = rb"(?:%s\0)" % LATIN, rb"(?:\0%s)" % LATIN
# Four Latin characters in a row make a stretch. In "\n\0h\0" the line feed ends an 8-bit line before big-endian text.
WIDE_START = re.compile(
    rb"(?P<LE>(?<=\n)\xff\xfe|\xff\xfe(?=%s{2})|(?!\n\0)%s{4})|(?P<BE>(?<=\n)\xfe\xff|\xfe\xff(?=%s{2})|%s{4})"
    % (LE, LE, BE, BE)
)
WIDE_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
# Latin, and the alphabets of U+0100 to U+06FF, whose high byte no 8-bit text has
ALPHABETIC = {
    "utf-16-le": re.compile(rb"(?:%s|[\x00-\xff][\x01-\x06])*" % LE, re.DOTALL),
    "utf-16-be": re.compile(rb"(?:%s|[\x01-\x06][\x00-\xff])*" % BE, re.DOTALL),
}
# As UTF-16 these 16 bytes would be 8 ideographs that all look like pairs of ASCII characters.
ASCII_RUN = rb"[\t\r\x20-\x7e]{16}"
EIGHT_BIT_AGAIN = re.compile(
    rb"(?<=\0)\n?" + ASCII_RUN
)  # after half of a line feed, too: UTF-16 was cut off there
EIGHT_BIT_LINE = re.compile(rb"[^\0\n]*" + ASCII_RUN)
CONTROLS = bytes(
    {*range(0x20), 0x7F} - {*b"\a\b\t\n\f\r\x1b"}
)  # what the text of terminals does not have


@dataclass
class Piece:
    """Bytes of one kind, from one place in the file: whole lines, unless the kind changes or a line is very long."""

    offset: int
    kind: str  # EIGHT_BIT, "utf-16-le" or "utf-16-be"
    data: bytes


def pieces(
    file: BinaryIO, start: int = 0, read_bytes: int = READ_BYTES, line_bytes: int = LINE_BYTES
) -> Iterator[Piece]:
    """Cut a file into pieces from `start` on, which is its beginning or that of a line of a segment."""
    buffer, offset, at_end = b"", start, False
    kind, marked = EIGHT_BIT, False  # marked: UTF-16 that began with a byte order mark
    at_line_start, just_left_wide = True, False
    while True:
        kind_before = kind
        if kind == EIGHT_BIT:
            mark = WIDE_MARKS.get(buffer[:2]) if at_line_start and not just_left_wide else None
            end, wide = (
                (0, mark)
                if mark
                else _eight_bit_end(buffer, at_end, line_bytes, int(just_left_wide))
            )
            if wide is not None and end == 0:
                kind, marked = wide, buffer[:2] in WIDE_MARKS
        else:
            end, follows = _wide_end(buffer, at_end, kind, marked, at_line_start, line_bytes)
            if follows and end == 0:
                other = _wide_start(buffer)
                marked, kind = (
                    buffer[:2] in WIDE_MARKS,
                    EIGHT_BIT if other in (None, kind) else other,
                )
                just_left_wide = kind == EIGHT_BIT
        if end:
            data, buffer = buffer[:end], buffer[end:]
            yield Piece(offset, kind, data)
            offset += end
            at_line_start = data.endswith(b"\n" if kind == EIGHT_BIT else (b"\n\0", b"\0\n"))
            just_left_wide = False
            if (
                kind != EIGHT_BIT and follows == EIGHT_BIT
            ):  # seen by the NUL before it, which is gone from the buffer
                kind, just_left_wide = EIGHT_BIT, True
        elif kind == kind_before:  # nothing could be decided: more is needed
            if at_end:
                return
            file.seek(offset + len(buffer))
            more = file.read(read_bytes)
            buffer, at_end = buffer + more, not more


def _eight_bit_end(data: bytes, at_end: bool, line_bytes: int, skip: int) -> tuple[int, str | None]:
    """Return where the 8-bit lines at the start of `data` end for certain, and what UTF-16 follows there, if any."""
    found = None
    if b"\0" in data or codecs.BOM_UTF16_LE in data or codecs.BOM_UTF16_BE in data:
        found = WIDE_START.search(data, skip)
    if found:
        wide = "utf-16-le" if found["LE"] else "utf-16-be"
        high, first = bool(found["LE"]), max(skip, found.start() - EARLIER_BYTES)
        end = found.start()
        while (
            end - 2 >= first and 1 <= data[end - 2 + high] <= 6 and b"\n" not in data[end - 2 : end]
        ):
            end -= 2
        return end, wide
    if at_end:
        return len(data), None
    end = data.rfind(b"\n", 0, max(len(data) - HOLD_BYTES, 0)) + 1
    if end == 0 and len(data) > line_bytes + HOLD_BYTES:
        end = part_end(data, line_bytes)
    return end, None


def part_end(line: bytes, line_bytes: int) -> int:
    """Return where a line that is too long is cut: after a carriage return, else between two characters of UTF-8."""
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
    """Return where the lines of UTF-16 at the start of `data` end for certain, and what follows, if something else."""
    end = 0
    while end < len(data):
        if at_line_start and (end or WIDE_MARKS.get(data[:2]) != encoding):
            other = _is_eight_bit(data[end : end + PEEK_BYTES], at_end, encoding)
            if other is None:
                return end, None
            if other:
                return end, UNKNOWN
        line_end = _wide_line_end(data, end, encoding)
        limit = end + line_bytes - line_bytes % 2
        if line_end == 0 or line_end > limit:
            if len(data) <= limit and not at_end:
                return end, None
            line_end = min(limit, len(data))
            if limit < len(data) and 0xD8 <= data[limit - 1 - (encoding == "utf-16-be")] <= 0xDB:
                line_end -= 2  # between two characters, not within a pair of surrogates
        line = data[end:line_end]
        if found := EIGHT_BIT_AGAIN.search(line):
            return end + found.start(), EIGHT_BIT
        if not marked and not _is_wide(line, encoding):
            return end + ALPHABETIC[encoding].match(line).end(), UNKNOWN
        end, at_line_start = line_end, line.endswith((b"\n\0", b"\0\n"))
        if end >= READ_BYTES:
            break
    return end, None


def _wide_line_end(data: bytes, start: int, encoding: str) -> int:
    """Return the end of the line of UTF-16 that starts at `start`, or 0 if `data` does not hold it."""
    newline, found = "\n".encode(encoding), start - 1
    while (found := data.find(newline, found + 1)) >= 0:
        if (found - start) % 2 == 0:
            return found + 2
    return 0


def _is_wide(line: bytes, encoding: str) -> bool:
    """Tell whether a line after unmarked UTF-16 is UTF-16, too: Latin for the greater part, or nothing but text."""
    if 4 * line[encoding == "utf-16-le" :: 2].count(0) >= len(line):
        return True
    return line.endswith("\n".encode(encoding)) and _is_text_in(line, encoding)


def _is_text_in(data: bytes, encoding: str) -> bool:
    """Tell whether the first line of `data` reads as UTF-16 text; its last character may be cut off, not its end."""
    text, end, _ = (
        codecs.getincrementaldecoder(encoding)("surrogatepass").decode(data).partition("\n")
    )
    if not end and b"\n" in data:
        return False
    return not any(unicodedata.category(c) in NO_TEXT for c in set(text) - set("\t\r\x1b"))


def _wide_start(data: bytes) -> str | None:
    """Return the byte order of the UTF-16 that starts here by its mark or structure, if any does."""
    if data[:2] in WIDE_MARKS:
        return WIDE_MARKS[data[:2]]
    found = WIDE_START.match(data)
    return found and ("utf-16-le" if found["LE"] else "utf-16-be")


def _is_eight_bit(data: bytes, at_end: bool, encoding: str) -> bool | None:
    """Tell whether 8-bit text begins where a line of UTF-16 has ended; None: not enough bytes to tell.

    A line without NUL that is UTF-8, nearly ASCII or no text as UTF-16 is 8-bit text. As UTF-16 a short one may be
    ideographs, so of less than 8 bytes the next line must be of that kind, too.
    """
    if len(data) < PEEK_BYTES and not at_end:
        return None
    while True:
        if data.startswith(codecs.BOM_UTF8) or _wide_start(data) not in (None, encoding):
            return True
        length = data.find(b"\n") + 1 or len(data)
        line, data = data[:length], data[length:]
        if EIGHT_BIT_LINE.match(line):
            return True
        if data.startswith(b"\0"):
            return False
        if 0 < 4 * line.count(0) < len(line) and line.endswith(b"\n"):  # of UTF-16 they are half
            line = line.replace(b"\0", b"")
        if len(line.translate(None, CONTROLS)) < len(line):
            return False
        try:
            codecs.utf_8_decode(line, "strict", line.endswith(b"\n") or at_end)
        except UnicodeDecodeError:
            if len(line.translate(None, ASCII)) > len(line) / 4 and _is_text_in(
                line + data, encoding
            ):
                return False
        if len(line) >= 8 or not data:
            return True
        if WIDE_START.match(data):
            return True
