"""The subtitles of an SRT, WebVTT or SBV file, one after the other, however damaged it is."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

ARROW = "-->"
LONGEST_CUE = 10_000  # characters; what is longer is no subtitle
LONGEST_REST = 1 << 18  # characters without an arrow that are kept
MOST_FALSE_ARROWS = 50  # in the text of one subtitle
LONGEST_STAMP = 60  # characters of a time, and what is around it
FULL_STAMP = 12  # characters of 00:00:01,000
LOOKED_AT = 200  # subtitles, to see whether a file numbers them
NOTES = ("NOTE", "STYLE", "REGION", "X-TIMESTAMP-MAP")

# Machine translation puts blanks into times
ANY_CLOCK = r"(?:\d{1,3} ?: ?)?\d{1,2} ?: ?\d{1,2}(?: ?[.,:;] ?\d{1,6})?"
CLOCK = r"(?:(\d{1,3}) ?: ?)?(\d{1,2}) ?: ?(\d{1,2})(?: ?[.,:;] ?(\d{1,6}))?"
START = re.compile(rf"(?<![\d:]){CLOCK}[ \t]*$")
END = re.compile(rf"[ \t]*{CLOCK}(?![\d:])")
# Other arrows, and the comma between the times of an SBV file
ODD_LINE = re.compile(
    rf"^[ \t]*({ANY_CLOCK})[ \t]*(?:->|-- >|- ->|- - >|[–—→]>?|,)[ \t]*({ANY_CLOCK})[ \t]*$",
    re.MULTILINE,
)
TIME_LINE = re.compile(rf"^[ \t]*{ANY_CLOCK}[ \t]*-->[ \t]*{ANY_CLOCK}(?![\d:]).*$", re.MULTILINE)
# A number, and maybe a part of its time, where a file was cut off
TORN_END = re.compile(r"\n[ \t]*\n[ \t]*\d{1,6}[ \t]*(?:\n[\d:,. \t>-]*)?\Z")
BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


class Cue(NamedTuple):
    """One subtitle: when it is shown, who speaks, and its text as the file has it.

    start, end: in milliseconds.
    name, style: as fields of the file have them; empty: none.
    """

    start: int
    end: int
    text: str
    name: str = ""
    style: str = ""


@dataclass
class Damage:
    """What was odd about the subtitles of a file, counted."""

    without_time: int = 0
    overlong: int = 0


def cues_of(chunks: Iterable[str], is_vtt: bool, damage: Damage) -> Iterator[Cue | None]:
    """Yield the subtitles in the order of the file; None: the file begins anew, with its number.

    It streams. Blank lines may be missing or too many, numbers wrong, hours, milliseconds and
    points missing.
    """
    splitter = _Splitter(is_vtt, damage)
    rest = ""
    is_odd: bool | None = None
    for chunk in chunks:
        text = rest + chunk
        if is_odd is None:
            is_odd = ODD_LINE.search(text) is not None
        if is_odd:
            text = ODD_LINE.sub(rf"\1 {ARROW} \2", text)
        *pieces, rest = text.split(ARROW)
        for piece in pieces:
            splitter.take(piece)
        yield from splitter.taken()
        if len(rest) > LONGEST_REST:
            damage.overlong += 1
            rest = f"{rest[:LONGEST_CUE]}\n{rest[-LONGEST_CUE:]}"
    splitter.take(rest)
    splitter.end()
    yield from splitter.taken()


class _Splitter:
    """Cuts the text between two arrows into end, text, number and next start.

    Such a piece is ` 00:00:02,000` / text / blank line / `2` / `00:00:03,000 `.
    """

    def __init__(self, is_vtt: bool, damage: Damage) -> None:
        self.is_vtt = is_vtt
        self.damage = damage
        self.cues: list[Cue | None] = []
        self.piece: str | None = None  # the last one, whose end may be no start
        self.false_arrows = 0
        self.times: tuple[int, int] | None = None  # of the subtitle that the last piece shows
        self.number = ""  # of that subtitle
        self.first_number = ""
        self.last_start = -1
        self.in_order = True
        self.looked_at = 0
        self.numbered = 0

    def take(self, piece: str) -> None:
        """Add the subtitle that the piece before this one completes to `cues`."""
        last = self.piece
        if last is None:
            self.piece = piece
            return
        begin = last.rfind("\n") + 1
        start = start_ms(last[begin:])
        line_end = piece.find("\n")
        end = end_ms(piece if line_end < 0 else piece[:line_end])
        if start is None or end is None:
            if start is None and end is None:
                self._join(last, piece)
                return
            self.damage.without_time += 1
            if start is None:
                start = 0 if self.times is None else self.times[0]
            end = start
        self._add(last[: max(begin - 1, 0)], is_last=False)
        self.times = (start, end)
        self.piece = "" if line_end < 0 else piece[line_end + 1 :]
        self.false_arrows = 0

    def end(self) -> None:
        """Add the last subtitle."""
        if self.piece is not None:
            self._add(self.piece, is_last=True)

    def taken(self) -> list[Cue | None]:
        """Return the subtitles added since the last call."""
        cues = self.cues
        self.cues = []
        return cues

    def _join(self, last: str, piece: str) -> None:
        """Go on with a text that has an arrow in it."""
        self.false_arrows += 1
        if self.false_arrows <= MOST_FALSE_ARROWS:
            self.piece = f"{last}{ARROW}{piece}"
        elif self.false_arrows == MOST_FALSE_ARROWS + 1:
            self.damage.overlong += 1

    def _add(self, text: str, is_last: bool) -> None:
        if self.is_vtt:
            text, number = _vtt_text(text, is_last)
        else:
            text, number = self._srt_text(text, is_last)
        if self.times is not None:
            start, end = self.times
            if self._begins_anew(start):
                self.cues.append(None)
            self.in_order &= start >= self.last_start
            self.last_start = start
            if len(text) > LONGEST_CUE:
                self.damage.overlong += 1
                text = text[:LONGEST_CUE]
            if text:
                self.cues.append(Cue(start, end, text))
        self.number = number

    def _begins_anew(self, start: int) -> bool:
        """Return whether another file was joined here: its first number comes again."""
        if self.last_start < 0:
            self.first_number = self.number
            return False
        if self.number != self.first_number or not self.number:
            return False
        is_anew = self.in_order and start < self.last_start
        if is_anew:
            self.last_start = -1
            self.first_number = self.number
        return is_anew

    def _srt_text(self, text: str, is_last: bool) -> tuple[str, str]:
        """Return the text of a subtitle, and the number of the next one."""
        text = text.strip()
        if is_last:
            torn = TORN_END.search(text, max(0, len(text) - LONGEST_STAMP))
            return (text if torn is None else text[: torn.start()]), ""
        body, _, number = text.rpartition("\n")
        is_number = number.isdigit() or number.strip().isdigit()
        if self.looked_at < LOOKED_AT:
            self.looked_at += 1
            self.numbered += is_number
        if is_number and 2 * self.numbered >= self.looked_at:
            return body.rstrip(), number
        return text, ""


def _vtt_text(text: str, is_last: bool) -> tuple[str, str]:
    """Return the text of a subtitle without notes, and what identifies the next one."""
    has_blank_end = is_last or text.endswith("\n") or not text
    stripped = text.strip()
    if "\n\n" not in stripped and "\n " not in stripped:
        body, _, number = stripped.rpartition("\n")
        is_number = not has_blank_end and number.isdigit()
        return (body, number) if is_number else (stripped, "")
    parts = BLANK_LINES.split(text.strip("\n"))
    number = "" if has_blank_end or len(parts) < 2 else parts.pop()
    words = [part for part in parts if part and not part.startswith(NOTES)]
    return "\n".join(words).strip(), number


def start_ms(line: str) -> int | None:
    """Return the milliseconds of the time at the end of a line; None: there is none."""
    stamp = line.strip()
    if len(stamp) == FULL_STAMP and stamp[2] == ":" == stamp[5] and stamp[8] in ",.":
        figures = stamp[:2] + stamp[3:5] + stamp[6:8] + stamp[9:]
        if figures.isdecimal():
            hours, rest = divmod(int(figures), 10_000_000)
            minutes, rest = divmod(rest, 100_000)
            return 3_600_000 * hours + 60_000 * minutes + rest
    if ":" not in line:
        return None
    match = START.search(line[-LONGEST_STAMP:])
    return None if match is None else _ms(*match.groups())


def end_ms(line: str) -> int | None:
    """Return the milliseconds of the time at the beginning of a line; None: there is none."""
    if len(line) <= FULL_STAMP + 1:
        return start_ms(line)
    match = END.match(line)
    return None if match is None else _ms(*match.groups())


def _ms(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> int:
    """Return a time in milliseconds; its fraction has one to six figures."""
    thousandths = int((fraction or "0").ljust(3, "0")[:3])
    return 3_600_000 * int(hours or 0) + 60_000 * int(minutes) + 1000 * int(seconds) + thousandths
