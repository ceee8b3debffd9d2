"""Which lines of a WhatsApp export begin a message, and when was it sent?

A message begins with date, time and an end: `12/31/23, 10:15 PM - ` on Android,
`[31.12.23, 22:15:03] ` on an iPhone. How exactly depends on the phone's language; within one export
it is always the same, so that a date within somebody's text is seldom taken for a message.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from chatgot.data.preparation.readers.chat_dates import (
    DateOrder,
    Numbers,
    day_seconds,
    half_of_day,
    seconds_of_day,
)
from chatgot.data.preparation.readers.whatsapp_notices import MARKS

LONGEST_HEAD = 80  # characters
MOST_REMEMBERED = 50_000  # days, and times of day
NEW = -1  # what is not remembered; no day of a messenger is before 1970, no time before midnight
JOINED_HEADS = 20  # so many of another layout show that two exports were joined
JOINED_SHARE = 0.05

_MARKS = f"[{MARKS}]*"
_SPACE = rf"[\s{MARKS}]"
_SEPARATOR = rf"[\s{MARKS}./\-年月년월]{{1,6}}"
_DATE = (
    rf"(?P<first>\d{{1,4}})(?P<sep1>{_SEPARATOR})(?P<second>\d{{1,2}})(?P<sep2>{_SEPARATOR})"
    rf"(?P<third>\d{{1,4}})[日일]?"
)
_TIME = (
    r"(?P<hour>\d{1,2})(?P<colon1>\s?[:.h時时시٫]\s?)(?P<minute>\d{2})"
    r"(?:(?P<colon2>[:.٫]|\smin\s|[分분]\s?)(?P<second_>\d{2}))?"
)
_GAP1 = r"(?P<gap1>[^\d\[\]\n]{1,24}?)"
_GAP2 = r"(?P<gap2>[^\d\[\]\n]{0,16}?)"
BRACKET = "bracket"
DASH = "dash"
TIME_FIRST = "time first"
COLON = "colon"
HEADS = {
    BRACKET: re.compile(rf"{_MARKS}\[{_MARKS}{_DATE}{_GAP1}{_TIME}{_GAP2}\]{_SPACE}?"),
    DASH: re.compile(rf"{_MARKS}{_DATE}{_GAP1}{_TIME}{_GAP2}\s[-–—]{_SPACE}"),
    TIME_FIRST: re.compile(rf"{_MARKS}{_TIME}{_GAP1}{_DATE}{_GAP2}\s[-–—]{_SPACE}"),
    COLON: re.compile(rf"{_MARKS}{_DATE}{_GAP1}{_TIME}{_GAP2}: (?=\S)"),
}
MAY_BEGIN = re.compile(rf"{_MARKS}\[?{_MARKS}\d")
LATIN_CAPITALS = re.compile(r"\s?[AP]M")


@dataclass(frozen=True)
class Layout:
    """How the heads of one export look.

    separators: between the numbers of the date and of the time.
    gaps: between date and time, and after them; None: one that says which half of the day it is.
    long: which numbers of the date have four digits.
    """

    kind: str
    long: tuple[bool, bool]
    separators: tuple[str, str, str, str | None]
    gaps: tuple[str | None, str | None]

    @property
    def has_marks(self) -> bool:
        """Whether an iPhone wrote it."""
        return self.kind == BRACKET

    def is_close(self, other: "Layout") -> bool:
        """Return whether only the words between date, time and name differ."""
        mine = (self.kind, self.long, self.separators)
        return mine == (other.kind, other.long, other.separators)

    def pattern(self) -> re.Pattern[str]:
        """Return the pattern of exactly such heads."""
        first, third = (r"\d{4}" if is_long else r"\d{1,2}" for is_long in self.long)
        sep1, sep2, colon1, colon2 = (_flexible(text or "") for text in self.separators)
        date = (
            rf"(?P<first>{first}){sep1}(?P<second>\d{{1,2}}){sep2}(?P<third>{third})[日일]?{_MARKS}"
        )
        time = rf"(?P<hour>\d{{1,2}}){colon1}(?P<minute>\d{{2}})"
        if self.separators[3] is not None:
            time += rf"{colon2}(?P<second_>\d{{2}})"
        gap1, gap2 = (
            rf"(?P<half{place}>[^\d\[\]\n]{{1,16}}?)" if gap is None else _flexible(gap)
            for place, gap in enumerate(self.gaps, 1)
        )
        heads = {
            BRACKET: rf"{_MARKS}\[{_MARKS}{date}{gap1}{time}{gap2}\]{_SPACE}?",
            DASH: rf"{_MARKS}{date}{gap1}{time}{gap2}\s[-–—]{_SPACE}",
            TIME_FIRST: rf"{_MARKS}{time}{gap1}{date}{gap2}\s[-–—]{_SPACE}",
            COLON: rf"{_MARKS}{date}{gap1}{time}{gap2}: (?=\S)",
        }
        return re.compile(heads[self.kind])


def _flexible(text: str) -> str:
    """Return a pattern of a text, with any blanks and marks where it has some."""
    runs = re.split(rf"({_SPACE}+)", text)
    return "".join(f"{_SPACE}+" if i % 2 else re.escape(run) for i, run in enumerate(runs))


def _without_marks(gap: str) -> str:
    return " ".join(re.sub(f"[{MARKS}]", " ", gap).split())


@lru_cache(maxsize=1024)
def _half(gap: str) -> int | None:
    return half_of_day(_without_marks(gap).strip(" ,،、"))


def _shown_gap(gap: str | None) -> str | None:
    if gap is None:
        return ""
    return None if _half(gap) is not None else re.sub(rf"{_SPACE}+", " ", gap)


def _shown(separator: str) -> str:
    bare = re.sub(rf"{_SPACE}+", " ", separator)
    return bare if bare == " " else bare.rstrip(" ") + (" " if bare.endswith(" ") else "")


def layout_of(line: str) -> Layout | None:
    """Return the layout of a line that begins a message, in any language; None: it begins none."""
    head = line[:LONGEST_HEAD]
    for kind, pattern in HEADS.items():
        match = pattern.match(head)
        if match is None:
            continue
        if kind == COLON and match["second_"] is None:
            continue
        colon2 = match["colon2"]
        return Layout(
            kind,
            (len(match["first"]) > 2, len(match["third"]) > 2),
            (
                _shown(match["sep1"]),
                _shown(match["sep2"]),
                match["colon1"],
                colon2,
            ),
            (_shown_gap(match["gap1"]), _shown_gap(match["gap2"])),
        )
    return None


def head_end(line: str) -> int:
    """Return where the head of a line ends, in any language; 0: it has none."""
    for pattern in HEADS.values():
        match = pattern.match(line[:LONGEST_HEAD])
        if match is not None:
            return match.end()
    return 0


class Heads:
    """Finds the lines that begin a message of one export."""

    def __init__(self, layouts: Iterable[Layout]) -> None:
        chosen = list(layouts)
        self._patterns = [layout.pattern() for layout in chosen]
        self.has_marks = chosen[0].has_marks
        self.uses_slashes = "/" in chosen[0].separators[0]

    @classmethod
    def of(cls, lines: Iterable[str]) -> "Heads | None":
        """Learn from the first lines of an export; None: no message begins there."""
        counts = Counter(layout for line in lines if (layout := layout_of(line)) is not None)
        if not counts:
            return None
        main, _ = counts.most_common(1)[0]
        least = max(JOINED_HEADS, JOINED_SHARE * counts.total())
        others = (
            layout
            for layout, count in counts.items()
            if layout != main and (layout.is_close(main) or count >= least)
        )
        return cls([main, *others])

    def learn(self, layout: Layout) -> None:
        """Take lines of a further layout for heads, too."""
        self._patterns.append(layout.pattern())
        self.has_marks = self.has_marks or layout.has_marks

    def match(self, line: str) -> re.Match[str] | None:
        """Return the head of a line; None: it does not begin a message."""
        match = self._patterns[0].match(line, 0, LONGEST_HEAD)
        if match is not None:
            return match
        for pattern in self._patterns[1:]:
            match = pattern.match(line, 0, LONGEST_HEAD)
            if match is not None:
                return match
        return None


class JoinedExport:
    """Finds an export of another layout that goes on in what looks like one message."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._counts: Counter[Layout] = Counter()
        self._learned: set[Layout] = set()

    def begin_message(self) -> None:
        """Forget the lines of the message before."""
        if self._counts:
            self._counts.clear()

    def has_begun(self, line: str) -> bool:
        """Return whether the lines of the message so far show one; its heads are learned then."""
        if not MAY_BEGIN.match(line):
            return False
        layout = layout_of(line)
        if layout is None or layout in self._learned:
            return False
        self._counts[layout] += 1
        if self._counts[layout] < JOINED_HEADS:
            return False
        self._learned.add(layout)
        self._heads.learn(layout)
        return True


