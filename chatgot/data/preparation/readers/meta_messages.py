"""Chats of Facebook Messenger and Instagram, from the data that one may download.

Their JSON has each byte of a text's UTF-8 as a character of its own, which is mended here. The
newest message comes first, so that a file is read backwards: its messages are sorted by time.
"""

import re
from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import seconds_of, text_field
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source

MOST_SORTED = 1 << 25  # characters of text; Meta writes 10,000 messages into one file
REACTED = re.compile(r"Reacted .{1,20} to your message\s*$|Liked a message$")
SILENT_FIELDS = ("photos", "videos", "audio_files", "gifs", "files", "sticker", "share")

Message = tuple[float, str, str]  # time, name, text


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a chat of Messenger or Instagram."""
    text = source.beginning.lstrip()
    if not text.startswith("{") or '"participants"' not in text:
        return 0.0
    return 0.97 if '"sender_name"' in text and '"timestamp_ms"' in text else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a chat, the oldest first. Raises: UnreadableError."""
    stream = JsonStream(text_of(source))
    messages: list[Message] = []
    length = 0
    for key in stream.members():
        if key != "messages":
            continue
        for item in stream.values():
            message = _message(item, findings)
            if message is None:
                continue
            messages.append(message)
            length += len(message[2]) + 100
            if length > MOST_SORTED:
                raise UnreadableError(
                    "its messages are too many to be sorted by time; split the file"
                )
    # In order of time, the later of a file first among equals
    messages.reverse()
    messages.sort(key=lambda message: message[0])
    conversation = Conversation(options)
    for time, name, text in messages:
        yield from conversation.say(name, text, time)


def _message(item: object, findings: Findings) -> Message | None:
    """Return a message that somebody wrote; None: it is something else, and counted."""
    if not isinstance(item, dict):
        findings.left_out["odd messages"] += 1
        return None
    text = mended(text_field(item, "content"))
    if item.get("is_unsent") is True:
        findings.left_out["deleted messages"] += 1
    elif "call_duration" in item:
        findings.left_out["calls"] += 1
    elif not text.strip():
        is_media = any(field in item for field in SILENT_FIELDS)
        findings.left_out["media" if is_media else "messages without text"] += 1
    elif REACTED.match(text):
        findings.left_out["reactions"] += 1
    else:
        time = seconds_of(item.get("timestamp_ms"))
        return time or 0.0, mended(text_field(item, "sender_name")), text
    return None


def mended(text: str) -> str:
    """Return a text whose characters are the bytes of its UTF-8; others as they are."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


META = Reader("Messenger or Instagram JSON", certainty, read)
