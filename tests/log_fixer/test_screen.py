"""Lines that move the cursor come out as pyte, a terminal emulator, shows them."""

import io
import time
import tracemalloc
import unicodedata

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatgot.log_fixer.cleaning import CONTROL, STRAY_RETURN
from chatgot.log_fixer.files import FixReport, Options, fix_stream
from chatgot.log_fixer.redraws import is_newer_row

COLUMNS = 300
ROWS = 90


def fix_and_report(text: str, **options) -> tuple[str, FixReport]:
    """Return the mended text of a log, and the report on it."""
    out = io.BytesIO()
    report = FixReport("log")
    fix_stream(io.BytesIO(text.encode()), out, report, Options(**options))
    return out.getvalue().decode(), report


def fix(text: str, **options) -> str:
    return fix_and_report(text, **options)[0]


def shown_rows(screen: pyte.Screen) -> list[str]:
    """Return the rows that a terminal shows, without blank ones."""
    rows = []
    for number in sorted(screen.buffer):
        cells = screen.buffer[number]
        rows.append("".join(cells[column].data for column in range(max(cells, default=-1) + 1)))
    return [row.rstrip() for row in rows if row.strip()]


def is_within(part: list[str], whole: list[str]) -> bool:
    """Return whether all of `part` is in `whole`, in this order."""
    rest = iter(whole)
    return all(row in rest for row in part)


TEXTS = ["alpha ", "beta gamma", "x", "one two three ", "Größe ", "e\u0301t\u00e9 ", "done"]
STATES = ["  3% ", " 40%|####   | 4/10", "⠙ load", "⠹ link"]
MOVES = [
    *("\x1b[A", "\x1b[2A", "\x1b[B", "\x1b[3B", "\x1b[C", "\x1b[7C", "\x1b[2D", "\x1b[G"),
    *("\x1b[9G", "\x1b[2E", "\x1b[F", "\x1b[H", "\x1b[2;5H", "\x1b[3d", "\x1bM", "\x1b[4a"),
    *("\x1b7\x1b[2Bup\x1b8", "\b", "\b\b", "\b" * 12, "\t", "\r\x1b[K", "\r\x1b[2K"),
]
ERASURES = ["\x1b[K", "\x1b[G\x1b[1K", "\x1b[J", "\x1b[3X", "\x1b[2P", "\x1b[2@", "\x1b[G\x1b[J"]
COLOURS = ["\x1b[31m", "\x1b[0m", "\x1b[?25l"]
drawing = st.lists(
    st.one_of(
        st.sampled_from(TEXTS),
        st.sampled_from(STATES),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from(MOVES),
        st.sampled_from(ERASURES),
        st.sampled_from(COLOURS),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@example(["alpha ", "\n", "\x1b[A", "x"])
@given(drawing)
def test_a_drawing_ends_as_a_terminal_shows_it_and_loses_no_text(tokens):
    """What was on the screen at a line feed is in the output, or a newer state of its row is."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    fixed = fix("".join(tokens))
    text = unicodedata.normalize("NFC", fixed).expandtabs()  # as pyte does
    lines = [line.rstrip() for line in text.split("\n")]
    for token in tokens:
        stream.feed(token.replace("\n", "\r\n"))
        if "\n" in token:
            for row in shown_rows(screen):
                assert row in text or any(is_newer_row(row, line) for line in lines), row
    assert is_within(shown_rows(screen), lines)
    assert fix(fixed) == fixed


HOSTILE = ["\x1b[", "\x1b[2;4r", "\x1b[9;1H", "\x1b[r", "\x1b[?1049h", "\x1b[?1049l", "\x1b[2J"]
HOSTILE += ["\x1b[L", "\x1b[M", "\x1b[2K", "\x1b[1K", "\x1bc", "\r", "\r\r", "\x9b2K", "\x07", "\0"]
HOSTILE += ["日本", "2026-01-01 x", "error ", "\b"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(drawing.map("".join), st.sampled_from(HOSTILE)), max_size=12))
def test_any_mix_of_moves_becomes_visible_text_that_stays(parts):
    content = "".join(parts)
    fixed, report = fix_and_report(content)
    assert not CONTROL.search(fixed)
    assert not STRAY_RETURN.search(fixed)
    assert report.changed == (fixed != content)
    again, report = fix_and_report(fixed)
    assert again == fixed
    assert not report.changed


@pytest.mark.parametrize(
    "unit",
    [
        *("\b", "\x1b[1000000000C", "\x1b[999999B", "\x1b[1000000000Cx", "\x1b[999999Bx", "\x1b[L"),
        *("x\x1b[@", "x\ry\r", "x\x1b[2J", "x\n\x1b[A\x1b[2K", "\x1b[9Ax\n", "x\b", "\x1b[?1049hx"),
    ],
)
def test_time_and_memory_grow_no_faster_than_a_hostile_log(unit):
    content = unit * (60_000 // len(unit))
    tracemalloc.start()
    started = time.process_time()
    try:
        fix(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # tracemalloc slows it down; without it, each takes at most 0.6 s
    assert time.process_time() - started < 5
    assert peak < 20_000_000


def test_the_cursor_goes_up_to_lines_that_were_clean():
    lines = [f"line {number}" for number in range(1000)]
    log = "\n".join(lines) + "\n\x1b[3A\x1b[2Kline 997!\x1b[3B\r"
    assert fix(log).splitlines() == [*lines[:997], "line 997!", *lines[998:]]


def test_wide_characters_take_two_columns_and_combining_ones_none():
    assert fix("日本語\x1b[1;3Hx\n") == "日x 語\n"
    assert fix("e\u0301t\u00e9\x1b[6Gx\n") == "e\u0301t\u00e9  x\n"
    assert fix("a\tb\x1b[5Gx\n") == "a   x   b\n"
    assert fix("日\b日本\b本\n") == "日本\n"
