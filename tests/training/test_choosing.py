"""Measuring this machine for a text leaves everything else as it was."""

import logging
import math
from dataclasses import replace

import harness
import pytest
import torch

from chatgot.config_file import config_of
from chatgot.data.own_text import Request
from chatgot.training import choosing, recipe
from chatgot.training.choosing import choose
from chatgot.training.measured_speed import Speed


@pytest.fixture
def measured_before(monkeypatch) -> None:
    """Nothing is measured: each recipe takes a hundredth of a second for a step."""
    speed = Speed(build=1.0, step=0.01, batch=0.003, token=0.001)
    monkeypatch.setattr(choosing, "measure_speed", lambda *_arguments: speed)


@pytest.fixture
def request_to_measure(tmp_path) -> Request:
    path = tmp_path / "text.txt"
    path.write_text(harness.make_text(6000), encoding="utf-8")
    cache = f"paths.cache={tmp_path / 'cache'}"
    return Request(path, 0.01, (cache, "training.threads=1", "training.compile=false"))


@pytest.fixture
def request_for_text(request_to_measure, measured_before) -> Request:
    return request_to_measure


def test_measuring_leaves_threads_generators_and_log_as_they_were(request_to_measure):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # the measured runs have one
    level = logging.getLogger("chatgot").level
    state = torch.get_rng_state()
    choose(request_to_measure)
    threads = torch.get_num_threads()
    torch.set_num_threads(before)
    assert threads == 2
    assert logging.getLogger("chatgot").level == level
    assert torch.equal(torch.get_rng_state(), state)


def test_the_users_steps_are_taken_and_the_rest_follows_them(request_for_text):
    overrides = (*request_for_text.overrides, "training.max_steps=300")
    choice = choose(Request(request_for_text.text, 0.01, overrides))
    training = choice.config.training
    assert training.max_steps == 300
    assert training.warmup_steps == 10  # the recipe's own
    assert choice.config.model.dropout == 0.2  # 85 passes over 5,400 characters
    assert "As asked with --set" in next(n.text for n in choice.notes if n.what == "steps")


@pytest.mark.parametrize(("steps", "weights"), [(30, []), (3000, [0.5, 0.25])])
def test_later_tokens_count_in_a_run_that_sees_enough(request_for_text, steps, weights):
    """A model of 0.8 M parameters."""
    overrides = (*request_for_text.overrides, f"training.max_steps={steps}")
    choice = choose(Request(request_for_text.text, 0.01, overrides))
    (note,) = [note for note in choice.notes if note.what == "multi-token"]
    seen = steps * choice.config.training.tokens_per_step(choice.config.model)
    assert choice.config.training.multi_token_weights == note.chosen == weights
    assert bool(weights) == (note.measured["per_parameter"] >= 0.75)
    assert note.measured["per_parameter"] == pytest.approx(seen / 0.8e6, rel=0.1)
    assert ("count 0.5 and 0.25" if weights else "next token only") in note.text


def test_the_default_minutes_are_said(request_for_text):
    overrides = request_for_text.overrides
    choice = choose(Request(request_for_text.text, overrides=overrides))
    assert choice.config.training.max_minutes == 10
    assert choice.notes[0].text == "minutes: 10, the default; --minutes M sets another number"
    assert choice.config.model.dropout == 0.2  # for the many passes, which end the run early
    assert choice.config.training.weight_decay == 0.1  # the same
    assert choice.config.training.input_noise == 0.1  # the same
    note = next(n.text for n in choice.notes if n.what == "dropout")
    assert note.startswith("dropout: 0.2, input noise 0.1 and weight decay 0.1, against")
    assert "takes less than 10 minutes" in next(n.text for n in choice.notes if n.what == "steps")


@pytest.fixture
def long_enough(monkeypatch) -> None:
    """A text of 5,000 bytes is long enough for subwords here."""
    monkeypatch.setattr(recipe, "LEAST_BYTES_FOR_SUBWORDS", 5000)
    monkeypatch.setattr(choosing, "LEAST_BYTES_FOR_SUBWORDS", 5000)
    monkeypatch.setattr(recipe, "PASSES_FOR_CHARACTERS", math.inf)


