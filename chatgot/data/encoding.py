"""Find the encoding of a text file and decode the file in it: exactly, or not at all.

UTF-8 is tried first, on the whole file. Only what is not UTF-8 is guessed, and a guess has to
decode every byte. No byte is ever replaced or dropped: what cannot be decoded is refused, with its
offset in the file.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from chatgot.data import wide
from chatgot.data.ebcdic import EBCDIC_ADVICE, is_ebcdic
from chatgot.data.encoding_guess import guess_encoding, is_rather_utf8
from chatgot.data.iso_2022 import escaped_encoding, has_designator, may_be_escaped
from chatgot.errors import ConfigError

CHUNK_BYTES = 1 << 22
PROBE_BYTES = 1 << 17  # decoded at a time for a look: in small chunks few emoji make few wide ones
HEAD_BYTES = 1 << 16  # enough to see the structure of UTF-16 and UTF-32
SAMPLE_BYTES = 1 << 20  # how much of the lines that are not UTF-8 is looked at
UTF8_SAMPLE_BYTES = 1 << 18  # how much of the lines that are UTF-8 is looked at

# Lone surrogates (ED A0 80 ...) fit this pattern: broken UTF-8, not text in another encoding.
UTF8_SEQUENCE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
SURE_SEQUENCES = 8  # so many in one line that is wholly UTF-8 are no chance
ASCII = bytes(range(0x80))
CONTROL_BYTES = bytes({*range(0x20), 0x7F} - {*b"\t\n\r\f"})
C1_CONTROL = re.compile("[\x80-\x9f]")  # no text has them: they show that a guess is wrong


class Undecodable(ConfigError):
    """A text that is not in the encoding it is read in; `offset`: in bytes from the start.

    is_cut_off: the file ends there, within a character.
    """

    def __init__(self, message: str, offset: int, is_cut_off: bool = False) -> None:
        super().__init__(message)
        self.offset = offset
        self.is_cut_off = is_cut_off


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes.

    Raises: ConfigError when the file cannot be opened, or when reading it fails later in the block.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def decoded_chunks(path: Path, encoding: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[str]:
    """Yield a file's characters; newlines and the byte order mark stay as they are.

    Raises: Undecodable at the first byte that is not in this encoding; ConfigError.
    """
    codec = "utf-8" if encoding == "utf-8-sig" else encoding
    decoder = codecs.getincrementaldecoder(codec)()
    end = 0  # bytes read
    is_whole = False  # the whole file has been read
    with open_text(path) as file:
        try:
            while chunk := file.read(chunk_bytes):
                end += len(chunk)
                yield decoder.decode(chunk)
            is_whole = True
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            # error.object: what the decoder kept of the last chunk, then this chunk
            offset = end - len(error.object) + error.start
            if is_whole:
                raise _cut_off(path, encoding, offset, end - offset) from error
            message = (
                f"{path}: not {encoding} at byte offset {offset}: "
                f"byte 0x{error.object[error.start]:02X}, {error.reason}; mend the file there, "
                "or set data.encoding to the encoding it was written in"
            )
            raise Undecodable(message, offset) from error


def _cut_off(path: Path, encoding: str, offset: int, left_over: int) -> Undecodable:
    words = "byte is" if left_over == 1 else f"{left_over} bytes are"
    message = (
        f"{path}: ends within a character: not {encoding} at byte offset {offset}, "
        f"the last {words} a part of a character; get the whole file, or cut it there"
    )
    return Undecodable(message, offset, is_cut_off=True)


def detect_encoding(path: Path) -> str:
    """Return the Python codec that decodes a file: "utf-8" wherever that is possible.

    Order: byte order mark; UTF-16 or UTF-32 by structure; UTF-8, unless its ASCII is a 7-bit
    encoding of East Asia, which escape sequences designate (ISO-2022-JP, HZ); the guess about the
    lines that are not UTF-8, if it decodes the whole file. After a mark or a structure it is looked
    whether 8-bit text follows; `decoded_chunks` finds what does not decode.

    Raises: Undecodable for UTF-8 with broken bytes, for what is no text, for what is not wholly in
    the guessed encoding, and where no guess is sure enough; ConfigError.
    """
    with open_text(path) as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    wide_encoding = _wide_encoding(path, head)
    if wide_encoding:
        return wide_encoding
    not_utf8 = _first_fault(path, "utf-8")
    if not_utf8 is None:
        return _seven_bit_encoding(path) or "utf-8"
    evidence = _evidence(path)
    if is_mostly_utf8(evidence.sequences, evidence.stray):
        two_encodings = evidence.has_other_lines and not not_utf8.is_cut_off
        raise evidence.two_encodings(path, not_utf8) if two_encodings else not_utf8
    if evidence.has_sure_utf8_lines:
        raise evidence.two_encodings(path, not_utf8)
    if is_ebcdic(evidence.sample[:HEAD_BYTES]):
        raise Undecodable(f"{path}: {EBCDIC_ADVICE}", 0)
    _refuse_control_bytes(path)
    encoding = _guess_encoding(path, evidence.sample, not_utf8)
    if evidence.has_utf8_lines(encoding):
        raise evidence.two_encodings(path, not_utf8)
    return encoding


def _seven_bit_encoding(path: Path) -> str | None:
    """Return the 7-bit encoding that designators of an ASCII file name, or None.

    Raises: Undecodable where the file is not wholly in it.
    """
    if not _has_any(path, may_be_escaped):  # far faster than line by line, and most texts have none
        return None
    sample = b""
    with open_text(path) as file:
        while line := file.readline(HEAD_BYTES):
            if sample or may_be_escaped(line):
                sample += line
            if len(sample) >= HEAD_BYTES:
                break
    encoding = escaped_encoding(sample)
    if encoding is None and sample.isascii() and has_designator(sample):
        encoding = "iso2022_jp"  # torn, for the message
    if encoding is None:
        return None
    fault = _first_fault(path, encoding)
    if fault is None:
        return encoding
    if encoding == "hz":  # `~{` has other meanings, too
        return None
    raise fault


def _has_any(path: Path, test: Callable[[bytes], bool]) -> bool:
    """Return whether a test of a few bytes in a row is true anywhere in a file."""
    last = b""
    with open_text(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if test(last + chunk[:HEAD_BYTES]) or test(chunk):
                return True
            last = chunk[-8:]
    return False


def _wide_encoding(path: Path, head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if a mark says so and what follows agrees, or if the structure does.

    Raises: Undecodable for a mark before other text, and for 8-bit text further on.
    """
    is_whole = len(head) < HEAD_BYTES
    encoding = wide.marked_encoding(head, is_whole)
    mark = wide.mark_of(head)
    if encoding is None and mark:
        length = len(mark[0])
        message = (
            f"{path}: begins with the byte order mark of {mark[1]}, but at byte offset {length} "
            f"goes on as other text; remove the mark (the first {length} bytes), "
            "or set data.encoding"
        )
        raise Undecodable(message, length)
    if encoding is None and b"\0" in head:
        encoding = wide.wide_encoding(head)
    if encoding:
        _refuse_eight_bit(path, encoding)
    return encoding


