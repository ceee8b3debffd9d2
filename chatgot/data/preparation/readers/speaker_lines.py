"""Reads transcripts whose lines begin with a speaker: `Name: text`, in the usual shapes.

Also `NAME (V.O.): text`, `[00:01:02] Name: text`, `Name [00:12]: text`, `**Name:** text`, and
`Name 0:12` on a line of its own before its text. Lines without a speaker go on with the speech
above. Texts in the layout of a prepared text (`NAME:` on a line of its own) are left as they are.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from chatgot.data.preparation.pieces import Passage, Piece, Speech
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.source import Source
from chatgot.data.prompts import SPEAKER

SURE = 0.6  # less than a messenger or a subtitle file is sure of itself
LIKELY = 0.5
LEAST_TURNS = 4  # of speakers that come again
LEAST_NAMES = 2  # that come again
SHARE_OF_LINES = 0.3  # begin with a speaker that comes again; or SHARE_OF_PARAGRAPHS
SHARE_OF_PARAGRAPHS = 0.5
ONE_LINE_EACH = 0.5  # share of lines: mostly a speech is a line
BEGINNING_OF_LINE = 200  # characters of a line in which its speaker is looked for
MOST_WORDS = 6  # of a name
LEAST_WORDS_OF_PROSE = 3  # of more words most are written as names are
LONGEST_ABBREVIATION = 5  # characters of a word with a full stop in a name: Capt. Miller
MOST_NAMES = 100_000  # counted
NAMES_REMEMBERED = 1 << 14  # as names, or as none
LONGEST_SPEECH = 1 << 20  # characters, after which a speech is written in parts

CLOCK = r"\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d{1,6})?(?:\s?[AaPp]\.?[Mm]\b\.?)?"
DATE = r"(?:\d{4}-\d{2}-\d{2}[T ,]\s?)?"
SPAN = rf"{DATE}{CLOCK}(?:\s?(?:-->|[-–])\s?{CLOCK})?"
STAMP = rf"(?:\[\s?{SPAN}\s?\]|\(\s?{SPAN}\s?\)|{SPAN})"
NAME = r"[^\W\d_][^\n\t:：\[\](){}<>\"“”„«»?!;=|*]{0,39}?"
TURN = re.compile(
    rf"[ \t]{{0,40}}(?:(?P<before>{STAMP})[ \t]{{0,9}}(?:[-–|][ \t]{{1,9}})?)?(?:\*\*)?"
    rf"(?P<name>{NAME})[ \t]{{0,9}}(?P<qualifier>\([^()\n]{{1,60}}\)|\[[^\[\]\n]{{1,60}}\])?"
    rf"[ \t]{{0,9}}(?P<after>{STAMP})?(?:\*\*)?(?:：|:(?=\s|\*\*|$))(?:\*\*)?[ \t]*"
)
# Without a colon: the time is what shows that a line is no text
HEADER = re.compile(
    rf"[ \t]{{0,40}}(?:\*\*)?(?:\[{SPAN}\][ \t]{{1,9}}(?P<second>{NAME})"
    rf"|(?P<first>{NAME})(?:\*\*)?[ \t]{{1,9}}(?:[-–|][ \t]{{1,9}})?{STAMP})(?:\*\*)?[ \t]*$"
)
# What most turns look like: as TURN, but without stamps, qualifiers and asterisks, and faster
SIMPLE_TURN = re.compile(r"(?P<name>[A-Za-z][A-Za-z .'-]{0,39}):(?=\s|$)[ \t]*")
WITHIN_STAMP = re.compile(rf"[\[(]?\s?(?P<moment>{DATE}{CLOCK}).*")
ISO_MOMENT = re.compile(r"(\d{4}-\d{2}-\d{2})[T ,]\s?(\d{1,2}:\d{2}(?::\d{2})?)$")
IN_BRACKETS = re.compile(r"\[[^\[\]]*\]|\([^()]*\)")
SCENE = re.compile(r"[\[(]\s*(?:scene|szene|setting|cut to|location|int\b|ext\b)", re.IGNORECASE)
# Marks of where a voice comes from, and that a speech goes on: not what somebody does
VOICE = re.compile(r"[(\[]\s*(?:v\.?\s?o|o\.?\s?[sc]|cont.{0,2}d|continued)\.?\s*[)\]]", re.I)
SURE_HEADING = re.compile(r"(?:act|scene|chapter|episode|part|season)\b.{0,60}", re.IGNORECASE)
HEADING = re.compile(r"[^a-z]{3,80}")
# Words before a colon that are no speakers: of mail, logs, notices, addresses
NO_SPEAKERS = """
from to cc bcc subject date sent received return-path message-id reply-to content-type mime-version
info warning warn error debug trace critical fatal notice note notes tip hint example examples
figure table step todo fixme http https ftp file mailto title author copyright license version url
source description name id type default returns raises args parameters usage see else try finally
except
"""
# Files of these endings have colons of their own
NOT_TRANSCRIPTS = """
yaml yml json jsonl ini toml cfg conf properties py js ts c h cpp java rs go css html htm xml svg
tex bib eml mbox log
"""
SMALL_WORDS = frozenset(("&", "and", "of", "the", "de", "la", "von", "van", "der", "und", "et"))
WORDS_OF_NO_SPEAKERS = frozenset(NO_SPEAKERS.split())
ENDINGS_OF_OTHERS = frozenset(NOT_TRANSCRIPTS.split())


@dataclass(slots=True)
class Turn:
    """The beginning of a speech, in one line.

    text: what is said in this line; maybe empty.
    direction: `(laughing)` behind the name; maybe empty.
    """

    name: str
    text: str
    direction: str = ""
    is_timed: bool = False
    time: float | None = None


def turn_of(line: str) -> Turn | None:
    """Return the speech that a line begins; None: it begins none."""
    beginning = line[:BEGINNING_OF_LINE]
    if ":" not in beginning and "：" not in beginning:
        return None  # nor is there a time
    match = SIMPLE_TURN.match(beginning)
    if match is not None:
        name = _name_of(match["name"])
        return Turn(name, line[match.end() :].strip()) if name else None
    match = TURN.match(beginning)
    if match is None:
        return _turn_of_header(line)
    name = _name_of(match["name"])
    if not name:
        return None
    stamp = match["before"] or match["after"]
    direction = match["qualifier"] or ""
    if direction and re.fullmatch(STAMP, direction):
        stamp = stamp or direction
        direction = ""
    if VOICE.fullmatch(direction):
        direction = ""
    text = line[match.end() :].strip()
    return Turn(name, text, direction, stamp is not None, _seconds_of(stamp))


def _turn_of_header(line: str) -> Turn | None:
    if len(line) > BEGINNING_OF_LINE:
        return None
    match = HEADER.match(line)
    if match is None:
        return None
    name = _name_of(match["first"] or match["second"])
    return Turn(name, "", is_timed=True) if name else None


@lru_cache(maxsize=NAMES_REMEMBERED)
def _name_of(words: str) -> str:
    """Return a name on one line; empty: no speaker is called so."""
    name = " ".join(words.split())
    return name if _may_be_name(name) else ""


def _may_be_name(name: str) -> bool:
    """Return whether a speaker may be called so, whoever reads it alone."""
    words = name.split()
    small = sum(word[0].islower() for word in words)
    if len(words) > MOST_WORDS or (len(words) > LEAST_WORDS_OF_PROSE and 2 * small > len(words)):
        return False
    if any(word.endswith(".") and len(word) > LONGEST_ABBREVIATION for word in words):
        return False
    return name.lower() not in WORDS_OF_NO_SPEAKERS and "//" not in name


def _seconds_of(stamp: str | None) -> float | None:
    """Return the seconds since 1970 of a stamp with a date; None: it has none."""
    match = None if stamp is None else WITHIN_STAMP.match(stamp)
    moment = None if match is None else ISO_MOMENT.match(match["moment"])
    if moment is None:
        return None
    try:
        return datetime.fromisoformat(f"{moment[1]}T{moment[2].zfill(5)}").timestamp()
    except (ValueError, OverflowError, OSError):  # the 40th of a month
        return None


# --------------------------------------------------------------------------------------------------
# Whether a file is a transcript


@dataclass
class _Count:
    """What the lines of a text look like."""

    names: Counter[str]
    timed: int = 0
    empty: int = 0  # turns without text in their line, and without a time
    lines: int = 0  # with text
    paragraphs: int = 0

    def recurring(self) -> set[str]:
        """Return the names that come again, in small letters."""
        return {name for name, number in self.names.items() if number > 1}


def _count(lines: Iterable[str]) -> _Count:
    count = _Count(Counter())
    after_blank = True
    for line in lines:
        stripped = line.strip()
        if not stripped:
            after_blank = True
            continue
        if IN_BRACKETS.fullmatch(stripped):
            continue
        count.lines += 1
        count.paragraphs += after_blank
        after_blank = False
        turn = turn_of(line)
        if turn is None:
            continue
        name = turn.name.casefold()
        if name in count.names or len(count.names) < MOST_NAMES:
            count.names[name] += 1
        count.timed += turn.is_timed
        count.empty += not turn.text and not turn.is_timed
    return count


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a transcript of speakers."""
    if source.encoding is None or source.ending in ENDINGS_OF_OTHERS:
        return 0.0
    if len(SPEAKER.findall(source.beginning)) >= LEAST_TURNS:
        return 0.0  # the layout of a prepared text
    count = _count(source.beginning.split("\n"))
    recurring = count.recurring()
    turns = sum(count.names[name] for name in recurring)
    if turns < LEAST_TURNS or 2 * count.empty > turns:
        return 0.0
    least_names = 1 if 2 * count.timed > turns else LEAST_NAMES
    if len(recurring) < least_names:
        return 0.0
    if turns >= ONE_LINE_EACH * count.lines:
        return SURE
    is_likely = (
        turns >= SHARE_OF_LINES * count.lines or turns >= SHARE_OF_PARAGRAPHS * count.paragraphs
    )
    return LIKELY if is_likely else 0.0


