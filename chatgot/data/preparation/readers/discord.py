"""A Discord channel as DiscordChatExporter writes it: JSON or plain text."""

import re
from collections.abc import Iterator
from functools import lru_cache

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import LONGEST_LINE, bounded_lines, text_of
from chatgot.data.preparation.readers.chat_dates import (
    DateEvidence,
    DateOrder,
    Numbers,
    day_seconds,
    half_of_day,
    seconds_of_day,
)
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import (
    iso_time,
    list_field,
    object_field,
    text_field,
)
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source

DELETED_USER = "Deleted User"
SPOKEN_TYPES = ("Default", "Reply", "0", "19", "ThreadStarterMessage", "ApplicationCommand")
RULE = "=" * 62
LEAST_RULE = "=" * 20
HEAD = re.compile(
    r"\[(?P<date>[^\]\n]{6,20}?),?[ \u202f]{1,2}(?P<hour>\d{1,2})[:.](?P<minute>\d\d)"
    r"(?:[:.](?P<second>\d\d))?(?P<half>[^\]\d]{0,12})\] (?P<name>[^\n]{1,100}?)(?: \(pinned\))?$"
)
TEXT_START = re.compile(r"={20,}\s*\n(?:Guild|Server): [^\n]*\nChannel: ")
BLOCK = re.compile(r"\{(Attachments|Embed|Stickers|Reactions|Invite)\}$")
DISCRIMINATOR = re.compile(r"#\d{4}$")
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905 shorter so
NUMBERS = re.compile(r"(\d{1,4})\D{1,3}(\d{1,2}|[A-Za-z]{3})\D{1,3}(\d{1,4})")


def json_certainty(source: Source) -> float:
    """Return how sure it is that a file is a channel in JSON."""
    text = source.beginning.lstrip()
    if not text.startswith("{"):
        return 0.0
    is_channel = re.match(r'\{\s*"guild":\s*\{', text) and '"channel":' in text
    return 0.97 if is_channel else 0.0


def read_json(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a channel. Raises: UnreadableError."""
    stream = JsonStream(text_of(source))
    conversation = Conversation(options, nobody=DELETED_USER)
    for key in stream.members():
        if key != "messages":
            continue
        for message in stream.values():
            kind = _left_out_as(message)
            if kind is not None:
                findings.left_out[kind] += 1
                continue
            author = object_field(message, "author")
            name = text_field(author, "nickname", "name")
            time = iso_time(text_field(message, "timestamp"))
            pieces = conversation.say(name, text_field(message, "content"), time)
            if not pieces:
                findings.left_out[_silent_kind(message)] += 1
            yield from pieces


def _left_out_as(message: object) -> str | None:
    if not isinstance(message, dict):
        return "odd messages"
    if str(message.get("type", "Default")) not in SPOKEN_TYPES:
        return "system messages"
    if object_field(message, "author").get("isBot") is True:
        return "messages of bots"
    if object_field(message, "forwardedMessage"):
        return "forwarded messages"
    return None


def _silent_kind(message: object) -> str:
    if list_field(message, "stickers"):
        return "stickers"
    has_media = list_field(message, "attachments") or list_field(message, "embeds")
    return "media" if has_media else "messages without text"


def text_certainty(source: Source) -> float:
    """Return how sure it is that a file is a channel in plain text."""
    return 0.97 if TEXT_START.match(source.beginning.lstrip()) else 0.0


def read_text(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a channel. Raises: UnreadableError."""
    order = options.date_order or _order_of(source, findings)
    conversation = Conversation(options, nobody=DELETED_USER)
    for head, lines in _text_messages(source, findings):
        text = "\n".join(_without_blocks(lines, findings))
        name = DISCRIMINATOR.sub("", head["name"])
        pieces = conversation.say(name, text, _time(head, order))
        if not pieces and not any(map(BLOCK.match, lines)):
            findings.left_out["messages without text"] += 1
        yield from pieces


def _text_messages(source: Source, findings: Findings) -> Iterator[tuple[re.Match[str], list[str]]]:
    """Yield the head of each message, and its lines."""
    head: re.Match[str] | None = None
    lines: list[str] = []
    length = 0
    for line in bounded_lines(source, findings):
        match = HEAD.match(line) if line.startswith("[") else None
        if match is not None or line.startswith(LEAST_RULE):
            if head is not None:
                yield head, lines
            head = match
            lines = []
            length = 0
        elif head is not None and length < LONGEST_LINE:
            lines.append(line)
            length += len(line)
    if head is not None:
        yield head, lines


def _without_blocks(lines: list[str], findings: Findings) -> Iterator[str]:
    """Yield what somebody wrote, without attachments and the like, which end at a blank line."""
    in_block = False
    for line in lines:
        block = BLOCK.match(line)
        if block is not None:
            in_block = True
            findings.left_out["reactions" if block[1] == "Reactions" else "media"] += 1
        elif in_block:
            in_block = bool(line.strip())
        else:
            yield line


def _order_of(source: Source, findings: Findings) -> DateOrder:
    evidence = DateEvidence()
    example = ""
    for line in bounded_lines(source, Findings()):
        head = HEAD.match(line) if line.startswith("[") else None
        numbers = None if head is None else _numbers(head["date"])
        if head is not None and numbers is not None:
            example = example or head["date"]
            evidence.add(numbers)
            if evidence.is_clear:
                break
    order, others = evidence.order()
    if others and example:
        findings.remark(
            f"dates such as {example} fit several orders; they were read as {order}: "
            f"where that is wrong, give --date_order {others[0]}"
        )
    return order


@lru_cache(maxsize=4096)
def _numbers(date: str) -> Numbers | None:
    parts = NUMBERS.match(date)
    if parts is None:
        return None
    first, second, third = parts.groups()
    if second.isalpha():
        if second.casefold() not in MONTHS:
            return None
        second = str(MONTHS.index(second.casefold()) + 1)
    return int(first), int(second), int(third)


def _time(head: re.Match[str], order: DateOrder) -> float | None:
    numbers = _numbers(head["date"])
    if numbers is None:
        return None
    day = day_seconds(numbers, order)
    second = int(head["second"] or 0)
    seconds = seconds_of_day(
        int(head["hour"]), int(head["minute"]), second, half_of_day(head["half"])
    )
    return None if day is None or seconds is None else float(day + seconds)


DISCORD_JSON = Reader("Discord JSON", json_certainty, read_json)
DISCORD_TEXT = Reader("Discord text", text_certainty, read_text)