def numbers_of(head: re.Match[str]) -> Numbers:
    """Return the three numbers of a head's date."""
    first, second, third = head.group("first", "second", "third")
    return int(first), int(second), int(third)


def halves_of(head: re.Match[str]) -> Iterator[str]:
    """Yield the words of a head that may say which half of the day it is."""
    groups = head.groupdict()
    yield from (text for text in (groups.get("half1"), groups.get("half2")) if text)


def is_american(head: re.Match[str]) -> bool:
    """Return whether the half of the day is shown as in American English: 10:15 PM."""
    return any(LATIN_CAPITALS.fullmatch(half) for half in halves_of(head))


class Clock:
    """Reads the times of heads, in a known order of dates. `unread`: dates of no calendar."""

    def __init__(self, order: DateOrder) -> None:
        self._order = order
        self._days: dict[tuple[str, ...], int | None] = {}
        self._times: dict[tuple[str | None, ...], int | None] = {}
        self._pattern: re.Pattern[str] | None = None  # of the last head
        self._date_place = 0  # of the date among its groups
        self.unread = 0

    def time(self, head: re.Match[str]) -> float | None:
        """Return the seconds since 1970; None: there is no such day or time."""
        if head.re is not self._pattern:
            self._pattern = head.re
            self._date_place = head.re.groupindex["first"] - 1
        groups = head.groups()
        place = self._date_place
        key = groups[place : place + 3]
        day = self._days.get(key, NEW)
        if day == NEW:
            if len(self._days) > MOST_REMEMBERED:
                self._days.clear()
            day = day_seconds(numbers_of(head), self._order)
            self._days[key] = day
        seconds = self._seconds_of_day(head, groups[:place] + groups[place + 3 :])
        if day is None or seconds is None:
            self.unread += 1
            return None
        return float(day + seconds)

    def _seconds_of_day(self, head: re.Match[str], parts: tuple[str | None, ...]) -> int | None:
        """Return the seconds since midnight, by all parts of a head that say them."""
        seconds = self._times.get(parts, NEW)
        if seconds == NEW:
            if len(self._times) > MOST_REMEMBERED:
                self._times.clear()
            groups = head.groupdict()
            half = None
            for name in ("half1", "half2"):
                gap = groups.get(name)
                if gap:
                    half = _half(gap)
            seconds = seconds_of_day(
                int(groups["hour"]), int(groups["minute"]), int(groups.get("second_") or 0), half
            )
            self._times[parts] = seconds
        return seconds
