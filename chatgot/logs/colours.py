"""Whether the lines on the console have colours."""

import os
from contextlib import suppress
from typing import TextIO

FORCES = ("FORCE_COLOR", "CLICOLOR_FORCE")


def wants_colours(stream: TextIO | None) -> bool:
    """Return whether lines on a stream have colours: on a terminal, unless the user decides.

    NO_COLOR wins, then FORCE_COLOR and CLICOLOR_FORCE, then CLICOLOR and TERM. An empty variable
    does not count; FORCE_COLOR=0 and CLICOLOR_FORCE=0 force nothing.
    Source: no-color.org, force-color.org, bixense.com/clicolors.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if any(os.environ.get(name, "") not in ("", "0") for name in FORCES):
        return True
    if os.environ.get("CLICOLOR") == "0" or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is open and a terminal; a stream may be anything."""
    with suppress(AttributeError, ValueError, OSError):  # ValueError: it is closed
        return stream is not None and stream.isatty()
    return False
