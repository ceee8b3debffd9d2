"""What a prepared text consists of, gathered while its pieces go by: what people look at.

Memory is bounded: of files, speakers and lengths so many are kept, the others are counted.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from chatgot.data.preparation.cleaning.options import CleaningFindings
from chatgot.data.preparation.pieces import (
    DocumentDropped,
    DocumentStart,
    Passage,
    Piece,
    PlainText,
    Speech,
)
from chatgot.data.preparation.plain_speakers import speeches_in
from chatgot.data.preparation.reader import Findings
from chatgot.data.prompts import LEAST_SPEECHES
from chatgot.logs.logging_setup import escape_controls

MOST_FILES = 2_000  # that are listed
MOST_SPEAKERS = 100_000
MOST_LENGTHS = 10_000  # of documents, a sample for their median
RARE_BELOW = 10  # times; such a character is hardly learned
HELD = 1 << 18  # characters that are counted at a time
SHOWN_LINES = 24  # of a preview
SHOWN_CHARACTERS = 2_400
SEED = 20
WIDE = 1 << 16
BLOCK = 1 << 16  # characters that are counted at once, which the processor's cache holds
NAMES = {"\n": "LINE FEED", "\t": "TAB", "\r": "CARRIAGE RETURN", " ": "SPACE"}


@dataclass(frozen=True)
class FileLook:
    """A file that is in the text.

    size: in bytes. encoding: None: of a kind that names none.
    left_out: how many things of a kind were not taken. remarks: what was guessed or is odd.
    fault: why it was not read to its end; empty: it was.
    """

    name: str
    kind: str
    encoding: str | None
    size: int
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class LeftOutLook:
    """A file that is not in the text, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class SpeakerLook:
    """A speaker, with speeches and their lines."""

    name: str
    speeches: int
    lines: int


@dataclass(frozen=True)
class CharacterLook:
    """A character, its name in Unicode, and how often it is there."""

    character: str
    name: str
    count: int
    is_rare: bool


@dataclass
class _Counts:
    """What is counted of a document, or of all."""

    speeches: Counter[str] = field(default_factory=Counter)
    speech_lines: Counter[str] = field(default_factory=Counter)
    plain_speeches: Counter[str] = field(default_factory=Counter)
    plain_lines: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)

    def add(self, other: "_Counts") -> None:
        self.characters.update(other.characters)
        for mine, more in (
            (self.speeches, other.speeches),
            (self.speech_lines, other.speech_lines),
            (self.plain_speeches, other.plain_speeches),
            (self.plain_lines, other.plain_lines),
        ):
            for name, count in more.items():
                if name in mine or len(mine) < MOST_SPEAKERS:
                    mine[name] += count


