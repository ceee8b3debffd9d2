"""How long a run has trained, and its tokens per second; in a group, rank 0's clock counts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from chatgot.distributed.ranks import Moment
from chatgot.distributed.told_main import ToldMain
from chatgot.logs.timing import Throughput
from chatgot.run.assembly import Run
from chatgot.stopping import StopRequest


class StepClock:
    """Measures a run's training time, over all resumes, and its tokens per second.

    The training time is wall time in the loop, including evaluations, samples, saves and trials.
    The tokens per second are over the steps and their logging only.

    stop: the signals to this process, which a group of ranks obeys together.
    """

    def __init__(self, run: Run, stop: StopRequest | None = None) -> None:
        self._run = run
        self._stop = stop
        self._told_main = ToldMain(run.ranks)
        self._started_s = time.monotonic() - run.state.progress.time_s
        self._throughput = Throughput()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the block as one optimizer step, unless it raises."""
        before = time.perf_counter()
        yield
        tokens = self._run.config.training.tokens_per_step(self._run.config.model)
        self._run.state.progress.time_s = time.monotonic() - self._started_s
        self._agree()
        self._throughput.add(tokens, time.perf_counter() - before)

    def _agree(self) -> None:
        """Take rank 0's time, and a signal to any rank: all decide alike before the next step."""
        ranks = self._run.ranks
        if ranks.is_alone:
            return
        own = None
        if self._stop is not None and self._stop.exit_code is not None:
            own = (self._stop.exit_code, ranks.rank)
        time_s = self._run.state.progress.time_s
        writing = self._run.is_saving()
        agreed = ranks.agree(Moment(own, time_s, self._told_main.has_some, writing))
        self._run.state.progress.time_s = agreed.time_s
        self._run.ranks_are_saving = agreed.writing
        if self._stop is not None and agreed.stop is not None:
            self._stop.agreed(*agreed.stop)
        if agreed.warnings:
            self._told_main.tell()

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
