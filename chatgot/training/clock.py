"""How long a run has trained, and its tokens per second."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatgot.logs.timing import Throughput
from chatgot.run.assembly import Run


class StepClock:
    """Measures a run's training time, over all resumes, and its tokens per second.

    The training time is wall time in the loop, including evaluations, samples, saves and trials.
    The tokens per second are over the steps and their logging only.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._started_s = time.monotonic() - run.state.progress.time_s
        self._throughput = Throughput()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the block as one optimizer step, unless it raises."""
        before = time.perf_counter()
        yield
        tokens = self._run.config.training.tokens_per_step(self._run.config.model)
        self._run.state.progress.time_s = time.monotonic() - self._started_s
        self._throughput.add(tokens, time.perf_counter() - before)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Add the block's time to the steps' time: tokens per second include logging."""
        before = time.perf_counter()
        yield
        self._throughput.add(0, time.perf_counter() - before)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leave the block's time out of the training time and of the tokens per second."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._started_s += time.monotonic() - before

    def tokens_per_s(self) -> float | None:
        """Return the tokens per second since the last call; None if there was no step."""
        return self._throughput.take()