class Look:
    """What a text consists of.

    rare_below: characters that are there less often are rare.
    name: of the prepared text, for the page; the caller sets it.
    findings: what mending found; the caller sets it.
    n_files: all that were read. n_left_out: all that were not.
    documents: with text. characters: of all of them, as they are written, without the lines
    between them.
    first_lines, random_lines: a preview of the beginning, and of a random place.
    """

    def __init__(self, rare_below: int = RARE_BELOW) -> None:
        self.rare_below = rare_below
        self.name = ""
        self.findings = CleaningFindings()
        self.files: list[FileLook] = []
        self.n_files = 0
        self.left_out: list[LeftOutLook] = []
        self.n_left_out = 0
        self.documents = 0
        self.dropped_documents = 0
        self.characters = 0
        self.shortest = 0
        self.longest = 0
        self.first_lines = ""
        self.random_lines = ""
        self._counts = _Counts()
        self._lengths: list[int] = []
        self._random = random.Random(SEED)
        self._held: list[str] = []  # of finished documents, not yet counted
        self._held_length = 0
        self._previewed = 0  # characters among which the random place was drawn
        self._begin()

    # ----------------------------------------------------------------------------------------------
    # Files

    def add_file(
        self,
        name: str,
        kind: str,
        encoding: str | None,
        size: int,
        findings: Findings,
        fault: str = "",
    ) -> None:
        """Add a file that was read."""
        self.n_files += 1
        if len(self.files) < MOST_FILES:
            remarks = tuple(findings.remarks)
            left_out = Counter(findings.left_out)
            self.files.append(FileLook(name, kind, encoding, size, left_out, remarks, fault))

    def leave_out(self, name: str, reason: str) -> None:
        """Add a file that was not read."""
        self.n_left_out += 1
        if len(self.left_out) < MOST_FILES:
            self.left_out.append(LeftOutLook(name, reason))

    # ----------------------------------------------------------------------------------------------
    # Pieces

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yield the pieces as they are; what was seen is complete when the last one was taken."""
        for piece in pieces:
            if isinstance(piece, Speech):
                self._see_speech(piece.name, piece.text)
            else:
                self._see(piece)
            yield piece
        self._end_document()
        self._count_held()

    def speakers(self) -> list[SpeakerLook]:
        """Return who speaks, most speeches first; a heading of a plain text is no speaker."""
        counts = self._counts
        often = {name: n for name, n in counts.plain_speeches.items() if n >= LEAST_SPEECHES}
        speeches = counts.speeches + Counter(often)
        return [
            SpeakerLook(name, n, counts.speech_lines[name] + counts.plain_lines[name])
            for name, n in speeches.most_common()
        ]

    def character_counts(self) -> Counter[str]:
        """Return how often each character is there."""
        return Counter(self._counts.characters)

    def alphabet(self) -> list[CharacterLook]:
        """Return all characters, the most frequent first."""
        return [
            CharacterLook(character, name_of(character), count, count < self.rare_below)
            for character, count in self._counts.characters.most_common()
        ]

    def median_length(self) -> int:
        """Return the median length of documents in characters, of a sample where there are many."""
        lengths = sorted(self._lengths)
        return lengths[len(lengths) // 2] if lengths else 0

    def _begin(self) -> None:
        self._document = _Counts()
        self._parts: list[str] = []  # of the document at hand, not yet counted
        self._parts_length = 0
        self._length = 0  # of the document at hand

    def _see(self, piece: Piece) -> None:
        if isinstance(piece, Passage):
            self._take(f"{piece.text}\n\n")
        elif isinstance(piece, PlainText):
            self._see_speakers(piece.text)
            self._take(piece.text)
        elif isinstance(piece, DocumentStart):
            self._end_document()
        else:
            assert isinstance(piece, DocumentDropped), "all kinds of pieces are known"
            self.dropped_documents += 1
            self._begin()

    def _see_speech(self, name: str, text: str) -> None:
        counts = self._document
        counts.speeches[name] += 1
        counts.speech_lines[name] += 1 + text.count("\n")
        shown = f"{name}:\n{text}\n\n"
        self._parts.append(shown)
        self._length += len(shown)
        self._parts_length += len(shown)
        if self._parts_length >= HELD:
            self._count_parts()

    def _see_speakers(self, text: str) -> None:
        """Count the speakers' lines of a plain text, and the lines after them."""
        counts = self._document
        for name, lines in speeches_in(text):
            if name in counts.plain_speeches or len(counts.plain_speeches) < MOST_SPEAKERS:
                counts.plain_speeches[name] += 1
                counts.plain_lines[name] += lines

    def _take(self, text: str) -> None:
        self._length += len(text)
        self._parts.append(text)
        self._parts_length += len(text)
        if self._parts_length >= HELD:
            self._count_parts()

    def _count_parts(self) -> None:
        self._document.characters.update(self._counted("".join(self._parts)))
        self._parts = []
        self._parts_length = 0

    def _end_document(self) -> None:
        if self._length:
            self.documents += 1
            self.characters += self._length
            self.longest = max(self.longest, self._length)
            self.shortest = min(self.shortest or self._length, self._length)
            self._keep_length()
            self._counts.add(self._document)
            self._held += self._parts
            self._held_length += self._parts_length
            if self._held_length >= HELD:
                self._count_held()
        self._begin()

    def _keep_length(self) -> None:
        if len(self._lengths) < MOST_LENGTHS:
            self._lengths.append(self._length)
            return
        place = self._random.randrange(self.documents)
        if place < MOST_LENGTHS:
            self._lengths[place] = self._length

    def _count_held(self) -> None:
        self._counts.characters.update(self._counted("".join(self._held)))
        self._held = []
        self._held_length = 0

    def _counted(self, text: str) -> Counter[str]:
        """Return the counts of a text's characters, and maybe take the preview from it."""
        if text:
            self._preview(text)
        return count_characters(text)

    def _preview(self, text: str) -> None:
        """Keep the first lines of all, and those of a place that is equally likely anywhere."""
        if not self._previewed:
            self.first_lines = _shown(text, 0)
        self._previewed += len(text)
        place = self._random.randrange(self._previewed)
        if place < len(text):
            last = max(0, len(text) - SHOWN_CHARACTERS)
            self.random_lines = _shown(text, min(place, last))


def count_characters(text: str) -> Counter[str]:
    """Return how often each character is in a text."""
    narrow = np.zeros(WIDE, np.int64)
    wide: Counter[int] = Counter()
    for start in range(0, len(text), BLOCK):
        block = text[start : start + BLOCK].encode("utf-32-le", "surrogatepass")
        codes = np.frombuffer(block, np.uint32)
        if codes.max() >= WIDE:
            wide.update(codes[codes >= WIDE].tolist())
            codes = codes[codes < WIDE]
        counts = np.bincount(codes.astype(np.intp))
        narrow[: len(counts)] += counts
    places = np.flatnonzero(narrow)
    pairs = zip(places.tolist(), narrow[places].tolist(), strict=True)
    return Counter({chr(code): count for code, count in (*pairs, *wide.items())})


def name_of(character: str) -> str:
    """Return what a character is called: `LATIN SMALL LETTER E WITH ACUTE`."""
    if character in NAMES:
        return NAMES[character]
    return unicodedata.name(character, f"U+{ord(character):04X}")


def visible(character: str) -> str:
    r"""Return a character as it can be shown: `\n` for a line feed, a space in quotes."""
    if character == " ":
        return "' '"
    return escape_controls(character)


def _shown(text: str, place: int) -> str:
    """Return some lines of a text, from the first paragraph or line that begins after a place."""
    start = place
    if place:
        end = place + SHOWN_CHARACTERS // 2
        blank = text.find("\n\n", place, end)
        line_end = text.find("\n", place, end)
        start = blank + 2 if blank >= 0 else line_end + 1 if line_end >= 0 else place
    lines = text[start : start + SHOWN_CHARACTERS].split("\n")[:SHOWN_LINES]
    if "" in lines[SHOWN_LINES // 2 :] and start + SHOWN_CHARACTERS < len(text):
        while lines[-1]:  # not the beginning of a paragraph only
            lines.pop()
    return "\n".join(lines).strip("\n")
