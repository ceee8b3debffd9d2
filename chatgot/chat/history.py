"""Which lines have been typed before?"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit.history import History

MOST_LINES = 1000  # of earlier conversations
LARGEST_FILE = 4_000_000  # bytes that are read, from the end


def history_file() -> Path | None:
    """Return the file with the lines that were typed; None: this user has no folder."""
    try:
        return user_state_path("chatgot") / "chat_history.jsonl"
    except (OSError, RuntimeError):
        return None


class TypedLines(History):
    """Keeps typed lines in a file that only this user can read.

    Best effort: where it cannot be written, one line says so, and the lines last as long as the
    conversation.
    """

    def __init__(self, path: Path | None, note: Callable[[str], None]) -> None:
        super().__init__()
        self._path = path
        self._note = note

    def load_history_strings(self) -> Iterable[str]:
        """Return the lines of earlier conversations, the newest first."""
        if self._path is None:
            return []
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - LARGEST_FILE))
                rows = file.read().splitlines()[-MOST_LINES:]
        except OSError:
            return []
        lines = []
        for row in reversed(rows):
            with suppress(ValueError):  # a torn row
                line = json.loads(row)
                if isinstance(line, str):
                    lines.append(line)
        return lines

    def store_string(self, string: str) -> None:
        """Add a line to the file."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
                file.write(json.dumps(string).encode() + b"\n")
        except OSError as error:
            self._note(f"typed lines are not kept: {self._path}: {error.strerror or error}")
            self._path = None