@pytest.mark.usefixtures("long_enough")
def test_a_long_text_has_subwords_and_the_rules_count_its_characters(request_for_text):
    overrides = (*request_for_text.overrides, "data.vocab_size=300")
    choice = choose(Request(request_for_text.text, 0.01, overrides))
    assert choice.tokens.vocabulary.kind == "subwords"
    assert config_of(choice.yaml, "text.yaml").data.tokenizer == "bpe"
    assert 'tokenizer: "bpe"  # the text is long enough for subwords' in choice.yaml
    (note,) = [note for note in choice.notes if note.what == "tokenizer"]
    each = note.measured["characters_per_token"]
    assert len(choice.tokens.ids) * each == pytest.approx(6000, rel=0.02)
    assert "from 0.005 MB on they predict a text better" in note.text
    assert 1.5 < 200 / choice.config.sampling.max_new_tokens < 6


@pytest.mark.usefixtures("long_enough")
def test_subwords_are_fewer_than_characters_for_the_size_of_a_model(request_for_text, monkeypatch):
    """The quick recipe has 1.8 M parameters; the text has 2,600 subwords of 5,400 characters."""
    monkeypatch.setattr(recipe, "TOKENS_FOR_A_MILLION_PARAMETERS", 1200)
    in_subwords = (*request_for_text.overrides, "data.tokenizer=bpe", "data.vocab_size=300")
    for overrides, name in (
        (in_subwords, "chatgot_mini"),
        (request_for_text.overrides, "chatgot_quick"),
    ):
        monkeypatch.setattr(recipe, "LEAST_BYTES_FOR_SUBWORDS", math.inf)
        choice = choose(Request(request_for_text.text, 10, overrides))
        (note,) = [note for note in choice.notes if note.what == "recipe"]
        assert note.chosen == name
        assert "is too large for this text and would learn it by heart" in note.text


@pytest.mark.usefixtures("long_enough")
def test_a_text_that_is_seen_often_has_characters(request_for_text, monkeypatch):
    """Even where it is long enough for subwords; what the user sets stays."""
    monkeypatch.setattr(recipe, "PASSES_FOR_CHARACTERS", 2)
    request = Request(request_for_text.text, 0.05, request_for_text.overrides)
    choice = choose(request)
    assert choice.tokens.vocabulary.kind == "characters"
    (note,) = [note for note in choice.notes if note.what == "tokenizer"]
    assert note.chosen == "char"
    assert note.measured["passes"] > 2
    assert "which are learnt by heart sooner" in note.text
    (steps,) = [note for note in choice.notes if note.what == "steps"]
    assert steps.measured["passes"] > 2
    asked = ("data.tokenizer=bpe", "data.vocab_size=300")
    assert choose(replace(request, overrides=asked)).tokens.vocabulary.kind == "subwords"


@pytest.mark.usefixtures("long_enough")
def test_only_the_size_of_a_fresh_text_decides_what_its_tokens_are(request_for_text, monkeypatch):
    decide = choosing._with_tokenizer
    assert decide(request_for_text).tokens == ("data.tokenizer=bpe", "data.vocab_size=1024")
    asked = replace(request_for_text, overrides=("data.tokenizer=char",))
    of_a_model = replace(request_for_text, shape=("model.d_model=16",))
    of_weights = replace(request_for_text, tokens=("data.tokenizer=char",))
    for request in (asked, of_a_model, of_weights):
        assert decide(request) == request
    monkeypatch.setattr(recipe, "LEAST_BYTES_FOR_SUBWORDS", 1e9)
    assert decide(request_for_text) == request_for_text


# The prediction


def prediction_of(choice: choosing.Choice) -> choosing.Note:
    (note,) = [note for note in choice.notes if note.what == "prediction"]
    return note


def test_a_loss_is_predicted_in_the_log_and_in_the_yaml(request_for_text):
    choice = choose(request_for_text)
    note = prediction_of(choice)
    measured = note.measured
    assert measured["low"] < note.chosen < measured["high"]
    # of ASCII, a character is a byte
    assert note.chosen == pytest.approx(measured["bits_per_byte"] * math.log(2), abs=1e-4)
    assert f"held-out loss about {note.chosen:.3g}, in 9 of 10 runs between" in note.text
    assert f"needs {measured['ngram_bits_per_byte']:.3g} bits per byte" in note.text
    assert f"# Predicted: held-out loss about {note.chosen:.3g}, in 9 of 10" in choice.yaml
    steps = choice.config.training.max_steps
    per_step = choice.config.training.tokens_per_step(choice.config.model)
    assert measured["tokens"] == steps * per_step


