"""Bytes of a log -> its text, piece by piece; the encoding may change in the middle.

Nothing is dropped. If several programs append to a log, it can contain UTF-8, UTF-16 (PowerShell's
`>>` appends it to any file) and lines in old code pages. `pieces` cuts out the stretches of UTF-16;
between two of them there is a segment of 8-bit lines. A line (or its part up to a carriage return)
is decoded

1. as UTF-8, if it is valid UTF-8;
2. else in cp437 or cp850, if it is clearly a drawing of lines and boxes;
3. else as broken UTF-8, if most of it is UTF-8;
4. else in one encoding, which is chosen for all such lines of the segment together.

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

import chardet

from chatgot.data.encoding import (
    ASCII,
    C1_CONTROL,
    MIN_CONFIDENCE,
    SAMPLE_BYTES,
    is_mostly_utf8,
    utf8_evidence,
)
from chatgot.log_fixer.pieces import (
    EIGHT_BIT,
    LINE_BYTES,
    READ_BYTES,
    Piece,
    SeekableFile,
    part_end,
    pieces,
)

BOX_BYTES = bytes.fromhex(
    "b0 b1 b2 b3 b4 b9 ba bb bc bf c0 c1 c2 c3 c4 c5 c8 c9 ca cb cc cd ce d9 da db fe"
)
# The bytes of a table's lines are also letters: ÄÄÄ, ÚÄÄ, ³ ... ³ in cp1252, and ИНН in cp1251 is
# C8 CD CD. So dashes count as a drawing only inside a run of box bytes without a letter next to it,
# and corners only together with matching dashes.
_BOX = b"[" + re.escape(BOX_BYTES) + b"]"
_RUN = rb"(?<![\x80-\xffA-Za-z])(?=%s*+(?![\x80-\xffA-Za-z]))%s*?"
_BAR = rb"[\xb3\xba]"
_FRAME = (
    rb"\xda[\xc2\xc4]+\xbf|\xc3[\xc4\xc5]+\xb4|\xc0[\xc1\xc4]+\xd9"
    rb"|\xc9[\xcb\xcd]+\xbb|\xcc[\xcd\xce]+\xb9|\xc8[\xca\xcd]+\xbc"
)
DRAWINGS = [
    _RUN % (rb"[\xb0-\xdf\xfe]", rb"[\xb0-\xdf\xfe]") + rb"(?:\xc4{3}|\xcd{3})",
    _RUN % (_BOX, _BOX) + rb"[\xc0\xc3\xda]\xc4{2}",
    # double lines, also with a title
    rb"^[ \t]*(?:\xc9\xcd.*\xcd\xbb|\xc8\xcd.*\xcd\xbc|\xcc\xcd.*\xcd\xb9)[ \t]*[\r\n]*$",
    # what `tree` prints
    rb"^[\xb3\xff \t]*[\xc0\xc3]\xc4{3}|^\xb3   ",
    # bars
    rb"\xdb{4}|[\xb0-\xb2]{4}",
    # rows of tables
    rb"^[ \t]*%s[ \t].*[ \t]%s[ \t]*[\r\n]*$" % (_BAR, _BAR),
    rb"^[ \t]*%s(?:[\t -~]|%s)*%s[ \t]*[\r\n]*$" % (_BAR, _BOX, _BAR),
    rb"^[ \t]*(?:(?:%s)[ \t]*+)++[\r\n]*$" % _FRAME,
]
DRAWING = re.compile(b"|".join(DRAWINGS), re.DOTALL)
# Letters in cp850 that are lines or Greek in cp437, next to a letter
_ONLY_CP850 = rb"[\xb5-\xb7\xc6\xc7\xd0-\xd8\xde\xe0\xe2-\xe5\xe7-\xed]"
CP850_LETTER = re.compile(rb"[A-Za-z]%s|%s[A-Za-z]" % (_ONLY_CP850, _ONLY_CP850))
# A C1 sequence: one-byte introducer, parameters, end. cp1252 would read it as ›31m. In double-byte
# encodings no digit can follow the introducer's byte.
RAW_C1 = re.compile(
    rb"\x9b[;?]*+[0-9][0-9;?]*+[A-Za-z]"
    rb"|\x9d[0-9]++;[^\x00-\x08\x0a-\x1f\x7f-\x9f]*+(?:\x07|\x1b\\\\|\x9c)"
)
# In these code pages the introducers' bytes are rare signs, or C1 controls themselves
WITHOUT_C1 = ("cp125", "iso8859")
# An incomplete UTF-8 character at the end of a line
CUT_OFF = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xef][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})[\r\n]*\Z")
# Python's `surrogateescape` turns a byte that it cannot decode into one of these
SMUGGLED = re.compile("[\udc80-\udcff]")
SURROGATE = re.compile("[\ud800-\udfff]")


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
        self._encoding = encoding
        self._read_bytes = read_bytes
        self._line_bytes = line_bytes
        # The encoding chosen for this segment's lines that are not UTF-8
        self._segment_guess: str | None = None
        # Bytes decoded in each encoding: those above ASCII, and all bytes of UTF-16
        self.sizes: Counter[str] = Counter()
        # The highest confidence with which each encoding was guessed
        self.confidences: dict[str, float] = {}
        self.wide_nuls = 0  # NULs in UTF-16, which are dropped
        self.undecodable_bytes = 0
        self.first_undecodable: int | None = None  # offset in the file

    def pieces(self) -> Iterator[Piece]:
        return pieces(self._file, 0, self._read_bytes, self._line_bytes)

    def texts(self, piece: Piece) -> Iterator[Text]:
        r"""Yield the characters of a piece; an undecodable byte becomes an escape (`\x81`)."""
        if piece.kind != EIGHT_BIT:
            self._segment_guess = None
            self.sizes[piece.kind] += len(piece.data)
            text = self._wide_text(piece)
            # UTF-32 is read as UTF-16 with a NUL after each character
            self.wide_nuls += text.count("\0")
            yield Text(text.replace("\0", ""))
            return
        try:
            text = piece.data.decode()
        except UnicodeDecodeError:
            yield from self._mixed_texts(piece)
            return
        self.count_utf8(piece.data)
        yield Text(text)

    def count_utf8(self, data: bytes) -> None:
        if not data.isascii():
            self.sizes["utf-8"] += len(data.translate(None, ASCII))

    def _wide_text(self, piece: Piece) -> str:
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

    def _mixed_texts(self, piece: Piece) -> Iterator[Text]:
        """Yield the lines of a piece; successive lines of one certainty come together."""
        lines = self._mixed_lines(piece)
        for is_guess, group in groupby(lines, attrgetter("is_guess")):
            yield Text("".join(text.characters for text in group), is_guess)

    def _mixed_lines(self, piece: Piece) -> Iterator[Text]:
        offset = piece.offset
        for line in _lines(piece.data, self._line_bytes):
            if line.isascii():
                yield Text(line.decode("ascii"))
            else:
                yield self._line_text(line, offset, piece.offset)
            offset += len(line)

    def _line_text(self, line: bytes, offset: int, piece_offset: int) -> Text:
        marks = ""
        encoding = _known_encoding(line)
        is_guess = encoding != "utf-8"
        if encoding is None:
            encoding = self._encoding or self._segment_encoding(piece_offset)
            # A byte order mark belongs to the file, not to the line's encoding
            while line.startswith(codecs.BOM_UTF8):
                marks += "\ufeff"
                line = line[3:]
                offset += 3
        self.sizes[encoding] += len(line.translate(None, ASCII))
        if encoding.startswith(WITHOUT_C1):
            text = self._decoded_with_introducers(line, encoding, offset)
        else:
            text = self._decoded(line, encoding, offset)
        return Text(marks + text, is_guess)

    def _segment_encoding(self, piece_offset: int) -> str:
        """Return the encoding of the segment's unknown lines; choose it at the first such line."""
        if self._segment_guess is None:
            self._segment_guess, confidence = self._judge(piece_offset)
            earlier = self.confidences.get(self._segment_guess, 0.0)
            self.confidences[self._segment_guess] = max(confidence, earlier)
        return self._segment_guess

    def _decoded_with_introducers(self, line: bytes, encoding: str, offset: int) -> str:
        """Decode a line, but keep the introducers of its complete C1 sequences as C1 controls."""
        texts = []
        end = 0
        for sequence in RAW_C1.finditer(line):
            start = sequence.start()
            texts.append(self._decoded(line[end:start], encoding, offset + end))
            body = sequence[0].removesuffix(b"\x9c")
            texts.append(chr(body[0]))
            texts.append(self._decoded(body[1:], encoding, offset + start + 1))
            if len(body) < len(sequence[0]):
                texts.append("\x9c")
            end = sequence.end()
        texts.append(self._decoded(line[end:], encoding, offset + end))
        return "".join(texts)

    def _decoded(self, data: bytes, encoding: str, offset: int) -> str:
        text = data.decode(encoding, "surrogateescape")
        smuggled = SMUGGLED.search(text)
        if smuggled:
            place = offset + len(text[: smuggled.start()].encode(encoding))
            text, count = SMUGGLED.subn(lambda c: rf"\x{ord(c[0]) - 0xDC00:02x}", text)
            self._count_undecodable(place, count)
        return text

    def _count_undecodable(self, offset: int, count: int) -> None:
        if self.first_undecodable is None:
            self.first_undecodable = offset
        self.undecodable_bytes += count

    def _judge(self, offset: int) -> tuple[str, float]:
        """Return the encoding of the segment's unknown lines from `offset` on, and its confidence.

        It is chardet's answer, if the confidence is high enough and all lines decode without
        control characters; else it is cp1252.
        """
        sample = bytearray()
        for line in self._unknown_lines(offset):
            sample += line
            if len(sample) >= SAMPLE_BYTES:
                break
        if sample.isascii():
            return "cp1252", 0.0
        guess = chardet.detect(bytes(sample), max_bytes=SAMPLE_BYTES, compat_names=False)
        encoding = guess["encoding"]
        confidence = guess["confidence"]
        if (
            encoding
            and confidence >= MIN_CONFIDENCE
            and not encoding.startswith("utf")
            and all(_is_text_in(line, encoding) for line in self._unknown_lines(offset))
        ):
            return encoding, confidence
        return "cp1252", confidence if encoding == "cp1252" else 0.0

    def _unknown_lines(self, offset: int) -> Iterator[bytes]:
        """Yield the segment's lines of unknown encoding, without their C1 sequences."""
        for piece in pieces(self._file, offset, self._read_bytes, self._line_bytes):
            if piece.kind != EIGHT_BIT:
                return
            try:
                piece.data.decode()
            except UnicodeDecodeError:
                for line in _lines(piece.data, self._line_bytes):
                    if not line.isascii() and _known_encoding(line) is None:
                        yield RAW_C1.sub(b"", line)


