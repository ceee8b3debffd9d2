"""Reads tables: CSV, TSV, and cells separated by semicolons or bars."""

from collections.abc import Iterator, Sequence
from itertools import chain

from chatgot.data.preparation.pieces import Piece
from chatgot.data.preparation.reader import Findings, Reader, ReadingOptions, UnreadableError
from chatgot.data.preparation.readers.columns import (
    Columns,
    choose_columns,
    is_known_name,
    is_text_name,
)
from chatgot.data.preparation.readers.csv_dialect import (
    SHARE_OF_ROWS,
    Dialect,
    guess_dialect,
    has_prose_separators,
)
from chatgot.data.preparation.readers.csv_rows import csv_rows, plain_words
from chatgot.data.preparation.readers.rows_to_pieces import RowsToPieces
from chatgot.data.preparation.source import Source

ENDINGS = ("csv", "tsv", "tab", "psv")
# Files of these endings are no tables, whatever separates their cells, without known names above
OTHERS = """
md srt vtt ass ssa py js ts c h cpp java json jsonl html htm xml
"""
OTHER_ENDINGS = frozenset(OTHERS.split())
SURE = 0.8
LIKELY = 0.6
BY_ENDING = 0.5
LEAST_ROWS = 5  # of a table whose first row has no known names
MOST_COLUMNS = 1_000
SAMPLED_ROWS = 500
SAMPLED_CHARACTERS = 1 << 20
LONGEST_HEADER = 60  # characters of a cell
SHOWN_LINES = 5
SEPARATOR_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def certainty(source: Source) -> float:
    """Return how sure it is that a file is a table."""
    if source.encoding is None or not source.beginning.strip():
        return 0.0
    dialect = guess_dialect(source)
    if dialect.is_given:
        return SURE
    first = _first_row(source, dialect)
    is_known = sum(map(is_known_name, first)) >= 2 and any(map(is_text_name, first))
    agrees = dialect.cells > 1 and dialect.agreement >= SHARE_OF_ROWS
    if source.ending in ENDINGS:
        if source.beginning.lstrip()[:1] in ("{", "["):
            return BY_ENDING / 2
        return SURE if is_known or agrees else BY_ENDING
    if is_known and len(first) == dialect.cells and all(map(_may_be_header, first)):
        return SURE
    if source.ending in OTHER_ENDINGS:
        return 0.0
    is_prose = has_prose_separators(source.beginning, dialect.separator)
    least_cells = 2 if dialect.separator == "\t" else 3
    if not agrees or is_prose or dialect.cells < least_cells or dialect.rows < LEAST_ROWS:
        return 0.0
    return LIKELY


def read(source: Source, options: ReadingOptions, findings: Findings) -> Iterator[Piece]:
    """Yield the speeches or passages of a table's rows. Raises: UnreadableError."""
    dialect = guess_dialect(source)
    rows = csv_rows(source, dialect, findings)
    sample: list[tuple[int, list[str]]] = []
    size = 0
    for numbered in rows:
        sample.append(numbered)
        if len(numbered[1]) > MOST_COLUMNS:
            raise UnreadableError(f"line {numbered[0]:,} has more than {MOST_COLUMNS:,} cells")
        size += len(numbered[1]) + sum(map(len, numbered[1]))
        if len(sample) >= SAMPLED_ROWS or size > SAMPLED_CHARACTERS:
            break
    if not sample:
        raise UnreadableError("the table has no rows")
    cells = [row for _, row in sample]
    width = _width(cells)
    header = cells[0] if has_header(cells, options) else None
    if header is None:
        names = [str(number) for number in range(1, width + 1)]
        findings.remark("the table has no line with names of columns; they are called by number")
    else:
        names = [plain_words(cell) for cell in header]
        sample.pop(0)
        cells.pop(0)
    findings.remark(f"cells are separated by {SEPARATOR_NAMES.get(dialect.separator, 'signs')}")
    # What is damaged says nothing of the columns
    whole = [row for row in cells if len(row) == len(names)] or cells
    columns = choose_columns(names, whole, options, findings)
    table = _Table(columns, header, dialect, findings)
    yield from table.pieces_of(chain(sample, rows))


