"""tqdm, whatever TQDM_* variables are set: what it cannot use must not end a training.

tqdm reads them once, when it is imported (torch imports it, too: this comes first). Of those that
say how bars look it gets what it can read. The others would overrule what our bars are made with;
`bars_are_disabled` obeys TQDM_DISABLE.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
