"""Reads screenplays as they are typed: names in capitals in the middle, what is said below them.

What a line is shows by its indent: scene headings and action stand at the left, speeches further
in, names further still. Rows that were broken for want of room are joined to lines.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.script_pieces import (
    LONGEST_PART,
    SCENE,
    TRANSITION,
    Script,
    cue_parts,
    is_capital_name,
    pieces_of_script,
)
from chatgot.data.preparation.source import Source

SURE = 0.9
LIKELY = 0.75
LEAST_CUES = 4
LEAST_SHARE = 0.05  # of lines are cues
LEAST_INDENT = 8  # blanks before a name, in a file without scene headings
FURTHER_IN = 3  # blanks by which indents differ
WRAPPED_SHARE = 0.2  # of rows that go on begin in small letters, where rows are wrapped
LONGEST_ROW = 120  # characters, with its indent

PAGE_MARK = re.compile(
    r"(?:page[ ])?-?[ ]?\d{1,4}[A-Z]?[ ]?-?\.?|\(?MORE\)|(?:\d{1,4}[A-Z]?[ ])?\(?CONTINUED:?\)?"
    r"(?:[ ]?\(\d{1,3}\))?:?(?:[ ]\d{1,4}[A-Z]?\.?)?|\(?CONT'?D\.?\)?:?",
    re.IGNORECASE,
)
REVISION = re.compile(r"[ ]{2,}\*+$|[ ]+\*$")
NUMBERED_SCENE = re.compile(
    r"(?:[A-Z]?\d{1,4}[A-Z]?\.?[ ]+)?(\S.*?)(?:[ ]{2,}[A-Z]?\d{1,4}[A-Z]?\.?)?"
)
PAGE_MARKS = "page numbers and the like"
TITLE_PAGE = "lines of title pages"


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a screenplay with indented names and speeches."""
    shape = Shape.of(source.beginning.split("\n"))
    if shape.cues < LEAST_CUES or shape.repeated < 2 or shape.cues < LEAST_SHARE * shape.rows:
        return 0.0
    if shape.scenes:
        return SURE
    return LIKELY if len(shape.names) > 1 and shape.cue >= LEAST_INDENT else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of a screenplay. Raises: UnreadableError."""
    shape = Shape.of(source.beginning.split("\n"))
    play = _Screenplay(shape, Script(options, findings), findings)
    yield from pieces_of_script(play, source, findings)


@dataclass(frozen=True, slots=True)
class Row:
    """A line with text: its indent, and its text without it."""

    indent: int
    text: str
    after_blank: bool


def rows_of(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the lines that have text."""
    after_blank = True
    for line in lines:
        if "\t" in line or "\f" in line:
            line = line.replace("\f", "").expandtabs()
        text = line.strip()
        if text:
            indent = len(line) - len(line.lstrip())
            text = REVISION.sub("", text) or text
            yield Row(indent, text, after_blank)
        after_blank = not text


def is_page_mark(text: str) -> bool:
    """Return whether a row is a page number, or says that something goes on over a page."""
    return len(text) <= LONGEST_ROW and PAGE_MARK.fullmatch(" ".join(text.split())) is not None


def heading_of(text: str) -> str:
    """Return a scene heading without its numbers; empty: it is none."""
    match = NUMBERED_SCENE.fullmatch(text[:LONGEST_ROW])
    heading = "" if match is None else match[1]
    return heading if SCENE.match(heading) and (heading.isupper() or "." in heading[:9]) else ""


def _may_be_cue(row: Row, following: Row) -> bool:
    """Return whether a row names who says the next one, by their shapes and indents."""
    if following.indent > row.indent:
        return False
    if following.after_blank and row.indent < 2 * FURTHER_IN:
        return False
    if row.indent - following.indent < FURTHER_IN and not following.text.startswith("("):
        return False
    if TRANSITION.fullmatch(row.text) or is_page_mark(row.text) or heading_of(row.text):
        return False
    return is_capital_name(row.text)


@dataclass
class Shape:
    """Where the parts of a screenplay stand, and how wide they are.

    action, speech, cue: indents.
    action_width, speech_width: characters of the longest rows.
    is_wrapped: what is said is broken into rows where it does not fit; else each row is a line.
    """

    cues: int = 0
    repeated: int = 0
    scenes: int = 0
    rows: int = 0
    action: int = 0
    speech: int = 0
    cue: int = 0
    action_width: int = 60
    speech_width: int = 35
    names: frozenset[str] = frozenset()
    is_wrapped: bool = True

    @property
    def has_inner_speeches(self) -> bool:
        """Whether what is said stands further in than what is done."""
        return self.speech - self.action >= FURTHER_IN

    @classmethod
    def of(cls, lines: Sequence[str]) -> "Shape":
        """Return the shape that the beginning of a file has."""
        rows = [row for row in rows_of(lines) if not is_page_mark(row.text)]
        shape = cls(rows=len(rows))
        names: Counter[str] = Counter()
        indents: Counter[int] = Counter()
        speeches: Counter[int] = Counter()
        others: Counter[int] = Counter()
        headings: Counter[int] = Counter()
        for row, following in pairwise(rows):
            heading = heading_of(row.text)
            if heading:
                headings[row.indent + row.text.find(heading)] += 1
            elif row.after_blank and _may_be_cue(row, following) and len(row.text) > 1:
                names[cue_parts(row.text)[0]] += 1
                indents[row.indent] += 1
                if following.text[0] != "(":
                    speeches[following.indent] += 1
            else:
                others[row.indent] += 1
        shape.cues = names.total()
        shape.names = frozenset(name for name, count in names.items() if count > 1)
        shape.repeated = sum(names[name] for name in shape.names)
        shape.scenes = headings.total()
        if not shape.cues:
            return shape
        shape.cue = min(indents)
        shape.speech = speeches.most_common(1)[0][0] if speeches else max(shape.cue - 10, 0)
        lefts = headings or Counter({at: n for at, n in others.items() if at <= shape.speech})
        shape.action = min(lefts.most_common(1)[0][0], shape.speech) if lefts else shape.speech
        _measure(shape, rows)
        return shape


