"""Speeches, scene headings and directions of plays and screenplays, kept or dropped."""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Protocol

from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import bounded_lines
from chatgot.data.preparation.readers.capitals import is_in_capitals
from chatgot.data.preparation.source import Source

LONGEST_PART = 1 << 18  # characters of a speech or direction, after which the next part begins
SCENES = "scene headings"
DIRECTIONS = "stage directions"

# Marks of where a voice comes from, and that a speech goes on: not what somebody does
VOICE_MARK = re.compile(
    r"[(\[]\s*(?:v\.?\s?o|o\.?\s?[scp]|off|cont.{0,2}d|continued|continuing|cont|subtitled?"
    r"|filter(?:ed)?"
    r"|(?:into |on )?(?:the )?(?:phone|radio|tv|telephone|intercom))\.?"
    r"(?:\s*[,/;]?\s*(?:v\.?\s?o|o\.?\s?[scp]|cont.{0,2}d)\.?)?\s*[)\]]",
    re.IGNORECASE,
)
CONTINUED = re.compile(
    r"[(\[]\s*(?:cont.{0,2}d|continued|continuing|cont)\.?\s*[)\]]", re.IGNORECASE
)
ASIDE = re.compile(r"[ \t]*(\([^()]{1,80}\)|\[[^\[\]]{1,80}\])")
SCENE_WORDS = (
    r"(?:INT|EXT|EST|INT\.?[ ]?/[ ]?EXT|EXT\.?[ ]?/[ ]?INT|I[ ]?/[ ]?E|E[ ]?/[ ]?I|INNEN|AUSSEN"
    r"|AUẞEN"
    r"|AUSSEN[ ]?/[ ]?INNEN|INNEN[ ]?/[ ]?AUSSEN|ИНТ|НАТ|ЭКСТ)"
)
SCENE = re.compile(rf"{SCENE_WORDS}(?:\.|[ ]|$)[ .]*(?:$|[\w\"'“„«(/#])", re.IGNORECASE)
TRANSITION = re.compile(
    r"(?:[^a-z\n]{1,60} TO:|(?:FADE|CUT|DISSOLVE|IRIS|SMASH|MATCH|JUMP|WIPE)[^a-z\n]{0,30}[.:]"
    r"|(?:THE )?END\.?|FADE (?:IN|OUT)[.:]?|INTERCUT[^a-z\n]{0,40})"
)
SCENE_NUMBER = re.compile(r"[ \t]*#[\w.\-]{1,12}#[ \t]*$")


class Script:
    """Collects the lines of speeches and directions, and gives them as pieces.

    A speech that is marked as going on joins the one before it where nothing is in between.
    """

    def __init__(self, options: ReadingOptions, findings: Findings) -> None:
        self.options = options
        self.left_out = findings.left_out
        self.pieces: list[Piece] = []
        self._name = ""
        self._lines: list[str] = []
        self._length = 0

    def scene(self, heading: str) -> None:
        """Add a scene heading, or count it as left out."""
        if not heading:
            return
        if self.options.scenes == "drop":
            self.left_out[SCENES] += 1
            return
        self._end()
        self.pieces.append(Passage(heading))

    def direction(self, lines: Sequence[str]) -> None:
        """Add what is done, or count it as left out."""
        if not lines:
            return
        if self.options.directions == "drop":
            self.left_out[DIRECTIONS] += 1
            return
        self._end()
        self.pieces.append(Passage("\n".join(lines)))

    def cue(self, name: str, asides: Sequence[str] = (), goes_on: bool = False) -> None:
        """Begin a speech.

        asides: in brackets, behind the name.
        """
        if not (goes_on and name == self._name):
            self._end()
            self._name = name
        for aside in asides:
            self.parenthetical(aside)

    def parenthetical(self, words: str) -> None:
        """Add how a line is said, or count it as left out."""
        if self.options.directions == "drop":
            self.left_out[DIRECTIONS] += 1
        else:
            self.line(words)

    def line(self, words: str) -> None:
        """Add a line to the speech that was begun."""
        if not words:
            return
        if self._length > LONGEST_PART:
            self._give()
        self._lines.append(words)
        self._length += len(words) + 1

    def join(self, words: str) -> None:
        """Add words to the last line of the speech."""
        if self._lines and words and self._length <= LONGEST_PART:
            self._lines[-1] += f" {words}"
            self._length += len(words)
        else:
            self.line(words)

    @property
    def name(self) -> str:
        """Who speaks; empty: nobody."""
        return self._name

    @property
    def has_lines(self) -> bool:
        """Whether something was said in the speech at hand."""
        return bool(self._lines)

    def finish(self) -> None:
        """End the last speech."""
        self._end()

    def taken(self) -> Iterator[Piece]:
        """Yield the complete pieces once."""
        pieces = self.pieces
        self.pieces = []
        yield from pieces

    def _end(self) -> None:
        self._give()
        self._name = ""

    def _give(self) -> None:
        if self._lines and self._name:
            self.pieces.append(Speech(self._name, "\n".join(self._lines)))
        self._lines = []
        self._length = 0


def cue_parts(cue: str) -> tuple[str, list[str], bool]:
    """Return the name in a character cue, asides such as `(laughing)`, and whether it goes on.

    Marks of voices such as `(V.O.)` and `(CONT'D)` are left away.
    """
    asides = []
    goes_on = False
    for match in ASIDE.finditer(cue):
        words = match[1]
        goes_on = goes_on or CONTINUED.fullmatch(words) is not None
        if VOICE_MARK.fullmatch(words) is None:
            asides.append(words)
    name = " ".join(ASIDE.sub("", cue).replace("^", " ").split()).strip(" :")
    return name, asides, goes_on


def is_capital_name(line: str, longest: int = 40) -> bool:
    """Return whether a line without its brackets is a name in capitals, as character cues are."""
    if len(line) > longest + 40:
        return False
    name = ASIDE.sub("", line).rstrip(" ^:")
    if not name or len(name) > longest or not is_in_capitals(name) or len(name.split()) > 6:
        return False
    return name[-1] not in ".!?,;" or name.endswith((" JR.", " SR.")) or _is_abbreviated(name)


def _is_abbreviated(name: str) -> bool:
    """Return whether a name ends with a single letter and a full stop: `ANNA B.`."""
    word = name.split()[-1]
    return name[-1] == "." and len(word) <= 3 and " " in name


class ScriptReader(Protocol):
    """Reads the lines of one kind of script into its `script`."""

    script: Script

    def take(self, line: str) -> None:
        """Take the next line."""
        ...

    def end(self) -> None:
        """Take it that there are no more."""
        ...


def pieces_of_script(reader: ScriptReader, source: Source, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of a script: one document. Raises: UnreadableError where there are none."""
    yield DocumentStart(PurePath(source.name).stem)
    is_empty = True
    for line in bounded_lines(source, findings):
        reader.take(line)
        for piece in reader.script.taken():
            is_empty = False
            yield piece
    reader.end()
    for piece in reader.script.taken():
        is_empty = False
        yield piece
    if is_empty and not findings.left_out:
        raise UnreadableError("it has no text")
