"""A conversation of Google Chat, as Takeout gives it: messages.json."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import object_field, text_field
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source

START = re.compile(r'\{\s*"messages":\s*\[')
# Sunday, December 31, 2023 at 10:15:03 PM UTC
DATE_FORMATS = ("%A, %B %d, %Y at %I:%M:%S %p UTC", "%A, %d %B %Y at %H:%M:%S UTC")


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a conversation of Google Chat."""
    text = source.beginning.lstrip()
    if START.match(text) is None or '"creator":' not in text:
        return 0.0
    return 0.97 if '"created_date":' in text or '"topic_id":' in text else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a conversation. Raises: UnreadableError."""
    stream = JsonStream(text_of(source))
    conversation = Conversation(options)
    for key in stream.members():
        if key != "messages":
            continue
        for message in stream.values():
            creator = object_field(message, "creator")
            if creator.get("user_type") == "Bot":
                findings.left_out["messages of bots"] += 1
                continue
            name = text_field(creator, "name", "email")
            time = _time(text_field(message, "created_date"))
            pieces = conversation.say(name, text_field(message, "text"), time)
            if not pieces:
                findings.left_out[_silent_kind(message)] += 1
            yield from pieces


def _time(text: str) -> float | None:
    plain = text.replace("\u202f", " ")
    for form in DATE_FORMATS:
        try:
            return datetime.strptime(plain, form).replace(tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            continue
    return None


def _silent_kind(message: object) -> str:
    if not isinstance(message, dict):
        return "odd messages"
    if message.get("message_state") == "DELETED":
        return "deleted messages"
    return "media" if "attached_files" in message else "messages without text"


GOOGLE_CHAT = Reader("Google Chat JSON", certainty, read)
