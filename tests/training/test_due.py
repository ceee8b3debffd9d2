"""What is due and when: by steps, by minutes, at the end of a run, and at the best evaluation."""

import math
from types import SimpleNamespace

import parts
import pytest

from chatgot.run.assembly import Run
from chatgot.run.run_state import BadStep
from chatgot.training import due
from chatgot.training.due import Due, step_save_due

LAST = 1000
OFF = {
    "max_steps": LAST,
    "eval_interval": None,
    "sample_interval_steps": None,
    "sample_interval_minutes": None,
    "save_checkpoint_steps": None,
    "checkpoint_interval_minutes": None,
}


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """Return a list with the time that time.monotonic() shows to the module under test."""
    seconds = [1000.0]
    monkeypatch.setattr(due, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    return seconds


def run_at(step: int, **training: object) -> Run:
    """Return a run after `step` steps in which only what the keys ask for is due."""
    run = parts.run(training=OFF | training)
    go_to(run, step)
    return run


def go_to(run: Run, step: int) -> None:
    run.state.progress.global_step = step
    run.state.progress.position = step


def evaluated(run: Run, val_loss: float) -> None:
    """Mark the current step as evaluated."""
    run.state.marks.val_loss = val_loss
    run.state.marks.last_eval_step = run.state.progress.global_step


def sampled(run: Run) -> None:
    run.state.marks.last_sample_step = run.state.progress.global_step


def saved(run: Run) -> None:
    run.state.marks.last_save_step = run.state.progress.global_step


def add_bad_step(run: Run) -> None:
    step = run.state.progress.global_step
    run.state.health.bad_steps = [BadStep(step=step, position=step, loss=9.0, grad_norm=1.0)]


def due_steps(answer: str, run: Run, last: int) -> list[int]:
    """Return the steps up to `last` at which the method `answer` of Due says yes."""
    due_now = Due(run)
    steps = []
    for step in range(last + 1):
        go_to(run, step)
        if getattr(due_now, answer)():
            steps.append(step)
    return steps


# The end of a run, by steps or by minutes


def ended_by_steps(**training: object) -> Run:
    return run_at(LAST, **training)


def ended_by_minutes(**training: object) -> Run:
    run = run_at(501, max_minutes=2.0, **training)
    run.state.progress.time_s = 120.0
    return run


ENDINGS = pytest.mark.parametrize("ended", [ended_by_steps, ended_by_minutes])


# Evaluation


def test_an_evaluation_is_due_every_interval_and_before_the_first_step():
    assert due_steps("evaluation", run_at(0, eval_interval=5), last=12) == [0, 5, 10]


def test_an_evaluation_is_not_due_twice_at_one_step():
    run = run_at(5, eval_interval=5)
    evaluated(run, 3.0)
    assert not Due(run).evaluation()


@ENDINGS
def test_an_evaluation_is_due_at_the_end_of_a_run(ended):
    run = ended(eval_interval=7)
    assert Due(run).evaluation()
    evaluated(run, 3.0)
    assert not Due(run).evaluation()


@ENDINGS
def test_no_evaluation_is_ever_due_without_an_interval(ended):
    assert not Due(run_at(0)).evaluation()
    assert not Due(ended()).evaluation()


# Samples


def test_samples_are_due_every_interval_but_not_for_untrained_weights():
    assert due_steps("samples", run_at(0, sample_interval_steps=5), last=12) == [5, 10]


def test_samples_are_not_due_twice_at_one_step(now):
    run = run_at(5, sample_interval_steps=5, sample_interval_minutes=1.0)
    due_now = Due(run)
    sampled(run)
    now[0] += 3600.0
    assert not due_now.samples()


def test_samples_are_due_when_their_minutes_have_passed(now):
    run = run_at(7, sample_interval_minutes=2.0)
    due_now = Due(run)
    now[0] += 119.0
    assert not due_now.samples()
    now[0] += 1.0
    assert due_now.samples()
    sampled(run)
    due_now.sampled()
    go_to(run, 8)
    now[0] += 119.0
    assert not due_now.samples()
    now[0] += 1.0
    assert due_now.samples()


def test_a_save_does_not_restart_the_clock_of_the_samples(now):
    due_now = Due(run_at(7, sample_interval_minutes=2.0))
    now[0] += 120.0
    due_now.saved()
    assert due_now.samples()


@ENDINGS
@pytest.mark.parametrize("trigger", [{"sample_interval_steps": 7}, {"sample_interval_minutes": 60}])
def test_samples_are_due_at_the_end_of_a_run(ended, trigger):
    run = ended(**trigger)
    assert Due(run).samples()
    sampled(run)
    assert not Due(run).samples()


@ENDINGS
def test_no_samples_are_ever_due_without_an_interval(ended, now):
    assert due_steps("samples", run_at(0), last=12) == []
    due_now = Due(ended())
    now[0] += 1e9
    assert not due_now.samples()


# Checkpoints, by steps and by minutes


def test_a_checkpoint_is_due_every_interval_except_untrained_weights():
    assert due_steps("checkpoint", run_at(0, save_checkpoint_steps=5), last=12) == [5, 10]


def test_weights_of_another_run_are_saved_before_the_first_step():
    """No seed could restore them."""
    run = run_at(0, save_checkpoint_steps=5)
    run.state.marks.last_save_step = -1
    assert Due(run).checkpoint()


def test_a_checkpoint_is_not_due_twice_at_one_step(now):
    run = run_at(5, save_checkpoint_steps=5, checkpoint_interval_minutes=1.0)
    due_now = Due(run)
    saved(run)
    now[0] += 3600.0
    assert not due_now.checkpoint()


def test_a_checkpoint_is_due_when_its_minutes_have_passed(now):
    run = run_at(7, checkpoint_interval_minutes=2.0)
    due_now = Due(run)
    now[0] += 119.0
    assert not due_now.checkpoint()
    now[0] += 1.0
    assert due_now.checkpoint()


def test_a_failed_save_restarts_the_minutes(now):
    """Otherwise the next step would try again."""
    due_now = Due(run_at(7, checkpoint_interval_minutes=2.0))
    now[0] += 120.0
    due_now.saved()
    assert not due_now.checkpoint()
    now[0] += 120.0
    assert due_now.checkpoint()


def test_samples_do_not_restart_the_clock_of_the_checkpoints(now):
    due_now = Due(run_at(7, checkpoint_interval_minutes=2.0))
    now[0] += 120.0
    due_now.sampled()
    assert due_now.checkpoint()


def test_no_checkpoint_is_due_before_the_end_without_a_trigger(now):
    run = run_at(0)
    due_now = Due(run)
    now[0] += 1e9
    go_to(run, LAST - 1)
    assert not due_now.checkpoint()
    assert due_steps("checkpoint", run, last=12) == []


def test_no_trigger_saves_during_a_series_of_bad_steps(now):
    run = run_at(10, save_checkpoint_steps=5, checkpoint_interval_minutes=1.0)
    due_now = Due(run)
    now[0] += 60.0
    assert due_now.checkpoint()
    add_bad_step(run)
    assert not due_now.checkpoint()


def test_a_late_save_of_a_saved_step_is_not_triggered_by_steps():
    """The work of such a trigger, a new proof of gradient checkpointing, was done before."""
    run = run_at(5, save_checkpoint_steps=5)
    assert step_save_due(run)
    saved(run)
    assert not step_save_due(run)


# Checkpoints, at the end of a run


@ENDINGS
def test_a_checkpoint_is_due_at_the_end_whatever_the_triggers(ended):
    run = ended()
    due_now = Due(run)
    assert due_now.checkpoint()
    add_bad_step(run)
    assert due_now.checkpoint()
    saved(run)
    due_now.saved()
    assert not due_now.checkpoint()


def worse_evaluation(run: Run) -> None:
    run.state.marks.best_val_loss = 1.0
    run.state.marks.best_step = 3
    evaluated(run, 2.0)


@ENDINGS
@pytest.mark.parametrize("observe", [worse_evaluation, sampled])
def test_a_late_observation_makes_the_last_checkpoint_due_again(ended, observe):
    """The last step of an ended run was saved, but not evaluated or sampled; the run is resumed."""
    run = ended()
    saved(run)
    due_now = Due(run)
    assert not due_now.checkpoint()
    observe(run)
    assert due_now.checkpoint()
    due_now.saved()
    assert not due_now.checkpoint()


@pytest.mark.parametrize("observe", [worse_evaluation, sampled])
def test_a_late_observation_before_the_end_waits_for_the_next_save(observe):
    run = run_at(5, save_checkpoint_steps=5)
    saved(run)
    due_now = Due(run)
    observe(run)
    assert not due_now.checkpoint()


# Checkpoints of the best evaluation


def test_the_best_evaluation_so_far_makes_a_checkpoint_due_at_once():
    run = run_at(7)
    due_now = Due(run)
    evaluated(run, 3.0)
    assert due_now.checkpoint()
    run.state.marks.best_val_loss = 3.0
    run.state.marks.best_step = 7
    assert not due_now.checkpoint()
    go_to(run, 8)
    assert not due_now.checkpoint()
    evaluated(run, 2.9)
    assert due_now.checkpoint()


def test_the_best_evaluation_is_saved_even_if_its_step_was_saved():
    """The evaluation came late, after a resume; the file must say that it is the best."""
    run = run_at(7)
    saved(run)
    evaluated(run, 3.0)
    assert Due(run).checkpoint()


@pytest.mark.parametrize("val_loss", [3.0, 3.1, math.nan, math.inf])
def test_an_evaluation_that_is_not_lower_is_not_the_best(val_loss):
    run = run_at(7)
    run.state.marks.best_val_loss = 3.0
    run.state.marks.best_step = 5
    evaluated(run, val_loss)
    assert not Due(run).checkpoint()


def test_an_evaluation_of_an_earlier_step_says_nothing_of_these_weights():
    """For example that of a best step whose save failed."""
    run = run_at(7)
    evaluated(run, 3.0)
    due_now = Due(run)
    assert due_now.checkpoint()
    go_to(run, 8)
    assert not due_now.checkpoint()


def test_a_step_that_is_already_the_best_is_not_saved_again():
    run = run_at(7)
    run.state.marks.best_val_loss = 3.0
    run.state.marks.best_step = 7
    saved(run)
    evaluated(run, 2.9)
    assert not Due(run).checkpoint()


def test_untrained_weights_are_not_the_best():
    run = run_at(0)
    evaluated(run, 3.0)
    assert not Due(run).checkpoint()


def test_weights_after_a_bad_step_are_not_the_best():
    run = run_at(7)
    evaluated(run, 3.0)
    add_bad_step(run)
    assert not Due(run).checkpoint()
