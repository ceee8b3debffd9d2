"""A log of IRC: of irssi, WeeChat, ZNC, eggdrop, mIRC or HexChat."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import bounded_lines
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.source import Source

LOOKED_AT = 400  # lines
LEAST_LINES = 3
DAY_S = 86_400
HALF_YEAR_S = 182 * DAY_S
BACKWARD_S = 3600  # a clock that goes back by more shows that a day has passed

_NICK = r"[^\s<>:,]{1,40}"
_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d))?"
_DATE = r"(?P<date>\d{4}-\d\d-\d\d)[T ]"
# A name may stand only once in a pattern
STAMPS = (
    re.compile(rf"\[(?:{_DATE})?{_CLOCK}(?:\.\d+)?Z?\]\s"),
    re.compile(rf"(?:{_DATE})?{_CLOCK}(?:\.\d+)?Z?[\t ]"),
    re.compile(rf"(?P<monthday>[A-Z][a-z]{{2}} \d\d) {_CLOCK} "),
)
SAID = re.compile(rf"\s?<[ @+%&~!]?(?P<nick>{_NICK})>\s?(?P<text>.*)")
DONE = re.compile(rf"\s*(?:\*\s(?!\*)|Action: )(?P<nick>{_NICK})\s(?P<text>.+)")
TABBED = re.compile(rf"(?P<nick>[ @+%&~!]?{_NICK}|-->|<--|--|=!=)\t(?P<text>.*)")
PLAIN = re.compile(r"(?P<nick>[A-Za-z_\[\]{}^`|\\][\w\[\]{}^`|\\-]{0,29}) (?P<text>\S.*)")
NOTICE = re.compile(
    r"\s*(?:-!-|\*\*\*|-->|<--|--\s|=!=|\* \*|-[^\s-]{1,60}(?:\([^)]{0,100}\))?-\s"
    r"|\S{1,60} \([^)\s]{0,100}@[^)\s]{0,100}\) )"
)
# What happens to the channel, where it looks like what somebody does
CHANGE = re.compile(
    r"\([^)\s]{0,100}@[^)\s]{0,100}\) |sets mode|is now known as |has (?:joined|left|quit|changed)"
    r"|talking in |changes topic to|was kicked by "
)
DAY_LINES = re.compile(
    r"(?:--- (?:Day changed|Log (?:opened|closed))|Session (?:Start|Time|Close|Ident):"
    r"|\*{4} (?:BEGIN|ENDING) LOGGING AT) ?(?P<day>.*)"
)
DAY_FORMS = ("%a %b %d %H:%M:%S %Y", "%a %b %d %Y")
NAME_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.]?([01]\d)[-_.]?([0-3]\d)(?!\d)")
CODES = re.compile("\x03(?:\\d{1,2}(?:,\\d{1,2})?)?|[\x02\x0f\x11\x16\x1d\x1e\x1f]")
TABBED_NOTICES = ("-->", "<--", "--", "=!=")
LEVELS = re.compile(r"(?:info|debug|warn|warning|error|critical|trace|fatal|notice)\b", re.I)


@dataclass
class _Line:
    """A line of a log. kind: "said", "done" or "notice"."""

    kind: str
    nick: str = ""
    text: str = ""


def _parsed(rest: str, is_plain: bool = False) -> _Line | None:
    """Return what a line says after its time; None: it is no line of IRC."""
    said = SAID.match(rest)
    if said is not None:
        return _Line("said", said["nick"], said["text"])
    tabbed = TABBED.match(rest)
    if tabbed is not None:
        nick = tabbed["nick"]
        if nick in TABBED_NOTICES or (nick.startswith("-") and nick.endswith("-")):
            return _Line("notice")
        if nick.strip() != "*":
            return _Line("said", nick.lstrip(" @+%&~!"), tabbed["text"])
        rest = f"* {tabbed['text']}"
    done = DONE.match(rest)
    if done is not None:
        is_notice = CHANGE.match(done["text"]) is not None
        return _Line("notice") if is_notice else _Line("done", done["nick"], done["text"])
    if NOTICE.match(rest):
        return _Line("notice")
    plain = PLAIN.match(rest) if is_plain else None
    return None if plain is None else _Line("said", plain["nick"], plain["text"])


def _stamp(line: str) -> re.Match[str] | None:
    for stamp in STAMPS:
        match = stamp.match(line)
        if match is not None:
            return match
    return None


@dataclass
class _Look:
    """What the beginning of a log shows."""

    lines: int = 0
    said: int = 0
    known: int = 0
    nicks: Counter[str] = field(default_factory=Counter)
    plain_nicks: Counter[str] = field(default_factory=Counter)

    @property
    def is_plain(self) -> bool:
        """Whether nothing but a blank divides nicks from texts: then they must recur."""
        if self.known or len(self.plain_nicks) < 2 or any(map(LEVELS.match, self.plain_nicks)):
            return False
        count = self.plain_nicks.total()
        return count >= 0.8 * self.lines and len(self.plain_nicks) <= count / 3


def _look(source: Source) -> _Look:
    look = _Look()
    for line in source.beginning.split("\n")[:LOOKED_AT]:
        if not line.strip():
            continue
        look.lines += 1
        if DAY_LINES.match(line):
            look.known += 1
            continue
        stamp = _stamp(line)
        if stamp is None:
            continue
        parsed = _parsed(line[stamp.end() :])
        if parsed is not None:
            look.known += 1
            look.said += parsed.kind == "said"
            look.nicks[parsed.nick] += parsed.kind == "said"
        elif plain := PLAIN.match(line[stamp.end() :]):
            look.plain_nicks[plain["nick"]] += 1
    return look


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a log of IRC."""
    look = _look(source)
    if look.is_plain:
        return 0.4
    if not look.said or look.known < 0.6 * look.lines or any(map(LEVELS.match, look.nicks)):
        return 0.0
    return 0.93 if look.said >= LEAST_LINES else 0.7


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield what is said and done in a channel. Raises: UnreadableError."""
    is_plain = _look(source).is_plain
    clock = _Clock(source.name)
    conversation = Conversation(options)
    for raw in bounded_lines(source, findings):
        line = CODES.sub("", raw)
        if not line.strip():
            continue
        day = DAY_LINES.match(line)
        if day is not None:
            clock.begin_day(day["day"])
            findings.left_out["joins, parts and notices"] += 1
            continue
        stamp = _stamp(line)
        parsed = None if stamp is None else _parsed(line[stamp.end() :], is_plain)
        if stamp is None or parsed is None or parsed.kind == "notice":
            kind = "odd lines" if parsed is None else "joins, parts and notices"
            findings.left_out[kind] += 1
            continue
        time = clock.time(stamp)
        conversation.is_dated = clock.is_dated
        if parsed.kind == "said":
            yield from conversation.say(parsed.nick, parsed.text, time)
        elif options.directions == "keep":
            yield from conversation.tell(f"{parsed.nick} {parsed.text}", time)
        else:
            findings.left_out["actions"] += 1


class _Clock:
    """Tells the time of lines that have hours and minutes only, by the days that pass.

    is_dated: it is known which days these are, from a line or the file's name.
    """

    def __init__(self, name: str) -> None:
        self._day = 0.0
        self._last: float | None = None
        self.is_dated = False
        dates = NAME_DATE.findall(name)
        if dates:
            self._set("-".join(dates[-1]), "%Y-%m-%d")

    def _set(self, text: str, form: str) -> bool:
        try:
            day = datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            return False
        self._day = day // DAY_S * DAY_S
        self._last = None
        self.is_dated = True
        return True

    def begin_day(self, text: str) -> None:
        """Take the date of a line such as `--- Day changed Fri Jan 02 2020`."""
        for form in DAY_FORMS:
            if self._set(" ".join(text.split()), form):
                return

    def time(self, stamp: re.Match[str]) -> float | None:
        """Return the time of a line; None: no clock shows it."""
        groups = stamp.groupdict()
        seconds = int(groups["hour"]) * 3600 + int(groups["minute"]) * 60
        seconds += int(groups["second"] or 0)
        if seconds > DAY_S:
            return None
        if groups.get("date"):
            if not self._set(groups["date"], "%Y-%m-%d"):
                return None
        elif groups.get("monthday"):
            self._set_month(groups["monthday"])
        elif self._last is not None and seconds < self._last - BACKWARD_S:
            self._day += DAY_S
        self._last = seconds
        return self._day + seconds

    def _set_month(self, text: str) -> None:
        """Take `Jan 02`, in the year that was known before, or in the next one after December."""
        before = self._day
        year = datetime.fromtimestamp(before, UTC).year if before else 1972
        was_dated = self.is_dated
        if self._set(f"{year} {text}", "%Y %b %d") and self._day < before - HALF_YEAR_S:
            self._set(f"{year + 1} {text}", "%Y %b %d")
        self.is_dated = was_dated


IRC = Reader("IRC log", certainty, read)
