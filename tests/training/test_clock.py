"""The clock of a run's steps: what its rate counts, and the run's time over all resumes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import parts
import pytest
from thread_ranks import ThreadRanks, by_ranks

from chatgot.run.assembly import Run
from chatgot.stopping import StopRequest
from chatgot.training import clock
from chatgot.training.clock import StepClock

TOKENS = 64  # of a step of parts.run(): 8 sequences of 8 tokens


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """Return a list with the time that both clocks of `time` show to the module under test."""
    seconds = [1000.0]

    def read() -> float:
        return seconds[0]

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=read, perf_counter=read))
    return seconds


def do_step(step_clock: StepClock, now: list[float], seconds: float) -> None:
    with step_clock.step():
        now[0] += seconds


def test_the_rate_covers_the_steps_since_the_last_reading(now):
    step_clock = StepClock(parts.run())
    do_step(step_clock, now, 2.0)
    do_step(step_clock, now, 6.0)
    assert step_clock.tokens_per_s() == 2 * TOKENS / 8
    do_step(step_clock, now, 1.0)
    assert step_clock.tokens_per_s() == TOKENS


def test_there_is_no_rate_without_a_step(now):
    step_clock = StepClock(parts.run())
    assert step_clock.tokens_per_s() is None
    do_step(step_clock, now, 2.0)
    step_clock.tokens_per_s()
    with step_clock.logging():
        now[0] += 1.0
    assert step_clock.tokens_per_s() is None


def test_the_rate_does_not_count_what_happens_between_steps(now):
    """That is: evaluation, samples, saves, trials of a batch size."""
    step_clock = StepClock(parts.run())
    now[0] += 50.0
    do_step(step_clock, now, 2.0)
    now[0] += 100.0
    do_step(step_clock, now, 2.0)
    now[0] += 100.0
    assert step_clock.tokens_per_s() == 2 * TOKENS / 4


def test_the_rate_counts_logging(now):
    step_clock = StepClock(parts.run())
    do_step(step_clock, now, 2.0)
    with step_clock.logging():
        now[0] += 6.0
    assert step_clock.tokens_per_s() == TOKENS / 8


def test_logging_after_the_reading_counts_for_the_next_rate(now):
    step_clock = StepClock(parts.run())
    do_step(step_clock, now, 2.0)
    with step_clock.logging():
        assert step_clock.tokens_per_s() == TOKENS / 2
        now[0] += 6.0
    do_step(step_clock, now, 2.0)
    assert step_clock.tokens_per_s() == TOKENS / 8


def test_a_step_that_ends_in_an_error_is_not_counted(now):
    run = parts.run()
    step_clock = StepClock(run)

    def fail() -> None:
        with step_clock.step():
            now[0] += 5.0
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert run.state.progress.time_s == 0
    assert step_clock.tokens_per_s() is None


def test_a_runs_time_goes_on_over_resumes(now):
    """The time between two processes is not training time."""
    run = parts.run()
    step_clock = StepClock(run)
    do_step(step_clock, now, 3.0)
    assert run.state.progress.time_s == 3
    now[0] += 10_000.0
    resumed = parts.run()
    resumed.state.progress.time_s = run.state.progress.time_s
    step_clock = StepClock(resumed)
    do_step(step_clock, now, 4.0)
    assert resumed.state.progress.time_s == 7


def test_a_runs_time_is_all_the_time_in_the_training_loop(now):
    """Evaluation and saves included: max_minutes limits this time."""
    run = parts.run()
    step_clock = StepClock(run)
    do_step(step_clock, now, 3.0)
    now[0] += 20.0
    do_step(step_clock, now, 3.0)
    assert run.state.progress.time_s == 26


def test_a_stopped_clock_counts_neither_time_nor_rate(now):
    run = parts.run()
    step_clock = StepClock(run)
    do_step(step_clock, now, 2.0)
    with step_clock.stopped():
        now[0] += 100.0
    do_step(step_clock, now, 2.0)
    assert run.state.progress.time_s == 4.0
    assert step_clock.tokens_per_s() == 2 * TOKENS / 4


# Several ranks


def step_on(ranks: ThreadRanks, runs: list[Run], stops: list[StopRequest]) -> None:
    run = runs[ranks.rank]
    run.ranks = ranks
    with closing_clock(run, stops[ranks.rank]) as step_clock, step_clock.step():
        pass


@contextmanager
def closing_clock(run: Run, stop: StopRequest) -> Iterator[StepClock]:
    step_clock = StepClock(run, stop)
    try:
        yield step_clock
    finally:
        step_clock._told_main.close()


def group_of(size: int) -> tuple[list[Run], list[StopRequest]]:
    stops = [StopRequest() for _ in range(size)]
    for stop in stops:
        stop.waits_for_agreement = True
    return [parts.run() for _ in range(size)], stops


def test_the_clock_of_rank_0_counts_for_all():
    runs, stops = group_of(3)
    runs[0].state.progress.time_s = 100.0
    runs[1].state.progress.time_s = 5000.0
    by_ranks(3, lambda ranks: step_on(ranks, runs, stops))
    times = {run.state.progress.time_s for run in runs}
    assert len(times) == 1
    assert 100 <= times.pop() < 200


@pytest.mark.parametrize("signalled", [0, 2])
def test_a_signal_to_one_rank_is_known_to_all_after_the_step(signalled):
    runs, stops = group_of(3)
    stops[signalled].training = True
    stops[signalled]._on_signal(signal.SIGTERM, None)
    assert not any(stop.requested() for stop in stops)
    by_ranks(3, lambda ranks: step_on(ranks, runs, stops))
    assert all(stop.requested() for stop in stops)
    assert [stop.exit_code for stop in stops] == [143] * 3


def test_ranks_without_a_signal_go_on():
    runs, stops = group_of(2)
    by_ranks(2, lambda ranks: step_on(ranks, runs, stops))
    assert not any(stop.requested() for stop in stops)