def test_twice_the_minutes_bring_nothing_where_the_text_ends_the_run(request_for_text):
    overrides = (*request_for_text.overrides, "training.batch_size=2")
    long = prediction_of(choose(Request(request_for_text.text, overrides=overrides)))
    assert long.measured["twice_the_minutes"] == pytest.approx(long.chosen, abs=1e-5)
    request_for_text.text.write_text(harness.make_text(100_000), encoding="utf-8")
    short = prediction_of(choose(Request(request_for_text.text, 0.03, overrides)))
    assert short.measured["twice_the_minutes"] < short.chosen


def test_with_the_users_steps_nothing_is_said_of_more_minutes(request_for_text):
    overrides = (*request_for_text.overrides, "training.max_steps=300")
    found = prediction_of(choose(Request(request_for_text.text, 0.01, overrides))).measured
    assert found["tokens"] == 300 * 24 * 64
    assert "twice_the_minutes" not in found


@pytest.mark.usefixtures("long_enough")
def test_of_subwords_bits_per_byte_are_said_too(request_for_text):
    overrides = (*request_for_text.overrides, "data.vocab_size=300")
    note = prediction_of(choose(Request(request_for_text.text, 0.01, overrides)))
    bits = note.measured["bits_per_byte"]
    assert f"({bits:.3g} bits per byte)" in note.text
    assert note.chosen > 1.3 * bits * math.log(2)  # a token has several bytes


@pytest.mark.parametrize(
    ("keys", "from_scratch", "words"),
    [
        ((), False, "starts from a model that has learnt from other texts"),
        (("data.learn_from=[KING]",), True, "only the lines of some speakers"),
    ],
)
def test_where_the_rule_knows_nothing_no_loss_is_predicted(
    request_for_text, keys, from_scratch, words
):
    request = replace(request_for_text, overrides=(*request_for_text.overrides, *keys))
    choice = choose(request, from_scratch=from_scratch)
    note = prediction_of(choice)
    assert note.chosen is None
    assert note.text.startswith("prediction: none, since ")
    assert words in note.text
    assert "# No loss is predicted, since " in choice.yaml


def test_a_prediction_that_fails_is_said_and_the_run_is_chosen(request_for_text, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError("no room for n-grams")

    monkeypatch.setattr(choosing, "difficulty", fail)
    choice = choose(request_for_text)
    assert choice.config.training.max_steps > 0
    note = prediction_of(choice)
    assert note.chosen is None
    assert "could not be measured (MemoryError('no room for n-grams'))" in note.text


@pytest.mark.usefixtures("measured_before")
@pytest.mark.parametrize(
    "text",
    ["ab" * 1500, "".join(chr(0x4E00 + i % 2500) for i in range(3000)), "a\0b\x1b" * 800],
)
def test_odd_texts_are_predicted_too(tmp_path, text):
    path = tmp_path / "odd.txt"
    path.write_text(text, encoding="utf-8")
    overrides = (f"paths.cache={tmp_path / 'cache'}", "training.threads=1")
    note = prediction_of(choose(Request(path, 0.001, (*overrides, "training.compile=false"))))
    assert 0 < note.measured["low"] < note.chosen < note.measured["high"] < 1e9


# Until nothing gets better


@pytest.mark.parametrize("has_limit", [True, False])
def test_a_run_until_nothing_gets_better_has_no_last_step(request_for_text, has_limit):
    overrides = (*request_for_text.overrides, "training.batch_size=2")
    minutes = 2.0 if has_limit else 1440.0
    request = Request(
        request_for_text.text, minutes, overrides, until_best=True, has_limit=has_limit
    )
    choice = choose(request)
    training = choice.config.training
    assert training.lr_schedule == "wsd"
    assert training.stop_when_no_better == recipe.EVALUATIONS_WITHOUT_GAIN
    assert training.max_steps is None
    assert training.epochs is None
    notes = {note.what: note for note in choice.notes}
    expected = notes["steps"].text
    assert expected.startswith("steps: about ")
    assert notes["lr_schedule"].chosen == "wsd"
    if has_limit:
        assert 1 < training.max_minutes < 1.8  # what is before and after the loop counts
        assert "at most 2 minutes" in notes["stop_when_no_better"].text
        assert "twice_the_minutes" in notes["prediction"].measured
    else:
        assert training.max_minutes is None
        assert "without a limit of time" in notes["stop_when_no_better"].text
        assert "twice_the_minutes" not in notes["prediction"].measured
    assert "minutes" not in notes
    assert "to train until nothing gets better" in choice.yaml
    again = config_of(choice.yaml, "text.yaml")
    assert again == choice.config
