"""tqdm, whatever TQDM_* variables are set: what it cannot use must not end a training.

tqdm reads them once, when it is imported (torch imports it, too: this comes first). Of those that
say how bars look it gets what it can read. The others would overrule what our bars are made with;
`bars_are_disabled` obeys TQDM_DISABLE.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

PREFIX = "TQDM_"
# What a user may say about all bars, and what it is read as
LOOKS = {
    "TQDM_ASCII": str,
    "TQDM_COLOUR": str,
    "TQDM_DELAY": float,
    "TQDM_MAXINTERVAL": float,
    "TQDM_MININTERVAL": float,
    "TQDM_NCOLS": int,
    "TQDM_NROWS": int,
    "TQDM_SMOOTHING": float,
}
OFF = ("", "0", "false", "no", "off")


def bars_are_disabled() -> bool:
    """Return whether TQDM_DISABLE asks for no bars: any text but "", 0, false, no and off."""
    return os.environ.get("TQDM_DISABLE", "").strip().lower() not in OFF


def draw_on_any_terminal(bar: Any) -> None:
    """Let a bar be drawn where the terminal says that it has 0 rows and columns.

    A notebook's `!python`, `docker run -t` and CI give no size. tqdm hides its bars there.
    """
    size_of = getattr(bar, "dynamic_ncols", None)  # a bar that is disabled has none
    if callable(size_of):
        bar.dynamic_ncols = partial(_known_size, size_of)
        bar.ncols, bar.nrows = bar.dynamic_ncols(bar.fp)


def _known_size(
    size_of: Callable[[Any], tuple[int | None, int | None]], stream: Any
) -> tuple[int | None, int | None]:
    """Return (columns, rows) of a stream's terminal; None for each that it does not tell."""
    columns, rows = size_of(stream)
    return (
        columns if columns is not None and columns > 0 else None,
        rows if rows is not None and rows > 0 else None,
    )


@contextmanager
def _readable_variables() -> Iterator[None]:
    """Hide the TQDM_* variables that tqdm cannot use, inside the block."""
    hidden = {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX) and not _is_readable(name, value)
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _is_readable(name: str, value: str) -> bool:
    read = LOOKS.get(name)
    try:
        return bool(value) and read is not None and read(value) is not None
    except ValueError:
        return False


with _readable_variables():  # at import, since tqdm reads them at its own
    from tqdm import tqdm as tqdm
