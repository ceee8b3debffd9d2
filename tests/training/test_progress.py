"""A run shows its progress: with a bar on a terminal, else with a line every 30 seconds."""

import logging
import time

import parts
import pytest

from chatgot.run.assembly import Run
from chatgot.training.progress import LINE_S, ProgressBar


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def run_at(step: int) -> Run:
    """Return a run that has done its first steps, up to `step`."""
    run = parts.run()
    progress = run.state.progress
    progress.global_step = step
    progress.train_loss = 1.5
    progress.lr = 1e-3
    progress.grad_norm = 0.5
    return run


def test_a_line_comes_after_30_silent_seconds_without_a_terminal(clock, caplog):
    """It comes 30 s after the start, and 30 s after the usual line of step 4."""
    caplog.set_level(logging.INFO)
    with ProgressBar(run_at(0)) as progress:
        for step in range(1, 9):
            clock[0] = 10.0 * step
            progress.step_done(run_at(step), logged=step == 4)
    lines = [message.split(" | ")[0] for message in caplog.messages if message.startswith("step")]
    assert lines == ["step 3/10", "step 7/10"]
    assert LINE_S == 30


def test_a_terminal_gets_a_bar_and_no_such_line(clock, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    at_start = run_at(0)
    later = run_at(5)
    caplog.clear()
    with ProgressBar(at_start) as progress:
        assert not progress.bar.disable
        clock[0] = 100.0
        progress.step_done(later, logged=False)
        assert progress.bar.n == 5
        assert "4x2" in progress.bar.postfix
    assert caplog.messages == []
