"""Reads plays for the stage as public-domain texts have them.

`HAMLET.` on a line of its own before the speech, or `Ham. To be, or not to be` at the beginning of
a line; names come again and again, which tells them from prose. Texts with `NAME:` on a line of its
own are left as they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import bounded_lines
from chatgot.data.preparation.readers.capitals import is_in_capitals
from chatgot.data.preparation.readers.script_pieces import (
    DIRECTIONS,
    LONGEST_PART,
    Script,
    pieces_of_script,
)
from chatgot.data.preparation.source import Source

SURE = 0.9
LIKELY = 0.7
LEAST_SPEECHES = 6
LEAST_NAMES = 2  # that come again
OFTEN = 3  # a name comes so often
SHARE_OF_PARAGRAPHS = 0.4  # begin with a name
LONGEST_NAME = 40  # characters
MOST_NAMES = 20_000  # counted
MOST_NOTE_LINES = 60  # of a direction in brackets

# HAMLET. / HAMLET / HAMLET. [Aside.] / _Hamlet._ on a line of its own
OWN_LINE = re.compile(
    r"[ \t]{0,12}[_*]{0,2}(?P<name>[^\W\d_][^\n.:\[\](){}!?;,_*\"]{0,39}?(?:[ ]\d{1,2})?)"
    r"\.?[_*]{0,2}[.,]?[ \t]*(?P<aside>[\[(][^\[\]()\n]{1,90}[\])])?[_*.]{0,2}[ \t]*"
)
# Ham. To be / HAMLET. To be / _Ham._ To be / HAMLET (aside). To be
INLINE = re.compile(
    r"[ \t]{0,6}[_*]{0,2}(?P<name>[^\W\d_][^\n.:\[\](){}!?;,_*\"]{0,29}?(?:[ ]\d{1,2})?)"
    r"(?:[ ](?P<before>[\[(][^\[\]()\n]{1,90}[\])]))?[_*]{0,2}\.[_*]{0,2}(?:--|—|–)?"
    r"[ \t]+(?P<aside>[\[(][^\[\]()\n]{1,90}[\])])?[ \t]*(?=\S)"
)
SCENE = re.compile(
    r"[_*#\s]{0,8}(?:(?:act|scene|prologue|epilogue|induction|akt|aufzug|auftritt|szene|prolog|epilog"
    r"|acte|scène|atto|scena|acto|escena|действие|явление|картина|сцена)\b[^\n]{0,90}"
    r"|(?:[ivxl]{1,6}|\d{1,3}|first|second|third|fourth|fifth"
    r"|erster|zweiter|dritter|vierter|fünfter)\.?[ ]"
    r"(?:act|akt|aufzug|auftritt|szene|scene)\b[^\n]{0,60})",
    re.IGNORECASE,
)
DIRECTION = re.compile(
    r"[_*\s]{0,8}(?:enter|re-enter|exit|exeunt|manet|manent|alarum|flourish|sennet|curtain|they|aside)\b",
    re.IGNORECASE,
)
EXIT = re.compile(r"_?(?:Exit|Exeunt|Re-enter)\b[^.!?\n]{0,60}\.?_?")
BRACKETED = re.compile(r"[_*]*[\[(].*[\])][_*.]*")
INLINE_DIRECTION = re.compile(r"[ \t]*_*[\[(]_*[^\[\]()\n]{1,200}_*[\])]_*")
EMPHASIS = re.compile(r"(?<!\w)_(?=\S)([^_\n]{1,500}?)(?<=\S)_(?!\w)")
WORDS_OF_NO_NAMES = """
act scene chapter the a an and but no yes contents finis end note mr mrs dr st etc viz vol p
i ii iii iv v vi vii viii ix x persons dramatis personae
"""
NO_NAMES = frozenset(WORDS_OF_NO_NAMES.split())


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a play with names that come again."""
    shape = Shape.of(source.beginning.split("\n"))
    if shape.speeches < LEAST_SPEECHES or len(shape.names) < LEAST_NAMES:
        return 0.0
    if shape.speeches < SHARE_OF_PARAGRAPHS * shape.paragraphs:
        return 0.0
    return SURE if shape.has_scenes else LIKELY


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of a play; it is read twice, for its names. Raises: UnreadableError."""
    shape = Shape.of(bounded_lines(source, findings))
    play = _StagePlay(shape, Script(options, findings), findings)
    yield from pieces_of_script(play, source, findings)


@dataclass(frozen=True, slots=True)
class Cue:
    """A name before a speech, and what comes behind it in the same line."""

    name: str
    asides: tuple[str, ...]
    text: str
    is_in_line: bool


def _may_be_name(name: str, is_alone: bool) -> bool:
    words = name.split()
    if not words or len(words) > 4 or len(name) > LONGEST_NAME or len(name) < 2:
        return False
    if words[0].lower() in NO_NAMES or SCENE.fullmatch(name) or DIRECTION.match(name):
        return False
    if is_in_capitals(name):
        return True
    return not is_alone and all(word[0].isupper() or word.isdigit() for word in words)


def cue_alone(line: str) -> Cue | None:
    """Return the name that a line consists of; None: it is something else."""
    if len(line) > 140:
        return None
    match = OWN_LINE.fullmatch(line)
    if match is None or not _may_be_name(match["name"], is_alone=True):
        return None
    return Cue(" ".join(match["name"].split()), tuple(filter(None, [match["aside"]])), "", False)


def cue_in_line(line: str) -> Cue | None:
    """Return the name with which a line begins; None: it begins with none."""
    match = INLINE.match(line[:200])
    if match is None or not _may_be_name(match["name"], is_alone=False):
        return None
    asides = tuple(filter(None, [match["before"], match["aside"]]))
    return Cue(" ".join(match["name"].split()), asides, line[match.end() :].strip(), True)


@dataclass
class Shape:
    """The names of a play, and how they stand before speeches.

    names: that come again. is_in_line: they stand in the first line of a speech.
    """

    names: frozenset[str] = frozenset()
    is_in_line: bool = False
    speeches: int = 0
    paragraphs: int = 0
    has_scenes: bool = False

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Shape":
        """Return the shape that the lines of a text have."""
        shape = cls()
        alone: Counter[str] = Counter()
        in_line: Counter[str] = Counter()
        waiting: Cue | None = None
        after_blank = True
        for line in lines:
            is_blank = not line.strip()
            if waiting is not None and not is_blank:
                _count(alone, waiting.name)
            waiting = None
            if is_blank:
                after_blank = True
                continue
            is_indented = line[:1] in " \t"
            cue = cue_in_line(line) if after_blank or is_indented else None
            if after_blank:
                shape.paragraphs += 1
                shape.has_scenes |= SCENE.fullmatch(line) is not None
                waiting = cue_alone(line)
            if cue is not None and waiting is None:
                _count(in_line, cue.name)
            after_blank = False
        shape.is_in_line = _often(in_line) > _often(alone)
        names = in_line if shape.is_in_line else alone
        shape.names = frozenset(name for name, count in names.items() if count >= OFTEN)
        shape.speeches = _often(names)
        return shape


def _count(names: Counter[str], name: str) -> None:
    if name in names or len(names) < MOST_NAMES:
        names[name] += 1


def _often(names: Counter[str]) -> int:
    return sum(count for count in names.values() if count >= OFTEN)


@dataclass
class _StagePlay:
    """Tells what each line is, by the names of the play."""

    shape: Shape
    script: Script
    findings: Findings
    after_blank: bool = True
    in_speech: bool = False
    bracket: list[str] = field(default_factory=list)  # lines of a direction that is not closed
    bracket_after_blank: bool = False
    passage: list[str] = field(default_factory=list)
    length: int = 0

    def take(self, line: str) -> None:
        """Take the next line."""
        words = EMPHASIS.sub(r"\1", line.strip()) if "_" in line else line.strip()
        if not words:
            self._end_bracket()
            self._end_passage()
            self.after_blank = True
            return
        if self.bracket:
            self._within_bracket(words)
        elif self.after_blank and SCENE.fullmatch(words):
            self._scene(words)
        elif (cue := self._cue(line, words)) is not None:
            self._begin(cue)
        elif words[0] in "[(" and not self._is_closed(words):
            self.bracket = [words]
            self.bracket_after_blank = self.after_blank
        elif self._is_direction(words):
            self._direction(words, self.after_blank)
        elif self.in_speech:
            self._say(words)
        else:
            self._add(words)
        self.after_blank = False

    def end(self) -> None:
        """Complete what is at hand."""
        self._end_bracket()
        self._end_passage()
        self.script.finish()

    def _cue(self, line: str, words: str) -> Cue | None:
        if not self.shape.is_in_line:
            return cue_alone(words) if self.after_blank else None
        if not (self.after_blank or line[:1] in " \t"):
            return None
        cue = cue_in_line(words)
        return cue if cue is not None and cue.name in self.shape.names else self._rare(cue)

    def _rare(self, cue: Cue | None) -> Cue | None:
        """Return a cue whose name comes seldom, where it can be nothing else."""
        is_name = cue is not None and self.after_blank and is_in_capitals(cue.name)
        return cue if is_name else None

    def _begin(self, cue: Cue) -> None:
        self._end_passage()
        self.script.cue(cue.name, cue.asides)
        self.in_speech = True
        if cue.text:
            self._say(cue.text)

    def _scene(self, words: str) -> None:
        self._end_passage()
        self.in_speech = False
        self.script.scene(words.strip("_*# "))

    def _is_direction(self, words: str) -> bool:
        if BRACKETED.fullmatch(words) or EXIT.fullmatch(words):
            return True
        return self.after_blank and DIRECTION.match(words) is not None

    def _direction(self, words: str, after_blank: bool) -> None:
        """Take a direction; who spoke before it may go on behind it."""
        self._end_passage()
        if self.in_speech and not after_blank:
            self.script.parenthetical(words)
            return
        name = self.script.name if self.in_speech else ""
        self.script.direction([words.strip("_*")])
        if name and not self.script.name:
            self.script.cue(name)

    def _say(self, words: str) -> None:
        is_dropped = self.script.options.directions == "drop"
        if is_dropped and ("[" in words or "(" in words):
            words, count = INLINE_DIRECTION.subn("", words)
            self.script.left_out[DIRECTIONS] += count
        self.script.line(words.strip())

    def _is_closed(self, words: str) -> bool:
        return ("]" if words[0] == "[" else ")") in words

    def _within_bracket(self, words: str) -> None:
        self.bracket.append(words)
        is_over = ("]" if self.bracket[0][0] == "[" else ")") in words
        if is_over or len(self.bracket) > MOST_NOTE_LINES:
            self._end_bracket()

    def _end_bracket(self) -> None:
        if self.bracket:
            words = EMPHASIS.sub(r"\1", " ".join(self.bracket))
            self.bracket = []
            self._direction(words, self.bracket_after_blank)

    def _add(self, words: str) -> None:
        if self.length > LONGEST_PART:
            self._end_passage()
        self.passage.append(words)
        self.length += len(words)

    def _end_passage(self) -> None:
        """End what stands before the first speech of a scene."""
        self.script.direction(self.passage)
        self.passage = []
        self.length = 0


STAGE_PLAY = Reader("play for the stage", certainty, read)
