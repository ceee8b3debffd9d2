"""Mail: an mbox with many messages, or a single one (.eml).

A thread becomes a document. The file is read twice: first the headers, to find the threads.
"""

import email
import email.header
import email.utils
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import MessageError
from email.message import Message
from typing import BinaryIO

from chatgot.data.preparation.pieces import DocumentStart, Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.conversation import Conversation
from chatgot.data.preparation.source import Source

LONGEST_MAIL = 1 << 23  # bytes that are read of one; what follows are attachments
LONGEST_HEADERS = 1 << 16
LONGEST_LINE = 1 << 20
LONGEST_HTML = 1 << 20
LONGEST_SEPARATOR = 300
MOST_IDS = 1_000_000

SEPARATOR = re.compile(rb"From \S+.*\d\d:\d\d")
FIRST_SEPARATOR = re.compile(
    rb"(?:\xef\xbb\xbf)?From [^\r\n]{0,200}?\d\d:\d\d[^\r\n]{0,60}\r?\n(?:>From |[A-Za-z-]+:)"
)
HEADER = re.compile(rb"([A-Za-z][A-Za-z0-9-]{1,60}):[ \t]")
CONTINUED = (b" ", b"\t")
TELLING = {b"date", b"subject", b"message-id", b"received", b"mime-version", b"to", b"return-path"}
IDENTIFIER = re.compile(r"<[^<>\s]{3,400}>")
REPLY = re.compile(
    r"\s*(?:(?:re|aw|sv|vs|antw|rif|res|odp|ynt|fwd?|wg|tr)\s*(?:\[\d+\])?\s*[:：]\s*)+", re.I
)
FORWARD = re.compile(
    r"-{2,}\s*(?:Original|Forwarded|Ursprüngliche|Weitergeleitete)[^\n-]{0,30}-{2,}", re.I
)
SIGNATURE = ("-- ", "--")
ESCAPED_FROM = ">From "  # of a line that is no quotation, in an mbox


def certainty(source: Source) -> float:
    """Return how sure it is that a file has mail."""
    if FIRST_SEPARATOR.match(source.head):
        return 0.97
    names = set()
    for line in source.head[:LONGEST_HEADERS].removeprefix(b"\xef\xbb\xbf").splitlines():
        if not line:
            break
        header = HEADER.match(line)
        if header is None and not line.startswith(CONTINUED):
            return 0.0
        if header is not None:
            names.add(header[1].lower())
    if b"from" not in names or len(names & TELLING) < 2:
        return 0.0
    return 0.95 if source.ending in ("eml", "mbox") or b"message-id" in names else 0.7