def _measure(shape: Shape, rows: Sequence[Row]) -> None:
    """Set the widths of rows at the indents of speeches and of action."""
    for row in rows:
        if len(row.text) > LONGEST_ROW or heading_of(row.text):
            continue
        if row.indent == shape.action and not row.text.isupper():
            shape.action_width = max(shape.action_width, len(row.text))
        elif row.indent == shape.speech:
            shape.speech_width = max(shape.speech_width, len(row.text))
    small = large = 0
    for row, following in pairwise(rows):
        if row.indent == following.indent == shape.speech:
            small += following.text[0].islower()
            large += following.text[0].isupper()
    shape.is_wrapped = small >= WRAPPED_SHARE * (small + large)
    if not shape.has_inner_speeches:
        shape.speech_width = max(shape.speech_width, shape.action_width)


@dataclass
class _Screenplay:
    """Tells what each row is, by its indent and the next row."""

    shape: Shape
    script: Script
    findings: Findings
    row: Row | None = None  # the last one; what it is depends on the next one
    after_blank: bool = True
    in_speech: bool = False
    in_aside: bool = False  # a bracket is open
    is_begun: bool = False  # the title page is over
    action: list[str] = field(default_factory=list)
    length: int = 0
    width: int = 0  # of the last row of a speech or of action

    def take(self, line: str) -> None:
        """Take the next line."""
        for row in rows_of((line,)):
            if is_page_mark(row.text):
                self.findings.left_out[PAGE_MARKS] += 1
                return
            row = Row(row.indent, row.text, self.after_blank)
            self.after_blank = False
            if self.row is not None:
                self._decided(self.row, row)
            self.row = row
            return
        self.after_blank = True

    def end(self) -> None:
        """Complete what is at hand."""
        if self.row is not None:
            self._decided(self.row, None)
        self._end_action()
        self.script.finish()

    def _decided(self, row: Row, following: Row | None) -> None:
        heading = heading_of(row.text)
        if heading:
            self.is_begun = True
            self._end_action()
            self.in_speech = False
            self.script.scene(heading)
        elif following is not None and self._is_cue(row, following):
            self.is_begun = True
            self._end_action()
            name, asides, goes_on = cue_parts(row.text)
            self.script.cue(name, asides, goes_on)
            self.in_speech = True
            self.in_aside = False
            self.width = 0
        elif self.in_speech and self._is_speech(row):
            self._say(row)
        else:
            self.in_speech = False
            self._do(row)

    def _is_cue(self, row: Row, following: Row) -> bool:
        shape = self.shape
        if row.indent < shape.cue or row.indent - shape.speech < FURTHER_IN:
            return False
        if not _may_be_cue(row, following):
            return False
        return self.is_begun or not shape.scenes or cue_parts(row.text)[0] in shape.names

    def _is_speech(self, row: Row) -> bool:
        if TRANSITION.fullmatch(row.text) and row.indent > self.shape.speech + FURTHER_IN:
            return False
        if not self.shape.has_inner_speeches:
            return not (row.after_blank and self.script.has_lines)
        return row.indent - self.shape.action >= FURTHER_IN

    def _say(self, row: Row) -> None:
        text = row.text
        if self.in_aside or text[0] == "(":
            was_open = self.in_aside
            self.in_aside = ")" not in text and len(text) < LONGEST_ROW
            if not was_open:
                self.script.parenthetical(text)
            elif self.script.options.directions == "keep":
                self.script.join(text)
            self.width = 0
            return
        is_full = self.width + 1 + _first_word(text) > self.shape.speech_width
        goes_on = self.shape.is_wrapped or text[:1].islower()
        if self.width and is_full and goes_on:
            self.script.join(text)
        else:
            self.script.line(text)
        self.width = len(text)

    def _do(self, row: Row) -> None:
        """Take a row of action, a transition, or one of the title page."""
        if not self.is_begun and self.shape.scenes:
            if not TRANSITION.fullmatch(row.text):
                self.findings.left_out[TITLE_PAGE] += 1
                return
            self.is_begun = True
        is_transition = TRANSITION.fullmatch(row.text) is not None
        is_wrapped = self.width + 1 + _first_word(row.text) > self.shape.action_width
        if self.action and is_wrapped and not is_transition:
            self.action[-1] += f" {row.text}"
        else:
            if row.after_blank or is_transition:
                self._end_action()
            self.action.append(row.text)
        self.width = len(row.text)
        self.length += len(row.text)
        if is_transition or self.length > LONGEST_PART:
            self._end_action()

    def _end_action(self) -> None:
        self.script.direction(self.action)
        self.action = []
        self.length = 0
        self.width = 0


def _first_word(text: str) -> int:
    """Return the length of the first word."""
    at = text.find(" ")
    return len(text) if at < 0 else at


SCREENPLAY = Reader("screenplay", certainty, read)
