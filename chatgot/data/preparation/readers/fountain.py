"""Reads screenplays in Fountain, the markup for them (fountain.io/syntax).

Source: https://fountain.io/syntax
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.script_pieces import (
    LONGEST_PART,
    SCENE,
    SCENE_NUMBER,
    TRANSITION,
    Script,
    cue_parts,
    is_capital_name,
    pieces_of_script,
)
from chatgot.data.preparation.source import Source

SURE = 0.95
LIKELY = 0.85
BY_ENDING = 0.6
ENDINGS = ("fountain", "spmd")
LEAST_CUES = 2
LEAST_SHARE = 0.02  # of lines are scene headings or cues
LEAST_SHARE_WITHOUT = 0.1  # of lines are cues, where there are no scene headings
MOST_TITLE_LINES = 100
MOST_NOTE_LINES = 1000  # of a note or boneyard that never ends

TITLE_KEY = re.compile(
    r"(title|credit|authors?|source|notes?|draft date|date|contact|copyright|revision"
    r"|characters|language|format)[ \t]*:(.*)",
    re.IGNORECASE,
)
# Books have a title and an author, too
OWN_KEY = re.compile(r"^(?:credit|draft date|contact)[ \t]*:", re.IGNORECASE | re.MULTILINE)
LONGEST_TITLE = 2000  # characters
PAGE_BREAK = re.compile(r"={3,}[ \t]*")
EMPHASIS = re.compile(r"(?<!\\)(\*{1,3})(?=\S)((?:[^*\n]|\\\*){1,2000}?)(?<=\S)(?<!\\)\1")
UNDERLINE = re.compile(r"(?<![\\\w])_(?=\S)([^_\n]{1,2000}?)(?<=\S)_(?!\w)")
ESCAPED = re.compile(r"\\([*_\\@!.>~#=\[(])")
INDENT = 3  # blanks before a cue; with more it is a screenplay as typed

TITLE_PAGE = "lines of title pages"
NOTES = "notes"
OUTLINE = "sections and synopses"


def certainty(source: Source) -> float:
    """Return how sure it is that a file is Fountain."""
    lines = source.beginning.split("\n")
    before = ""
    scenes = cues = text = 0
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        stripped = line.strip()
        text += stripped != ""
        is_flush = len(line) - len(line.lstrip()) <= INDENT
        if stripped and not before and is_flush:
            scenes += _heading(stripped) != ""
            is_cue = bool(following.strip()) and _is_cue(stripped)
            is_cue = is_cue and len(stripped) > 1
            cues += is_cue and len(following) - len(following.lstrip()) <= INDENT
        before = stripped
    has_title = TITLE_KEY.match(source.beginning) is not None
    if source.ending in ENDINGS:
        return SURE if scenes or cues or has_title else BY_ENDING if text else 0.0
    is_own = has_title and OWN_KEY.search(source.beginning, 0, LONGEST_TITLE) is not None
    if is_own and cues >= max(LEAST_CUES, LEAST_SHARE_WITHOUT * text):
        return SURE
    if not scenes or cues < LEAST_CUES or scenes + cues < LEAST_SHARE * text:
        return 0.0
    return SURE if has_title or scenes > 1 else LIKELY


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the pieces of a screenplay. Raises: UnreadableError."""
    fountain = _Fountain(Script(options, findings), findings)
    yield from pieces_of_script(fountain, source, findings)


def _heading(line: str) -> str:
    """Return the scene heading that a line is; empty: it is none."""
    if line[0] == "." and len(line) > 1 and line[1].isalnum():
        return SCENE_NUMBER.sub("", line[1:]).strip()
    return SCENE_NUMBER.sub("", line).strip() if SCENE.match(line) else ""


def _is_cue(line: str) -> bool:
    """Return whether a line may name a character; a text has to follow."""
    if line[0] == "@":
        return len(line) > 1
    return line[0] not in ".>!~#=([" and is_capital_name(line) and not line.endswith("TO:")


def unmarked(line: str) -> str:
    """Return a line without marks of emphasis."""
    if "*" in line:
        line = EMPHASIS.sub(r"\2", EMPHASIS.sub(r"\2", line))
    if "_" in line:
        line = UNDERLINE.sub(r"\1", line)
    return ESCAPED.sub(r"\1", line) if "\\" in line else line


