r"""What lines that move the cursor show: a small model of a terminal's rows and columns.

Only such lines come here: with a carriage return inside, a backspace, or a sequence that moves the
cursor or erases. The screen is as wide as its lines. The last `HELD_ROWS` rows are kept back,
because the cursor may go up to them; older rows are final.

What is written is the last state of each row. What a row showed before is overwritten only if the
new text is a newer state of it (`redraws`), or if the program erased the row before any line
feed had been written since. Otherwise nothing is lost:

- After a bare carriage return, the new text is put behind the old, with a visible `\x0d` between
  them; in a text without any line feed, on a line of its own.
- Else the old text is written on a line of its own above the row, unless the same text is still on
  the screen.

A backspace goes back over any character, as in `col -b`. If a sequence erases the text before the
cursor and the line then goes on, nothing is erased. Erasing the whole screen begins a new one below
it. When a full-screen program leaves the alternate screen, the rows that it placed go, except
records with a time stamp and alarms.
"""

import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache, partial
from typing import AnyStr

from chatgot.log_fixer.redraws import (
    has_alarm,
    has_sign,
    is_alike,
    is_bar,
    is_newer_row,
    is_record,
    is_state,
    keeps_alarms,
    words,
)

HELD_ROWS = 200
HELD_CHARACTERS = 1 << 16  # of these rows; with longer lines, fewer rows are kept back
WIDEST_MOVE = 4096  # no move goes farther to the right than this, or than the line's end
JUDGED = 512  # characters of a text that decide whether it is a newer state
NARROW = 80  # columns; beyond these, a new screen begins at the first column
TALLEST = 100  # rows; a terminal's first row is at most so far above its last one
WORD_COLUMNS = 8  # more backspaces than these take back more than a slip of the keys
MEMORY = 200  # lines written last: the same text is not written again as a lost one

_TOKEN = re.compile(
    r"(?P<text>[^\x08\t\n\r\x1b]+)|(?P<back>\x08+)|(?P<returns>\r+)|(?P<feed>\n)|(?P<tab>\t)"
    r"|\x1b\[(?P<private>[<-?]?)(?P<numbers>[0-?]*)[ -/]*(?P<final>[@-~])|\x1b(?P<escape>[^\[])"
)
_MOVE = r"\x1b(?:\[[0-?]*[@-MPXZ`abdef]|\[[su]|\[[0-9;]*r|\[\?(?:47|104[79])[hl]|[78MDEc])"
# A line of text with any of these is drawn
CURSOR = re.compile(rf"\r(?!\n)|\x08|{_MOVE}")
IS_MOVE = re.compile(_MOVE)
_DIGITS_AND_BARS = {ord(digit): "0" for digit in "123456789"}
_DIGITS_AND_BARS |= dict.fromkeys(map(ord, " #=-.>━╸╺█▏▎▍▌▋▊▉"), "-")
DRAWN_AT_ONCE = 1 << 17  # characters; this bounds the memory of a long line's states
FEW_STATES = 4
FEW_LOST = 16  # lost texts of a row; more are not compared with the other rows, for speed


