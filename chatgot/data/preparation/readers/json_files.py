"""Reads JSON: an array of objects, or an object that has one, as conversations or as rows."""

import re
from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.json_stream import JsonStream
from chatgot.data.preparation.readers.records import CONVERSATIONS, pieces_of_records
from chatgot.data.preparation.source import Source

LIKELY = 0.55  # messengers' own readers are surer, and JSON Lines, if each line is an object
BY_ENDING = 0.5
START = re.compile(r'\s*(?:\{\s*"|\[\s*[{\["]|\{\s*\}|\[\s*\])')
MEMBER = re.compile(r'"\s*:')
WHOLE = 1 << 21  # bytes of a file whose value is read at once


def certainty(source: Source) -> float:
    """Return how sure it is that a file is JSON."""
    if source.encoding is None or START.match(source.beginning) is None:
        return 0.0
    is_named = source.ending == "json"
    if MEMBER.search(source.beginning) is None:
        return BY_ENDING if is_named else 0.0
    return LIKELY


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield what the objects say; it streams. Raises: UnreadableError."""
    stream = JsonStream(text_of(source))
    is_small = source.size <= WHOLE
    yield from pieces_of_records(_records(stream, is_small, findings), options, findings)


def _records(stream: JsonStream, is_small: bool, findings: Findings) -> Iterator[object]:
    """Yield the objects of all values of a file; mostly it has one."""
    number = 0
    while first := stream.next_character():
        number += 1
        if first == "[":
            yield from stream.values()
        elif first != "{" and number > 1:
            findings.remark("what comes after its JSON is none, and is left out")
            return
        elif first != "{":
            raise UnreadableError("its JSON has no objects")
        elif is_small:
            yield from _within(stream.value(), findings)
        else:
            yield from _members(stream, findings)
    if not number:
        raise UnreadableError("it is empty")


def _within(value: object, findings: Findings) -> Iterator[object]:
    """Yield an object, or the objects of its lists where it has no conversation itself."""
    if not isinstance(value, dict) or any(_is_list(value.get(key)) for key in CONVERSATIONS):
        yield value
        return
    lists = [members for members in value.values() if _is_list(members)]
    if not lists and len(value) > 1 and all(isinstance(v, dict) for v in value.values()):
        yield from value.values()  # by their ids
        return
    if not lists:
        yield value
        return
    _note(findings, len(value) - len(lists))
    for members in lists:
        yield from members


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _members(stream: JsonStream, findings: Findings) -> Iterator[object]:
    """Yield the objects of all lists in a large object, one at a time."""
    others = 0
    for _key in stream.members():
        if stream.next_character() == "[":
            yield from stream.values()
        else:
            others += 1
    _note(findings, others)


def _note(findings: Findings, others: int) -> None:
    if others:
        findings.left_out["fields beside the lists of objects"] += others


JSON_FILES = Reader("JSON", certainty, read)
