"""Measuring this machine for a text leaves everything else as it was."""

import logging
from dataclasses import replace

import harness
import pytest
import torch

from chatgot.config_file import config_of
from chatgot.data.own_text import Request
from chatgot.training import choosing, recipe
from chatgot.training.choosing import choose


@pytest.fixture
def request_for_text(tmp_path) -> Request:
    path = tmp_path / "text.txt"
    path.write_text(harness.make_text(6000), encoding="utf-8")
    cache = f"paths.cache={tmp_path / 'cache'}"
    return Request(path, 0.01, (cache, "training.threads=1", "training.compile=false"))


def test_measuring_leaves_threads_generators_and_log_as_they_were(request_for_text):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # the measured runs have one
    level = logging.getLogger("chatgot").level
    state = torch.get_rng_state()
    choose(request_for_text)
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


def test_the_default_minutes_are_said(request_for_text):
    overrides = (*request_for_text.overrides, "training.batch_size=2")  # cheap to measure
    choice = choose(Request(request_for_text.text, overrides=overrides))
    assert choice.config.training.max_minutes == 10
    assert choice.notes[0].text == "minutes: 10, the default; --minutes M sets another number"
    assert choice.config.model.dropout == 0.2  # for the many passes, which end the run early
    assert "ends before 10 minutes" in next(n.text for n in choice.notes if n.what == "steps")


@pytest.fixture
def long_enough(monkeypatch) -> None:
    """A text of 5,000 bytes is long enough for subwords here."""
    monkeypatch.setattr(recipe, "LEAST_BYTES_FOR_SUBWORDS", 5000)
    monkeypatch.setattr(choosing, "LEAST_BYTES_FOR_SUBWORDS", 5000)


@pytest.mark.usefixtures("long_enough")
def test_a_long_text_has_subwords_and_the_rules_count_its_characters(request_for_text):
    overrides = (*request_for_text.overrides, "training.batch_size=2")  # cheap to measure
    overrides += ("data.vocab_size=300",)
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