def _refuse_eight_bit(path: Path, encoding: str) -> None:
    """Raise Undecodable where 8-bit text follows in a file that begins in UTF-16 or UTF-32.

    In UTF-16 such text would decode, to ideographs. What does not decode, `decoded_chunks` refuses.
    """
    start = 0  # of the chunk, in bytes
    with open_text(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            place = wide.eight_bit_place(chunk, encoding)
            if place is not None:
                offset = start + place
                message = (
                    f"{path}: two encodings in one text: {encoding} at byte offset 0, "
                    f"8-bit text at byte offset {offset}; convert one of them, "
                    "or set data.encoding to read all of it in one encoding"
                )
                raise Undecodable(message, offset)
            start += len(chunk)


def _guess_encoding(path: Path, sample: bytes, not_utf8: Undecodable) -> str:
    """Return the encoding that the sample is most likely in, if it decodes the whole file.

    Raises: Undecodable, with the place, when no encoding is likely enough or the whole file is not
    in the likely one.
    """
    encoding = guess_encoding(sample).encoding
    if encoding is None:
        message = (
            f"{path}: not UTF-8 at byte offset {not_utf8.offset}, and which old encoding it is in "
            "is not sure; set data.encoding, or convert the file to UTF-8"
        )
        raise Undecodable(message, not_utf8.offset)
    fault = _first_fault(path, encoding) or _first_control(path, encoding)
    if fault is None:
        return encoding
    message = (
        f"{path}: not UTF-8 at byte offset {not_utf8.offset}; most of it is {encoding}, but not at "
        f"byte offset {fault.offset}; mend the file there, or set data.encoding"
    )
    raise Undecodable(message, fault.offset)


def utf8_evidence(text: bytes) -> tuple[int, int]:
    """Return how many UTF-8 sequences there are, and how many other bytes above ASCII."""
    rest, sequences = UTF8_SEQUENCE.subn(b"", text)
    return sequences, len(rest.translate(None, ASCII))


def is_mostly_utf8(sequences: int, stray: int) -> bool:
    return sequences >= stray  # in texts in 21 legacy encodings at most 0.41 x as many (measured)


def _first_fault(path: Path, encoding: str) -> Undecodable | None:
    """Return what is wrong at the first byte that is not in this encoding, or None."""
    try:
        for _ in decoded_chunks(path, encoding, PROBE_BYTES):
            pass
    except Undecodable as fault:
        return fault
    return None


def _first_control(path: Path, encoding: str) -> Undecodable | None:
    """Return where the first C1 control is in this encoding, or None: no text has any."""
    start = 0  # bytes before the chunk
    for text in decoded_chunks(path, encoding):
        control = C1_CONTROL.search(text)
        if control:
            offset = start + len(text[: control.start()].encode(encoding))
            return Undecodable(f"{path}: a control character at byte offset {offset}", offset)
        start += len(text.encode(encoding))
    return None


@dataclass
class _Evidence:
    """What the lines of a file that is not UTF-8 say about its encoding."""

    # As `utf8_evidence` counts them, in all lines
    sequences: int = 0
    stray: int = 0
    # Lines with bytes above ASCII
    utf8_lines: int = 0
    broken_lines: int = 0  # mostly UTF-8
    other_lines: int = 0
    most_sequences: int = 0  # in one of the UTF-8 lines
    first_utf8: int = 0  # offset in bytes of their first byte above ASCII
    sample: bytes = b""  # the first other lines
    utf8_sample: bytes = b""  # the first UTF-8 lines

    @property
    def has_other_lines(self) -> bool:
        """Whether lines in another encoding are there, not only UTF-8 with a broken byte."""
        return self.utf8_lines > 0 and self.other_lines > 0

    @property
    def has_sure_utf8_lines(self) -> bool:
        """Whether some lines are UTF-8, and in no other encoding by chance.

        By chance every eighth character of some double-byte encodings is a sequence of UTF-8.
        """
        return self.most_sequences >= SURE_SEQUENCES

    def has_utf8_lines(self, encoding: str) -> bool:
        """Return whether some lines are UTF-8, and not in this encoding by chance.

        By chance some words of some code pages are UTF-8, too.
        """
        lines = set(self.utf8_sample.splitlines())
        return any(is_rather_utf8(line, encoding) for line in lines)

    def two_encodings(self, path: Path, not_utf8: Undecodable) -> Undecodable:
        """Return the refusal of a text with lines in UTF-8 and in another encoding."""
        message = (
            f"{path}: two encodings in one text: utf-8 at byte offset {self.first_utf8}, "
            f"not utf-8 at byte offset {not_utf8.offset}; convert the lines that are not UTF-8, "
            "or set data.encoding to read all of it in one encoding"
        )
        return Undecodable(message, not_utf8.offset)


def _evidence(path: Path) -> _Evidence:
    """Look at the lines of a whole file; SAMPLE_BYTES of the lines in no UTF-8 are kept."""
    evidence = _Evidence()
    sample = bytearray()
    utf8_sample = bytearray()
    for offset, line in _lines_above_ascii(path):
        sequences, stray = utf8_evidence(line)
        evidence.sequences += sequences
        evidence.stray += stray
        if stray:
            if is_mostly_utf8(sequences, stray):
                evidence.broken_lines += 1
            else:
                evidence.other_lines += 1
            if len(sample) < SAMPLE_BYTES:
                sample += line
        else:
            if not evidence.utf8_lines:
                evidence.first_utf8 = offset + len(line) - len(line.lstrip(ASCII))
            evidence.utf8_lines += 1
            evidence.most_sequences = max(evidence.most_sequences, sequences)
            if len(utf8_sample) < UTF8_SAMPLE_BYTES:
                utf8_sample += line
    evidence.sample = bytes(sample)
    evidence.utf8_sample = bytes(utf8_sample)
    return evidence


def _lines_above_ascii(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of each line that is not ASCII; a carriage return ends a line, too."""
    offset = 0
    with open_text(path) as file:
        while block := file.readline(HEAD_BYTES):
            if block.isascii():
                offset += len(block)
                continue
            for line in block.splitlines(keepends=True):
                if not line.isascii():
                    yield offset, line
                offset += len(line)


def _refuse_control_bytes(path: Path) -> None:
    """Raise Undecodable for a byte that text has in no encoding but UTF-16 and UTF-32."""
    start = 0
    with open_text(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if len(chunk.translate(None, CONTROL_BYTES)) < len(chunk):
                place = next(i for i, byte in enumerate(chunk) if byte in CONTROL_BYTES)
                offset = start + place
                message = (
                    f"{path}: does not look like text: control byte 0x{chunk[place]:02X} "
                    f"at byte offset {offset}, and it is neither UTF-8 nor UTF-16; "
                    "expected a text file"
                )
                raise Undecodable(message, offset)
            start += len(chunk)
