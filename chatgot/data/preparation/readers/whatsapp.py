"""An exported chat of WhatsApp, from Android or an iPhone, in any language."""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import LONGEST_LINE, bounded_lines
from chatgot.data.preparation.readers.chat_dates import DateEvidence, DateOrder
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.whatsapp_lines import (
    Clock,
    Heads,
    JoinedExport,
    head_end,
    is_american,
    numbers_of,
)
from chatgot.data.preparation.readers.whatsapp_notices import (
    BRACKETED,
    LEFT_TO_RIGHT,
    MARKS,
    MARKS_AND_BLANKS,
    MEDIA,
    is_only_words,
    notice_kind,
    without_attachment,
    without_edit_tag,
)
from chatgot.data.preparation.source import Source

KIND = "WhatsApp chat"
SYSTEM = "system messages"
EMPTY = "messages without text"
STRAY = "lines before the first message"

LOOKED_AT = 400  # lines, to recognise a chat
LONGEST_NAME = 80  # characters
LEAST_SAME = 3  # lines that a rule about one file needs
QUOTES = frozenset('"“”„«»「」『』')
# No name, but the level of a log file's line
LEVELS = (
    "info", "debug", "warn", "warning", "error", "err", "critical", "trace", "fatal", "notice",
    "verbose", "severe", "fine", "alert",
)  # fmt: skip
MARKS_AND_SPACES = f"{MARKS} "
AROUND_NAME = f"{MARKS}~ \u202f\u00a0"
LAST_WORD = re.compile(r"[A-Za-z]+$")
ISOLATES = re.compile("[\u2066-\u2069]")
LEADING_MARKS = re.compile(rf"^[{MARKS}]+", re.MULTILINE)
PHONE = re.compile(r"\+?\d[\d\s()-]{4,}")
OF_SIGNAL = re.compile(r"\[\d{4}-\d{2}-\d{2},? \d{2}:\d{2}\]")  # an iPhone writes seconds, too
HAS_ISO_DATE = re.compile(r"\[?\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}")


def certainty(source: Source) -> float:
    """Return how sure it is that a file is an exported chat of WhatsApp."""
    lines = [line for line in source.beginning.split("\n")[:LOOKED_AT] if line.strip()]
    heads = Heads.of(lines)
    if heads is None:
        return 0.0
    begun = [line for line in lines if heads.match(line)]
    names = [name for line in begun if (name := _first_name(line[head_end(line) :]))]
    if not names or _are_log_levels(names) or not _have_text(names, begun):
        return 0.0
    if OF_SIGNAL.match(begun[0]):
        return 0.9
    share = len(begun) / len(lines)
    starts = heads.match(lines[0]) is not None
    if HAS_ISO_DATE.match(begun[0]):
        return 0.45 if share > 0.3 else 0.0  # so do many logs
    if starts and len(begun) >= LEAST_SAME:
        return 0.97
    if starts or len(begun) >= LEAST_SAME:
        return 0.9 if share > 0.1 else 0.5
    return 0.3


def _first_name(rest: str) -> str:
    name, colon, _ = rest.partition(":")
    return name if colon and len(name) <= LONGEST_NAME else ""


def _are_log_levels(names: list[str]) -> bool:
    levels = 0
    for name in names:
        last = LAST_WORD.search(name.rstrip(" ]"))
        levels += last is not None and last[0].casefold() in LEVELS
    return 2 * levels > len(names)


def _have_text(names: list[str], begun: list[str]) -> bool:
    """Return whether enough of the messages have a name; a new group has some that have none."""
    return 10 * len(names) >= len(begun)


@dataclass
class _Habits:
    """What the beginning of a file says about its names and notices.

    long_names: of names with a colon in them, by what is before the first colon.
    usual_names: those that need no second look.
    """

    heads: Heads
    names: Counter[str] = field(default_factory=Counter)
    long_names: dict[str, str] = field(default_factory=dict)
    media_tags: set[str] = field(default_factory=set)
    usual_names: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, heads: Heads, lines: Iterable[str]) -> "_Habits":
        habits = cls(heads)
        parts: dict[str, Counter[str]] = {}
        tags: dict[str, Counter[str]] = {}
        for line in lines:
            head = heads.match(line)
            if head is None:
                continue
            name, colon, text = _split(line[head.end() :])
            if not colon:
                continue
            habits.names[name] += 1
            second, colon, _ = _split(text)
            parts.setdefault(name, Counter())[second if colon else ""] += 1
            bare = text.strip(MARKS + " ")
            if BRACKETED.fullmatch(bare) and notice_kind(bare, has_marks=False) is None:
                tags.setdefault(bare, Counter())[name] += 1
        for name, seconds in parts.items():
            second, count = seconds.most_common(1)[0]
            if second and len(seconds) == 1 and count >= LEAST_SAME:
                habits.long_names[name] = f"{name}: {second}"
        habits.usual_names = {
            name
            for name, count in habits.names.items()
            if count > 1
            and name not in habits.long_names
            and len(name) <= LONGEST_NAME
            and name.strip(MARKS_AND_SPACES)
        }
        habits.media_tags = {
            tag for tag, by in tags.items() if by.total() >= LEAST_SAME and len(by) > 1
        }
        return habits

    def split(self, rest: str) -> tuple[str, str] | None:
        """Return name and text of what follows a head; None: nobody wrote it."""
        name, colon, text = rest.partition(": ")
        if name in self.usual_names and colon:
            return name, text
        name, colon, text = _split(rest)
        if not colon or len(name) > LONGEST_NAME or not name.strip(MARKS_AND_SPACES):
            return None
        long_name = self.long_names.get(name)
        if long_name is not None and rest.startswith(f"{long_name}: "):
            return long_name, rest[len(long_name) + 2 :]
        if self.names[name] < 2 and _is_sentence(name):
            return None
        return name, text


