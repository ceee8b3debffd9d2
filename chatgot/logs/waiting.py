"""Long waits: a bar on a terminal, elsewhere one line of the log; short waits show nothing.

A thread of its own draws the bar, so that the work is never held up by a slow console, and the
elapsed time moves while one long call computes. It draws no random number and computes nothing.
Elsewhere, and under `ulimit -v`, no thread is started: each one takes address space.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import NoReturn, TextIO

from chatgot.logs.bars import bars_are_disabled, draw_on_any_terminal, tqdm
from chatgot.logs.colours import is_terminal
from chatgot.logs.logging_setup import escape_controls
from chatgot.logs.timing import human_time

logger = logging.getLogger(__name__)

Advance = Callable[[float], None]  # takes how much more is done

DELAY_S = 0.5  # a shorter wait shows no bar
TICK_S = 0.2  # between two pictures of the bar
LINE_S = 5.0  # a shorter wait has no line in the log
JOIN_S = 5.0  # a console that takes nothing more (Ctrl+S) holds the work up no longer than this

# No numbers of bytes or tokens: the bar of several passes over a file would show a multiple of it.
WITH_TOTAL = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
WITHOUT_TOTAL = "{desc}: {elapsed}"


@contextmanager
def waiting(words: str, total: float | None = None) -> Iterator[Advance]:
    """Show that the block is at work, on stderr or in the log; yield what counts its progress.

    words: what the block does, as in "encoding text.txt".
    total: how much there is to do, in any unit; None: nobody knows.
    Best effort: a console that fails, or a system without room for a thread, shows nothing.
    """
    wait = _Wait(words, total, sys.stderr)
    if not is_terminal(sys.stderr) or bars_are_disabled() or address_space_is_limited():
        yield wait.advance_in_log
        wait.log_the_end()
        return
    thread = Thread(target=wait.show, name=f"waiting: {words}", daemon=True)
    try:
        with suppress(RuntimeError, MemoryError):  # no room for a thread
            thread.start()
        yield wait.advance
    finally:
        wait.ended.set()
        if thread.ident is not None:
            thread.join(JOIN_S)


def address_space_is_limited() -> bool:
    """Return whether `ulimit -v` is set, which only Linux obeys.

    glibc reserves 64 MiB of the address space for a thread, which training may need.
    Source: mallopt(3), M_ARENA_MAX.
    """
    if sys.platform != "linux":
        return False
    import resource  # exists on Unix alone

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


class _Wait:
    """One wait, as its thread sees it."""

    def __init__(self, words: str, total: float | None, stream: TextIO | None) -> None:
        self.words = words
        self.total = total or None
        self.stream = stream
        self.done = 0.0
        self.ended = Event()
        self.start_s = time.perf_counter()
        self.is_logged = False

    def advance(self, amount: float) -> None:
        """Count how much more is done."""
        self.done += amount

    def show(self) -> None:
        """Show the wait until it has ended."""
        if self.ended.wait(DELAY_S):
            return
        bar = self._make_bar()
        try:
            self._move(bar)
            while not self.ended.wait(TICK_S):
                self._move(bar)
            bar.close()
        except (OSError, ValueError):  # the console is closed, or its reader has gone
            bar.disable = True

    def _make_bar(self) -> "tqdm[NoReturn]":
        """Return a bar that is not drawn yet."""
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        words = escape_controls(self.words).encode(encoding, "backslashreplace").decode(encoding)
        bar = tqdm(
            desc=words,
            total=self.total,
            leave=False,
            disable=False,
            file=self.stream,
            dynamic_ncols=True,
            bar_format=WITHOUT_TOTAL if self.total is None else WITH_TOTAL,
            delay=1.0,  # without one tqdm would draw it here, at 0 %
        )
        draw_on_any_terminal(bar)
        bar.start_t -= DELAY_S
        bar.delay = 0
        return bar

    def _move(self, bar: "tqdm[NoReturn]") -> None:
        """Draw the bar as far as the work is; beyond its total tqdm would drop it."""
        if self.total is not None:
            bar.n = min(self.done, self.total)
        # refresh() by itself would keep the lock when the console fails
        with tqdm.get_lock():  # type: ignore[no-untyped-call] # untyped in its stubs
            bar.refresh(nolock=True)

    def advance_in_log(self, amount: float) -> None:
        """Count how much more is done; log one line once the wait has lasted long."""
        self.done += amount
        elapsed_s = time.perf_counter() - self.start_s
        if self.is_logged or elapsed_s < LINE_S:
            return
        self.is_logged = True
        progress = ""
        if self.total is not None and self.done > 0:
            share = min(self.done / self.total, 1.0)
            left = human_time(elapsed_s / share - elapsed_s)
            progress = f": {100 * share:.0f} % done, about {left} left"
        logger.info("still %s after %.0f s%s", self.words, elapsed_s, progress)

    def log_the_end(self) -> None:
        """Log how long a wait took that was long and has no line yet."""
        elapsed_s = time.perf_counter() - self.start_s
        if not self.is_logged and elapsed_s >= LINE_S:
            logger.info("%s took %.0f s", self.words, elapsed_s)
