"""The rows of a table, whatever its quotes look like: damage ends with the line it is in."""

import csv
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from chatgot.data.preparation.reader import Findings
from chatgot.data.preparation.readers.bounded_lines import text_of
from chatgot.data.preparation.readers.csv_dialect import Dialect
from chatgot.data.preparation.source import Source

# Of one row: a quote that is open for longer never closes
MOST_LINES = 5_000
MOST_CHARACTERS = 1 << 22
LONGEST_LINE = MOST_CHARACTERS
SHOWN_LINES = 5


@dataclass
class _Damage:
    """Lines whose quotes are broken, by number."""

    count: int = 0
    lines: str = ""

    def note(self, line: int) -> None:
        """Count a line, and keep the first numbers."""
        self.count += 1
        if self.count <= SHOWN_LINES:
            self.lines += f"{', ' if self.lines else ''}{line:,}"
        elif self.count == SHOWN_LINES + 1:
            self.lines += " ..."


class _Lines:
    """Hands lines to csv, and keeps those of the row at hand, in case its quotes are broken."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.row: list[str] = []
        self.length = 0
        self.number = 0  # of lines before those of the row
        self.is_too_long = False
        self.is_at_end = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.length > MOST_CHARACTERS or len(self.row) >= MOST_LINES:
            self.is_too_long = True
            raise StopIteration
        if self._again:
            line = self._again.popleft()
        else:
            line = next(self._lines, "")
            if not line:
                self.is_at_end = True
                raise StopIteration
        self.row.append(line)
        self.length += len(line)
        return line

    def next_row(self) -> None:
        """Forget the lines of the row at hand."""
        self.number += len(self.row)
        self.row.clear()
        self.length = 0

    def only_first(self) -> str:
        """Return the first line of the row at hand; the others come again."""
        first, *others = self.row
        self._again.extendleft(reversed(others))
        self.row.clear()
        self.length = 0
        self.number += 1
        self.is_too_long = False
        self.is_at_end = False
        return first


def csv_rows(
    source: Source, dialect: Dialect, findings: Findings
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a table with the number of their last line, without empty ones.

    A row whose quotes are broken is read line by line, as well as it can be.
    Raises: UnreadableError.
    """
    # One limit for the whole process: csv has no other; rows are bounded here
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MOST_CHARACTERS + LONGEST_LINE))
    lines = _Lines(_bounded_lines(source, findings))
    for _ in range(dialect.skipped):
        next(lines, "")
        lines.next_row()
    damage = _Damage()
    while not lines.is_at_end:
        yield from _whole_rows(lines, dialect)
        if lines.row:
            first = lines.only_first()
            damage.note(lines.number)
            row = _as_it_is(first.rstrip("\n"), dialect)
            if any(row):
                yield lines.number, row
    if damage.count:
        findings.remark(
            f"broken quotes end with their line (rows: {damage.count:,}, lines {damage.lines})"
        )


def _whole_rows(lines: _Lines, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield rows up to the end, or to one with broken quotes, whose lines are kept."""
    rows = csv.reader(
        lines,
        delimiter=dialect.separator,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        doublequote=True,
        escapechar="\\" if dialect.is_escaped else None,
        strict=True,
    )
    while True:
        try:
            row = next(rows, None)
        except csv.Error:
            return  # the lines of the row are kept
        if row is None or lines.is_too_long:
            return
        lines.next_row()
        if row:
            yield lines.number, row


def _as_it_is(line: str, dialect: Dialect) -> list[str]:
    """Return the cells of one line with broken quotes: a quote ends a cell before a separator."""
    separator = dialect.separator
    quote = dialect.quote
    cells = []
    at = 0
    while at <= len(line):
        if quote and line.startswith(quote, at):
            end = line.find(quote + separator, at + 1)
            if end < 0:
                rest = line[at + 1 :]
                cells.append(rest.removesuffix(quote).replace(2 * quote, quote))
                return cells
            cells.append(line[at + 1 : end].replace(2 * quote, quote))
            at = end + 2
        else:
            end = line.find(separator, at)
            end = len(line) if end < 0 else end
            cells.append(line[at:end])
            at = end + 1
    return cells


def _bounded_lines(source: Source, findings: Findings) -> Iterator[str]:
    r"""Yield the lines of a text with their "\n"; a longer one comes in parts."""
    rest = ""
    for chunk in text_of(source):
        if "\0" in chunk:
            findings.left_out["NUL characters"] += chunk.count("\0")
            chunk = chunk.replace("\0", "")
        end = chunk.rfind("\n") + 1
        if not end:
            rest += chunk
        else:
            yield from _cut(io.StringIO(rest + chunk[:end], newline="\n"), findings)
            rest = chunk[end:]
        if len(rest) > LONGEST_LINE:
            yield from _cut(iter([rest + "\n"]), findings)
            rest = ""
    if rest:
        yield rest


def _cut(lines: Iterator[str] | io.StringIO, findings: Findings) -> Iterator[str]:
    for line in lines:
        if len(line) <= LONGEST_LINE:
            yield line
            continue
        findings.remark(f"lines of more than {LONGEST_LINE:,} characters are cut into several")
        for start in range(0, len(line), LONGEST_LINE):
            yield line[start : start + LONGEST_LINE]


def plain_words(cell: str) -> str:
    """Return a name of a column on one line."""
    return re.sub(r"\s+", " ", cell).strip()
