"""Cut a log into pieces that are 8-bit text, UTF-16 or UTF-32.

The pieces together have all bytes of the file. A byte order mark counts only where text in its
encoding follows. Without a mark, UTF-16 is recognised by four Latin characters in a row, by six
letters of an alphabet, or by a line with a line end of UTF-16 that is text in UTF-16 and not in
UTF-8; UTF-32 by four characters in a row. The pieces' kinds do not depend on how many bytes are
read at once. The memory needed does not depend on the length of the file or of its lines.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from chatgot.data import wide

READ_BYTES = 1 << 20
LINE_BYTES = 1 << 21  # a longer line is judged in parts
EIGHT_BIT = "8-bit"
NULS = "nuls"  # UTF-16 or UTF-32 ends here, and a long run of NULs follows
UNKNOWN = "unknown"  # UTF-16 ends here, and the bytes after it have not been examined yet
# How far before its first Latin characters or line end a stretch of UTF-16 may begin
EARLIER_BYTES = 4096
PEEK_BYTES = wide.PEEK_BYTES  # examined after a mark or a line of UTF-16
ASCII_BYTES = 12  # so many in a row are no ideographs by chance
# What recognises a stretch is shorter than the second figure: the end of the buffer never cuts it
HOLD_BYTES = EARLIER_BYTES + 128
# So many NULs in a row belong to no text: a power cut or a truncated file left them
NUL_RUN = bytes(64)
MOST_OF_A_FEED = 3  # NULs that the first character after a run may begin with (UTF-32)

# Bytes that 8-bit text never has again and again: the high bytes of alphabets up to U+1FFF
HIGH_BYTES = frozenset({*range(0x01, 0x07), *range(0x0E, 0x1B), *range(0x1C, 0x20)})
_HIGH = b"[" + re.escape(bytes(sorted(HIGH_BYTES))) + b"]"
LATIN_BYTES = frozenset({*b"\t\n\r\x1b", *range(0x20, 0x7F), *range(0xA0, 0x100)})
ANY_LE = rb"(?:%s\0|[\x00-\xff]%s)" % (wide.LATIN, _HIGH)
ANY_BE = rb"(?:\0%s|%s[\x00-\xff])" % (wide.LATIN, _HIGH)
LE32 = rb"(?:(?!\0\0)[\x00-\xff]{2}[\0-\x02]\0)"
BE32 = rb"(?:\0[\0-\x02](?!\0\0)[\x00-\xff]{2})"
# In "\n\0h\0" the line feed ends an 8-bit line before big-endian text.
WIDE_START = re.compile(
    rb"(?P<MARK>\xff\xfe|\xfe\xff|\0\0\xfe\xff)"
    + rb"|(?P<LE32>(?!\n\0)%s{4})|(?P<BE32>%s{4})" % (LE32, BE32)
    + rb"|(?P<LE>(?!\n\0)(?:%s{4}|%s{6})|\r\0\n\0)" % (wide.LE, ANY_LE)
    + rb"|(?P<BE>%s{4}|%s{6}|\0\r\0\n)" % (wide.BE, ANY_BE)
    + rb"|(?P<LE_END>\n\0)|(?P<BE_END>\0\n)",
    re.DOTALL,
)
KINDS = {
    "LE": "utf-16-le",
    "BE": "utf-16-be",
    "LE32": "utf-32-le",
    "BE32": "utf-32-be",
    "LE_END": "utf-16-le",
    "BE_END": "utf-16-be",
}
# The same letters may be a stretch in the other byte order as well
OTHER_ORDER = {
    "LE": re.compile(rb"%s{6}" % ANY_BE, re.DOTALL),
    "BE": re.compile(rb"%s{6}" % ANY_LE, re.DOTALL),
}
WIDE_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
LATIN_PAIR = {
    "utf-16-le": re.compile(wide.LE + rb"{2}"),
    "utf-16-be": re.compile(wide.BE + rb"{2}"),
}
ALPHABETIC = {
    "utf-16-le": re.compile(rb"(?:%s)*" % ANY_LE, re.DOTALL),
    "utf-16-be": re.compile(rb"(?:%s)*" % ANY_BE, re.DOTALL),
}
UTF32 = {
    "utf-32-le": re.compile(rb"(?:[\x00-\xff]{2}[\0-\x10]\0)*+"),
    "utf-32-be": re.compile(rb"(?:\0[\0-\x10][\x00-\xff]{2})*+"),
}
RUNS = {
    "utf-16-le": re.compile(rb"%s{4}|%s{6}" % (wide.LE, ANY_LE), re.DOTALL),
    "utf-16-be": re.compile(rb"%s{4}|%s{6}" % (wide.BE, ANY_BE), re.DOTALL),
    "utf-32-le": re.compile(rb"%s{4}" % LE32),
    "utf-32-be": re.compile(rb"%s{4}" % BE32),
}
UTF32_BYTES = 1024  # of a stretch of UTF-32 that have to be text
STRANGE_BYTES = 256  # of a stretch whose byte order is not plain
ASCII_PAIR = {
    "utf-16-le": re.compile(rb"(?:..)*?([\t\r\n\x20-\x7e][\x20-\x7e])", re.DOTALL),
    "utf-16-be": re.compile(rb"(?:..)*?([\x20-\x7e][\t\r\n\x20-\x7e])", re.DOTALL),
}
# High bytes of alphabets that are control characters of 8-bit text, too
INDIC = range(0x07, 0x0E)
SURE_INDIC = 4  # such letters in a row
DOUBLE_BYTE = re.compile(rb"(?:[\t\r\n\x20-\x7e]|[\x81-\xfe][\x40-\x7e\x80-\xfe])+")
# 8-bit text after UTF-16, which may have been cut off in the middle of a line feed
EIGHT_BIT_AGAIN = re.compile(rb"(?<=\0)\n?" + wide.ASCII_RUN + rb"|" + wide.UTF8_RUN.pattern)


class SeekableFile(Protocol):
    """The methods that an open log needs: seek and read, in bytes."""

    def seek(self, offset: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...


@dataclass
class Piece:
    """Consecutive bytes of one kind.

    They are complete lines, unless the kind changes within a line, a line is very long or has a
    long run of NULs.
    """

    offset: int
    kind: str  # EIGHT_BIT, "utf-16-le", "utf-16-be", "utf-32-le" or "utf-32-be"
    data: bytes


@dataclass
class _Start:
    """Where the next wide stretch may begin, and its kind.

    No kind: more bytes are needed to decide.
    """

    place: int
    kind: str | None
    is_marked: bool = False


@dataclass
class _Position:
    """Where the buffer is in the file."""

    offset: int
    kind: str = EIGHT_BIT
    last_wide: str = ""  # the kind of the last wide stretch
    is_marked: bool = False  # this UTF-16 began with a byte order mark
    at_line_start: bool = True
    begins_segment: bool = True  # no part of an 8-bit line is before it
    just_left_wide: bool = False
    in_nuls: bool = False  # a long run of NULs is before it
    next_stretch: _Start | None = None  # begins where the next 8-bit piece ends

    def pass_by(self, piece: Piece, length: int) -> None:
        """Go to the end of a piece that has `length` bytes in the file."""
        self.offset += length
        ends = b"\n" if piece.kind == EIGHT_BIT else (b"\n\0", b"\0\n")
        self.at_line_start = piece.data.endswith(ends)
        is_eight_bit = piece.kind == EIGHT_BIT
        self.in_nuls = self.in_nuls and is_eight_bit and not piece.data.strip(b"\0")
        self.begins_segment = self.at_line_start or self.in_nuls or not is_eight_bit
        self.just_left_wide = False
        if self.next_stretch:
            self.enter(self.next_stretch)

    def enter(self, stretch: _Start) -> None:
        """Go on in a wide stretch."""
        assert stretch.kind is not None
        self.kind = stretch.kind
        self.last_wide = stretch.kind
        self.is_marked = stretch.is_marked
        self.next_stretch = None


def pieces(
    file: SeekableFile, start: int = 0, read_bytes: int = READ_BYTES, line_bytes: int = LINE_BYTES
) -> Iterator[Piece]:
    """Yield the pieces of a file from `start` on.

    start: 0, or where a line of 8-bit text begins. A mark at the start of the file that other text
    follows comes as a piece of its own, as the mark of UTF-8: an empty file had it.
    """
    buffer = b""
    at = _Position(start)
    at_end = False
    while True:
        if at.offset == 0 and at.kind == EIGHT_BIT:
            length = _false_mark(buffer, at_end)
            if length:
                piece = Piece(0, EIGHT_BIT, codecs.BOM_UTF8)
                yield piece
                at.pass_by(piece, length)
                at.at_line_start = True
                at.begins_segment = True
                buffer = buffer[length:]
        kind_before = at.kind
        end, follows = _end(buffer, at_end, at, line_bytes)
        if end:
            piece = Piece(at.offset, at.kind, buffer[:end])
            buffer = buffer[end:]
            yield piece
            at.pass_by(piece, end)
            # it was recognised by the NUL before it, which is no longer in the buffer
            if at.kind != EIGHT_BIT and follows == EIGHT_BIT:
                at.kind = EIGHT_BIT
                at.just_left_wide = True
        elif at.kind == kind_before:  # more bytes are needed to decide
            if at_end:
                return
            file.seek(at.offset + len(buffer))
            more = file.read(read_bytes)
            buffer += more
            at_end = not more


def _end(data: bytes, at_end: bool, at: _Position, line_bytes: int) -> tuple[int, str | None]:
    """Return up to where `data` certainly is of the kind that it is in, and what follows.

    0: the kind has changed, or more bytes are needed.
    """
    if at.kind == EIGHT_BIT:
        end, wide_start = _eight_bit_end(data, at_end, line_bytes, at)
        if wide_start is not None:
            at.next_stretch = wide_start
            if end == 0:
                at.enter(wide_start)
        return end, None
    if at.kind in UTF32:
        end, follows = _utf32_end(data, at_end, at.kind)
    else:
        end, follows = _wide_end(data, at_end, at, line_bytes)
    if follows and end == 0:
        other = _wide_start(data, at_end, at.kind)
        if other in (None, at.kind) or at.kind in UTF32:
            at.kind = EIGHT_BIT
            at.just_left_wide = follows != NULS
        else:
            assert other is not None
            at.kind = other
            at.is_marked = wide.mark_of(data) is not None
        at.begins_segment = True
    return end, follows


def _false_mark(data: bytes, at_end: bool) -> int:
    """Return the length of a mark at the start of a file that other text follows; 0: none."""
    mark = wide.mark_of(data)
    if mark is None or (len(data) < PEEK_BYTES + len(mark[0]) and not at_end):
        return 0
    shown = data[: PEEK_BYTES + 4]
    if wide.marked_encoding(shown, at_end and len(shown) == len(data)):
        return 0
    return len(mark[0])


def _eight_bit_end(
    data: bytes, at_end: bool, line_bytes: int, at: _Position
) -> tuple[int, _Start | None]:
    """Return up to where `data` certainly is 8-bit lines, and what begins there.

    None: nothing wide begins there.
    """
    skip = int(at.just_left_wide)
    if data.startswith(NUL_RUN if not at.in_nuls else NUL_RUN[: MOST_OF_A_FEED + 1]):
        at.in_nuls = True
        nuls = len(data) - len(data.lstrip(b"\0"))
        return nuls if at_end and nuls == len(data) else nuls - MOST_OF_A_FEED, None
    nul_run = data.find(NUL_RUN, skip) if b"\0" in data else -1
    found = None
    if b"\0" in data or codecs.BOM_UTF16_LE in data or codecs.BOM_UTF16_BE in data:
        found = _first_start(data, skip, at_end, at)
    if found and found.kind and not -1 < nul_run < found.place:
        return found.place, found
    if nul_run > 0 and (not found or nul_run < found.place):
        return nul_run, None
    if at_end:
        return len(data), None
    certain = len(data) - HOLD_BYTES
    if found:
        certain = min(certain, found.place - EARLIER_BYTES)
    end = data.rfind(b"\n", 0, max(certain, 0)) + 1
    if end == 0 and certain > line_bytes:
        end = part_end(data, line_bytes)
    return end, None


def _first_start(data: bytes, skip: int, at_end: bool, at: _Position) -> _Start | None:
    """Return the first place from `skip` on where a wide stretch begins."""
    place = skip
    while True:
        match = WIDE_START.search(data, place)
        if match is None:
            return None
        if len(data) < match.end() + PEEK_BYTES and not at_end:
            return _Start(match.start(), None)
        if match["MARK"]:
            start = _marked_start(data, match.start(), at_end, skip, at)
        else:
            start = _unmarked_start(data, match, skip, at)
        if start:
            return start
        place = match.start() + 1


def _marked_start(data: bytes, place: int, at_end: bool, skip: int, at: _Position) -> _Start | None:
    """Return the stretch whose byte order mark is at `place`, if text in its encoding follows."""
    shown = data[place : place + PEEK_BYTES]
    starts_line = at.at_line_start if place == 0 else data[place - 1 : place] == b"\n"
    starts_line = starts_line and bool(place or not skip)
    if not starts_line and b"\0" not in shown:
        return None
    is_whole = at_end and place + PEEK_BYTES >= len(data)
    encoding = wide.marked_encoding(shown, is_whole)
    if encoding is None:
        return None
    if starts_line or _is_plain_after_mark(shown, encoding):
        return _Start(place, encoding, is_marked=True)
    return None


def _is_plain_after_mark(data: bytes, encoding: str) -> bool:
    """Tell whether a mark within a line is one beyond doubt: Latin or a whole line follows it."""
    if encoding in UTF32:
        return True
    line = wide.first_line(data[2:], encoding)
    latin = LATIN_PAIR[encoding].match(data, 2)
    return bool(latin) or (len(line) > 2 and wide.is_text(line, encoding))


def _unmarked_start(data: bytes, match: re.Match[bytes], skip: int, at: _Position) -> _Start | None:
    """Return the stretch without a mark that a match of WIDE_START is in; None: there is none."""
    name = match.lastgroup
    assert name is not None
    place = match.start()
    kind = KINDS[name]
    is_line_end = name.endswith("_END")
    if not is_line_end:
        candidates = [
            (start, encoding)
            for encoding, run in RUNS.items()
            for start in range(place, place + (4 if encoding in UTF32 else 2))
            if (encoding in UTF32) == (kind in UTF32)
            and run.match(data, start)
            and _may_be_before(data[place:start])
        ]
        candidates = candidates or [(place, kind)]
        place, kind = min(candidates, key=lambda found: _strangeness(data, found[0], found[1], at))
    if kind in UTF32:
        return _Start(place, kind) if _is_utf32_text(data, place, kind) else None
    start = _beginning(data, place, skip, kind, at)
    is_bare_end = is_line_end or match[0] == "\r\n".encode(kind)
    if is_bare_end and start == place and (is_line_end or not _starts_line(data, place, at, skip)):
        return None
    return _Start(start, kind)


def _is_utf32_text(data: bytes, place: int, kind: str) -> bool:
    """Tell whether UTF-32 at `place` is text: arrays of small numbers look like UTF-32, too."""
    run = UTF32[kind].match(data, place, place + UTF32_BYTES)
    assert run is not None  # it also matches the empty string
    text = run[0].decode(kind, "replace").partition("\0")[0]
    return wide.is_mostly_text(text) and "\ufffd" not in text


def _may_be_before(skipped: bytes) -> bool:
    """Tell whether bytes may belong to what is before a stretch: NULs, or the end of a line."""
    return not skipped.strip(b"\0") or skipped.endswith(b"\n")


def _strangeness(data: bytes, place: int, kind: str, at: _Position) -> tuple[int, ...]:
    """Return how unlikely it is that a stretch of this kind begins at `place`.

    Read in the wrong byte order, a text has characters from many blocks. Latin alone looks alike in
    both orders where NULs are before it; it keeps its alignment in the file, as a rule.
    """
    width = 4 if kind in UTF32 else 2
    shown = data[place : place + STRANGE_BYTES]
    text = shown[: len(shown) // width * width].decode(kind, "replace")
    text = text.lstrip("\r\n").partition("\n")[0]
    blocks = len({ord(c) >> 8 for c in text})
    is_after_nul = place > 0 and data[place - 1] == 0
    is_other = is_after_nul and kind != at.last_wide
    misaligned = (at.offset + place) % width if is_after_nul else place
    is_strange = not wide.is_mostly_text(text) or "\ufffd" in text
    is_before = kind == "utf-16-le" and data[place] in b"\0\n"  # the NUL, or an 8-bit line's end
    strange = wide.strange_characters(text)
    other_letters = 100 * sum(c >= "\x80" for c in text) // max(len(text), 1)
    return is_strange or is_before, blocks, strange, other_letters, is_other, misaligned


def _beginning(data: bytes, place: int, skip: int, kind: str, at: _Position) -> int:
    """Return where the UTF-16 begins that a match at `place` belongs to.

    It begins after an 8-bit line, or where its letters of alphabets begin.
    """
    floor: int = max(skip, place - EARLIER_BYTES)
    start = _before_alphabets(data, place, floor, kind)
    if _starts_line(data, start, at, skip):
        return start
    candidate = _line_start_before(data, start, floor, at, skip)
    if candidate is None or not _is_wide_part(data, candidate, start, kind):
        return start
    while True:  # some ideographs, and the scripts of U+0A00 to U+0AFF, have the byte of a line end
        earlier = _line_start_before(data, candidate, floor, at, skip)
        if earlier is None or not _is_wide_line(data[earlier:candidate], kind):
            return candidate
        candidate = earlier


def _starts_line(data: bytes, place: int, at: _Position, skip: int) -> bool:
    if place == 0:
        return at.begins_segment and not skip
    return data[place - 1 : place] == b"\n"


def _line_start_before(data: bytes, place: int, floor: int, at: _Position, skip: int) -> int | None:
    """Return the next start of an 8-bit line that is an even number of bytes before `place`."""
    end = place - 1
    while True:
        line_feed = data.rfind(b"\n", max(floor - 1, 0), max(end, 0))
        if line_feed < 0:
            break
        if (place - line_feed - 1) % 2 == 0:
            return line_feed + 1
        end = line_feed
    if floor or skip or not at.begins_segment:
        return None
    nuls = 0
    while data[nuls : nuls + 1] == b"\0":
        nuls += 1
    segment = nuls - (place - nuls) % 2  # a NUL may belong to the first character
    return segment if 0 <= segment < place else None


def _is_wide_part(data: bytes, start: int, end: int, kind: str) -> bool:
    """Tell whether the bytes before Latin characters of UTF-16 in a line are UTF-16, too."""
    part = data[start:end]
    feed = "\n".encode(kind)
    bare = part.replace(feed, b"")  # many programs write a NUL after each line
    if not bare or wide.is_utf8_line(bare.strip(b"\0")) or not wide.is_text(part, kind):
        return False
    if 2 * len(ASCII_PAIR[kind].findall(bare)) > len(bare) // 2:
        return False
    high_bytes = part[1::2] if kind == "utf-16-le" else part[0::2]
    is_indic = 4 * sum(byte in INDIC for byte in high_bytes) > len(part)
    if not is_indic and any(_is_plain_line(line) for line in part.split(b"\n")):
        return False
    is_windows_line = data.startswith("\r\n".encode(kind), end)
    return is_windows_line or not DOUBLE_BYTE.fullmatch(bare)


def _is_plain_line(line: bytes) -> bool:
    """Tell whether a line is 8-bit text by more than chance."""
    bare = line.strip(b"\0")
    return len(bare) >= wide.SHORT_BYTES and wide.is_utf8_line(bare)


def _is_wide_line(line: bytes, kind: str) -> bool:
    """Tell whether what looks like an 8-bit line is a part of a line in UTF-16."""
    if wide.is_utf8_line(line) or not wide.is_text(line, kind):
        return False
    if kind == "utf-16-le":
        return 4 * line[1::2].count(b"\n") >= len(line)
    return len(line.translate(None, wide.CONTROLS)) < len(line)


def _before_alphabets(data: bytes, end: int, earliest: int, kind: str) -> int:
    """Return where the UTF-16 in alphabets begins that ends at `end`."""
    high_byte = 1 if kind == "utf-16-le" else 0
    while end - 2 >= earliest:
        character = data[end - 2 : end]
        if character[high_byte] not in HIGH_BYTES or b"\n" in character:
            break
        end -= 2
    return _before_indic(data, end, earliest, kind)


def _before_indic(data: bytes, end: int, earliest: int, kind: str) -> int:
    """Return where the UTF-16 in the scripts of U+0700 to U+0DFF begins that ends at `end`."""
    high_byte = 1 if kind == "utf-16-le" else 0
    start = end
    letters = 0
    while start - 2 >= earliest:
        character = data[start - 2 : start]
        if character[high_byte] in INDIC:
            letters += 1
        elif character[high_byte] or character[1 - high_byte] not in LATIN_BYTES:
            break
        start -= 2
    if letters < SURE_INDIC:
        return end
    ends_8_bit_line = kind == "utf-16-le" and start > 1 and data[start + 1 : start + 2] == b"\n"
    return start + 2 if ends_8_bit_line and data[start] >= 0x20 else start


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


def _utf32_end(data: bytes, at_end: bool, kind: str) -> tuple[int, str | None]:
    """Return up to where `data` is UTF-32, and UNKNOWN where something else follows.

    0 and None: more bytes are needed.
    """
    match = UTF32[kind].match(data)
    assert match is not None  # it also matches the empty string
    nul_run = data.find(NUL_RUN)
    end = match.end()
    if 0 <= nul_run < end:
        end = nul_run + -nul_run % 4
        return end, NULS
    if end + 4 <= len(data):
        return end, UNKNOWN
    if at_end:
        return (end, None) if end else (0, UNKNOWN)
    return max(0, min(end, len(data) - HOLD_BYTES) // 4 * 4), None


def _wide_end(data: bytes, at_end: bool, at: _Position, line_bytes: int) -> tuple[int, str | None]:
    """Return up to where `data` is certainly UTF-16 lines, and the kind of the bytes after that.

    None: UTF-16 continues, or more bytes are needed to decide.
    """
    kind = at.kind
    at_line_start = at.at_line_start
    end = 0
    while end < len(data):
        is_mark = WIDE_MARKS.get(data[:2]) == kind and end == 0 and at.is_marked
        if at_line_start and not is_mark:
            is_eight_bit = _is_eight_bit(data[end : end + PEEK_BYTES], at_end, kind)
            if is_eight_bit is None:
                return end, None
            if is_eight_bit:
                return end, UNKNOWN
        line_end = wide.line_end(data, end, kind)
        limit = end + line_bytes - line_bytes % 2
        if line_end == 0 or line_end > limit:
            if len(data) <= limit and not at_end:
                return end, None
            line_end = _wide_part_end(data, limit, kind)
        line = data[end:line_end]
        nul_run = line.find(NUL_RUN)
        if nul_run >= 0:
            return end + nul_run + nul_run % 2, NULS
        eight_bit = EIGHT_BIT_AGAIN.search(line)
        if eight_bit:
            return end + eight_bit.start(), EIGHT_BIT
        is_last = at_line_start and at_end and line_end == len(data)
        if not at.is_marked and not _is_wide(line, kind, is_last):
            alphabetic = ALPHABETIC[kind].match(line)
            assert alphabetic is not None  # it also matches the empty string
            return end + alphabetic.end(), UNKNOWN
        end = line_end
        at_line_start = line.endswith((b"\n\0", b"\0\n"))
        if end >= READ_BYTES:
            break
    return end, None


def _wide_part_end(data: bytes, limit: int, encoding: str) -> int:
    """Return where to cut a UTF-16 line that is too long or has no end: between two characters."""
    if limit >= len(data):
        return len(data)
    high_byte = limit - 1 if encoding == "utf-16-le" else limit - 2
    cuts_surrogate_pair = 0xD8 <= data[high_byte] <= 0xDB
    return limit - 2 if cuts_surrogate_pair else limit


def _is_wide(line: bytes, encoding: str, is_whole: bool) -> bool:
    """Return whether a line after UTF-16 without a mark is UTF-16: half Latin or more, or text."""
    high_bytes = line[1::2] if encoding == "utf-16-le" else line[0::2]
    if 4 * high_bytes.count(0) >= len(line):
        return True
    if _is_ascii_text(line, high_bytes):
        return False
    is_whole = is_whole or line.endswith("\n".encode(encoding))
    return is_whole and wide.is_text(line, encoding)


def _is_ascii_text(line: bytes, high_bytes: bytes) -> bool:
    """Return whether a line is ASCII that would decode to ideographs of many blocks.

    In hiragana, most bytes are below 0x80 as well, but every second one is 0x30.
    """
    if len(line) < ASCII_BYTES or not line.isascii():
        return False
    most = max(map(high_bytes.count, set(high_bytes)))
    return 2 * most < len(high_bytes)


def _wide_start(data: bytes, at_end: bool, current: str) -> str | None:
    """Return the encoding of UTF-16 or UTF-32 at the start of `data`; None: 8-bit text is there.

    current: the encoding before it. It goes on where letters may be of either byte order.
    """
    encoding = wide.marked_encoding(data[: PEEK_BYTES + 4], at_end and len(data) <= PEEK_BYTES)
    if encoding:
        return encoding
    match = WIDE_START.match(data)
    if match is None or match["MARK"] or match["LE_END"] or match["BE_END"]:
        return None
    name = match.lastgroup or ""
    if name in OTHER_ORDER and OTHER_ORDER[name].match(data):
        return current
    return KINDS[name]


def _is_eight_bit(data: bytes, at_end: bool, encoding: str) -> bool | None:
    """Return whether 8-bit text, or UTF-16 of the other order, begins after a line of UTF-16.

    None: more bytes are needed to decide.
    """
    if LATIN_PAIR[encoding].match(data):
        return False
    if len(data) < PEEK_BYTES and not at_end:
        return None
    if _wide_start(data, at_end, encoding) not in (None, encoding):
        return True
    return not wide.reads_as(data, encoding, at_end and len(data) < PEEK_BYTES)
