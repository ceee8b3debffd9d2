"""A page of a Telegram export in HTML: messages.html, messages2.html and so on."""

import html
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.source import Source

START = re.compile(r'class="(?:message default clearfix|page_wrap)')
PAGE = re.compile(r"messages(\d*)\.html$")
NAME = re.compile(r'<div class="from_name">([^<]{1,300})<(?!span class="date)')
DATE = re.compile(r"(\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d)")
DATE_FORM = "%d.%m.%Y %H:%M:%S"
TAIL_BYTES = 1 << 18  # of the page before, to find who spoke last
FED = 1 << 16  # characters at once


class Element(Protocol):
    """What is used of an element of lxml."""

    tag: object  # a text, but for comments
    text: str | None
    tail: str | None

    def get(self, key: str) -> str | None: ...
    def __iter__(self) -> Iterator["Element"]: ...
    def __delitem__(self, place: int) -> None: ...
    def iterdescendants(self) -> Iterator["Element"]: ...
    def getparent(self) -> "Element | None": ...
    def getprevious(self) -> "Element | None": ...
    def clear(self) -> None: ...


class PullParser(Protocol):
    """What is used of a parser of lxml."""

    def feed(self, data: str) -> None: ...
    def close(self) -> None: ...
    def read_events(self) -> Iterator[tuple[str, Element]]: ...


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a page of a Telegram export."""
    text = source.beginning
    if "<html" not in text[:2000].casefold() or START.search(text) is None:
        return 0.0
    is_telegram = "message default clearfix" in text or "tgme" in text
    return 0.97 if is_telegram or '<div class="history">' in text else 0.0


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the messages of a page. Raises: UnreadableError."""
    conversation = Conversation(options, nobody="Deleted Account")
    name = _last_name_before(source)
    for message in _messages(source):
        classes = (message.get("class") or "").split()
        if "service" in classes:
            findings.left_out["system messages"] += 1
            continue
        body = _child(message, "body")
        own = "" if body is None else _name(body)
        name = own or name
        pieces: list[Piece] = []
        if body is not None:
            pieces = conversation.say(name, _text(_child(body, "text")), _time(body))
        if not pieces:
            findings.left_out[_silent_kind(body)] += 1
        yield from pieces


def _messages(source: Source) -> Iterator[Element]:
    """Yield the element of each message, and forget those before it."""
    from lxml.etree import HTMLPullParser, LxmlError

    parser: PullParser = HTMLPullParser(events=("end",), tag="div", huge_tree=False)
    try:
        for chunk in text_of(source):
            for start in range(0, len(chunk), FED):
                parser.feed(_harmless(chunk[start : start + FED]))
                yield from _ended(parser)
        parser.close()
    except LxmlError as error:
        raise UnreadableError(f"odd HTML: {error}") from error
    yield from _ended(parser)


def _harmless(text: str) -> str:
    return text.replace("\0", "")


def _ended(parser: PullParser) -> Iterator[Element]:
    for _, element in parser.read_events():
        if "message" not in (element.get("class") or "").split():
            continue
        yield element
        element.clear()
        parent = element.getparent()
        while parent is not None and element.getprevious() is not None:
            del parent[0]


def _child(element: Element, name: str) -> Element | None:
    """Return the first child of a class; it is not looked for deeper."""
    for child in element:
        if name in (child.get("class") or "").split():
            return child
    return None


def _name(body: Element) -> str:
    named = _child(body, "from_name")
    return "" if named is None else (named.text or "").strip()


def _text(element: Element | None) -> str:
    """Return the text of an element; a <br> ends a line, blanks of the layout do not."""
    if element is None:
        return ""
    parts = [_plain(element.text)]
    for inner in element.iterdescendants():
        if inner.tag == "br":
            parts.append("\n")
        elif isinstance(inner.tag, str):
            parts.append(_plain(inner.text))
        parts.append(_plain(inner.tail))
    return "".join(parts)


def _plain(text: str | None) -> str:
    if not text or "\n" not in text:
        return text or ""
    first, *others, last = text.split("\n")
    return "".join((first.rstrip(), *(line.strip() for line in others), last.lstrip()))


def _time(body: Element) -> float | None:
    dated = _child(body, "date")
    date = None if dated is None else DATE.match(dated.get("title") or "")
    if date is None:
        return None
    try:
        return datetime.strptime(date[1], DATE_FORM).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _silent_kind(body: Element | None) -> str:
    if body is None:
        return "odd messages"
    if _child(body, "forwarded") is not None:
        return "forwarded messages"
    return "media" if _child(body, "media_wrap") is not None else "messages without text"


def _last_name_before(source: Source) -> str:
    """Return who spoke last on the page before, for a page that goes on without a name."""
    page = PAGE.match(Path(source.name).name)
    if page is None or not page[1]:
        return ""
    number = int(page[1]) - 1
    before = source.path.with_name(f"messages{number if number > 1 else ''}.html")
    try:
        with before.open("rb") as file:
            file.seek(max(0, before.stat().st_size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    names = NAME.findall(tail)
    return html.unescape(names[-1]).strip() if names else ""


TELEGRAM_HTML = Reader("Telegram HTML", certainty, read)
