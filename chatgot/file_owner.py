"""Whose a file is, for messages about files that cannot be opened."""

import os
from pathlib import Path


def owner_of(path: Path) -> str:
    """Return the name of a file's owner, else the number, else words."""
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"
    except (OSError, NotImplementedError):
        return "somebody else"


def why_not_opened(path: Path, error: OSError) -> str:
    """Return in words why a file cannot be opened, and whose it is where it is another user's."""
    reason = f"cannot be opened: {error.strerror or error}"
    if isinstance(error, PermissionError) and _is_of_another(path):
        return f"{reason} (it belongs to {owner_of(path)})"
    return reason


def _is_of_another(path: Path) -> bool:
    try:
        return os.name != "nt" and path.stat().st_uid != os.geteuid()
    except OSError:
        return False
