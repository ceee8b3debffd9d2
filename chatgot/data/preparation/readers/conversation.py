"""What one writes in a messenger as speeches, and where a new conversation begins."""

import re
from datetime import UTC, datetime
from functools import lru_cache

from chatgot.data.preparation.pieces import DocumentStart, Passage, Piece, Speech
from chatgot.data.preparation.reader import ReadingOptions

SECONDS_PER_HOUR = 3600
LATEST = 253_402_300_799  # the last second of the year 9999
NOBODY = "Unknown"
SURROGATE = re.compile("[\ud800-\udfff]")


class Conversation:
    """Turns messages into speeches, with a document after each long pause.

    nobody: the name of whoever has none.
    is_dated: the times are true; else they only serve to find pauses.
    """

    def __init__(
        self, options: ReadingOptions, nobody: str = NOBODY, is_dated: bool = True
    ) -> None:
        self._pause_s = options.pause_hours * SECONDS_PER_HOUR
        self._nobody = nobody
        self.is_dated = is_dated
        self._last: float | None = None
        self._is_new = True
        self._title = ""

    def begin(self, title: str = "") -> None:
        """Let the next message begin a document; `title` goes before its date."""
        self._is_new = True
        self._title = title

    def say(self, name: str, text: str, time: float | None) -> list[Piece]:
        """Return the pieces of a message; none where it has no text.

        time: seconds since 1970; one that no calendar has counts as none.
        """
        words = spoken_text(text)
        if not words:
            return []
        true_time = time if self.is_dated and time is not None and 0 <= time <= LATEST else None
        speech = Speech(speaker_name(name) or self._nobody, words, true_time)
        return self._placed(speech, time)

    def tell(self, text: str, time: float | None) -> list[Piece]:
        """Return the pieces of what is done, not said."""
        words = spoken_text(text)
        return self._placed(Passage(words, self._true(time)), time) if words else []

    def _true(self, time: float | None) -> float | None:
        if time is None or not self.is_dated:
            return None
        return time if 0 <= time <= LATEST else None

    def _placed(self, piece: Piece, time: float | None) -> list[Piece]:
        """Return a piece, after the start of a document where one begins."""
        is_long = False
        if time is not None:
            is_long = self._last is not None and time - self._last > self._pause_s
            self._last = time
        if not (self._is_new or is_long):
            return [piece]
        self._is_new = False
        return [DocumentStart(self._heading(self._true(time))), piece]

    def _heading(self, time: float | None) -> str:
        date = "" if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
        return ", ".join(part for part in (self._title, date) if part)


@lru_cache(maxsize=4096)
def speaker_name(name: str) -> str:
    """Return a name on one line, without colons and characters that cannot be shown."""
    visible = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in name)
    return " ".join(visible.replace(":", " ").split())


def spoken_text(text: str) -> str:
    """Return a message's text without blank lines and blanks at the ends of lines."""
    if not text.isascii():
        text = SURROGATE.sub("\ufffd", text)
    if "\n" not in text and "\r" not in text:
        return text.strip()
    lines = (line.rstrip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return "\n".join(line for line in lines if line).strip()
