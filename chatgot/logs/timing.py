"""Where the time goes: tokens per second, seconds of each part of a run, durations in words."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

PARTS = ("forward_backward", "update", "evaluation", "sampling", "saving")


class Throughput:
    """Tokens per second since the last call of `take`, over the time that was added."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Add tokens and seconds of training; either may be 0."""
        self._tokens += tokens
        self._seconds += seconds

    def take(self) -> float | None:
        """Return the rate and reset; None if no tokens were added."""
        rate = None
        if self._tokens and self._seconds > 0:
            rate = self._tokens / self._seconds
        self._tokens = 0
        self._seconds = 0.0
        return rate


class TimeSplit:
    """Seconds that each part of a run took since the last call of `take`."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the block's time to `part`, even after an error."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - start

    def take(self, data_s: float) -> dict[str, float]:
        """Return the seconds of each part and reset.

        data_s: seconds of forward_backward spent on making batches; they become the part `data`.
        """
        seconds = self._seconds
        self._seconds = dict.fromkeys(PARTS, 0.0)
        without_data = max(0.0, seconds["forward_backward"] - data_s)
        return {"data": data_s, **seconds, "forward_backward": without_data}


def human_time(seconds: float) -> str:
    """Return a duration in its two largest units: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3600:
        return "{} min {:02d} s".format(*divmod(round(seconds), 60))
    if round(seconds / 60) < 24 * 60:
        return "{} h {:02d} min".format(*divmod(round(seconds / 60), 60))
    return "{} d {:02d} h".format(*divmod(round(seconds / 3600), 24))
