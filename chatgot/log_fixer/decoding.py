r"""Bytes of a log -> its text, piece by piece; the encoding may change in the middle.

Nothing is dropped. If several programs append to a log, it can contain UTF-8, UTF-16 (PowerShell's
`>>` appends it to any file) and lines in old code pages. `pieces` cuts out the stretches of UTF-16;
between two of them there is a segment of 8-bit lines. A line (or its part up to a carriage return)
is decoded

1. in ISO-2022-JP and its kin, if it has their escape sequences;
2. else as UTF-8, if it is valid UTF-8;
3. else in a code page of DOS, if it is clearly a drawing of lines and boxes;
4. else as broken UTF-8, if most of it is UTF-8, or if it can be a torn character of UTF-8 and the
   segment is in UTF-8;
5. else in one encoding, which is chosen for all such lines of the segment together (`segment`).

Whoever names an encoding chooses it for all lines of 3 and 5. A line that looks like mojibake in an
encoding that was only guessed is not sure: like all lines where no guess is sure enough, it keeps
its ASCII, and its other bytes become escapes (`\x81`).

The result does not depend on how many bytes are read at once. The memory needed does not depend on
the length of the file or of its lines.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from chatgot.data.encoding import ASCII, utf8_evidence
from chatgot.data.iso_2022 import EscapedLines, EscapedText, may_be_escaped
from chatgot.data.torn_characters import TornReader
from chatgot.log_fixer import broken_utf8
from chatgot.log_fixer.drawings import code_page_of, drawn_and_named, is_drawing
from chatgot.log_fixer.mojibake import is_suspect, may_hold_mojibake
from chatgot.log_fixer.pieces import (
    EIGHT_BIT,
    LINE_BYTES,
    READ_BYTES,
    Piece,
    SeekableFile,
    part_end,
    pieces,
)
from chatgot.log_fixer.segment import (
    LEADS,
    RAW_C1,
    WITHOUT_C1,
    Evidence,
    Judgement,
    named,
    without_marks,
)
from chatgot.log_fixer.telnet import commands_and_text, has_commands, without_commands

# The code pages of DOS draw with the same bytes
DOS_PAGES = re.compile(r"cp[478]\d\d|cp1125")
# A byte that is no part of a character: `surrogateescape`, and below 0x80 what was torn off there
SMUGGLED = re.compile("[\udc00-\udcff]")
ESCAPES = {chr(0xDC00 + byte): rf"\x{byte:02x}" for byte in range(0x100)}
SURROGATE = re.compile("[\ud800-\udfff]")
# How a line is read
UTF8 = "as UTF-8, sure"
BROKEN_UTF8 = "as UTF-8 with broken characters, sure"
JUDGED = "as the segment's unknown lines are"
DRAWN = "as a drawing"
# Encodings of more than 8 bits: a file is in one of them as a whole
WIDE_BYTES = {"utf-16": 2, "utf-16-le": 2, "utf-16-be": 2, "utf-32": 4, "utf-32-le": 4} | {
    "utf-32-be": 4
}
# As many whole characters of UTF-8 to each broken byte are no chance in a named encoding
BROKEN_SHARE = 4
HEAD_BYTES = 1 << 16

# After so many other lines, bytes do not continue a character that was cut off
LINES_BETWEEN = 4


@dataclass(frozen=True)
class Text:
    """Decoded characters."""

    characters: str
    is_guess: bool = False  # they were read in an encoding that was only guessed


class LogDecoder:
    """Decodes the pieces of one file, in their order, and counts encodings and bad bytes.

    encoding: of the lines that are not UTF-8; None: it is guessed.
    """

    def __init__(
        self,
        file: SeekableFile,
        read_bytes: int = READ_BYTES,
        line_bytes: int = LINE_BYTES,
        encoding: str | None = None,
    ) -> None:
        self._file = file
        self._named = _named(encoding)
        self._wide = encoding if encoding in WIDE_BYTES else None
        self._read_bytes = read_bytes
        self._line_bytes = line_bytes
        # How this segment's lines that are not UTF-8 are read
        self._judgement: Judgement | None = self._named
        self._escaped = EscapedLines()
        self._leads: set[int] = set()  # of the UTF-8 characters of this segment so far
        self._missing = 0  # bytes of the character that the last line above ASCII is cut off in
        self._lines_between = 0
        # Bytes decoded in each encoding: those above ASCII, and all bytes of UTF-16 and ISO-2022
        self.sizes: Counter[str] = Counter()
        # The highest confidence with which each encoding was guessed
        self.confidences: dict[str, float] = {}
        self.unread_bytes = 0  # above ASCII, in lines without a sure guess
        self.wide_nuls = 0  # NULs in UTF-16, which are dropped
        self.undecodable_bytes = 0
        self.first_undecodable: int | None = None  # offset in the file

    def pieces(self) -> Iterator[Piece]:
        if self._wide and not self._is_utf8_at_start():
            return self._wide_pieces(self._wide)
        return pieces(self._file, 0, self._read_bytes, self._line_bytes)

    def is_plain(self, piece: Piece) -> bool:
        """Return whether a piece is what it is if it is UTF-8: in no encoding of East Asia."""
        if piece.kind != EIGHT_BIT or may_be_escaped(piece.data):
            return False
        return self._judgement is None or not self._judgement.is_in_disguise

    def texts(self, piece: Piece) -> Iterator[Text]:
        r"""Yield the characters of a piece; an undecodable byte becomes an escape (`\x81`)."""
        if piece.kind != EIGHT_BIT:
            self._judgement = self._named
            self._escaped = EscapedLines()
            self._leads = set()
            self._missing = 0
            self.sizes[piece.kind] += len(piece.data)
            text = self._wide_text(piece)
            # UTF-32 is read as UTF-16 with a NUL after each character
            self.wide_nuls += text.count("\0")
            yield Text(text.replace("\0", ""))
            return
        if not self.is_plain(piece):
            yield from self._mixed_texts(piece)
            return
        try:
            text = piece.data.decode()
        except UnicodeDecodeError:
            yield from self._mixed_texts(piece)
            return
        self.count_utf8(piece.data)
        yield Text(text)

    def count_utf8(self, data: bytes) -> None:
        """Count a piece that is UTF-8 as a whole."""
        self._pass_utf8(data)
        self._count_utf8(data)

    def _pass_utf8(self, data: bytes) -> None:
        """Forget the character that was cut off, if these lines are too many or above ASCII."""
        if self._missing:
            self._lines_between += data.count(b"\n")
            if self._lines_between > LINES_BETWEEN or not data.isascii():
                self._missing = 0

    def _count_utf8(self, data: bytes) -> None:
        if not data.isascii():
            high = data.translate(None, ASCII)
            self.sizes["utf-8"] += len(high)
            self._leads |= broken_utf8.leads_in(high, set(LEADS - self._leads))

    # UTF-16 and UTF-32

    def _is_utf8_at_start(self) -> bool:
        self._file.seek(0)
        head = self._file.read(HEAD_BYTES)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(head)
        except UnicodeDecodeError:
            return False
        return b"\0" not in head

    def _wide_pieces(self, encoding: str) -> Iterator[Piece]:
        """Yield a file as pieces of a wide encoding, each of whole characters."""
        width = WIDE_BYTES[encoding]
        kind = encoding
        offset = 0
        self._file.seek(0)
        while True:
            self._file.seek(offset)
            data = self._file.read(max(self._read_bytes - self._read_bytes % 4, 8))
            if not data:
                return
            if encoding in ("utf-16", "utf-32") and offset == 0:
                is_big = data.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
                kind = f"{encoding}-be" if is_big else f"{encoding}-le"
            if width == 2 and len(data) > 2 and _ends_in_half_a_pair(data, kind):
                data = data[:-2]
            yield Piece(offset, kind, data)
            offset += len(data)

    def _wide_text(self, piece: Piece) -> str:
        if piece.kind.startswith("utf-32"):
            return self._utf32_text(piece)
        even = len(piece.data) & ~1
        text = piece.data[:even].decode(piece.kind, "surrogatepass")
        lone = SURROGATE.search(text)
        if lone:
            place = piece.offset + len(text[: lone.start()].encode("utf-16-le"))
            text, count = SURROGATE.subn(lambda c: rf"\u{ord(c[0]):04x}", text)
            self._count_undecodable(place, 2 * count)
        if even == len(piece.data):
            return text
        if piece.data[-1] in b"\0\n":  # half of a line feed, in either byte order
            return text + chr(piece.data[-1])
        self._count_undecodable(piece.offset + even, 1)  # half a character
        return text + rf"\x{piece.data[-1]:02x}"

    def _utf32_text(self, piece: Piece) -> str:
        try:
            return piece.data.decode(piece.kind)
        except UnicodeDecodeError:
            pass
        texts = []
        for start in range(0, len(piece.data), 4):
            unit = piece.data[start : start + 4]
            try:
                texts.append(unit.decode(piece.kind))
            except UnicodeDecodeError:
                self._count_undecodable(piece.offset + start, len(unit))
                texts.append("".join(rf"\x{byte:02x}" for byte in unit))
        return "".join(texts)

    # 8-bit lines

    def _mixed_texts(self, piece: Piece) -> Iterator[Text]:
        """Yield the lines of a piece; successive lines of one certainty come together."""
        for is_guess, group in groupby(self._texts_read_alike(piece), attrgetter("is_guess")):
            yield Text("".join(text.characters for text in group), is_guess)

    def _texts_read_alike(self, piece: Piece) -> Iterator[Text]:
        """Yield the lines of a piece; successive lines that are read alike come together."""
        may_be_escaped_here = may_be_escaped(piece.data)
        start = 0
        end = 0
        way = UTF8
        for line in _lines(piece.data, self._line_bytes):
            escaped = self._escaped.text(line) if may_be_escaped_here else None
            # The parts of a line that is too long are each read alone, as where the piece ends
            is_in_line = start < end and piece.data[end - 1] not in b"\r\n"
            goes_on = way is not DRAWN and not is_in_line
            if escaped is None and line.isascii() and line.endswith(b"\n") and goes_on:
                if self._missing:
                    self._pass_utf8(line)
                end += len(line)
                continue
            new_way = UTF8 if escaped else self._way(line, piece, end)
            if escaped is not None or new_way is not way or new_way is DRAWN or is_in_line:
                if start < end:
                    yield self._text(piece.data[start:end], way, piece.offset + start)
                start = end
                way = new_way
            end += len(line)
            if escaped is not None:
                yield self._escaped_text(escaped, line, piece.offset + start)
                start = end
        if start < end:
            yield self._text(piece.data[start:end], way, piece.offset + start)

    def _way(self, line: bytes, piece: Piece, place: int) -> str:
        """Return how the line at this place of a piece is read."""
        if _is_utf8(line):
            self._pass_utf8(line)
            judgement = self._judgement
            is_by_chance = judgement is not None and judgement.is_utf8_by_chance(line)
            return JUDGED if is_by_chance and not line.isascii() else UTF8
        if self._missing and broken_utf8.goes_on(line, self._missing):
            way = BROKEN_UTF8
        else:
            way = self._way_of_other_bytes(line, piece, place)
        self._missing = broken_utf8.missing_bytes(line) if way is BROKEN_UTF8 else 0
        self._lines_between = 0
        return way

    def _way_of_other_bytes(self, line: bytes, piece: Piece, place: int) -> str:
        """Return how a line is read that is not UTF-8."""
        body = without_marks(line)
        if has_commands(body):
            body = without_commands(body)
            if _is_utf8(body):
                return BROKEN_UTF8
        high = body.translate(None, ASCII)
        if self._named is None and is_drawing(body, high):
            self._judged(piece, place)
            return DRAWN
        judgement = self._judged(piece, place)
        is_broken = judgement.has_utf8 and broken_utf8.is_broken_utf8(body, high)
        if is_broken and not self._is_as_named(body):
            return BROKEN_UTF8
        return BROKEN_UTF8 if judgement.is_torn_utf8(body) else JUDGED

    def _is_as_named(self, line: bytes) -> bool:
        """Return whether a line of broken UTF-8 may be in the named encoding all the same."""
        if self._named is None or self._named.encoding is None:
            return False
        sequences, stray = utf8_evidence(line)
        if sequences >= BROKEN_SHARE * stray:
            return False
        try:
            line.decode(self._named.encoding)
        except UnicodeDecodeError:
            return False
        return True

    def _judged(self, piece: Piece, place: int) -> Judgement:
        """Return how the segment's unknown lines are read; decide it at the first such line.

        place: somewhere in that line, in the piece.
        """
        if self._judgement is None:
            line_start = piece.data.rfind(b"\n", 0, place) + 1
            evidence = Evidence(leads=self._leads | _utf8_leads(piece.data[:line_start]))
            self._look(piece.offset + line_start, evidence)
            self._judgement = evidence.judgement()
            encoding = self._judgement.encoding
            if encoding is not None:
                earlier = self.confidences.get(encoding, 0.0)
                self.confidences[encoding] = max(self._judgement.confidence, earlier)
        return self._judgement

    def _look(self, offset: int, evidence: Evidence) -> None:
        """Look at the lines of the segment from `offset` on."""
        for piece in pieces(self._file, offset, self._read_bytes, self._line_bytes):
            if piece.kind != EIGHT_BIT:
                return
            if _is_utf8(piece.data):
                evidence.add_utf8(piece.data)
                continue
            for line in _lines(piece.data, self._line_bytes):
                if line.isascii():
                    continue
                if _is_utf8(line):
                    evidence.add_utf8(line)
                else:
                    evidence.lines.offer(line)

    def _text(self, data: bytes, way: str, offset: int) -> Text:
        """Decode lines that are read alike."""
        if data.isascii():
            return Text(data.decode("ascii"))
        if way is UTF8:
            self._count_utf8(data)
            return Text(data.decode())
        if way is BROKEN_UTF8:
            return Text(self._broken_utf8_text(data, offset))
        judgement = self._judgement
        assert judgement is not None  # the first such line has decided it
        if way is DRAWN:
            characters = self._drawn_text(data, offset, judgement)
        else:
            characters = self._judged_text(data, offset, judgement)
        return Text(characters, is_guess=self._named is None)

    def _broken_utf8_text(self, data: bytes, offset: int) -> str:
        cesu_bytes = broken_utf8.cesu_bytes(data)
        if cesu_bytes:
            self.sizes["cesu-8"] += cesu_bytes
        other_bytes = len(data.translate(None, ASCII)) - cesu_bytes
        if other_bytes:
            self.sizes["utf-8"] += other_bytes
        parts = broken_utf8.decoded(data)
        return "".join(self._visible(text, "utf-8", offset + start) for start, text in parts)

    def _drawn_text(self, line: bytes, offset: int, judgement: Judgement) -> str:
        """Decode a line of a drawing; its letters may be in another code page than its lines."""
        encoding = judgement.names_encoding or code_page_of(line)
        if DOS_PAGES.fullmatch(encoding):
            return self._sure_text(line, encoding, offset, judgement)
        texts = []
        for part, is_drawn in drawn_and_named(line):
            page = "cp437" if is_drawn else encoding
            texts.append(self._sure_text(part, page, offset, judgement))
            offset += len(part)
        return "".join(texts)

    def _judged_text(self, data: bytes, offset: int, judgement: Judgement) -> str:
        encoding = judgement.encoding
        if codecs.BOM_UTF8 in data:
            return self._text_by_lines(data, encoding, offset, judgement)
        if encoding is not None and not _is_ascii_below_0x80(encoding):
            return self._text_by_lines(data, encoding, offset, judgement)
        return self._sure_text(data, encoding, offset, judgement)

    def _text_by_lines(
        self, data: bytes, encoding: str | None, offset: int, judgement: Judgement
    ) -> str:
        texts = []
        for line in data.splitlines(keepends=True):
            body = without_marks(line)
            marks = (len(line) - len(body)) // len(codecs.BOM_UTF8)
            texts.append("\ufeff" * marks)
            offset += len(line) - len(body)
            if body.isascii():
                texts.append(body.decode("ascii"))
            else:
                texts.append(self._sure_text(body, encoding, offset, judgement))
            offset += len(body)
        return "".join(texts)

    def _sure_text(
        self, data: bytes, encoding: str | None, offset: int, judgement: Judgement
    ) -> str:
        """Decode lines; a line that looks like mojibake in a guessed encoding becomes escapes."""
        text = self._read(data, encoding, judgement.reader)
        is_suspicious = self._named is None and _may_hold_mojibake(text)
        if is_suspicious and encoding is not None:
            if len(data.splitlines()) > 1:
                return self._text_by_lines(data, encoding, offset, judgement)
            if is_suspect(_without_smuggled(text).rstrip("\r\n")):
                encoding = None
                text = self._read(data, None, None)
        size = len(data.translate(None, ASCII))
        if encoding is None:
            self.unread_bytes += size
        else:
            self.sizes[encoding] += size
        return self._visible(text, encoding or "ascii", offset)

    def _read(self, data: bytes, encoding: str | None, reader: TornReader | None) -> str:
        """Decode lines; a byte that is no part of a character becomes one of U+DC80 to U+DCFF."""
        if has_commands(data):
            texts = []
            for part, is_text in commands_and_text(data):
                texts.append(
                    self._read_text(part, encoding, reader)
                    if is_text
                    else part.decode("ascii", "surrogateescape")
                )
            return "".join(texts)
        return self._read_text(data, encoding, reader)

    def _read_text(self, data: bytes, encoding: str | None, reader: TornReader | None) -> str:
        if encoding is None or encoding.startswith(WITHOUT_C1):
            return _with_introducers(data, encoding or "ascii")
        if encoding.startswith("utf-8"):
            return data.decode("utf-8", "surrogateescape")
        if reader is not None and reader.encoding == encoding:
            return _double_byte_text(data, reader)
        try:
            return data.decode(encoding, "surrogateescape")
        except UnicodeDecodeError:  # a byte below 0x80 is wrong, which nothing smuggles
            return data.decode("ascii", "surrogateescape")

    def _escaped_text(self, escaped: EscapedText, line: bytes, offset: int) -> Text:
        self.sizes[escaped.encoding] += len(line)
        return Text(self._visible(escaped.characters, None, offset))

    def _visible(self, text: str, encoding: str | None, offset: int) -> str:
        r"""Return a text with its torn bytes as escapes (`\x81`), and count them.

        encoding: of the bytes at `offset` that it was decoded from; None: no byte has a place.
        """
        smuggled = SMUGGLED.search(text)
        if not smuggled:
            return text
        place = offset
        if encoding is not None and self.first_undecodable is None:
            place += _byte_length(text[: smuggled.start()], encoding)
        text, count = SMUGGLED.subn(lambda c: ESCAPES[c[0]], text)
        self._count_undecodable(place, count)
        return text

    def _count_undecodable(self, offset: int, count: int) -> None:
        if self.first_undecodable is None:
            self.first_undecodable = offset
        self.undecodable_bytes += count


def _named(encoding: str | None) -> Judgement | None:
    return None if encoding is None or encoding in WIDE_BYTES else named(encoding)


def _ends_in_half_a_pair(data: bytes, encoding: str) -> bool:
    high_byte = data[-1] if encoding.endswith("le") else data[-2]
    return len(data) % 2 == 0 and 0xD8 <= high_byte <= 0xDB


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8_leads(data: bytes) -> set[int]:
    """Return the first bytes of the characters in those lines that are UTF-8."""
    evidence = Evidence()
    for line in data.splitlines():
        if not line.isascii() and _is_utf8(line):
            evidence.add_utf8(line)
    return evidence.leads


def _lines(data: bytes, line_bytes: int) -> Iterator[bytes]:
    """Yield lines, split at carriage returns too; a line over `line_bytes` comes in parts."""
    for line in data.splitlines(keepends=True):
        rest = line
        while len(rest) > line_bytes:
            end = part_end(rest, line_bytes)
            yield rest[:end]
            rest = rest[end:]
        yield rest


def _with_introducers(data: bytes, encoding: str) -> str:
    """Decode lines, but keep the introducers of their complete C1 sequences as C1 controls."""
    if b"\x9b" not in data and b"\x9d" not in data:
        return data.decode(encoding, "surrogateescape")
    texts = []
    end = 0
    for sequence in RAW_C1.finditer(data):
        start = sequence.start()
        texts.append(data[end:start].decode(encoding, "surrogateescape"))
        body = sequence[0].removesuffix(b"\x9c")
        texts.append(chr(body[0]))
        texts.append(body[1:].decode(encoding, "surrogateescape"))
        if len(body) < len(sequence[0]):
            texts.append("\x9c")
        end = sequence.end()
    texts.append(data[end:].decode(encoding, "surrogateescape"))
    return "".join(texts)


def _byte_length(text: str, encoding: str) -> int:
    try:
        return len(text.encode(encoding, "surrogateescape"))
    except UnicodeEncodeError:  # a C1 introducer, where each byte is a character
        return len(text)


def _double_byte_text(data: bytes, reader: TornReader) -> str:
    """Decode lines, all at once where no character in them is torn."""
    text = _whole_text(data, reader)
    if text is not None:
        return text
    texts = []
    for line in data.splitlines(keepends=True):
        text = _whole_text(line, reader)
        texts.append(reader.text(line) if text is None else text)
    return "".join(texts)


def _whole_text(data: bytes, reader: TornReader) -> str | None:
    try:
        text = data.decode(reader.encoding)
    except UnicodeDecodeError:
        return None
    return None if reader.is_odd(text) else text


def _may_hold_mojibake(text: str) -> bool:
    lines = text.replace("\r", "\n")  # what is before a return is judged alone
    return not text.isascii() and may_hold_mojibake(_without_smuggled(lines).encode())


def _without_smuggled(text: str) -> str:
    return SMUGGLED.sub("?", text)


def _is_ascii_below_0x80(encoding: str) -> bool:
    return ASCII.decode(encoding, "replace") == ASCII.decode("ascii")