@dataclass
class _Hidden:
    """Cuts notes and boneyards out of lines; both may go over several.

    mark: that ends the one at hand; empty: none is at hand.
    """

    findings: Findings
    mark: str = ""
    lines: int = 0

    def shown(self, line: str) -> str:
        """Return what is left of a line."""
        if not self.mark and "[[" not in line and "/*" not in line:
            return line
        shown = []
        rest = line
        while rest:
            if self.mark:
                rest = self._after_mark(rest)
                continue
            start = min((at for at in (rest.find("[["), rest.find("/*")) if at >= 0), default=-1)
            if start < 0:
                shown.append(rest)
                break
            shown.append(rest[:start])
            self.mark = "]]" if rest[start] == "[" else "*/"
            self.lines = 0
            self.findings.left_out[NOTES] += 1
            rest = rest[start + 2 :]
        return "".join(shown)

    def _after_mark(self, line: str) -> str:
        _, mark, rest = line.partition(self.mark)
        self.lines += 1
        if mark or self.lines > MOST_NOTE_LINES:
            self.mark = ""
        return rest

    def end_note(self) -> None:
        """End a note at an empty line, which it cannot go over."""
        if self.mark == "]]":
            self.mark = ""


@dataclass
class _Fountain:
    """Tells what each line is, by the lines around it."""

    script: Script
    findings: Findings
    hidden: _Hidden = field(init=False)
    waiting: str | None = None  # after an empty line; what it is depends on the next one
    after_blank: bool = True
    in_speech: bool = False
    in_title: bool | None = None  # None: nothing has come
    title_lines: int = 0
    action: list[str] = field(default_factory=list)
    length: int = 0  # of the action

    def __post_init__(self) -> None:
        self.hidden = _Hidden(self.findings)

    def take(self, line: str) -> None:
        """Take the next line."""
        if not line.strip():
            self.hidden.end_note()
        is_hidden = bool(self.hidden.mark) and bool(line.strip())
        shown = self.hidden.shown(line)
        is_hidden = (is_hidden or shown is not line) and not shown.strip()
        if is_hidden and not self.after_blank:
            return  # a line of a note is no empty line
        if self._is_title(shown):
            return
        if self.waiting is not None:
            waiting = self.waiting
            self.waiting = None
            self._decided(waiting, shown)
        if not shown.strip():
            self._blank(shown)
        elif self.in_speech:
            self._spoken(shown.strip())
        elif self.after_blank:
            self.waiting = shown
        else:
            self._add_action(shown)
        self.after_blank = not shown.strip()

    def end(self) -> None:
        """Complete what is at hand."""
        if self.waiting is not None:
            self._decided(self.waiting, "")
        self._end_action()
        self.script.finish()

    def _is_title(self, line: str) -> bool:
        """Return whether a line is one of the title page, with which a file may begin."""
        if self.in_title is None:
            if not line.strip():
                return True
            self.in_title = TITLE_KEY.match(line) is not None
        elif self.in_title:
            is_over = not line.strip() or self.title_lines > MOST_TITLE_LINES
            self.in_title = not is_over
        if self.in_title:
            self.title_lines += 1
            self.findings.left_out[TITLE_PAGE] += 1
        return self.in_title

    def _blank(self, line: str) -> None:
        if self.in_speech and len(line) > 1:
            return  # two blanks keep an empty line within a speech
        self.in_speech = False
        self._end_action()

    def _decided(self, line: str, following: str) -> None:
        """Take a line after an empty one, now that the next one is known."""
        stripped = line.strip()
        stands_alone = not following.strip()
        heading = _heading(stripped)
        if heading:
            self.script.scene(unmarked(heading))
        elif PAGE_BREAK.fullmatch(stripped):
            return
        elif stripped[0] in "#=" and len(stripped) > 1:
            self.findings.left_out[OUTLINE] += 1
        elif stripped[0] == ">" or (stands_alone and TRANSITION.fullmatch(stripped)):
            self.script.direction([unmarked(stripped.strip("> <"))] * (stripped.strip("> <") != ""))
        elif not stands_alone and _is_cue(stripped):
            self._cue(stripped)
        else:
            self._add_action(line)

    def _cue(self, line: str) -> None:
        name, asides, goes_on = cue_parts(unmarked(line.removeprefix("@")))
        if not name:
            self._add_action(line)
            return
        self.script.cue(name, asides, goes_on)
        self.in_speech = True

    def _spoken(self, line: str) -> None:
        if line[0] == "(" and line[-1] == ")":
            self.script.parenthetical(unmarked(line))
        else:
            self.script.line(unmarked(line.removeprefix("~").strip()))

    def _add_action(self, line: str) -> None:
        words = line.strip()
        if words[0] == "#" or (words[0] == "=" and len(words) > 1):
            if not PAGE_BREAK.fullmatch(words):
                self.findings.left_out[OUTLINE] += 1
            return
        words = unmarked(
            words.strip("><").strip() if words[0] == ">" else words.lstrip("!~").strip()
        )
        if not words:
            return
        if self.length > LONGEST_PART:
            self._end_action()
        self.action.append(words)
        self.length += len(words) + 1

    def _end_action(self) -> None:
        self.script.direction(self.action)
        self.action = []
        self.length = 0


FOUNTAIN = Reader("Fountain screenplay", certainty, read)