def _split(rest: str) -> tuple[str, str, str]:
    name, colon, text = rest.partition(": ")
    if not colon and rest.endswith(":"):
        return rest[:-1], ":", ""
    return name, colon, text


def _is_sentence(name: str) -> bool:
    """Return whether what is before a colon is rather the words of a notice."""
    if not QUOTES.isdisjoint(name):
        return True
    return name.startswith(LEFT_TO_RIGHT) and not PHONE.fullmatch(name.strip(MARKS + "~ \u202f"))


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of an exported chat. Raises: UnreadableError."""
    beginning = source.beginning.split("\n")
    heads = Heads.of(beginning)
    if heads is None:
        raise UnreadableError("no line at its beginning has the date and time of a message")
    habits = _Habits.of(heads, beginning)
    order = options.date_order or _date_order(source, heads, findings)
    clock = Clock(order)
    conversation = Conversation(options)
    for rest, time in _messages(source, heads, clock, findings):
        yield from _pieces(rest, time, habits, conversation, findings)
    if clock.unread:
        findings.remark(f"{clock.unread} dates or times cannot be read in the order {order}")
    if habits.media_tags:
        tags = ", ".join(sorted(habits.media_tags))
        findings.remark(f"messages that are only {tags} are counted as media")


def _messages(
    source: Source, heads: Heads, clock: Clock, findings: Findings
) -> Iterator[tuple[str, float | None]]:
    """Yield what follows the head of each message, all its lines, and its time."""
    lines: list[str] = []
    length = 0
    time: float | None = None
    again: deque[str] = deque()
    joined = JoinedExport(heads)
    for line in _with_those_again(again, bounded_lines(source, findings)):
        head = heads.match(line)
        if head is not None:
            if lines:
                yield lines[0] if len(lines) == 1 else "\n".join(lines), time
            lines = [line[head.end() :]]
            length = len(line)
            time = clock.time(head)
            joined.begin_message()
        elif not lines:
            if line.strip(MARKS + " "):
                findings.left_out[STRAY] += 1
        elif length < LONGEST_LINE:
            lines.append(line)
            length += len(line)
            if joined.has_begun(line):
                findings.remark("several exports with dates of different kinds are joined in it")
                again.extend(lines[1:])
                del lines[1:]
        else:
            findings.left_out["lines of endless messages"] += 1
    if lines:
        yield "\n".join(lines), time


def _with_those_again(again: deque[str], lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, and before each those that somebody wants to have again."""
    for line in lines:
        yield line
        while again:
            yield again.popleft()


def _pieces(
    rest: str,
    time: float | None,
    habits: _Habits,
    conversation: Conversation,
    findings: Findings,
) -> list[Piece]:
    first = rest
    if "\n" in rest:
        first = rest[: rest.index("\n")]
    parts = habits.split(first)
    if parts is None:
        findings.left_out[SYSTEM] += 1
        return []
    name, text = parts
    text += rest[len(first) :]
    has_marks = habits.heads.has_marks
    attached = None
    if not is_only_words(text):
        text, attached = without_attachment(text, has_marks)
        if attached is not None:
            findings.left_out[attached] += 1
            if not text.strip(MARKS_AND_BLANKS):
                return []
        text = without_edit_tag(text)
    kind = _notice(text, has_marks, habits)
    if kind is not None:
        findings.left_out[kind] += 1
        return []
    if not text.isascii():
        text = ISOLATES.sub("", LEADING_MARKS.sub("", text)).strip(MARKS_AND_BLANKS)
    pieces = conversation.say(name.strip(AROUND_NAME), text, time)
    if not pieces and attached is None:
        findings.left_out[EMPTY] += 1
    return pieces


def _notice(text: str, has_marks: bool, habits: _Habits) -> str | None:
    if habits.media_tags and text.strip(MARKS_AND_SPACES) in habits.media_tags:
        return MEDIA
    return notice_kind(text, has_marks)


def _date_order(source: Source, heads: Heads, findings: Findings) -> DateOrder:
    """Return the order of day, month and year that fits the dates of the whole file best."""
    evidence = DateEvidence()
    american = False
    example = ""
    for line in bounded_lines(source, Findings()):
        head = heads.match(line)
        if head is None:
            continue
        if not example:
            american = heads.uses_slashes and is_american(head)
            example = head[0].strip(MARKS + " -[]")
        evidence.add(numbers_of(head))
        if evidence.is_clear:
            break
    order, others = evidence.order("mdy" if american else None)
    if others:
        findings.remark(
            f"dates such as {example} fit several orders; they were read as {order}: "
            f"where that is wrong, give --date_order {others[0]}"
        )
    return order


WHATSAPP = Reader(KIND, certainty, read)
