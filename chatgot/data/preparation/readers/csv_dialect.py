"""How the cells of a table are separated and quoted, told by its first lines."""

import re
from collections import Counter
from dataclasses import dataclass

from chatgot.data.preparation.source import Source

SEPARATORS = ("\t", ";", ",", "|")
SEP_LINE = re.compile(r"\ufeff?\"?sep=(.)\"?[ \t]*(?:\n|$)", re.IGNORECASE)
SAMPLED_LINES = 500
SAMPLED_CHARACTERS = 1 << 16
SHARE_OF_ROWS = 0.85  # that have the same number of cells
PROSE_COMMAS = 0.5  # share of separators with a blank behind them
MOST_WHOLE = 0.5  # share of the quotes that open and must close, or quotes are text
LONGEST_QUOTED = 300  # characters of a cell that are looked through for its end
MOST_OPEN_LINES = 100  # after which a quote that opens is taken as damage


@dataclass(frozen=True)
class Dialect:
    r"""How a table is written.

    quote: the character around cells; empty: none is. is_escaped: a quote within is `\"`.
    cells: of most rows. agreement: the share of rows that have so many.
    skipped: lines before the table: Excel's `sep=;`.
    """

    separator: str
    quote: str = '"'
    is_escaped: bool = False
    cells: int = 1
    agreement: float = 0.0
    rows: int = 0
    skipped: int = 0
    is_given: bool = False


def guess_dialect(source: Source) -> Dialect:
    """Return how a table is written; one cell a row where nothing separates."""
    text = source.beginning[:SAMPLED_CHARACTERS]
    given = SEP_LINE.match(text)
    body = text[given.end() :] if given else text
    is_whole = source.size <= len(source.head) and len(source.beginning) <= SAMPLED_CHARACTERS
    lines = body.split("\n")
    if not is_whole and len(lines) > 1:
        lines.pop()
    body = "\n".join(lines[:SAMPLED_LINES])
    separators = (given[1],) if given and given[1] in (*SEPARATORS, ":", " ") else SEPARATORS
    looks = [_look(body, separator) for separator in separators]
    best = max(looks, key=lambda look: (look.cells > 1) * look.agreement * min(look.cells, 4))
    if best.cells == 1 and not given:
        best = next(look for look in looks if look.separator == ",")
    return Dialect(
        best.separator,
        best.quote,
        best.is_escaped,
        best.cells,
        best.agreement,
        best.rows,
        skipped=1 if given else 0,
        is_given=given is not None,
    )


def has_prose_separators(body: str, separator: str) -> bool:
    """Return whether a blank mostly comes after the separators outside quotes, as in prose."""
    if separator == "\t":
        return False
    unquoted = re.sub(r'"[^"\n]{0,2000}"', "", body)
    number = unquoted.count(separator)
    followed = unquoted.count(separator + " ")
    return number > 0 and followed > PROSE_COMMAS * number


def _look(body: str, separator: str) -> Dialect:
    quote, is_escaped = _quoting(body, separator)
    counts = Counter(_cell_counts(body, separator, quote, is_escaped))
    rows = sum(counts.values())
    if not rows:
        return Dialect(separator, quote, is_escaped)
    cells, number = max(counts.items(), key=lambda item: (item[1], item[0]))
    return Dialect(separator, quote, is_escaped, cells, number / rows, rows)


def _quoting(body: str, separator: str) -> tuple[str, bool]:
    """Return the quote around cells, empty: none is, and whether a backslash escapes it."""
    for quote in ('"', "'"):
        opening = len(re.findall(rf"(?:^|{re.escape(separator)}){quote}", body, re.MULTILINE))
        if quote == "'":
            if 2 * _whole_cells(body, separator, quote) > len(body.split("\n")):
                return quote, body.count("\\'") > body.count("''")
            continue
        if separator == "\t" and _are_text(body, separator, quote, opening):
            return "", False
        if opening:
            return quote, body.count('\\"') > body.count('""')
    return '"', False


def _are_text(body: str, separator: str, quote: str, opening: int) -> bool:
    """Return whether quotes are just text, as often in tables with tabs.

    opening: how many begin a cell. Around cells with line feeds they make the rows agree.
    """
    if _whole_cells(body, separator, quote) >= MOST_WHOLE * opening:
        return False
    as_text = _agreement(_cell_counts(body, separator, "", False))
    return _agreement(_cell_counts(body, separator, quote, False)) <= as_text


def _agreement(counts: list[int]) -> float:
    """Return the share of rows that have as many cells as most of those with several."""
    several = Counter(count for count in counts if count > 1)
    return max(several.values(), default=0) / max(len(counts), 1)


def _whole_cells(body: str, separator: str, quote: str) -> int:
    """Return how many cells begin and end with a quote; tabs are hardly ever within quotes."""
    between = re.escape(separator)
    end = "\t" if separator == "\t" else "\n"
    inner = rf"(?:[^{end}{quote}]|{quote}{quote}){{0,{LONGEST_QUOTED}}}"
    pattern = rf"(?:^|{between}){quote}{inner}{quote}(?={between}|$)"
    return len(re.findall(pattern, body, re.MULTILINE))


def _cell_counts(body: str, separator: str, quote: str, is_escaped: bool) -> list[int]:
    """Return how many cells each row has; a row with an open quote goes on in the next line."""
    if quote and is_escaped:
        body = body.replace("\\" + quote, "")
    counts = []
    cells = 1
    is_open = False
    open_lines = 0
    for line in body.split("\n"):
        if not is_open:
            if not line.strip():
                continue
            cells = 1
        parts = line.split(quote) if quote else [line]
        for at, part in enumerate(parts):
            if at:
                is_open = not is_open
            if not is_open:
                cells += part.count(separator)
        open_lines = open_lines + 1 if is_open else 0
        if open_lines > MOST_OPEN_LINES:
            is_open = False
        elif not is_open:
            counts.append(cells)
    return counts