def _lines(data: bytes, line_bytes: int) -> Iterator[bytes]:
    """Yield lines, split at carriage returns too; a line over `line_bytes` comes in parts."""
    for line in data.splitlines(keepends=True):
        rest = line
        while len(rest) > line_bytes:
            end = part_end(rest, line_bytes)
            yield rest[:end]
            rest = rest[end:]
        yield rest


def _known_encoding(line: bytes) -> str | None:
    """Return utf-8 (a few bytes may be broken), a code page for a drawing, or None: unknown."""
    try:
        line.decode()
        return "utf-8"
    except UnicodeDecodeError:
        pass
    high = line.translate(None, ASCII)
    if DRAWING.search(line) and 2 * len(high.translate(None, BOX_BYTES)) <= len(high):
        return "cp850" if CP850_LETTER.search(line) else "cp437"
    cut_off = CUT_OFF.search(line)
    if cut_off:
        sequences, stray = utf8_evidence(line[: cut_off.start()])
        stray += 1
    else:
        sequences, stray = utf8_evidence(line)
    return "utf-8" if sequences and is_mostly_utf8(sequences, stray) else None


def _is_text_in(line: bytes, encoding: str) -> bool:
    """Return whether a line decodes in this encoding, without C1 control characters."""
    try:
        return not C1_CONTROL.search(line.decode(encoding))
    except (UnicodeDecodeError, LookupError):
        return False