@dataclass
class _Threads:
    """Where the mails of a file begin, and which thread each belongs to."""

    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    ends: "array[int]" = field(default_factory=lambda: array("Q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    threads: "array[int]" = field(default_factory=lambda: array("L"))
    by_id: dict[int, int] = field(default_factory=dict)
    count: int = 0

    def add(self, start: int, end: int, headers: Message) -> None:
        """Take a mail into account, by its headers."""
        references = f"{_header(headers, 'References')} {_header(headers, 'In-Reply-To')}"
        keys = IDENTIFIER.findall(f"{references} {_header(headers, 'Message-ID')}")
        subject = _header(headers, "Subject")
        bare = REPLY.sub("", subject, count=1).strip().casefold()
        is_reply = REPLY.match(subject) is not None
        thread = next((self.by_id[key] for key in map(hash, keys) if key in self.by_id), None)
        if thread is None and is_reply and bare:
            thread = self.by_id.get(hash(("subject", bare)))
        if thread is None:
            thread = self.count
            self.count += 1
        if len(self.by_id) < MOST_IDS:
            self.by_id.update((hash(key), thread) for key in keys)
            self.by_id[hash(("subject", bare))] = thread
        self.starts.append(start)
        self.ends.append(end)
        self.times.append(_time(headers) or 0.0)
        self.threads.append(thread)

    def order(self) -> list[int]:
        """Return the mails thread by thread, each in the order of time."""
        places = range(len(self.starts))
        return sorted(places, key=lambda place: (self.threads[place], self.times[place], place))


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the mails of a file, thread by thread. Raises: UnreadableError."""
    try:
        with source.path.open("rb") as file:
            yield from _mails(file, source, options, findings)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error


def _mails(
    file: BinaryIO, source: Source, options: ReadingOptions, findings: Findings
) -> Iterator[Piece]:
    threads = _Threads()
    for start, end, headers in _headers(file, is_many=bool(FIRST_SEPARATOR.match(source.head))):
        threads.add(start, end, headers)
    if not threads.starts:
        raise UnreadableError("no mail begins in it")
    conversation = Conversation(options)
    thread = -1
    for place in threads.order():
        file.seek(threads.starts[place])
        length = threads.ends[place] - threads.starts[place]
        if length > LONGEST_MAIL:
            findings.remark(f"of mails longer than {LONGEST_MAIL:,} bytes the beginning is read")
        mail = _parsed(file.read(min(length, LONGEST_MAIL)))
        text = None if mail is None else _text(mail)
        if mail is None or text is None or not text.strip():
            findings.left_out["mails without text" if mail else "odd mails"] += 1
            continue
        if threads.threads[place] != thread:
            thread = threads.threads[place]
            yield DocumentStart(_header(mail, "Subject"))
        for piece in conversation.say(_name(mail), _own_words(text, findings), _time(mail)):
            if not isinstance(piece, DocumentStart):
                yield piece


def _headers(file: BinaryIO, is_many: bool) -> Iterator[tuple[int, int, Message]]:
    """Yield where each mail begins and ends, and its headers."""
    start = 0
    place = 0
    collected = bytearray()
    in_headers = True
    was_blank = True
    while line := file.readline(LONGEST_LINE):
        if is_many and was_blank and SEPARATOR.match(line, 0, LONGEST_SEPARATOR):
            if place > start:
                yield start, place, _message(bytes(collected))
            start = place + len(line)
            collected.clear()
            in_headers = True
        elif in_headers and len(collected) < LONGEST_HEADERS:
            collected += line[:LONGEST_HEADERS]
            in_headers = bool(line.strip())
        was_blank = not line.strip()
        place += len(line)
    if place > start:
        yield start, place, _message(bytes(collected))


def _message(headers: bytes) -> Message:
    """Return a mail without its body."""
    mail = _parsed(headers)
    return Message() if mail is None else mail


def _parsed(data: bytes) -> Message | None:
    try:
        return email.message_from_bytes(data)
    except (MessageError, ValueError, RecursionError, LookupError):
        return None


def _header(mail: Message, name: str) -> str:
    """Return a header on one line, decoded where that can be done."""
    try:
        value = mail.get(name)
        text = str(email.header.make_header(email.header.decode_header(str(value or ""))))
    except (MessageError, ValueError, LookupError, AssertionError):
        text = str(mail.get_all(name, [""])[0])
    return " ".join(text.split())


def _name(mail: Message) -> str:
    try:
        name, address = email.utils.parseaddr(_header(mail, "From"))
    except (ValueError, IndexError):
        return ""
    return name.strip("\"' ") or address.partition("@")[0]


def _time(mail: Message) -> float | None:
    """Return the seconds since 1970 by the sender's own clock."""
    try:
        moment = email.utils.parsedate_to_datetime(_header(mail, "Date"))
        offset = moment.utcoffset()
        return moment.timestamp() + (offset.total_seconds() if offset else 0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _text(mail: Message) -> str | None:
    """Return what is written in a mail: its plain text, else its HTML as text."""
    page = None
    for part in mail.walk():
        if part.is_multipart() or part.get_content_disposition() == "attachment":
            continue
        kind = part.get_content_type()
        if kind == "text/plain":
            text = _decoded(part)
            if text.strip():
                return text
        elif kind == "text/html" and page is None:
            page = _decoded(part)
    return None if page is None else _without_tags(page)


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    data = payload if isinstance(payload, bytes) else b""
    try:
        return data.decode(part.get_content_charset() or "utf-8")
    except (LookupError, ValueError):
        return data.decode("utf-8" if _is_utf8(data) else "latin-1", "replace")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeError:
        return False
    return True


def _without_tags(page: str) -> str:
    """Return the text of HTML; quoted parts are left out."""
    from bs4 import BeautifulSoup

    try:
        soup = BeautifulSoup(page[:LONGEST_HTML], "lxml")
        for element in soup(["style", "script", "head", "title", "blockquote"]):
            element.decompose()
        for end in soup(["br", "p", "div", "li", "tr"]):
            end.append("\n")
        return soup.get_text()
    except (RecursionError, ValueError, AssertionError):
        return ""


def _own_words(text: str, findings: Findings) -> str:
    """Return a mail's text without what it quotes and without its signature."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")
    for place, line in enumerate(lines):
        if line in SIGNATURE:
            findings.left_out["lines of signatures"] += len(lines) - place
            lines = lines[:place]
            break
        if FORWARD.match(line.strip()):
            findings.left_out["quoted lines"] += len(lines) - place
            lines = lines[:place]
            break
    kept: list[str] = []
    was_quoted = False
    for line in lines:
        if line.startswith(ESCAPED_FROM):
            line = line.removeprefix(">")
        if not line.startswith(">"):
            kept.append(line)
            was_quoted = False
            continue
        findings.left_out["quoted lines"] += 1
        if was_quoted:
            continue
        was_quoted = True
        # On Monday, Anna wrote:
        while kept and not kept[-1].strip():
            kept.pop()
        if kept and kept[-1].rstrip().endswith((":", "：")) and len(kept[-1]) < 200:
            kept.pop()
            findings.left_out["quoted lines"] += 1
    return "\n".join(kept)


MAIL = Reader("mail", certainty, read)
