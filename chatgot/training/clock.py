"""How long a run has trained, and how many tokens per second its steps make."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatgot.logs.timing import Throughput
from chatgot.run.assembly import Run


class StepClock:
    """Measures a run: its training time over all resumes, its tokens per second.

    The training time is the wall time since the loop began: evaluations, samples, saves and trials
    are in it. The rate is of the steps alone.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started_s = time.monotonic() - run.state.progress.time_s
        self._throughput = Throughput()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the block as one optimizer step, unless it ends in an error."""
        before = time.perf_counter()
        yield
        tokens = self._run.config.training.tokens_per_step(self._run.config.model)
        self._run.state.progress.time_s = time.monotonic() - self._started_s
        self._throughput.add(tokens, time.perf_counter() - before)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Count the block's time as the steps' own: a rate includes what logging costs."""
        before = time.perf_counter()
        yield
        self._throughput.add(0, time.perf_counter() - before)

    def tokens_per_s(self) -> float | None:
        """Return the rate of the steps since the last call; None when there was none."""
        return self._throughput.take()