@lru_cache(maxsize=1 << 14)
def _width(character: str) -> int:
    """Return how many columns a character takes."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf", "Cc"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cells(text: str, column: int = 0) -> list[str]:
    """Return one string per column; all but the first of a wide character or a tab are empty."""
    if text.isascii() and text.isprintable():
        return list(text)
    cells: list[str] = []
    for character in text:
        if character == "\t":
            place = column + len(cells)
            cells += ["\t"] + [""] * (7 - place % 8)
            continue
        width = _width(character)
        if width == 0 and cells:
            cells[-1] += character
        elif width == 2:
            cells += [character, ""]
        else:
            cells.append(character)
    return cells


class _Row:
    """A row: its cells, and what it showed before it was rewritten."""

    __slots__ = (
        "came",
        "cells",
        "end",
        "erases_late",
        "is_by_return",
        "is_erased",
        "is_guess",
        "is_redrawn",
        "joined",
        "old",
        "old_was_shown",
        "returns",
        "saved",
        "stands_for",
        "touched",
        "was_seen",
    )

    def __init__(self, cells: list[str], touched: int, end: str = "") -> None:
        self.cells = cells
        self.end = end
        self.touched = touched  # the number of line feeds before it was last written
        self.is_guess = False
        self.is_redrawn = False  # something was overwritten or erased
        self.is_by_return = False  # by a carriage return
        # A rewrite that goes on: the text before it
        self.old: str | None = None
        self.old_was_shown = False  # it was on the screen at a line feed
        self.is_erased = False
        self.stands_for: list[str] = []  # earlier states that were on the screen at a line feed
        self.was_seen = False  # some of its text was on the screen at a line feed
        self.came: str | None = None  # how the cursor came back
        self.erases_late = False  # the text before the cursor was erased, and the line may go on
        self.returns = 0  # carriage returns that had no effect yet
        self.joined: list[str] = []  # texts before visible carriage returns
        self.saved: list[str] = []  # lost texts, each a line of its own above this row

    def text(self) -> str:
        text = "".join(self.cells)
        return text.rstrip(" ") if self.is_redrawn else text


class Screen:
    """Draws lines that move the cursor, and keeps the last rows of all others back.

    finish: cleans the text of a row; its second argument tells whether the encoding was guessed.
    count_lines: is told the number of finished lines that are drawn once more, below 0.
    newline: replaces each line end; None keeps them.
    """

    def __init__(
        self,
        finish: Callable[[str, bool], str],
        count_lines: Callable[[int], None],
        counts: Counter[str],
        newline: str | None,
    ) -> None:
        self._finish = finish
        self._count_lines = count_lines
        self._counts = counts
        self._newline = newline
        self._ready: list[str] = []
        # The last complete lines above the rows that are being drawn; whether their encoding
        # was guessed, and whether they are lost texts above the next line
        self._tail: deque[tuple[str, bool, bool]] = deque()
        self._passed_rows = 0  # since the tail was shortened
        self._passed_characters = 0
        self._recent: deque[str] = deque(maxlen=MEMORY)
        self._rows: list[_Row] = []
        self._row = 0
        self._column = 0
        self._top: int | None = None  # the first row of a screen that was begun here
        self._saved: tuple[int, int] | None = None
        self._line_feeds = 0
        self._has_no_line_feeds = True
        # How the cursor came to its place: by a bare "return", along its row, or to another "row"
        self._came: str | None = None
        self._fresh: list[str] | None = None  # what was written since a bare carriage return
        self._after_return = False
        self._alternate: int | None = None  # the first row of the alternate screen
        self._before_alternate = (0, 0)
        self._is_program = False  # the cursor was sent to a row of the alternate screen
        self._status: _Row | None = None  # the row below the scroll region
        self._region_end = 0
        self._in_status = False
        self._is_guess = False
        self._last = ""  # the character that was written last on this row
        self._drawn = 0  # characters since the size of the rows was measured

    # Text in, lines out

    def is_at_rest(self) -> bool:
        """Return whether the next line begins on a new row below all others."""
        is_below = self._row == len(self._rows) and self._column == 0
        return is_below and not self._in_status and not self._is_program

    def pass_by(self, text: str, is_guess: bool) -> None:
        """Take finished lines that do not move the cursor, while the screen is at rest."""
        self._settle_rows()
        self._line_feeds += 1 if "\n" in text else 0
        self._shift_places(-text.count("\n"))
        self._put_on_tail(text, is_guess)
        if self._passed_rows > HELD_ROWS or self._passed_characters > HELD_CHARACTERS:
            self._shorten_tail()

    def pass_bytes(self, block: bytes) -> bytes:
        """Take complete clean lines while the screen is at rest; return what is final."""
        cut = _last_rows(block, b"\n")
        self._settle_rows()
        self._line_feeds += 1
        final = self._ready
        last = block[cut:].decode()
        if cut:
            self._shift_places(-block.count(b"\n"))
            final += [lines for lines, _, _ in self._tail]
            self._tail.clear()
            self._tail.append((last, False, False))
            self._ready = []
            return "".join(final).encode() + block[:cut]
        self.pass_by(last, False)
        return self.take().encode()

    def take(self) -> str:
        """Return the text that no later input can change."""
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def end(self) -> str:
        """Return the rest: all rows as they are now."""
        if self._alternate is not None:
            self._settle(self._current(), True)
        self._drop_status()
        self._drop_blank_rows()
        rows = self._rows
        has_last_return = bool(rows and rows[-1].returns and rows[-1].joined)
        if has_last_return and not self._line_feeds:
            rows[-1].end = "\n"
        self._flush_all()
        return self.take()

    def width(self) -> int:
        """Return the number of characters that the current row holds."""
        if self._row >= len(self._rows):
            return 0
        row = self._rows[self._row]
        return len(row.cells) + sum(map(len, row.joined)) + sum(map(len, row.saved))

    def write_lines_ended_by_returns(self) -> None:
        """Write the lines of a text that has no line feeds so far; keep the last one back."""
        if self._line_feeds or self._row >= len(self._rows):
            return
        row = self._rows[self._row]
        lines = "".join(line + "\n" for line in row.joined)
        row.joined.clear()
        if lines:
            self._flush_tail()
            self._ready.append(self._finish(lines, row.is_guess))

    def give_up(self) -> tuple[str, int]:
        """Leave the current row, which is too long: return its text, and the returns after it."""
        self._drop_status()
        row = self._current()
        self._settle(row, True)
        returns = row.returns
        row.returns = 0
        del self._rows[self._row + 1 :]
        self._flush_all()
        return self.take(), returns

    def draw(self, text: str, is_guess: bool) -> None:
        """Draw text: characters, line feeds, and what moves the cursor or erases."""
        self._is_guess = is_guess
        self._has_no_line_feeds = not self._line_feeds and "\n" not in text
        start = 0
        while len(text) - start > DRAWN_AT_ONCE:
            end = text.rfind("\r", start, start + DRAWN_AT_ONCE) + 1
            if not end:
                break
            self._draw(text[start:end])
            start = end
        self._draw(text[start:])

    def _draw(self, text: str) -> None:
        if text.count("\r") >= FEW_STATES:
            text = self._without_like_states(text)
        for token in _TOKEN.finditer(text):
            kind = token.lastgroup
            if kind == "text":
                self._write(token[0])
            elif kind == "returns":
                self._return(len(token[0]))
            elif kind == "feed":
                self._feed()
            elif kind == "back":
                self._back(len(token[0]))
            elif kind == "tab":
                self._tab()
            elif kind == "final":
                if token[0] != "\x1b[m":
                    self._control(token["private"], token["numbers"], token["final"])
                self._after_return = False
            elif kind == "escape":
                self._escape(token["escape"])
                self._after_return = False
        self._drawn += len(text)
        if len(self._rows) > 2 * HELD_ROWS or self._drawn > HELD_CHARACTERS:
            self._drawn = 0
            self._limit()

    def _without_like_states(self, text: str) -> str:
        """Leave out states of a bar of which the next one differs only in digits and bars."""
        states = text.split("\r")
        shapes = text.translate(_DIGITS_AND_BARS).split("\r")
        may_go: dict[str, bool] = {}
        kept = []
        for number, state in enumerate(states[:-1]):
            shape = shapes[number]
            if shape == shapes[number + 1] and shape:
                if shape not in may_go:
                    may_go[shape] = has_sign(state[:JUDGED]) and not IS_MOVE.search(shape)
                if may_go[shape] and "\n" not in shape:
                    continue
            kept.append(state)
        if len(kept) + 1 < len(states):
            self._counts["progress_bars"] += 1
        kept.append(states[-1])
        return "\r".join(kept)

    # Writing

    def _current(self) -> _Row:
        if self._in_status and self._status is not None:
            return self._status
        while len(self._rows) <= self._row:
            self._rows.append(_Row([], self._line_feeds))
        return self._rows[self._row]

    def _write(self, text: str) -> None:
        row = self._current()
        self._after_return = False
        if row.erases_late and self._came is not None:
            self._erase(row, 0, len(row.cells))
        row.erases_late = False
        if row.returns:
            self._counts["carriage_returns"] += row.returns - (1 if row.cells else 0)
            row.returns = 0
        row.is_guess = row.is_guess or self._is_guess
        cells = row.cells
        column = self._column
        if 0 < column <= len(cells) and text[0] != "\t" and _width(text[0]) == 0:
            text = self._attach(cells, column, text)
        if 0 < column < len(cells) and cells[column - 1] == text[:1] != " " and not cells[column]:
            column -= 1  # typed twice over one backspace, though it takes two columns
        new = _cells(text, column)
        if column < len(cells):
            self._begin_rewrite(row)
            end = column + len(new)
            _open(cells, column)
            _open(cells, end)
            cells[column:end] = new
        else:
            if cells and row.touched < self._line_feeds:
                row.was_seen = True
                if len(row.stands_for) < FEW_STATES:
                    row.stands_for.append(row.text()[:JUDGED].rstrip())
            cells += [" "] * (column - len(cells))
            cells += new
        row.touched = self._line_feeds
        self._column = column + len(new)
        self._came = None
        if text and _width(text[-1]):
            self._last = text[-1]
        if self._fresh is not None:
            self._fresh.append(text)

    def _attach(self, cells: list[str], column: int, text: str) -> str:
        """Put the combining characters at the beginning on the cell before the cursor."""
        last = column - 1
        while cells[last] == "" and last:
            last -= 1
        length = 1
        while length < len(text) and text[length] != "\t" and _width(text[length]) == 0:
            length += 1
        cells[last] += text[:length]
        return text[length:]

    def _begin_rewrite(self, row: _Row) -> None:
        was_shown = row.was_seen or row.touched < self._line_feeds
        if row.old is not None or (self._came is None and not was_shown):
            row.is_redrawn = True
            return
        row.old = row.text()
        row.old_was_shown = was_shown
        row.is_erased = False
        row.came = self._came
        row.is_redrawn = True
        row.was_seen = False

    def _settle(self, row: _Row, is_last: bool = False) -> None:
        """Judge a rewrite that is over: was it a newer state, or is the old text kept as well?"""
        old = row.old
        if old is None:
            return
        new = row.text()
        if row.is_erased and not new.strip() and not is_last:
            return  # what comes next decides
        row.old = None
        if not old.strip():
            return
        is_return = row.came == "return" and not row.old_was_shown
        if row.old_was_shown:
            self._judge_earlier(row, new[:JUDGED])
        if self._may_go(row, old[:JUDGED], new[:JUDGED]):
            row.is_by_return = row.is_by_return or is_return
            row.was_seen = row.old_was_shown  # the newer state stands for it from now on
            if row.old_was_shown and len(row.stands_for) < FEW_STATES:
                row.stands_for.append(old[:JUDGED].rstrip())
            if is_return and self._is_whole_text(row, old[:JUDGED], new[:JUDGED]):
                row.cells = _cells("".join(self._fresh or []))
            return
        if is_return and self._fresh is not None and not row.is_erased:
            row.cells = _cells("".join(self._fresh))
            row.joined.append(old)
            self._counts["carriage_returns"] += 1
            row.is_redrawn = False
        else:
            row.saved.append(old)

    def _judge_earlier(self, row: _Row, new: str) -> None:
        """Keep the first states that the row still stood for, if the new text is none of them."""
        stays = []
        for text in row.stands_for:
            if is_newer_row(text, new) if new.strip() else is_state(text):
                stays.append(text)
            else:
                row.saved.append(text)
        row.stands_for = stays

    def _is_whole_text(self, row: _Row, old: str, new: str) -> bool:
        """Return whether a text after a bare return is no bar, and what it replaces is one."""
        if self._fresh is None or row.is_erased or not is_bar(old):
            return False
        fresh = "".join(self._fresh)
        return (bool(words(fresh)) and not has_sign(fresh)) or not is_alike(old, new)

    def _may_go(self, row: _Row, old: str, new: str) -> bool:
        if not new.strip():
            if not row.is_erased or row.old_was_shown:
                return is_state(old)
            return not has_alarm(old) and not is_record(old)
        if row.old_was_shown:
            return is_newer_row(old, new)
        if row.is_erased or row.came == "row":
            return is_alike(old, new) or (keeps_alarms(old, new) and not is_record(old))
        if row.came != "return":
            return is_newer_row(old, new)
        fresh = "".join(self._fresh) if self._fresh is not None else new
        if not fresh.strip():
            return is_state(old)
        return is_bar(old) or is_alike(old, new, needs_sign=self._has_no_line_feeds)

    def _feed(self) -> None:
        if self._in_status:
            self._in_status = False
            self._row = len(self._rows)
            self._column = 0
            return
        row = self._current()
        self._settle(row)
        row.erases_late = False
        if self._after_return:
            row.end = "\r\n"
            row.returns -= 1
        elif not row.end:
            row.end = "\n"
        self._counts["carriage_returns"] += row.returns
        row.returns = 0
        self._last = ""
        self._line_feeds += 1
        self._row += 1
        self._column = 0
        self._came = "row"
        self._fresh = None
        self._after_return = False
        if len(self._rows) > 2 * HELD_ROWS:
            self._limit()

    # Moving

    def _return(self, count: int) -> None:
        row = self._current()
        self._settle(row)
        row.returns += count
        self._column = 0
        if self._came is None:
            self._came = "return"
        self._fresh = []
        self._after_return = True

    def _back(self, count: int) -> None:
        self._counts["backspaces"] += count
        row = self._current()
        if count > WORD_COLUMNS:
            self._leave(row)
            self._came = self._came or "along"
        self._column = max(0, self._column - count)
        self._fresh = None
        self._after_return = False

    def _tab(self) -> None:
        row = self._current()
        self._after_return = False
        if self._column >= len(row.cells):
            self._write("\t")
            return
        self._column += 8 - self._column % 8
        if self._fresh is not None:
            self._fresh.append("\t")

    def _leave(self, row: _Row) -> None:
        """End the text that was being written on a row: the cursor goes elsewhere."""
        if row.erases_late:
            row.erases_late = False
            self._came = self._came or "along"
            self._erase(row, 0, len(row.cells))
        self._settle(row)

    def _leave_row(self) -> None:
        if self._in_status or self._row < len(self._rows):
            self._leave(self._current())

    def _go_to_column(self, column: int) -> None:
        farthest = max(self._column, WIDEST_MOVE)
        column = max(0, min(column, farthest))
        if column < self._column:
            self._leave_row()
            if self._came != "row":
                self._came = "along"
        self._column = column
        self._fresh = None

    def _go_to_row(self, target: int) -> None:
        """Go to a row, counted from the first one held; it may lie in the lines passed by."""
        self._leave_row()
        self._in_status = False
        lowest = self._alternate if self._alternate is not None else None
        if lowest is None:
            while target < 0 and self._reach():
                target += 1
        below = 1 if self._rows and self._rows[-1].end else 0
        bottom = max(len(self._rows) - 1 + below, HELD_ROWS - 1)
        self._row = max(lowest or 0, min(target, bottom))
        self._came = "row"
        self._fresh = None
        self._is_program = self._alternate is not None

    def _reach(self) -> bool:
        """Take the last line that passed by back onto the screen."""
        if not self._tail or len(self._rows) >= HELD_ROWS:
            return False
        lines, is_guess, _ = self._tail.pop()
        start = lines.rfind("\n", 0, len(lines) - 1) + 1
        if start:
            self._tail.append((lines[:start], is_guess, False))
        line = lines[start:]
        body = line.rstrip("\r\n")
        if body in self._recent:
            self._recent.remove(body)
        row = _Row(_cells(body), self._line_feeds - 1, line[len(body) :])
        row.is_guess = is_guess
        while not start and self._tail and self._tail[-1][2]:
            above = self._tail.pop()[0].split("\n")[:-1]
            lost = [text.removesuffix("\r") for text in above]
            row.saved[:0] = lost
            self._count_lines(-len(lost))
            self._recent = deque((text for text in self._recent if text not in lost), MEMORY)
        self._rows.insert(0, row)
        self._count_lines(-1)
        self._shift(1)
        return True

    def _shift(self, rows: int) -> None:
        """Count rows anew after `rows` came (or, below 0, went) at the top."""
        self._row = max(0, self._row + rows)
        self._shift_places(rows)

    def _shift_places(self, rows: int) -> None:
        """Count the rows of noted places anew; below 0 they are lines that passed by."""
        if self._top is not None:
            self._top += rows
        if self._saved is not None:
            self._saved = (self._saved[0] + rows, self._saved[1])
        self._before_alternate = (self._before_alternate[0] + rows, self._before_alternate[1])
        if self._alternate is not None:
            self._alternate = max(0, self._alternate + rows)

    def _place(self, line: int, column: int | None) -> None:
        """Go to a row of the screen, counted from 1 at its top."""
        if self._region_end and line > self._region_end and self._alternate is None:
            self._leave_row()
            if self._status is None:
                self._status = _Row([], self._line_feeds)
            self._in_status = True
            self._came = "row"
            self._fresh = None
        else:
            self._go_to_row(self._find_top() + line - 1)
        if column is not None:
            self._go_to_column(max(1, column) - 1)
            self._came = "row"

    def _find_top(self) -> int:
        """Return the first row of the screen."""
        first = -TALLEST if self._top is None else self._top
        while first < 0 and len(self._rows) < TALLEST and self._reach():
            first += 1
        return max(0, first, len(self._rows) - TALLEST)

    def _control(self, private: str, numbers: str, final: str) -> None:
        """Obey a control sequence. Source: ECMA-48, 8.3; xterm's control sequences."""
        values = [
            int(part[-9:] or 0)
            for part in numbers.split(";")[:FEW_STATES]
            if part.isdigit() or not part
        ]
        if private:
            if private == "?" and final in "hl" and {47, 1047, 1049} & set(values):
                self._switch(final == "h")
            elif private != "?" or final not in "JK":
                return
        value = values[0] if values else 0
        steps = max(1, value)
        if final in "ABEFe":
            self._go_to_row(self._row + (-steps if final in "AF" else steps))
            if final in "EF":
                self._go_to_column(0)
        elif final in "CDGIZ`a":
            self._go_to_column(self._column_after(final, steps))
        elif final in "Hfd":
            column = values[1] if len(values) > 1 else 1
            self._place(steps, None if final == "d" else column)
        elif final == "s":
            self._saved = (self._row, self._column)
        elif final == "u":
            self._restore()
        elif final == "r":
            self._set_region(values)
        else:
            self._edit(final, value, steps)

    def _column_after(self, final: str, steps: int) -> int:
        """Return where a move along the row ends."""
        column = self._column
        if final in "G`":
            return steps - 1
        if final == "I":
            return 8 * (column // 8 + steps)
        if final == "Z":
            return 8 * ((column + 7) // 8 - steps)
        return column - steps if final == "D" else column + steps

    def _escape(self, final: str) -> None:
        if final == "7":
            self._saved = (self._row, self._column)
        elif final == "8":
            self._restore()
        elif final == "M":
            if self._row == (self._alternate or 0) and not self._reach():
                self._insert_rows(1)  # the screen scrolls down
            else:
                self._go_to_row(self._row - 1)
        elif final == "D":
            self._go_to_row(self._row + 1)
        elif final == "E":
            self._feed()
        elif final == "c":
            self._new_screen()
            self._column = 0

    def _restore(self) -> None:
        if self._saved is None:
            self._place(1, 1)
            return
        row, column = self._saved
        self._go_to_row(row)
        self._column = column

    def _set_region(self, values: list[int]) -> None:
        """Note where the rows that scroll end; below them, a program keeps a status line."""
        self._region_end = values[1] if len(values) > 1 and self._alternate is None else 0
        if not self._region_end:
            self._drop_status()

    # Erasing

    def _edit(self, final: str, value: int, steps: int) -> None:
        row = self._current()
        length = len(row.cells)
        column = self._column
        if final == "K":
            self._erase_in_line(row, value)
        elif final == "J":
            self._erase_in_screen(row, value)
        elif final == "X":
            self._erase(row, column, min(column + steps, length))
        elif final == "P" and column < length:
            self._begin_rewrite(row)
            _blank_tabs(row.cells)
            _open(row.cells, column)
            end = min(column + steps, length)
            _open(row.cells, end)
            del row.cells[column:end]
        elif final == "@" and column < length <= WIDEST_MOVE:
            self._begin_rewrite(row)
            _blank_tabs(row.cells)
            _open(row.cells, column)
            row.cells[column:column] = [" "] * min(steps, WIDEST_MOVE)
        elif final == "b" and self._last and column < WIDEST_MOVE:
            self._write(self._last * min(steps, WIDEST_MOVE - column))
        elif final == "L" and not self._in_status:
            self._insert_rows(steps)
        elif final == "M" and not self._in_status:
            self._delete_rows(steps)

    def _insert_rows(self, count: int) -> None:
        self._leave_row()
        count = min(count, HELD_ROWS - len(self._rows))
        if self._row < len(self._rows):
            new = [_Row([], self._line_feeds, "\n") for _ in range(count)]
            self._rows[self._row : self._row] = new
        self._came = "row"
        self._fresh = None

    def _delete_rows(self, count: int) -> None:
        gone = self._rows[self._row : self._row + count]
        del self._rows[self._row : self._row + count]
        lost = []
        for row in gone:
            self._settle(row, True)
            lost += row.saved + row.joined
            if not is_state(row.text()[:JUDGED]):
                lost.append(row.text())
        below = self._current()
        below.saved[:0] = [text for text in lost if text.strip()]
        below.is_redrawn = True

    def _erase_in_line(self, row: _Row, value: int) -> None:
        length = len(row.cells)
        if value == 0:
            if self._column < length:
                self._erase(row, self._column, length)
            elif row.old is not None:
                row.is_erased = True
        elif self._column >= length and self._came is None:
            row.erases_late = bool(row.cells)
        elif value == 1:
            self._erase(row, 0, min(self._column + 1, length))
        else:
            self._erase(row, 0, length)

    def _erase(self, row: _Row, start: int, end: int) -> None:
        """Erase columns; what was there is judged with what is written next."""
        if start >= end:
            return
        if row.old is None:
            came = self._came
            self._came = came or "along"
            self._begin_rewrite(row)
            self._came = came
        row.is_erased = True
        row.is_redrawn = True
        _open(row.cells, start)
        _open(row.cells, end)
        if end >= len(row.cells):
            del row.cells[start:]
        else:
            row.cells[start:end] = [" "] * (end - start)
        row.touched = self._line_feeds

    def _erase_in_screen(self, row: _Row, value: int) -> None:
        if value >= 2:
            self._new_screen()
            return
        if self._in_status:
            self._erase_in_line(row, value)
            return
        if value == 1:
            others = self._rows[self._find_top() : self._row]
        else:
            others = self._rows[self._row + 1 :]
        self._erase_in_line(row, value)
        for other in others:
            self._settle(other)
            self._erase(other, 0, len(other.cells))

    def _new_screen(self) -> None:
        """Begin a new screen below this one."""
        self._leave_row()
        self._in_status = False
        first = self._top
        if first is None or first < 0 or any(row.cells for row in self._rows[first:]):
            first = len(self._rows)
            self._top = first
        self._row = min(first, len(self._rows))
        if self._column >= NARROW:
            self._column = 0
        self._came = "row"
        self._fresh = None
        if len(self._rows) > 2 * HELD_ROWS:
            self._limit()

    def _switch(self, is_alternate: bool) -> None:
        """Enter or leave the alternate screen."""
        if is_alternate and self._alternate is None:
            before = (self._row, self._column)
            self._leave_row()
            self._before_alternate = before
            self._row = len(self._rows)
            self._top = self._row
            self._column = 0
            self._alternate = self._row
        elif not is_alternate and self._alternate is not None:
            self._leave_row()
            first = self._alternate
            rows = self._rows[first:]
            del self._rows[first:]
            kept = []
            for row in rows:
                self._settle(row, True)
                for text in [*row.saved, *row.joined, row.text()]:
                    stays = is_record(text) or has_alarm(text)
                    if text.strip() and (stays or not self._is_program):
                        kept.append(text)
            self._alternate = None
            self._is_program = False
            self._top = None
            before_row, before_column = self._before_alternate
            self._row = len(self._rows)
            self._go_to_row(before_row)
            self._column = before_column
            if kept:
                self._current().saved += kept
            self._came = None
            self._fresh = None

    # Rows out

    def _drop_status(self) -> None:
        """Forget the status line; what is no progress is kept."""
        status = self._status
        if status is None:
            return
        self._in_status = False
        self._status = None
        self._settle(status, True)
        texts = [*status.saved, *status.joined, status.text()]
        kept = [text for text in texts if text.strip() and not is_state(text[:JUDGED])]
        if kept:
            self._current().saved += kept

    def _drop_blank_rows(self) -> None:
        """Drop rows at the end that were erased and that the cursor left."""
        rows = self._rows
        while len(rows) > self._row and rows:
            row = rows[-1]
            self._settle(row, True)
            is_blank = row.is_redrawn and not row.text() and not row.saved and not row.joined
            is_left = len(rows) - 1 > self._row or (self._column == 0 and len(rows) > 1)
            if not (is_blank and is_left):
                break
            rows.pop()

    def _settle_rows(self) -> None:
        """Write the rows of a screen at rest: lines follow that do not move the cursor."""
        if self._rows and self._row >= len(self._rows):
            if self._alternate is not None:
                self._alternate = None
            for row in self._rows:
                self._settle(row, True)
            visible = [row.text() for row in self._rows]
            for row in self._rows:
                above, line = self._line(row, visible, False)
                if above:
                    self._put_on_tail(above, row.is_guess, True)
                self._put_on_tail(line, row.is_guess)
            self._shift(-len(self._rows))
            self._rows.clear()
            self._row = 0

    def _flush_all(self) -> None:
        self._flush_tail()
        self._flush_rows(len(self._rows))

    def _put_on_tail(self, lines: str, is_guess: bool, is_lost: bool = False) -> None:
        self._tail.append((lines, is_guess, is_lost))
        self._passed_rows += lines.count("\n")
        self._passed_characters += len(lines)

    def _flush_tail(self) -> None:
        self._ready += [lines for lines, _, _ in self._tail]
        self._tail.clear()

    def _flush_rows(self, count: int) -> None:
        if not count:
            return
        for row in self._rows[:count]:
            self._settle(row, True)
        visible = [row.text() for row in self._rows]
        for number, row in enumerate(self._rows[:count]):
            is_last = number == len(self._rows) - 1
            self._ready += self._line(row, visible, is_last)
        del self._rows[:count]
        self._shift(-count)

    def _line(self, row: _Row, visible: list[str], is_last: bool) -> tuple[str, str]:
        """Return a row's lost texts and its text, with line ends."""
        lost = []
        for text in row.saved:
            if text in visible or text in lost or text in self._recent:
                continue
            if len(row.saved) <= FEW_LOST and any(map(partial(is_newer_row, text), visible)):
                continue
            lost.append(text)
        self._recent += lost
        if row.is_by_return:
            self._counts["progress_bars"] += 1
        elif row.is_redrawn or row.saved:
            self._counts["redrawn_lines"] += 1
        self._counts["carriage_returns"] += row.returns
        between = r"\x0d" if self._line_feeds else "\n"
        text = between.join([*row.joined, row.text()])
        if row.is_redrawn and text:
            self._recent.append(text)
        end = row.end
        if not end and not is_last:
            end = "\n"
        if self._newline and end:
            self._counts["line_ends"] += end != self._newline
            end = self._newline
        lost_end = end or "\n"
        above = "".join(self._finish(line, row.is_guess) + lost_end for line in lost)
        return above, self._finish(text, row.is_guess) + end

    def _shorten_tail(self) -> None:
        self._passed_rows = 0
        self._passed_characters = 0
        text_after = 0
        rows_after = 0
        kept: deque[tuple[str, bool, bool]] = deque()
        while self._tail:
            entry = self._tail[-1]
            lines = entry[0]
            rows = lines.count("\n")
            if rows_after + rows > HELD_ROWS or text_after + len(lines) > HELD_CHARACTERS:
                break
            self._tail.pop()
            kept.appendleft(entry)
            rows_after += rows
            text_after += len(lines)
        if self._tail:
            lines, is_guess, is_lost = self._tail.pop()
            cut = _last_rows(lines, "\n", HELD_ROWS - rows_after, HELD_CHARACTERS - text_after)
            self._flush_tail()
            self._ready.append(lines[:cut])
            if lines[cut:]:
                kept.appendleft((lines[cut:], is_guess, is_lost))
        self._tail = kept

    def _limit(self) -> None:
        """Write the oldest rows if there are too many, or too many characters."""
        size = sum(
            len(row.cells) + sum(map(len, row.saved)) + sum(map(len, row.joined))
            for row in self._rows
        )
        count = max(0, len(self._rows) - HELD_ROWS)
        while size > 4 * HELD_CHARACTERS and count < min(self._row, len(self._rows)):
            size -= len(self._rows[count].cells)
            count += 1
        count = min(count, self._row)
        if count:
            self._flush_tail()
            self._flush_rows(count)
        if self._rows and self._row < len(self._rows):
            row = self._rows[self._row]
            if sum(map(len, row.saved)) > HELD_CHARACTERS:
                self._flush_tail()
                self._flush_rows(min(self._row, len(self._rows)))
                self._write_saved(self._rows[0])

    def _write_saved(self, row: _Row) -> None:
        """Write the lost texts above the first row, which has too many."""
        for text in dict.fromkeys(row.saved):
            if text not in self._recent:
                self._recent.append(text)
                self._ready.append(self._finish(text, row.is_guess) + "\n")
        row.saved.clear()
        row.is_redrawn = True


def _open(cells: list[str], column: int) -> None:
    """Turn the wide character or tab that a column would cut in two into blanks."""
    if column >= len(cells) or cells[column] != "":
        return
    start = column
    while start and cells[start] == "":
        start -= 1
    end = column
    while end < len(cells) and cells[end] == "":
        end += 1
    cells[start:end] = [" "] * (end - start)


def _blank_tabs(cells: list[str]) -> None:
    """Turn tabs into blanks, because the cells move and tabs would not."""
    for start, cell in enumerate(cells):
        if cell == "\t":
            end = start + 1
            while end < len(cells) and cells[end] == "":
                end += 1
            cells[start:end] = [" "] * (end - start)


def _last_rows(
    lines: AnyStr, line_feed: AnyStr, rows: int = HELD_ROWS, characters: int = HELD_CHARACTERS
) -> int:
    """Return where the last rows of complete lines begin."""
    first = max(0, len(lines) - characters)
    cut = len(lines)
    for _ in range(rows):
        if cut <= first:
            break
        before = lines.rfind(line_feed, first, cut - 1)
        if before < 0:
            return 0 if first == 0 else cut
        cut = before + 1
    return cut
