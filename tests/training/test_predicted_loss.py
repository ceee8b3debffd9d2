"""The rule that predicts a loss: what it counts, its error bar, and where its numbers come from."""

from dataclasses import replace

import pytest

from benchmarks.prediction import CONSTANTS, TABLE, constants, fit, read_table
from chatgot.training import predicted_loss
from chatgot.training.loss_constants import BAR, MEASURED
from chatgot.training.predicted_loss import WORTH_OF_PASSES, Planned, predict

USUAL = Planned(2.0, parameters=1e6, seen=2e6, text=1e6, subwords=False)


def test_a_text_twice_as_hard_has_twice_the_loss():
    harder = predict(replace(USUAL, difficulty=1.25 * USUAL.difficulty))
    assert harder.bits_per_byte == pytest.approx(1.25 * predict(USUAL).bits_per_byte)


def test_more_characters_never_end_higher_and_repeats_are_worth_less():
    counts = [2e5, 1e6, 2e6, 4e6, 8e6, 16e6]
    runs = [replace(USUAL, seen=seen) for seen in counts]
    losses = [predict(run).bits_per_byte for run in runs]
    assert losses == sorted(losses, reverse=True)
    assert runs[1].worth == 1e6
    assert 1.9e6 < runs[2].worth < 2e6
    assert runs[-1].worth < 1e6 * (1 + WORTH_OF_PASSES)


def test_the_bar_surrounds_the_prediction_evenly_in_logs():
    found = predict(USUAL)
    assert found.beyond == ()
    assert found.low < found.bits_per_byte < found.high
    assert found.bits_per_byte / found.low == pytest.approx(found.high / found.bits_per_byte)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"parameters": 2 * MEASURED["parameters"][1]}, "parameters"),
        ({"text": MEASURED["characters of text"][0] / 2}, "characters of text"),
        ({"seen": 2 * MEASURED["characters seen"][1]}, "characters seen"),
        ({"difficulty": MEASURED["difficulty"][0] / 2}, "difficulty"),
    ],
)
def test_outside_of_what_was_measured_the_bar_is_wider_and_says_why(change, name):
    """Each doubling adds one more bar."""
    found = predict(replace(USUAL, **change))
    assert found.beyond == (name,)
    usual = predict(USUAL)
    width = found.high / found.bits_per_byte
    assert width == pytest.approx((usual.high / usual.bits_per_byte) ** 2)


def test_a_kind_of_token_that_was_never_measured_is_named(monkeypatch):
    monkeypatch.setattr(predicted_loss, "TOKENIZERS", {"char"})
    assert predict(replace(USUAL, subwords=True)).beyond == ("subwords",)
    assert predict(USUAL).beyond == ()


def test_the_constants_are_those_of_the_table():
    """The table changed, or the rule: `python scripts/benchmark.py prediction` writes them anew."""
    runs = read_table(TABLE)
    assert CONSTANTS.read_text(encoding="utf-8") == constants(fit(runs), runs)


def test_nine_of_ten_measured_runs_lie_within_the_bar():
    runs = read_table(TABLE)
    inside = 0
    for run in runs:
        found = predict(run.planned)
        assert found.beyond == ()
        inside += found.low <= run.bits_per_byte <= found.high
    assert inside >= 0.9 * len(runs)
    assert 0.02 < BAR < 0.5  # narrower is not believable, wider says nothing
