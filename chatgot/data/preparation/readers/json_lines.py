"""Reads JSON Lines: one object a line, as records of conversations or as rows."""

import json
from collections.abc import Iterator

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.records import pieces_of_records
from chatgot.data.preparation.source import Source

ENDINGS = ("jsonl", "ndjson", "jsonlines")
SURE = 0.7  # below the messengers' own readers
LIKELY = 0.6
BY_ENDING = 0.4  # JSON over several lines, whatever it is called, is read as JSON
SAMPLED_LINES = 20
SHARE_OF_LINES = 0.5  # that are whole objects
LONGEST_LINE = 1 << 24  # characters; a book may be one line
SHOWN_LINES = 5
OPENING = ("{", "[")


def certainty(source: Source) -> float:
    """Return how sure it is that each line of a file is a JSON object."""
    text = source.beginning.lstrip()
    if source.encoding is None or not text.startswith(OPENING):
        return 0.0
    has_ending = source.ending in ENDINGS
    *lines, last = text.split("\n", SAMPLED_LINES)
    if source.size <= len(source.head):
        lines.append(last)
    lines = [line for line in lines if line.strip()][:SAMPLED_LINES]
    if not lines:  # the first object is longer than what was read
        return LIKELY if has_ending else 0.0
    whole = sum(_is_object(line) for line in lines)
    if not whole:
        return BY_ENDING if has_ending else 0.0
    if whole < SHARE_OF_LINES * len(lines) or (len(lines) < 2 and not has_ending):
        return LIKELY if has_ending else 0.0
    return SURE if has_ending else LIKELY


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield what the lines say; broken ones are counted and named. Raises: UnreadableError."""
    yield from pieces_of_records(_records(source, findings), options, findings)


def _records(source: Source, findings: Findings) -> Iterator[object]:
    broken: list[int] = []
    number_broken = 0
    number_read = 0
    for number, line in enumerate(_lines(source), start=1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # broken, or nested too deeply
            number_broken += 1
            findings.left_out["broken lines"] += 1
            if len(broken) < SHOWN_LINES:
                broken.append(number)
            continue
        number_read += 1
        yield record
    if number_broken:
        shown = ", ".join(f"{number:,}" for number in broken)
        more = " ..." if number_broken > len(broken) else ""
        if not number_read:
            raise UnreadableError(f"none of its lines is a JSON object (lines {shown}{more})")
        findings.remark(f"left out, as they are no JSON: lines {shown}{more}")


def _lines(source: Source) -> Iterator[str]:
    """Yield the lines of a text; of one that is too long to be read, only its beginning."""
    rest = ""
    is_too_long = False
    for chunk in text_of(source):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield "{" if is_too_long or len(line) > LONGEST_LINE else line
            is_too_long = False
        if len(rest) > LONGEST_LINE:
            is_too_long = True
            rest = ""
    if is_too_long:
        yield "{"
    elif rest:
        yield rest


def _is_object(line: str) -> bool:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if isinstance(record, list):  # of messages; `[1]` may be the number of a note
        return bool(record) and isinstance(record[0], dict)
    return isinstance(record, dict)


JSON_LINES = Reader("JSON Lines", certainty, read)
