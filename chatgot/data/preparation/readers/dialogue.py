"""Who says what, told from subtitles in the order of time: lines, speeches and paragraphs."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from chatgot.data.preparation.pieces import Passage, Piece, Speech
from chatgot.data.preparation.reader import Findings, ReadingOptions
from chatgot.data.preparation.readers.capitals import is_in_capitals
from chatgot.data.preparation.readers.cues import Cue
from chatgot.data.preparation.readers.subtitle_text import VOICE

PAUSE_MS = 4000  # between two subtitles: a new paragraph begins
TOUCHING_MS = 60  # captions that roll are shown one right after the other
LONGEST_JOINED = 1000  # characters of a sentence over several subtitles
MOST_LINES = 200  # of one paragraph or speech
RECENT = 256  # texts that are remembered, to find those that are shown twice
LONGEST_NAME = 40  # characters before a colon

LOOKED_AT = 5000  # subtitles, for the habits of a file
ROLLING_SHARE = 0.2  # of subtitles repeat the line before
WRAPPED_SHARE = 0.2  # of second lines begin in small letters, where lines are wrapped
NAMED_SHARE = 0.1  # of subtitles begin with a name: names in mixed case are taken, too
DENSE_SHARE = 0.2  # of subtitles begin with a name: the others go on with the last one
CERTAIN_SHARE = 0.5  # of subtitles begin with a name: those that come once are names, too
STOPPED_SHARE = 0.1  # of subtitles end with a full stop or the like, where sentences are marked
STYLES_NAMED = 2  # styles that may be speakers

DASHES = "-‐‑–—−"
# Not `--and`, which goes on, and not `-5`
DASH = re.compile(rf"[{DASHES}](?:[ \t]+(?=\S)|(?=[^{DASHES}\s\d]))")
LEADING_DOTS = re.compile(r"(?:\.{2,}|…)[. …]*")
FINAL = ".!?…。！？؟۔।:;"
STOPS = ".!?…。！？؟۔।"
CLOSING = "\"'”’»›)]）】」』 "
OPENING = "\"'“‘„«‹([（¿¡ "
ELLIPSES = ("...", "…", "..")
NOTE_SIGNS = "♪♫♬♩"
DIRECTION_SIGNS = f"[(（【［*#{NOTE_SIGNS}"
SPECIAL = re.compile(rf"^[{DASHES}]|[:：\[(（【［*{NOTE_SIGNS}#{VOICE}]")
BRACKETED = re.compile(r"\[[^\[\]]*\]|\([^()]*\)|（[^（）]*）|【[^【】]*】|［[^［］]*］")
ONLY_BRACKETS = re.compile(rf"(?:\s*[-–]?\s*(?:{BRACKETED.pattern})\s*[.:]?)+\s*")
OPEN_BRACKETS = re.compile(r"[\[(（【［]")
STARS = re.compile(r"\*[^*\n]{2,60}\*")
HASHES = re.compile(r"#[ \t].*|.*[ \t]#")
NAME = re.compile(
    r"(?P<name>[^\W_][^\n:：\[\]{}<>()\"“”„«»?!;=|*/\\,♪#]{0,39}?)[ \t]?"
    r"(?P<aside>\([^()\n]{1,60}\)|\[[^\[\]\n]{1,60}\])?[ \t]?(?:：|:(?![\d/]))[ \t]*"
)
WORDS_WITHIN_NAMES = """
of the and de la le du da di del von van der den und et y e & a
"""
WORDS_OF_NO_NAMES = """
note warning ps p.s http https www re fwd edit update episode chapter part act scene time
"""
SMALL_WORDS = frozenset(WORDS_WITHIN_NAMES.split())
ELIDED = re.compile(r"^(?:d|l|dell|dall)['’](?=\w)")  # Jeanne d'Arc
NO_NAMES = frozenset(WORDS_OF_NO_NAMES.split())
VOICES = re.compile(r"[(\[]\s*(?:v\.?\s?o|o\.?\s?[sc]|cont.{0,2}d|continued)\.?\s*[)\]]", re.I)
CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")

# Styles of ASS files that name no speaker, and those of what nobody says
PLAIN_STYLE = re.compile(
    r"\W*(?:default|main|dialog|alt|ital|top|bottom|flash|thought|narrat|standard|normal|text|sub"
    r"|overlap|internal|caption|style|furigana|bold|none|left|right|up\b|\d|arial|tahoma)",
    re.IGNORECASE,
)
SONG_STYLE = re.compile(
    r"\W*(?:op|ed|op\d+|ed\d+|.*(?:opening|ending|song|lyric|karaoke|romaji|kanji|kara\b|insert"
    r"|sign|title|note|credit|eyecatch|preview|ts\b|typeset).*|(?:op|ed)[ _-].*)\W*",
    re.IGNORECASE,
)
NO_FIELD_NAMES = frozenset(("", "default", "unknown", "n/a", "none", "-", "ntp", "?"))

SOUNDS = "sound descriptions"
LYRICS = "lines of songs"
SIGNS = "signs and songs"
REPEATED = "repeated subtitles"


class Line(NamedTuple):
    """A line of a subtitle: who says it, whether somebody else begins to speak, what it is."""

    name: str
    is_turn: bool
    text: str


@dataclass
class Habits:
    """What the first subtitles of a file say about the rest.

    names: in mixed case, that come before a colon again and again.
    any_name: whatever stands before a colon and looks like a name is one.
    is_dense: who is not named goes on with what the last named one says.
    """

    names: set[str] = field(default_factory=set)
    any_name: bool = False
    is_dense: bool = False
    is_rolling: bool = False
    is_wrapped: bool = True
    in_capitals: bool = False
    has_stops: bool = True
    style_names: bool = False

    @classmethod
    def of(cls, cues: Sequence[Cue]) -> "Habits":
        habits = cls()
        if not cues:
            return habits
        cues = cues[:LOOKED_AT]
        _look_at_letters(habits, cues)
        _look_at_names(habits, cues)
        _look_at_rolling(habits, cues)
        _look_at_styles(habits, cues)
        return habits


def _look_at_letters(habits: Habits, cues: Sequence[Cue]) -> None:
    text = "".join(cue.text for cue in cues[:500])
    upper = sum(map(str.isupper, text))
    lower = sum(map(str.islower, text))
    habits.in_capitals = upper > 4 * lower
    small = large = stopped = 0
    for cue in cues:
        lines = cue.text.split("\n")
        stopped += lines[-1].rstrip(CLOSING)[-1:] in STOPS
        if len(lines) != 2 or lines[1][:1] in DASHES or lines[0].rstrip(CLOSING)[-1:] in FINAL:
            continue
        letter = lines[1].lstrip(OPENING)[:1]
        small += letter.islower()
        large += letter.isupper()
    habits.is_wrapped = habits.in_capitals or small >= WRAPPED_SHARE * (small + large)
    habits.has_stops = stopped >= max(1, STOPPED_SHARE * len(cues))


def _look_at_names(habits: Habits, cues: Sequence[Cue]) -> None:
    names: Counter[str] = Counter()
    in_capitals: Counter[str] = Counter()
    for cue in cues:
        if ":" not in cue.text and "：" not in cue.text:
            continue
        for line in cue.text.split("\n"):
            match = NAME.match(_without_dash(line))
            if match is not None and _may_be_name(match["name"]):
                is_sure = is_in_capitals(match["name"]) and not habits.in_capitals
                (in_capitals if is_sure else names)[match["name"]] += 1
    total = names.total() + in_capitals.total()
    if total >= CERTAIN_SHARE * len(cues) and total > 1:
        habits.any_name = True
    elif names.total() >= NAMED_SHARE * len(cues):
        habits.names = {name for name, count in names.items() if count > 1}
    named = in_capitals.total() + sum(names[name] for name in habits.names)
    habits.is_dense = habits.any_name or named >= DENSE_SHARE * len(cues)


def _look_at_rolling(habits: Habits, cues: Sequence[Cue]) -> None:
    repeated = 0
    for before, cue in pairwise(cues):
        if cue.start <= before.end + TOUCHING_MS:
            repeated += cue.text.partition("\n")[0] == before.text.rpartition("\n")[2]
    habits.is_rolling = repeated >= max(2, ROLLING_SHARE * len(cues))


def _look_at_styles(habits: Habits, cues: Sequence[Cue]) -> None:
    if not cues[0].style or any(field_name(cue.name) for cue in cues):
        return
    styles = Counter(cue.style for cue in cues if is_style_of_speaker(cue.style))
    habits.style_names = sum(count > 1 for count in styles.values()) >= STYLES_NAMED


def is_style_of_speaker(style: str) -> bool:
    """Return whether a style may have the name of who speaks in it."""
    return PLAIN_STYLE.match(style) is None and SONG_STYLE.fullmatch(style) is None


def field_name(name: str) -> str:
    """Return the name that a field of a file holds; empty: it names nobody."""
    return "" if name.lower() in NO_FIELD_NAMES else name


def _may_be_name(name: str) -> bool:
    """Return whether the words before a colon are written as a name is."""
    words = name.split()
    if not words or len(words) > 5 or len(name) > LONGEST_NAME:
        return False
    if words[0].lower().rstrip(".") in NO_NAMES or not any(map(str.isalpha, name)):
        return False
    bare = (ELIDED.sub("", word) for word in words)
    if any(word[0].islower() and word not in SMALL_WORDS for word in bare):
        return False
    return not words[0].isdigit()


def _without_dash(line: str) -> str:
    match = DASH.match(line)
    return line if match is None else line[match.end() :]


class Dialogue:
    r"""Joins subtitles to speeches and paragraphs, one after the other.

    Each text is what a viewer sees, with "\n" between its lines.
    """

    def __init__(self, habits: Habits, options: ReadingOptions, findings: Findings) -> None:
        self.habits = habits
        self.keeps_directions = options.directions == "keep"
        self.left_out = findings.left_out
        self.speaker = ""
        self.lines: list[str] = []
        self.is_open = False  # the last line may go on
        self.end = 0  # of the last subtitle
        self.shown: list[str] = []  # lines of the last subtitle
        self.recent: dict[str, int] = {}  # text: end
        self.pieces: list[Piece] = []

    def add(self, cue: Cue) -> None:
        """Take a subtitle; what it completes is added to `pieces`."""
        lines = self._new_lines(cue)
        if not lines:
            self.end = max(self.end, cue.end)
            return
        habits = self.habits
        if self.lines and cue.start - self.end > PAUSE_MS:
            self.is_open = False
            if not self.speaker:
                self._flush()
        name = field_name(cue.name)
        is_said = True
        if cue.style:
            if SONG_STYLE.fullmatch(cue.style):
                is_said = self.keeps_directions
                if not is_said:
                    self.left_out[SIGNS] += 1
            elif not name and habits.style_names and is_style_of_speaker(cue.style):
                name = cue.style
        if is_said:
            if len(lines) == 1 and SPECIAL.search(lines[0]) is None:
                self._say(Line(name, False, lines[0]))
            else:
                self._say_lines(lines, name)
        self.end = max(self.end, cue.end)

    def finish(self) -> None:
        """Complete what is at hand."""
        self._flush()
        self.speaker = ""
        self.is_open = False
        self.shown = []
        self.recent.clear()
        self.end = 0

    def _new_lines(self, cue: Cue) -> list[str]:
        """Return the lines of a subtitle that are not shown already."""
        text = cue.text
        shown_until = self.recent.get(text)
        touching = TOUCHING_MS if self.habits.is_rolling else -1
        if shown_until is not None and cue.start <= shown_until + touching:
            self.left_out[REPEATED] += 1
            self.recent[text] = max(shown_until, cue.end)
            self.shown = text.split("\n")
            return []
        if len(self.recent) >= RECENT:
            self.recent = {said: end for said, end in self.recent.items() if end > cue.start}
            if len(self.recent) >= RECENT:
                self.recent.clear()
        self.recent[text] = cue.end
        lines = text.split("\n")
        new = lines
        if self.shown and cue.start <= self.end + touching:
            new = lines[_common(self.shown, lines) :]
            if not new:
                self.left_out[REPEATED] += 1
        self.shown = lines
        return new

    def _say_lines(self, lines: list[str], name: str) -> None:
        """Take the lines of a subtitle, some of which belong together."""
        text = "\n".join(lines)
        if OPEN_BRACKETS.search(text) or "*" in text:
            text = self._with_sounds(text)
        has_notes = any(sign in text for sign in NOTE_SIGNS)
        if has_notes or "#" in text:
            text = self._with_songs(text, has_notes)
        parts = _parts(text.split("\n"), self.habits)
        for place, part in enumerate(parts):
            line = part if part.name or not name else Line(name, part.is_turn, part.text)
            self._say(line, is_first=place == 0)

    def _with_sounds(self, text: str) -> str:
        """Return a text with each description of sounds in one line, or without any."""
        if self.keeps_directions:
            return BRACKETED.sub(lambda match: " ".join(match[0].split()), text)
        kept = []
        for line in STARS.sub(self._sound, BRACKETED.sub(self._sound, text)).split("\n"):
            words = " ".join(line.split())
            if any(map(str.isalnum, words)):
                kept.append(words)
        return "\n".join(kept)

    def _sound(self, match: re.Match[str]) -> str:
        before = match.string[: match.start()].rpartition("\n")[2].strip(DASHES + " ")
        after = match.string[match.end() : match.end() + 1]
        self.left_out[SOUNDS] += 1
        return "" if before and after in (":", "：") else " "

    def _with_songs(self, text: str, has_notes: bool) -> str:
        """Return a text with its lyrics, or without."""
        if self.keeps_directions:
            return text
        kept = []
        is_song = False
        for line in text.split("\n"):
            signs = sum(line.count(sign) for sign in NOTE_SIGNS) if has_notes else 0
            was_song = is_song
            is_song = is_song != (signs % 2 == 1)
            if signs or was_song or HASHES.fullmatch(line):
                self.left_out[LYRICS] += 1
            else:
                kept.append(line)
        return "\n".join(kept)

    def _say(self, line: Line, is_first: bool = True) -> None:
        """Add a line to the speech or paragraph at hand, or begin a new one."""
        name, is_turn, text = line
        if not text:
            self._turn_to(name)
            return
        is_direction = not name and text[0] in DIRECTION_SIGNS and _is_direction(text)
        if is_direction and self.speaker:
            self._flush()
            self.pieces.append(Passage(text))
            self.is_open = False
            return
        continues = is_first and self.is_open and not (is_turn or is_direction)
        continues = continues and self._goes_on(text)
        if name:
            self._turn_to(name)
        elif is_turn or not (continues or not is_first or self.habits.is_dense):
            self._turn_to("")
        if continues and self.is_open:
            match = LEADING_DOTS.match(text)
            rest = text if match is None else text[match.end() :]
            self.lines[-1] = f"{self.lines[-1]} {rest}"
        else:
            if len(self.lines) >= MOST_LINES:
                self._flush()
            self.lines.append(text)
        self.is_open = not is_direction

    def _turn_to(self, name: str) -> None:
        if name != self.speaker:
            self._flush()
            self.speaker = name
            self.is_open = False

    def _goes_on(self, text: str) -> bool:
        """Return whether a line goes on with the sentence of the last one."""
        if not self.lines or not (self.habits.has_stops or text.startswith(ELLIPSES)):
            return False
        last = self.lines[-1]
        return len(last) <= LONGEST_JOINED and goes_on(last, text)

    def _flush(self) -> None:
        if not self.lines:
            return
        text = "\n".join(self.lines)
        self.pieces.append(Speech(self.speaker, text) if self.speaker else Passage(text))
        self.lines = []


def goes_on(last: str, text: str) -> bool:
    """Return whether a line is the rest of the sentence that another one begins."""
    match = LEADING_DOTS.match(text)
    ending = last.rstrip(CLOSING)
    is_unfinished = ending[-1:] not in STOPS or ending.endswith(ELLIPSES)
    if match is not None:
        return is_unfinished and match.end() < len(text)
    return is_unfinished and text.lstrip(OPENING)[:1].islower()


def _common(shown: Sequence[str], lines: Sequence[str]) -> int:
    """Return how many of the first lines are the last ones of those shown before."""
    for count in range(min(len(shown), len(lines), 4), 0, -1):
        if list(shown[-count:]) == list(lines[:count]):
            return count
    return 0


def _is_direction(text: str) -> bool:
    """Return whether a line that begins with a sign of DIRECTION_SIGNS is nothing but sounds."""
    if text[0] in NOTE_SIGNS:
        return True
    pattern = {"*": STARS, "#": HASHES}.get(text[0], ONLY_BRACKETS)
    return pattern.fullmatch(text) is not None


def _parts(lines: Sequence[str], habits: Habits) -> list[Line]:
    """Return the lines of one subtitle, those joined that were wrapped."""
    parts: list[Line] = []
    voice = ""
    for line in lines:
        is_turn = False
        words = line
        dash = DASH.match(words)
        if words.startswith(VOICE):
            voice, _, words = words[1:].partition(VOICE)
            dash = DASH.match(words)
        if dash is not None:
            is_turn = True
            words = words[dash.end() :]
        name, words = _named(words, habits)
        name = name or voice
        if not (words or name):
            continue
        before = parts[-1] if parts else None
        if before is not None and not is_turn and (not name or name == before.name):
            if not before.text or _is_wrapped(before.text, words, habits):
                joined = f"{before.text} {words}".strip()
                parts[-1] = Line(before.name, before.is_turn, joined)
                continue
            name = before.name
        parts.append(Line(name, is_turn, words))
    return parts


def _named(line: str, habits: Habits) -> tuple[str, str]:
    """Return who says a line by its first words, and what is said; no name: they name nobody."""
    if ":" not in line[: 2 * LONGEST_NAME] and "：" not in line[: 2 * LONGEST_NAME]:
        return "", line
    match = NAME.match(line)
    if match is None or not _may_be_name(match["name"]):
        return "", line
    name = match["name"].rstrip()
    is_sure = is_in_capitals(name) and sum(map(str.isalpha, name)) > 1 and not habits.in_capitals
    if not (is_sure or habits.any_name or name in habits.names):
        return "", line
    aside = match["aside"] or ""
    if VOICES.fullmatch(aside):
        aside = ""
    return name, f"{aside} {line[match.end() :]}".strip()


def _is_wrapped(line: str, following: str, habits: Habits) -> bool:
    """Return whether a line of a subtitle ends where there was no more room."""
    if line[0] in DIRECTION_SIGNS and _is_direction(line):
        # A song goes on to its second sign
        return sum(map(line.count, NOTE_SIGNS)) == 1 and following[0] not in NOTE_SIGNS
    if goes_on(line, following):
        return True
    if following[0] in "[(♪#-" or line.rstrip(CLOSING)[-1:] in STOPS or not habits.is_wrapped:
        return False
    return not (CJK.match(line[-1]) or CJK.match(following[0]))
