"""A day of a Slack channel: CHANNEL/YYYY-MM-DD.json of an exported workspace.

The names of people are in users.json, in the folder above. Where that is not at hand, messages
name those who wrote them.
"""

import html
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from chatgot.data.encoding import CHUNK_BYTES
from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.readers.json_fields import (
    list_field,
    number_of,
    object_field,
    text_field,
)
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.source import Source
from chatgot.data.text_file import text_chunks
from chatgot.errors import ConfigError

MESSAGE = re.compile(r'"ts":\s*"\d{9,10}\.\d{6}"')
TYPE = re.compile(r'"type":\s*"message"')
LISTS = re.compile(
    r'\[\s*\{\s*"(?:user_)?id":\s*"[A-Z][A-Z0-9]{5,}",\s*"(?:team_id|name|created|user_name)":'
)
LIST_NAMES = (
    *("users.json", "channels.json", "groups.json", "dms.json", "mpims.json"),
    "integration_logs.json",
)
LIST_FIELD = re.compile(r'"(?:is_bot|members|profile|is_archived|creator|change_type)":')
SPOKEN = ("", "thread_broadcast", "me_message", "file_share", "file_comment", "reply_broadcast")
REFERENCE = re.compile(r"<([@#!]?)([^<>|\n]{1,2000})(?:\|([^<>\n]{0,2000}))?>")
MOST_TOGETHER = 1 << 24  # bytes of a day whose threads are put together
MOST_NAMES = 100_000


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a day of a Slack channel."""
    text = source.beginning.lstrip()
    if not text.startswith("["):
        return 0.0
    return 0.97 if MESSAGE.search(text) and TYPE.search(text) else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a day, each thread in one piece. Raises: UnreadableError."""
    names = _names(source.path)
    conversation = Conversation(options)
    messages: Iterator[object] = JsonStream(text_of(source)).values()
    if source.size <= MOST_TOGETHER:
        messages = iter(_by_thread(list(messages)))
    else:
        findings.remark("threads are not put together in so large a file")
    for message in messages:
        kind = _left_out_as(message)
        if kind is not None:
            findings.left_out[kind] += 1
            continue
        text = _text(text_field(message, "text"), names)
        time = number_of(text_field(message, "ts"))
        pieces = conversation.say(_name(message, names), text, time)
        if not pieces:
            has_files = list_field(message, "files")
            findings.left_out["media" if has_files else "messages without text"] += 1
        yield from pieces
    missing = {name for name in names.unknown if name}
    if missing:
        findings.remark(f"{len(missing)} people have no name in users.json: their ids stand for it")


class _Names(dict[str, str]):
    """The names of people, by their ids. `unknown`: ids that were asked for in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def of(self, person: str) -> str:
        """Return a name; the id itself where there is none."""
        name = self.get(person)
        if name is None and len(self.unknown) < MOST_NAMES:
            self.unknown.add(person)
        return name or person


def _names(path: Path) -> _Names:
    """Return the names in the users.json next to a day or above its channel."""
    names = _Names()
    for folder in (path.parent.parent, path.parent):
        users = folder / "users.json"
        if users.is_file():
            status = users.stat()
            names.update(_names_in(users, status.st_mtime_ns, status.st_size))
            break
    return names


@lru_cache(maxsize=2)
def _names_in(users: Path, _changed: int, _size: int) -> dict[str, str]:
    """Return the names in users.json; what was read where it is broken."""
    names: dict[str, str] = {}
    try:
        for user in JsonStream(text_chunks(users, "utf-8", CHUNK_BYTES)).values():
            name = _name_of_user(user)
            if name and len(names) < MOST_NAMES:
                names[text_field(user, "id")] = name
    except (ConfigError, UnreadableError):
        return names
    return names


def _name_of_user(user: object) -> str:
    profile = object_field(user, "profile")
    return text_field(profile, "display_name", "real_name") or text_field(user, "real_name", "name")


def _name(message: object, names: _Names) -> str:
    person = text_field(message, "user")
    known = names.get(person)
    if known:
        return known
    profile = object_field(message, "user_profile")
    own = text_field(profile, "display_name", "real_name", "name")
    if own and len(names) < MOST_NAMES:
        names[person] = own
    return own or text_field(message, "username") or names.of(person)


def _left_out_as(message: object) -> str | None:
    if not isinstance(message, dict):
        return "odd messages"
    if message.get("type") != "message":
        return "system messages"
    subtype = message.get("subtype") or ""
    if subtype == "bot_message" or message.get("bot_id") or message.get("user") == "USLACKBOT":
        return "messages of bots"
    if subtype == "tombstone":
        return "deleted messages"
    return None if subtype in SPOKEN else "system messages"


def _by_thread(messages: list[object]) -> list[object]:
    """Return the messages of a day, with the replies of each thread after its first message."""
    starts = {text_field(message, "ts"): place for place, message in enumerate(messages)}

    def place_of(numbered: tuple[int, object]) -> tuple[int, int]:
        place, message = numbered
        thread = text_field(message, "thread_ts")
        return starts.get(thread, place) if thread else place, place

    return [message for _, message in sorted(enumerate(messages), key=place_of)]


def _text(text: str, names: _Names) -> str:
    """Return a text with names for ids and addresses for links."""
    if "<" in text:
        text = REFERENCE.sub(lambda reference: _shown(reference, names), text)
    return html.unescape(text) if "&" in text else text


def _shown(reference: re.Match[str], names: _Names) -> str:
    mark, target, label = reference.groups()
    if mark == "@":
        return "@" + (names.get(target) or label or names.of(target))
    if mark == "#":
        return "#" + (label or target)
    if mark == "!":
        return label or "@" + target.partition("^")[0]
    return label or target.removeprefix("mailto:")


def list_certainty(source: Source) -> float:
    """Return how sure it is that a file lists the people or channels of a workspace."""
    # a member of a zip has a name such as `slack.zip: users.json`
    if Path(source.name.rpartition(": ")[2]).name not in LIST_NAMES:
        return 0.0
    text = source.beginning.lstrip()
    return 0.95 if LISTS.match(text) and LIST_FIELD.search(text) else 0.0


def read_list(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield nothing: what is in it is looked up when the channels are read."""
    findings.left_out["lists of people and channels"] += 1
    yield from ()


SLACK = Reader("Slack channel", certainty, read)
SLACK_LIST = Reader("Slack list of people or channels", list_certainty, read_list)
