"""From tokens to text that may be shown: where a completion ends, and what is held back."""

from bisect import bisect_left
from typing import NamedTuple

from chatgot.data.prompts import SPEAKER
from chatgot.sampling.controls import Controls


class Stop(NamedTuple):
    """A stop in a text. Of several, the text ends before the least, by `start`, then by `end`."""

    start: int  # the text ends here
    end: int  # past the stop string, or the line feed of a speaker's line
    name: str


class Shown:
    """Takes a text piece by piece, and says what of it may be shown.

    What is shown does not depend on how the text is cut into pieces, and is never taken back. The
    text ends before the earliest stop: a stop string or, where `controls.stop_before_speaker` is a
    set, a speaker's line with its line feed and the line feeds before it. Whatever can still become
    a stop is held back.

    The text must begin at the beginning of a line where speakers' lines matter.

    ended: nothing more will be shown.
    stopped_by: the stop string or the speaker's line; "": none.
    """

    def __init__(self, controls: Controls) -> None:
        self.ended = False
        self.stopped_by = ""
        self._stops = [stop for stop in controls.stop if stop]
        self._known = controls.stop_before_speaker
        self._known_in_order = sorted(self._known or ())
        self._held = ""  # follows what was shown
        self._at_start = True  # nothing was shown

    def feed(self, piece: str) -> str:
        """Take the next characters; return what may be shown now."""
        if self.ended:
            return ""
        text = self._held + piece
        stop = self._find_stop(text)
        pending = self._find_pending(text)
        if stop and stop.start <= pending:
            return self._finish(text, stop)
        shown = text[:pending]
        self._held = text[pending:]
        self._at_start = self._at_start and not shown
        return shown

    def end(self) -> str:
        """Return the rest when no further text comes: what was held back is no stop."""
        if self.ended:
            return ""
        # A stop may have waited for an earlier one that did not come
        return self._finish(self._held, self._find_stop(self._held))

    def _finish(self, text: str, stop: Stop | None) -> str:
        self.ended = True
        self._held = ""
        if stop is None:
            return text
        self.stopped_by = stop.name
        return text[: stop.start]

    def _find_stop(self, text: str) -> Stop | None:
        stops = []
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0:
                stops.append(Stop(start, start + len(stop), stop))
        if self._known is not None:
            line_start = 0
            while (line_end := text.find("\n", line_start)) >= 0:
                if self._is_speaker(text, line_start, line_end):
                    start = len(text[:line_start].rstrip("\n"))
                    stops.append(Stop(start, line_end + 1, text[line_start:line_end]))
                    break
                line_start = line_end + 1
        return min(stops, default=None)

    def _find_pending(self, text: str) -> int:
        """Return where in the text the earliest stop begins that may still come; else its end."""
        pending = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
            while 0 <= start < pending:
                if stop.startswith(text[start:]):
                    pending = start
                start = text.find(stop[0], start + 1)
        if self._known is not None:
            line_start = text.rfind("\n") + 1
            if self._may_become_speaker(text, line_start):
                pending = min(pending, len(text[:line_start].rstrip("\n")))
        return pending

    def _is_speaker(self, text: str, start: int, end: int) -> bool:
        """Return whether a whole line is a speaker's."""
        line = text[start:end]
        if not line or not self._begins_line(start):
            return False
        assert self._known is not None
        if line in self._known:
            return True
        return self._follows_blank_line(text, start) and _looks_like_speaker(line)

    def _may_become_speaker(self, text: str, start: int) -> bool:
        """Return whether the line that begins at `start`, and may go on, can become a speaker's."""
        if not self._begins_line(start):
            return False
        line = text[start:]
        if not line:
            return True
        place = bisect_left(self._known_in_order, line)
        if place < len(self._known_in_order) and self._known_in_order[place].startswith(line):
            return True
        if not self._follows_blank_line(text, start):
            return False
        return _looks_like_speaker(line.removesuffix(":") + ":")

    def _begins_line(self, start: int) -> bool:
        """Return whether a line that may be a speaker's can begin at this place of the text.

        If it begins a line, but not with a line feed, and something was shown before it, then the
        line feed before it was shown: the line was no speaker's.
        """
        return start > 0 or self._at_start

    def _follows_blank_line(self, text: str, start: int) -> bool:
        before = text[:start]
        return before.endswith("\n\n") or (before == "\n" and self._at_start)


def _looks_like_speaker(line: str) -> bool:
    """Return whether a line looks like a speaker's; some text would follow it."""
    return SPEAKER.match(f"{line}\n.") is not None
