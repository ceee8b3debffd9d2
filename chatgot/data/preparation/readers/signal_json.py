"""Messages of Signal in JSON: of signal-cli, signal-export, sigtop, or Signal's own export.

All but sigtop write one object a line.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions
from chatgot.data.preparation.readers.bounded_lines import bounded_lines, text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import (
    iso_time,
    list_field,
    object_field,
    seconds_of,
    text_field,
)
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source

ME = "Me"
MOST_NAMES = 100_000
ENVELOPE = re.compile(r'\{(?:"jsonrpc":.{0,200}?)?"envelope":\s*\{', re.DOTALL)
EXPORTED = re.compile(r'\{"date":\s*"[^"]+",\s*"sender":\s*"')
BACKUP = re.compile(r'^\{"(?:chatItem|recipient|account)":\s*\{', re.MULTILINE)
BACKUP_START = re.compile(r'\{[^{}]*"backupTimeMs":')
DESKTOP = re.compile(r'"conversationId":\s*"')
DESKTOP_TYPE = re.compile(r'"type":\s*"(?:incoming|outgoing)"')


@dataclass(frozen=True)
class _Message:
    """What one object says. chat: a change of it begins a document."""

    name: str
    text: str
    time: float | None
    chat: str = ""
    has_media: bool = False


@dataclass
class _People:
    """Names by the ids of a backup, which come before the messages."""

    names: dict[str, str] = field(default_factory=dict)


Taken = _Message | str | None  # a message, the kind of what is left out, or nothing to count


def certainty(source: Source) -> float:
    """Return how sure it is that a file has messages of Signal."""
    text = source.beginning.lstrip()
    if text.startswith("["):
        return 0.95 if DESKTOP.search(text) and DESKTOP_TYPE.search(text) else 0.0
    if ENVELOPE.match(text) and ('"sourceDevice"' in text or '"account"' in text):
        return 0.97
    if EXPORTED.match(text):
        return 0.95
    return 0.95 if BACKUP_START.match(text) and BACKUP.search(text) else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a file. Raises: UnreadableError."""
    conversation = Conversation(options)
    people = _People()
    take = _taker(source)
    chat = ""
    for item in _objects(source, findings):
        taken = take(item, people)
        if taken is None:
            continue
        if isinstance(taken, str):
            findings.left_out[taken] += 1
            continue
        if taken.chat != chat:
            conversation.begin()
            chat = taken.chat
        pieces = conversation.say(taken.name, taken.text, taken.time)
        if not pieces:
            findings.left_out["media" if taken.has_media else "messages without text"] += 1
        yield from pieces


def _taker(source: Source) -> Callable[[object, _People], Taken]:
    text = source.beginning.lstrip()
    if text.startswith("["):
        return _from_desktop
    if ENVELOPE.match(text):
        return _from_envelope
    return _from_export if EXPORTED.match(text) else _from_backup


def _objects(source: Source, findings: Findings) -> Iterator[object]:
    """Yield the elements of an array, or the objects of all lines; broken lines are counted."""
    if source.beginning.lstrip().startswith("["):
        yield from JsonStream(text_of(source)).values()
        return
    for line in bounded_lines(source, findings):
        if not line.strip():
            continue
        try:
            yield json.loads(line, strict=False)
        except (ValueError, RecursionError):
            findings.left_out["broken lines"] += 1


def _from_envelope(item: object, _: _People) -> Taken:
    """Take what signal-cli received or, on another device, was sent."""
    params = object_field(item, "params")
    envelope = object_field(params or item, "envelope")
    sent = object_field(object_field(envelope, "syncMessage"), "sentMessage")
    data = object_field(object_field(envelope, "editMessage"), "dataMessage")
    if data:
        return "edits of messages"
    data = sent or object_field(envelope, "dataMessage")
    if not data:
        return "receipts and notices"
    if object_field(data, "reaction"):
        return "reactions"
    if object_field(data, "remoteDelete"):
        return "deleted messages"
    name = ME if sent else text_field(envelope, "sourceName", "sourceNumber", "source")
    group = text_field(object_field(data, "groupInfo"), "groupId")
    partner = text_field(data if sent else envelope, *_PARTNER_FIELDS)
    time = seconds_of(data.get("timestamp") or envelope.get("timestamp"))
    has_media = bool(list_field(data, "attachments") or object_field(data, "sticker"))
    return _Message(name, text_field(data, "message"), time, group or partner, has_media)


_PARTNER_FIELDS = ("destinationNumber", "destination", "sourceNumber", "source")


def _from_export(item: object, _: _People) -> Taken:
    """Take a line of signal-export's data.json."""
    text = text_field(item, "body")
    time = iso_time(text_field(item, "date"))
    has_media = bool(list_field(item, "attachments") or text_field(item, "sticker"))
    return _Message(text_field(item, "sender"), text, time, has_media=has_media)


def _from_desktop(item: object, _: _People) -> Taken:
    """Take a message as Signal Desktop stores it; it has numbers or ids for names."""
    kind = text_field(item, "type")
    if kind not in ("incoming", "outgoing") or not isinstance(item, dict):
        return "system messages"
    if item.get("deletedForEveryone"):
        return "deleted messages"
    source = text_field(item, "source", "sourceServiceId", "sourceUuid")
    name = ME if kind == "outgoing" else source
    time = seconds_of(item.get("sent_at") or item.get("timestamp"))
    has_media = bool(list_field(item, "attachments") or object_field(item, "sticker"))
    chat = text_field(item, "conversationId")
    return _Message(name, text_field(item, "body"), time, chat, has_media)


def _from_backup(item: object, people: _People) -> Taken:
    """Take a line of Signal's own export: first people and chats, then what was said."""
    recipient = object_field(item, "recipient")
    if recipient:
        if len(people.names) < MOST_NAMES:
            people.names[str(recipient.get("id"))] = _name_of(recipient)
        return None
    said = object_field(item, "chatItem")
    if not said:
        return None
    if "remoteDeletedMessage" in said:
        return "deleted messages"
    message = object_field(said, "standardMessage")
    if not message:
        return "stickers" if "stickerMessage" in said else "system messages"
    author = str(said.get("authorId"))
    text = text_field(object_field(message, "text"), "body")
    has_media = bool(list_field(message, "attachments"))
    time = seconds_of(said.get("dateSent"))
    chat = str(said.get("chatId"))
    return _Message(people.names.get(author, author), text, time, chat, has_media)


def _name_of(recipient: dict[str, object]) -> str:
    if "self" in recipient:
        return ME
    contact = object_field(recipient, "contact")
    nickname = object_field(contact, "nickname")
    for holder, keys in (
        (nickname, ("given", "family")),
        (contact, ("systemGivenName", "systemFamilyName")),
        (contact, ("profileGivenName", "profileFamilyName")),
    ):
        name = " ".join(part for key in keys if (part := text_field(holder, key)))
        if name:
            return name
    return text_field(contact, "username", "e164") or str(recipient.get("id"))


SIGNAL_JSON = Reader("Signal JSON", certainty, read)
