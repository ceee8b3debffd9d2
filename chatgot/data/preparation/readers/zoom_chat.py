"""The chat of a Zoom meeting, as it is saved: meeting_saved_chat.txt."""

import re
from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import LONGEST_LINE, bounded_lines
from chatgot.data.preparation.readers.chat_dates import seconds_of_day
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.source import Source

# 10:15:03 From Anna to Everyone:
HEAD = re.compile(
    r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)\s+From\s+(?P<name>\S[^\n]{0,80}?)"
    r"(?:\s+[Tt]o\s+[^\n:]{1,80}?)?\s*:(?:\s|$)"
)
LONGEST_HEAD = 300  # characters
REACTED = re.compile(r"\s*(?:Reacted to|Removed a .{1,20} reaction from) [\"“]")
REPLIED = re.compile(r"\s*Replying to [\"“].*[\"”]\s*")


def certainty(source: Source) -> float:
    """Return how sure it is that a file is the chat of a meeting."""
    lines = [line for line in source.beginning.split("\n")[:100] if line.strip()]
    if not lines or HEAD.match(lines[0], 0, LONGEST_HEAD) is None:
        return 0.0
    return 0.95


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a meeting. Raises: UnreadableError."""
    conversation = Conversation(options, is_dated=False)
    for head, lines in _messages(source, findings):
        text = "\n".join(line.strip() for line in lines if not REPLIED.fullmatch(line))
        if REACTED.match(text):
            findings.left_out["reactions"] += 1
            continue
        hour, minute, second = (int(head[part]) for part in ("hour", "minute", "second"))
        pieces = conversation.say(head["name"], text, seconds_of_day(hour, minute, second, None))
        if not pieces:
            findings.left_out["messages without text"] += 1
        yield from pieces


def _messages(source: Source, findings: Findings) -> Iterator[tuple[re.Match[str], list[str]]]:
    head: re.Match[str] | None = None
    lines: list[str] = []
    length = 0
    for line in bounded_lines(source, findings):
        match = HEAD.match(line, 0, LONGEST_HEAD)
        if match is not None:
            if head is not None:
                yield head, lines
            head = match
            lines = [line[match.end() :]]
            length = len(line)
        elif head is not None and length < LONGEST_LINE:
            lines.append(line)
            length += len(line)
    if head is not None:
        yield head, lines


ZOOM_CHAT = Reader("Zoom chat", certainty, read)
