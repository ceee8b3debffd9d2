"""Messages of Signal as text: of signal-export (Markdown), sigtop or signalbackup-tools."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import LONGEST_LINE, bounded_lines
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import iso_time
from chatgot.data.preparation.source import Source

LOOKED_AT = 400  # lines
LEAST_HEADS = 2
SHORT_DATE = "%b %d, %Y %H:%M:%S"
LONG_DATE = "%a, %d %b %Y %H:%M:%S"
NOTICE = "***"

# [2019-05-29, 15:04] Me: text
MARKDOWN = re.compile(
    r"\[(?P<date>\d{4}-\d\d-\d\d),? (?P<time>\d\d:\d\d(?::\d\d)?)\] (?P<name>[^:\n]{1,80}): ?"
)
# 2021-01-12 10:11 Alice: [reply to Me on 2021-01-12 10:10, 1 attachment] text
SHORT = re.compile(r"(?P<date>\d{4}-\d\d-\d\d) (?P<time>\d\d:\d\d) (?P<name>[^:\n]{1,80}):(?: |$)")
# [Jan 02, 2020 10:11:12] <Alice> text
BACKUP = re.compile(
    r"\[(?P<when>[A-Z][a-z]{2} \d\d, \d{4} \d\d:\d\d:\d\d)\] "
    r"(?:<(?P<name>[^>\n]{1,80})> ?|(?P<notice>\*{1,3}) )"
)
DETAILS = re.compile(r"\[(?:reply to [^\]\n]{1,120}|edited|\d{1,4} attachments?)[^\]\n]{0,200}\] ?")
WHOLE_NOTICE = re.compile(r"\[[\w-]+ message\]$")
MARKDOWN_REACTIONS = re.compile(r"\(- .{1,1000} -\)")
MARKDOWN_MEDIA = re.compile(r"!?\[[^\]\n]{0,200}\]\((?:\./)?media/[^)\n]{1,400}\)")
FIELDS = re.compile(r"(From|Type|Sent|Received|Attachment|Reaction|Edited): ")
RECORD_START = re.compile(r"Conversation: [^\n]*\n\n(?:From: [^\n]*\n)?Type: ")
ADDRESS = re.compile(r" \([^()]*\)$")


@dataclass(frozen=True)
class _Style:
    head: re.Pattern[str]
    certainty: float


STYLES = (_Style(BACKUP, 0.95), _Style(MARKDOWN, 0.93), _Style(SHORT, 0.6))


def _style_of(source: Source) -> _Style | None:
    """Return the style of most messages; None: too few are in any."""
    lines = [line for line in source.beginning.split("\n")[:LOOKED_AT] if line.strip()]
    if not lines:
        return None
    for style in STYLES:
        heads = [style.head.match(line) is not None for line in lines]
        share = sum(heads) / len(heads)
        if heads[0] and (sum(heads) >= LEAST_HEADS or len(lines) == 1) and share > 0.1:
            return style
    return None


def certainty(source: Source) -> float:
    """Return how sure it is that a file has messages of Signal."""
    if RECORD_START.match(source.beginning):
        return 0.97
    style = _style_of(source)
    if style is None:
        return 0.0
    # Logs are often such; their lines have no seconds less than messages
    if style.head is MARKDOWN and re.match(r"\[[^\]]{19,20}\]", source.beginning):
        return 0.4
    return style.certainty


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a file. Raises: UnreadableError."""
    conversation = Conversation(options)
    if RECORD_START.match(source.beginning):
        messages = _records(source, findings)
    else:
        style = _style_of(source)
        if style is None:
            raise UnreadableError("no line at its beginning has the date and time of a message")
        messages = _messages(source, style, findings)
    for name, text, time in messages:
        pieces = conversation.say(name, text, time)
        if not pieces:
            findings.left_out["messages without text"] += 1
        yield from pieces


Message = tuple[str, str, float | None]


def _messages(source: Source, style: _Style, findings: Findings) -> Iterator[Message]:
    """Yield the messages of a file in which each has its head on its first line."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    length = 0
    for line in bounded_lines(source, findings):
        match = style.head.match(line)
        if match is not None:
            if head is not None:
                yield from _message(style, head, lines, findings)
            head = match
            lines = [line[match.end() :]]
            length = len(line)
        elif head is not None and length < LONGEST_LINE:
            lines.append(line)
            length += len(line)
    if head is not None:
        yield from _message(style, head, lines, findings)


def _message(
    style: _Style, head: re.Match[str], lines: list[str], findings: Findings
) -> Iterator[Message]:
    text = "\n".join(lines)
    if style.head is BACKUP:
        if head["notice"] is not None:
            findings.left_out["system messages" if head["notice"] == NOTICE else "media"] += 1
            return
        yield head["name"], text, _time(head["when"], SHORT_DATE)
        return
    if style.head is SHORT:
        if WHOLE_NOTICE.match(text):
            findings.left_out["system messages"] += 1
            return
        text = DETAILS.sub("", text, count=1) if DETAILS.match(text) else text
    else:
        text = _without_markdown(lines, findings)
        if not text.strip():
            return
    yield head["name"], text, iso_time(f"{head['date']}T{head['time']}")


def _without_markdown(lines: list[str], findings: Findings) -> str:
    """Return what somebody wrote, without quotes, reactions and links to media."""
    kept = [line for line in lines if not line.startswith("> ")]
    _leave_out(findings, "quoted lines", len(lines) - len(kept))
    own = [line for line in kept if not MARKDOWN_REACTIONS.fullmatch(line.strip())]
    _leave_out(findings, "reactions", len(kept) - len(own))
    text = "\n".join(own)
    text, media = MARKDOWN_MEDIA.subn("", text)
    _leave_out(findings, "media", media)
    return text


def _leave_out(findings: Findings, what: str, number: int) -> None:
    if number:
        findings.left_out[what] += number


def _records(source: Source, findings: Findings) -> Iterator[Message]:
    """Yield the messages of a file in which each has fields, and a blank line before its text."""
    fields: dict[str, str] = {}
    lines: list[str] = []
    is_text = False
    for line in bounded_lines(source, findings):
        field = FIELDS.match(line)
        begins = field is not None and field[1] in ("From", "Type") and field[1] not in fields
        if field is not None and (begins or is_text) and field[1] == "From":
            yield from _record(fields, lines, findings)
            fields = {}
            lines = []
            is_text = False
        if field is not None and not is_text:
            fields.setdefault(field[1], line[field.end() :])
        elif not line and not is_text:
            is_text = bool(fields)
        elif is_text and len(lines) < LONGEST_LINE:
            lines.append(line)
    yield from _record(fields, lines, findings)


def _record(fields: dict[str, str], lines: list[str], findings: Findings) -> Iterator[Message]:
    if not fields:
        return
    if fields.get("Type") not in ("incoming", "outgoing"):
        findings.left_out["system messages"] += 1
        return
    kept = [line for line in lines if not line.startswith((">", "|"))]
    _leave_out(findings, "quoted lines", len(lines) - len(kept))
    if "Attachment" in fields and not any(kept):
        findings.left_out["media"] += 1
        return
    name = ADDRESS.sub("", fields.get("From", ""))
    sent = fields.get("Sent", "").rsplit(" ", 1)[0]
    yield name, "\n".join(kept), _time(sent, LONG_DATE)


def _time(text: str, form: str) -> float | None:
    try:
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


SIGNAL_TEXT = Reader("Signal text", certainty, read)
