"""Lines that move the cursor come out as pyte, a terminal emulator, shows them."""

import io
import unicodedata

import pyte
from hypothesis import example, given, settings
from hypothesis import strategies as st

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
    return [row.rstrip() for row in screen.display if row.strip()]


def is_within(part: list[str], whole: list[str]) -> bool:
    """Return whether all of `part` is in `whole`, in this order."""
    rest = iter(whole)
    return all(row in rest for row in part)


TEXTS = ["alpha ", "beta gamma", "x", "one two three ", "Größe ", "e\u0301t\u00e9 ", "done"]
STATES = ["  3% ", " 40%|####   | 4/10", "⠙ load", "⠹ link"]
MOVES = [
    *("\x1b[A", "\x1b[2A", "\x1b[B", "\x1b[3B", "\x1b[C", "\x1b[7C", "\x1b[2D", "\x1b[G"),
    *("\x1b[9G", "\x1b[2E", "\x1b[F", "\x1b[H", "\x1b[2;5H", "\x1b[3d", "\x1bM", "\x1b[4a"),
    *("\x1b7", "\x1b8", "\b", "\b\b", "\b" * 12, "\t", "\r\x1b[K", "\r\x1b[2K"),
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


@settings(max_examples=1000, deadline=None)
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
