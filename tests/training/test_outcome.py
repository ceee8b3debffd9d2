"""What came out of a run, beside what was predicted: from events alone."""

import pytest

from chatgot.report.run_record import Event
from chatgot.training.outcome import outcome

BAR = {"low": 1.4, "high": 1.6, "tokens": 1000, "twice_the_minutes": 1.35}


def event(kind: str, **fields: object) -> Event:
    return Event(time="", step=0, kind=kind, text="", fields=fields)


def prediction(chosen: object = 1.5, **changes: object) -> Event:
    return event("choice", what="prediction", chosen=chosen, measured=BAR | changes)


def reached(loss: object, kind: str = "evaluation") -> Event:
    return event(kind, val_loss_full=loss)


@pytest.mark.parametrize(
    ("loss", "inside", "words"),
    [
        (1.45, True, "came out: 1.45, 0.05 lower, inside the bar"),
        (1.55, True, "came out: 1.55, 0.05 higher, inside the bar"),
        (1.7, False, "came out: 1.7, 0.2 higher, outside the bar"),
        (1.3, False, "came out: 1.3, 0.2 lower, outside the bar"),
    ],
)
def test_what_came_out_is_inside_the_bar_or_outside(loss, inside, words):
    found = outcome([prediction(), event("start"), reached(None), reached(loss)], 1000)
    assert found.inside is inside
    assert "predicted: held-out loss 1.5 (1.4 to 1.6)" in found.words
    assert words in found.words


def test_twice_the_minutes_bring_the_same_share_as_was_predicted():
    found = outcome([prediction(), reached(1.2)], 1000)
    assert found.gain == pytest.approx(0.1 * 1.2)
    assert found.words.endswith("Twice the minutes: about 0.12 lower")
    assert "times the tokens" not in found.words


@pytest.mark.parametrize(
    "learnt",
    [event("decay", reason="no better"), event("plateau", reason="x"), None],
)
def test_a_text_that_is_learnt_gains_nothing_by_more_minutes(learnt):
    """It ended on a plateau; or twice the minutes would make the same run, of a text so short."""
    events = [prediction(), learnt, reached(1.5)]
    if learnt is None:
        events = [prediction(twice_the_minutes=1.5), reached(1.5)]
    found = outcome(events, 1000)
    assert found.gain == 0
    assert found.words.endswith("More minutes would bring nothing: the text is learnt")


def test_a_plateau_after_a_decay_for_lack_of_time_is_that_of_the_decay():
    events = [prediction(), event("decay", reason="max_minutes"), event("plateau"), reached(1.5)]
    assert outcome(events, 1000).gain > 0.1


@pytest.mark.parametrize("reason", ["planned", "max_minutes"])
def test_a_decay_for_lack_of_time_does_not_mean_that_the_text_is_learnt(reason):
    assert outcome([prediction(), event("decay", reason=reason), reached(1.5)], 1000).gain > 0.1


def test_a_small_gain_and_a_larger_loss_are_hardly_anything():
    for twice in (1.499, 1.51):
        found = outcome([prediction(twice_the_minutes=twice), reached(1.5)], 1000)
        assert found.gain < 0.005
        assert found.gain >= 0
    small = outcome([prediction(twice_the_minutes=1.499), reached(1.5)], 1000)
    assert small.words.endswith("Twice the minutes would bring hardly anything")


def test_of_minutes_that_do_not_end_the_run_nothing_is_said():
    numbers = {name: value for name, value in BAR.items() if name != "twice_the_minutes"}
    events = [event("choice", what="prediction", chosen=1.5, measured=numbers), reached(1.5)]
    found = outcome(events, 1000)
    assert found.gain is None
    assert found.words.endswith("inside the bar")


def test_a_run_of_another_length_than_planned_says_so():
    assert "the run saw 0.5 times the tokens" in outcome([prediction(), reached(1.5)], 500).words
    assert "the run saw" not in outcome([prediction(), reached(1.5)], 1100).words


def test_the_best_weights_count_where_they_were_measured():
    assert outcome([prediction(), reached(1.6), reached(1.5, "best")], 1).val_loss_full == 1.5
    assert outcome([prediction(), reached(1.6), reached(None, "best")], 1).val_loss_full == 1.6


@pytest.mark.parametrize(
    "events",
    [
        [],
        [prediction()],
        [reached(1.5)],
        [prediction(), reached(1.5), reached(None)],  # it went on, and was stopped
        [prediction(None), reached(1.5)],
        [prediction("1.5"), reached(1.5)],
        [event("choice", what="prediction", chosen=1.5, measured={"low": 1}), reached(1.5)],
        [event("choice", what="prediction", chosen=1.5, measured=[1]), reached(1.5)],
        [event("choice", what="steps", chosen=1.5, measured=BAR), reached(1.5)],
    ],
)
def test_without_a_prediction_or_an_end_there_is_no_outcome(events):
    assert outcome(events, 1000) is None


@pytest.mark.parametrize(("twice", "is_learnt"), [(1.5, True), (1.499, True), (1.45, False)])
def test_a_run_is_learnt_where_more_minutes_bring_hardly_anything(twice, is_learnt):
    assert outcome([prediction(twice_the_minutes=twice), reached(1.5)], 1000).is_learnt is is_learnt


def test_a_run_of_which_nobody_knows_more_is_not_called_learnt():
    numbers = {name: value for name, value in BAR.items() if name != "twice_the_minutes"}
    events = [event("choice", what="prediction", chosen=1.5, measured=numbers), reached(1.5)]
    assert not outcome(events, 1000).is_learnt