class _Table:
    """Turns rows into pieces, and notes those that are damaged."""

    def __init__(
        self, columns: Columns, header: list[str] | None, dialect: Dialect, findings: Findings
    ) -> None:
        self._columns = columns
        self._header = header
        self._separator = dialect.separator
        self._findings = findings
        self._bad_lines: list[int] = []
        self._joined = 0

    def pieces_of(self, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Piece]:
        """Yield the pieces of all rows."""
        width = len(self._columns.names)
        to_pieces = RowsToPieces(self._columns, self._findings)
        for line, row in rows:
            cells: list[str] | None = row
            if len(row) != width:
                cells = self._mended(row, line)
            elif row == self._header:
                self._findings.left_out["header lines that come again"] += 1
                continue
            if cells is not None:
                yield from to_pieces.pieces_of(cells)
        self._say()

    def _mended(self, row: list[str], line: int) -> list[str] | None:
        """Return a row with another number of cells as it was meant; None: it is left out."""
        columns = self._columns
        width = len(columns.names)
        if len(row) > width:
            if not any(row[width:]):
                return row[:width]
            if columns.text == width - 1:  # separators within a text without quotes
                self._joined += 1
                return [*row[: width - 1], self._separator.join(row[width - 1 :])]
        elif len(row) > max(columns.text, columns.speaker or 0) and len(row) > 1:
            return row  # empty cells at its end are missing
        if not any(row):
            return None
        self._findings.left_out["rows with a wrong number of cells"] += 1
        if len(self._bad_lines) < SHOWN_LINES:
            self._bad_lines.append(line)
        return None

    def _say(self) -> None:
        number = self._findings.left_out["rows with a wrong number of cells"]
        if number:
            shown = ", ".join(f"{line:,}" for line in self._bad_lines)
            more = " ..." if number > len(self._bad_lines) else ""
            self._findings.remark(f"left out for a wrong number of cells: lines {shown}{more}")
        else:
            del self._findings.left_out["rows with a wrong number of cells"]
        if self._joined:
            self._findings.remark(
                f"separators in a text without quotes belong to it (rows: {self._joined:,})"
            )


def has_header(rows: Sequence[Sequence[str]], options: ReadingOptions) -> bool:
    """Return whether the first row names the columns."""
    first = [plain_words(cell) for cell in rows[0]]
    wanted = {options.speaker_column, options.text_column} - {None}
    if wanted and wanted <= set(first):
        return True
    if not all(map(_may_be_header, filter(None, first))) or len(set(first)) < len(first) - 1:
        return False
    known = sum(map(is_known_name, first))
    others = rows[1:]
    again = sum(
        any(at < len(row) and row[at].strip() == name for row in others[:SAMPLED_ROWS])
        for at, name in enumerate(first)
        if name
    )
    if known >= min(2, len(first)) or (known and not again):
        return True
    if again or len(others) < LEAST_ROWS:
        return False
    # A name is shorter than what is in its column, or the column has numbers and it has none
    longest = max(range(len(first)), key=lambda at: _mean_length(others, at))
    has_numbers = any(_is_numeric(others, at) for at in range(len(first)))
    return has_numbers or 3 * len(first[longest]) < _mean_length(others, longest)


def _may_be_header(cell: str) -> bool:
    """Return whether a cell may be the name of a column."""
    return len(cell) <= LONGEST_HEADER and not cell.endswith((".", "!")) and not _is_number(cell)


def _mean_length(rows: Sequence[Sequence[str]], at: int) -> float:
    lengths = [len(row[at]) for row in rows if at < len(row)]
    return sum(lengths) / max(len(lengths), 1)


def _is_numeric(rows: Sequence[Sequence[str]], at: int) -> bool:
    cells = [row[at] for row in rows if at < len(row) and row[at].strip()]
    return bool(cells) and all(map(_is_number, cells))


def _is_number(cell: str) -> bool:
    digits = cell.strip().lstrip("+-").replace(".", "").replace(",", "")
    return digits.isdigit()


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Return how many cells most rows have."""
    counts: dict[int, int] = {}
    for row in rows:
        counts[len(row)] = counts.get(len(row), 0) + 1
    return max(counts, key=lambda width: (counts[width], width))


def _first_row(source: Source, dialect: Dialect) -> list[str]:
    """Return the cells of the first line, without quotes."""
    lines = source.beginning.split("\n", dialect.skipped + 1)
    line = lines[dialect.skipped] if dialect.skipped < len(lines) else ""
    cells = line[: 1 << 12].split(dialect.separator)
    return [cell.strip().strip(dialect.quote or '"').strip() for cell in cells]


TABLES = Reader("table of lines (CSV)", certainty, read)
