"""Which encoding are a segment's lines in that are neither UTF-8 nor a drawing?

They are judged together, by a sample of the whole segment.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from chatgot.data.encoding import ASCII, C1_CONTROL
from chatgot.data.encoding_guess import guess_encoding
from chatgot.data.torn_characters import TornReader, is_double_byte
from chatgot.log_fixer.broken_utf8 import (
    TornUtf8,
    is_broken_utf8,
    leads_in,
    split_lead,
    torn_utf8,
)
from chatgot.log_fixer.drawings import is_drawing, names_in
from chatgot.log_fixer.telnet import without_commands

# A C1 sequence: one-byte introducer, parameters, end. cp1252 would read it as ›31m. In double-byte
# encodings no digit can follow the introducer's byte.
RAW_C1 = re.compile(
    rb"\x9b[;?]*+[0-9][0-9;?]*+[A-Za-z]"
    rb"|\x9d[0-9]++;[^\x00-\x08\x0a-\x1f\x7f-\x9f]*+(?:\x07|\x1b\\\\|\x9c)"
)
# In these code pages the introducers' bytes are rare signs, or C1 controls themselves
WITHOUT_C1 = ("cp125", "iso8859")
WESTERN = "cp1252"
# Of the sample's lines, so many have to be readable in the encoding that was guessed
READABLE_SHARE = 0.5
UTF8_SHARE = 0.125  # more lines of UTF-8 to each other line are no chance
SEGMENT_SAMPLE_BYTES = 1 << 18
HIGH_LINE = re.compile(rb"[^\r\n\x80-\xff]*[\x80-\xff][^\r\n]*")
# Of serial lines and empty memory; it says nothing about an encoding
NOISE = b"\xff" * 4
# First bytes of UTF-8 characters
LEADS = frozenset(range(0xC2, 0xF5))


class Sample:
    """Lines from all over a segment, up to SEGMENT_SAMPLE_BYTES of them, whatever its size."""

    def __init__(self, limit: int = SEGMENT_SAMPLE_BYTES) -> None:
        self.lines: list[bytes] = []
        self._limit = limit
        self._bytes = 0
        self._every = 1
        self._offered = 0

    def offer(self, line: bytes) -> None:
        """Take a line, or leave it out: of a long segment each second, fourth, ... is taken."""
        if self._offered % self._every == 0:
            self.lines.append(line)
            self._bytes += len(line)
            while self._bytes > self._limit and len(self.lines) > 1:
                self.lines = self.lines[::2]
                self._bytes = sum(map(len, self.lines))
                self._every *= 2
        self._offered += 1


@dataclass(frozen=True)
class Judgement:
    """How the unknown lines of a segment are read."""

    encoding: str | None  # None: their bytes above ASCII become escapes
    confidence: float
    names_encoding: str | None = None  # of the letters in drawings; None: the drawing's
    torn_leads: frozenset[int] | None = None  # not None: lines that look like torn UTF-8 are that
    reader: TornReader | None = None  # of a double-byte encoding
    is_in_disguise: bool = False  # lines that are UTF-8 by chance are in that encoding
    has_utf8: bool = True  # False: in that encoding alone, also what looks like broken UTF-8

    def is_utf8_by_chance(self, line: bytes) -> bool:
        """Return whether a line that is valid UTF-8 is in the segment's encoding all the same."""
        return self.is_in_disguise and self.reader is not None and self.reader.is_usual(line)

    def is_torn_utf8(self, line: bytes) -> bool:
        if self.torn_leads is None:
            return False
        torn = torn_utf8(RAW_C1.sub(b"", line))
        return torn is not None and (torn.lead is None or torn.lead in self.torn_leads)


def named(encoding: str) -> Judgement:
    """Return the judgement where the user has named the encoding."""
    reader = TornReader(encoding) if is_double_byte(encoding) else None
    return Judgement(encoding, 1.0, reader=reader)