# --------------------------------------------------------------------------------------------------
# Reading


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the speeches of a transcript; it is read twice, for the names that come again.

    Raises: ConfigError.
    """
    count = _count(source.lines())
    recurring = count.recurring()
    turns = sum(count.names[name] for name in recurring)
    transcript = _Transcript(recurring, turns >= ONE_LINE_EACH * count.lines, options, findings)
    for line in source.lines():
        yield from transcript.pieces_of(line)
    yield from transcript.end()


class _Transcript:
    """Joins lines to speeches.

    recurring: names that come again, in small letters: a line of theirs always begins a speech.
    one_line_each: mostly a speech is a line, so that a line of another name begins one, too.
    """

    def __init__(
        self,
        recurring: Collection[str],
        one_line_each: bool,
        options: ReadingOptions,
        findings: Findings,
    ) -> None:
        self.recurring = recurring
        self.one_line_each = one_line_each
        self.options = options
        self.findings = findings
        self.turn: Turn | None = None
        self.lines: list[str] = []  # of the speech, or of a passage before the first one
        self.length = 0
        self.after_blank = True

    def pieces_of(self, line: str) -> Iterator[Piece]:
        """Yield what is complete once a line has come."""
        stripped = line.strip()
        if not stripped:
            self.after_blank = True
            if self.turn is None:
                yield from self.end()
            return
        turn = self._begins(line)
        if turn is not None:
            yield from self.end()
            self.turn = turn
            self._begin_text(turn)
        elif IN_BRACKETS.fullmatch(stripped):
            yield from self._direction(stripped)
        elif self.turn is not None and self._is_heading(stripped):
            yield from self.end()
            yield Passage(stripped)
        else:
            self._add(stripped)
            if self.length > LONGEST_SPEECH:
                yield from self._part()
        self.after_blank = False

    def end(self) -> Iterator[Piece]:
        """Yield the speech or passage at hand."""
        yield from self._part()
        self.turn = None

    def _part(self) -> Iterator[Piece]:
        text = "\n".join(self.lines)
        self.lines.clear()
        self.length = 0
        if not text:
            return
        yield Passage(text) if self.turn is None else Speech(self.turn.name, text, self.turn.time)

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.length += len(line)

    def _begin_text(self, turn: Turn) -> None:
        direction = turn.direction
        if direction and self.options.directions == "drop":
            self.findings.left_out["stage directions"] += 1
            direction = ""
        text = f"{direction} {turn.text}".strip()
        if text:
            self._add(text)

    def _begins(self, line: str) -> Turn | None:
        """Return the speech that a line begins; None: it goes on with the one above."""
        turn = turn_of(line)
        if turn is None or turn.name.casefold() in self.recurring:
            return turn
        if turn.is_timed:
            return turn if turn.text else None  # `at 10:30` is no speaker
        is_expected = self.one_line_each or self.after_blank
        return turn if is_expected and _looks_like_name(turn.name) else None

    def _direction(self, line: str) -> Iterator[Piece]:
        """Yield a scene heading or a stage direction that has a line of its own."""
        is_scene = SCENE.match(line) is not None
        choice = self.options.scenes if is_scene else self.options.directions
        if choice == "drop":
            self.findings.left_out["scene headings" if is_scene else "stage directions"] += 1
            return
        turn = self.turn
        yield from self.end()
        yield Passage(line)
        if not is_scene:
            self.turn = turn  # who spoke may go on

    def _is_heading(self, line: str) -> bool:
        """Return whether a line is a heading, which nobody says."""
        if line.endswith((".", "!", "?", ",")):
            return False
        if self.after_blank and HEADING.fullmatch(line):
            return True
        return (self.after_blank or self.one_line_each) and SURE_HEADING.fullmatch(line) is not None


def _looks_like_name(name: str) -> bool:
    """Return whether each word of a name that comes once is written as in names."""
    words = [word for word in name.replace(".", " ").split() if word not in SMALL_WORDS]
    return 0 < len(words) <= 3 and all(word[0].isupper() or word[0].isdigit() for word in words)


SPEAKER_LINES = Reader("transcript with speakers", certainty, read)
