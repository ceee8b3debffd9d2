"""An evaluation is better only beyond its own noise; a plateau ends the run or begins the decay."""

import math

import parts
import pytest

from chatgot.config import TrainingConfig
from chatgot.numerics.optim import Decay, decay_from, lr_at, planned_decay
from chatgot.run.ending import how_to_extend
from chatgot.run.run_state import MOST_BLOCKS, Plateau, RunState, after_rewind
from chatgot.training.decay import begin_decay_where_due
from chatgot.training.plateau import after_evaluation, blocks_of, difference, mean_of

PATIENT = TrainingConfig(max_steps=1000, stop_when_no_better=2, eval_interval=10)
WSD = {
    "lr_schedule": "wsd",
    "warmup_steps": 0,
    "learning_rate": 1.0,
    "min_learning_rate": 0.0,
    "eval_interval": 10,
}


def state_at(step: int, plateau: Plateau | None = None) -> RunState:
    state = RunState()
    state.progress.global_step = step
    state.progress.position = step
    state.plateau = plateau or Plateau()
    return state


def evaluations(*losses: list[float], settings: TrainingConfig = PATIENT) -> Plateau:
    """Return the plateau after evaluations with these losses of batches of 10 targets."""
    plateau = Plateau()
    for i, batches in enumerate(losses):
        blocks = [(loss, 10) for loss in batches]
        plateau = after_evaluation(settings, state_at(10 * i, plateau), blocks)
    return plateau


def test_blocks_are_few_and_keep_the_loss_of_all_batches():
    batches = [(i / 7, 1 + i % 3) for i in range(1000)]
    blocks = blocks_of(batches)
    assert len(blocks) == MOST_BLOCKS
    assert mean_of(blocks) == pytest.approx(mean_of(batches))
    assert sum(n for _, n in blocks) == sum(n for _, n in batches)
    assert blocks_of(batches[:5]) == batches[:5]


def test_the_noise_is_the_standard_error_of_paired_differences():
    before = [(1.0, 5), (2.0, 5), (3.0, 5)]
    now = [(0.9, 5), (1.8, 5), (3.0, 5)]  # differences -0.1, -0.2, 0.0
    mean, noise = difference(now, before)
    assert mean == pytest.approx(-0.1)
    assert noise == pytest.approx(0.1 / math.sqrt(3))
    assert difference(now[:1], before[:1]) == (pytest.approx(-0.1), None)


def test_a_gain_within_the_noise_is_not_better():
    assert evaluations([2.0, 2.0], [1.9, 2.08]).no_better == 1
    assert evaluations([2.0, 2.0], [1.9, 1.92]).no_better == 0


def test_small_gains_add_up_against_an_older_reference():
    plateau = evaluations([2.0, 2.0], [1.99, 2.005])
    assert (plateau.no_better, plateau.reference_step) == (1, 0)
    plateau = evaluations([2.0, 2.0], [1.99, 2.005], [1.97, 1.98])
    assert (plateau.no_better, plateau.reference_step) == (0, 20)


def test_a_loss_that_was_not_measured_is_not_better():
    assert evaluations([2.0, 2.0], [math.nan, 1.0]).no_better == 1


def test_other_batches_than_before_begin_the_count_anew():
    assert evaluations([2.0, 2.0], [3.0, 3.0], [3.0, 3.0, 3.0]).no_better == 0


def test_without_the_key_nothing_is_counted():
    off = TrainingConfig(max_steps=10)
    assert evaluations([2.0, 2.0], [3.0, 3.0], settings=off) == Plateau()


def test_a_plateau_ends_a_run_with_another_schedule():
    run = parts.run(training={"max_steps": 100, "stop_when_no_better": 2, "eval_interval": 10})
    run.state.plateau.no_better = 1
    assert not run.ended()
    run.state.plateau.no_better = 2
    assert run.end_reason() == "no better"
    settings = run.config.training
    extended = how_to_extend(settings, run.state, run.train_windows.per_epoch)
    assert extended == "--set training.stop_when_no_better=null"


def test_a_plateau_begins_the_decay_of_wsd_and_a_second_one_ends_the_run():
    run = parts.run(training=WSD | {"max_steps": 1000, "stop_when_no_better": 2})
    run.state.progress.global_step = run.state.progress.position = 60
    begin_decay_where_due(run)
    assert not run.state.schedule.in_decay
    run.state.plateau.no_better = 2
    assert not run.ended()
    begin_decay_where_due(run)
    assert run.decay == Decay(60, 40)  # 0.4 of 100 steps
    assert run.last_step == 100
    assert run.state.plateau.no_better == 0
    run.state.plateau.no_better = 2
    assert run.end_reason() == "no better"
    run.state.plateau.no_better = 0
    run.state.progress.global_step = run.state.progress.position = 100
    assert run.end_reason() == "decayed"


def test_the_decay_begins_when_max_minutes_near():
    run = parts.run(training=WSD | {"max_minutes": 1.0, "max_steps": 1000})
    run.state.progress.global_step = run.state.progress.position = 30
    run.state.progress.time_s = 35.9
    begin_decay_where_due(run)
    assert run.decay == Decay(600, 400)  # the planned one
    run.state.progress.time_s = 36.0  # all but 0.4 of the minute
    begin_decay_where_due(run)
    assert run.decay == Decay(30, 20)
    assert run.state.schedule.decay_cause == "max_minutes"


def test_a_rewind_to_before_the_decay_takes_it_back():
    run = parts.run(training=WSD | {"max_steps": 1000, "stop_when_no_better": 2})
    before = run.state.model_copy(deep=True)
    run.state.progress.global_step = run.state.progress.position = 60
    run.state.plateau.no_better = 2
    begin_decay_where_due(run)
    assert run.state.schedule.in_decay
    rewound = after_rewind(run.state, before)
    assert rewound.schedule == before.schedule
    assert rewound.plateau == before.plateau


def test_the_decay_begins_at_its_planned_step_without_being_stored():
    settings = TrainingConfig(**WSD, max_steps=100)
    assert planned_decay(settings, 100) == Decay(60, 40)
    rates = [lr_at(step, settings, 100) for step in (0, 59, 60, 80, 99, 100, 200)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.025, 0, 0])


def test_a_decay_that_began_early_falls_to_the_minimum_and_no_further():
    settings = TrainingConfig(**WSD, max_steps=1000)
    decay = decay_from(30, settings, 1000)
    assert decay == Decay(30, 20)
    rates = [lr_at(step, settings, 1000, decay) for step in (29, 30, 40, 50, 60)]
    assert rates == pytest.approx([1, 1, 0.5, 0, 0])
    assert decay_from(990, settings, 1000) == Decay(990, 10)  # it passes no last step


@pytest.mark.parametrize(
    "keys", [{"max_minutes": 1.0}, {"stop_when_no_better": 3}, {"max_steps": 9}]
)
def test_with_wsd_any_one_end_is_enough(keys):
    assert TrainingConfig(**WSD | keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "nothing would end the run"),
        ({"stop_when_no_better": 3}, "lr_schedule=wsd"),
        ({"stop_when_no_better": 3, "max_steps": 9, "eval_interval": None}, "set eval_interval"),
        ({"lr_schedule": "wsd", "max_minutes": 1.0, "decay_share": 1.0}, "a lower decay_share"),
    ],
)
def test_a_run_without_an_end_is_refused(keys, words):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**keys)