@dataclass
class Evidence:
    """What the lines of a segment show."""

    lines: Sample = field(default_factory=Sample)  # neither ASCII nor UTF-8
    utf8_lines: Sample = field(default_factory=Sample)  # with characters above ASCII
    leads: set[int] = field(default_factory=set)  # their first bytes

    def add_utf8(self, data: bytes) -> None:
        if not data.isascii():
            self.leads |= leads_in(data.translate(None, ASCII), set(LEADS - self.leads))
            for line in HIGH_LINE.findall(data):
                self.utf8_lines.offer(line)

    def judgement(self) -> Judgement:
        """Return how the lines are read. The encoding decodes nearly all of them."""
        kinds = _Kinds()
        leads = set(self.leads)
        before = b""
        for line in self.lines.lines:
            lead = split_lead(before, line)
            before = line
            if lead is None:
                kinds.add(line)
            else:
                leads.add(lead)
        torn_leads = kinds.torn_leads(leads)
        lines = list(kinds.unknown)
        for line in kinds.torn:
            if not Judgement(None, 0.0, torn_leads=torn_leads).is_torn_utf8(line):
                lines.append(line)
        names_encoding = None
        if kinds.names:
            names_encoding = guess_encoding(_sample(kinds.names)).encoding
        encoding, confidence = _guess(lines)
        if kinds.c1_sequences and encoding and not _may_have_c1_sequences(encoding):
            encoding = WESTERN
            confidence = 0.0
        reader = None
        if encoding is not None and is_double_byte(encoding):
            reader = TornReader(encoding, _characters(lines, encoding))
        judgement = Judgement(encoding, confidence, names_encoding, torn_leads, reader)
        if reader is None:
            return judgement
        # Every eighth character of some double-byte encodings is valid UTF-8
        by_chance = sum(reader.is_usual(line) for line in self.utf8_lines.lines)
        others = len(self.utf8_lines.lines) - by_chance
        return replace(
            judgement,
            is_in_disguise=by_chance > others,
            has_utf8=others > UTF8_SHARE * len(lines),
        )


@dataclass
class _Kinds:
    """The lines of a sample by their kinds."""

    unknown: list[bytes] = field(default_factory=list)
    torn: list[bytes] = field(default_factory=list)  # they look like torn UTF-8
    torn_counts: Counter[TornUtf8] = field(default_factory=Counter)
    c1_sequences: int = 0
    names: list[bytes] = field(default_factory=list)  # in drawings

    def add(self, line: bytes) -> None:
        line = without_commands(without_marks(line)).replace(b"\0", b"").replace(NOISE, b"")
        high = line.translate(None, ASCII)
        if not high:
            return
        if is_drawing(line, high):
            names = names_in(line)
            if names:
                self.names.append(names)
            return
        if is_broken_utf8(line, high):
            return
        line, sequences = RAW_C1.subn(b"", line)
        self.c1_sequences += sequences
        torn = torn_utf8(line)
        if torn is None:
            self.unknown.append(line)
        else:
            self.torn_counts[torn] += 1
            self.torn.append(line)

    def torn_leads(self, leads: set[int]) -> frozenset[int] | None:
        """Return the first bytes of the segment's UTF-8 if lines that look torn are UTF-8."""
        if not leads:
            is_overlong = all(torn.is_overlong for torn in self.torn_counts)
            return frozenset() if self.torn and not self.unknown and is_overlong else None
        torn_lines = sum(
            count
            for torn, count in self.torn_counts.items()
            if torn.lead is None or torn.lead in leads
        )
        unknown_lines = len(self.unknown) + len(self.torn) - torn_lines
        return frozenset(leads) if torn_lines >= unknown_lines else None


def without_marks(line: bytes) -> bytes:
    """Return a line without the byte order marks at its beginning: they belong to the file."""
    while line.startswith(codecs.BOM_UTF8):
        line = line[3:]
    return line


def _sample(lines: Iterable[bytes]) -> bytes:
    return b"\n".join(line.rstrip(b"\r\n") for line in lines)


def _guess(lines: list[bytes]) -> tuple[str | None, float]:
    if not lines:
        return None, 0.0
    sample = _sample(lines)
    if sample.isascii():  # only C1 sequences
        return WESTERN, 0.0
    guess = guess_encoding(sample)
    if guess.encoding is None:
        return None, guess.confidence
    try:
        name = codecs.lookup(guess.encoding).name
    except LookupError:
        return None, guess.confidence
    if not is_double_byte(name) and len(lines) > 1:
        readable = sum(_is_text_in(line, name) for line in lines)
        if readable < READABLE_SHARE * len(lines):
            return None, guess.confidence
    return name, guess.confidence


def _may_have_c1_sequences(encoding: str) -> bool:
    """Return whether the bytes of C1 introducers are no letters in an encoding."""
    return encoding.startswith(WITHOUT_C1) or is_double_byte(encoding)


def _is_text_in(line: bytes, encoding: str) -> bool:
    """Return whether a line decodes in this encoding, without C1 control characters."""
    try:
        return not C1_CONTROL.search(line.decode(encoding))
    except UnicodeDecodeError:
        return False


def _characters(lines: Iterable[bytes], encoding: str) -> Counter[str]:
    """Count the characters of the lines that are whole."""
    counts: Counter[str] = Counter()
    for line in lines:
        try:
            counts.update(line.decode(encoding))
        except UnicodeDecodeError:
            continue
    return Counter({c: n for c, n in counts.items() if c > "\x7f"})
