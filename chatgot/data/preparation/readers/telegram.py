"""A Telegram export in JSON: result.json of one chat or of all."""

import re
from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import iso_time, text_field
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source

KIND = "Telegram JSON"
DELETED_ACCOUNT = "Deleted Account"
CHAT_TYPE = re.compile(
    r'"type":\s*"(?:personal_chat|bot_chat|saved_messages|replies|(?:private|public)_\w+)"'
)
MESSAGE = re.compile(r'"(?:date_unixtime|from_id|text_entities)":')
EXPORT = re.compile(r'\{\s*"about":\s*"Here is the data')
MEDIA_FIELDS = (
    "media_type",
    "photo",
    "file",
    "contact_information",
    "location_information",
    "game_title",
    "invoice_information",
)


def certainty(source: Source) -> float:
    """Return how sure it is that a file is an export of Telegram Desktop."""
    text = source.beginning.lstrip()
    if not text.startswith("{"):
        return 0.0
    if CHAT_TYPE.search(text) and ('"messages":' in text or '"chats":' in text):
        return 0.97
    if EXPORT.match(text):
        return 0.9
    return 0.85 if '"messages":' in text and MESSAGE.search(text) else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of all chats. Raises: UnreadableError."""
    stream = JsonStream(text_of(source))
    conversation = Conversation(options, nobody=DELETED_ACCOUNT)
    for key in stream.members():
        if key == "messages":
            yield from _messages(stream, conversation, findings)
        elif key in ("chats", "left_chats"):
            yield from _chats(stream, conversation, findings)


def _chats(stream: JsonStream, conversation: Conversation, findings: Findings) -> Iterator[Piece]:
    """Yield what is said in each chat of a full export."""
    if stream.next_character() != "{":
        return
    for key in stream.members():
        if key != "list" or stream.next_character() != "[":
            continue
        for first in stream.elements():
            if first == "{":
                yield from _chat(stream, conversation, findings)


def _chat(stream: JsonStream, conversation: Conversation, findings: Findings) -> Iterator[Piece]:
    conversation.begin()
    for key in stream.members():
        if key == "name":
            name = stream.value()
            conversation.begin(name if isinstance(name, str) else "")
        elif key == "messages":
            yield from _messages(stream, conversation, findings)


def _messages(
    stream: JsonStream, conversation: Conversation, findings: Findings
) -> Iterator[Piece]:
    for message in stream.values():
        if not isinstance(message, dict):
            findings.left_out["odd messages"] += 1
            continue
        kind = message.get("type")
        if kind != "message":
            findings.left_out["system messages"] += 1
            continue
        if message.get("forwarded_from") or message.get("saved_from"):
            findings.left_out["forwarded messages"] += 1
            continue
        name = text_field(message, "from", "from_id")
        if message.get("from") is None and name:
            name = f"{DELETED_ACCOUNT} {name}"
        time = iso_time(text_field(message, "date"))
        pieces = conversation.say(name, _text(message.get("text")), time)
        if not pieces:
            findings.left_out[_silent_kind(message)] += 1
        yield from pieces


def _text(text: object) -> str:
    """Return the text of a message: a string, or strings and formatted parts."""
    if isinstance(text, str):
        return text
    if not isinstance(text, list):
        return ""
    return "".join(part if isinstance(part, str) else text_field(part, "text") for part in text)


def _silent_kind(message: dict[str, object]) -> str:
    if message.get("media_type") == "sticker":
        return "stickers"
    if "poll" in message:
        return "polls"
    if any(field in message for field in MEDIA_FIELDS):
        return "media"
    return "messages without text"


TELEGRAM_JSON = Reader(KIND, certainty, read)
