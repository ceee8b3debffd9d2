"""Subwords: what is drawn, where a text ends, and who speaks, counted in tokens of any length."""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import parts
import pytest
import torch
from tiny_tokenizers import SPEECHES, subwords

from chatgot.data.vocabulary import Characters
from chatgot.data.windows import line_start
from chatgot.model.gpt import GPT, build_model
from chatgot.sampling.controls import DRY_LENGTH, Controls
from chatgot.sampling.drawing import Drawer
from chatgot.sampling.engine import Completion, Engine, Request
from chatgot.sampling.speakers import count_speakers
from chatgot.sampling.speeches import Speech, choose_speaker, speech_lines

KINDS = ["gpt2", "qwen2"]
PADDING = 60  # rows of the model that are no tokens


@lru_cache
def model() -> GPT:
    """Return a model with more rows than tokens, which writes varied nonsense."""
    keys = {"max_seq_length": 64, "init_range": 0.5}
    rows = len(subwords()) + PADDING
    return build_model(parts.config(model=keys).model, rows, parts.CPU, 4)


def engine(kind: str = "gpt2") -> Engine:
    return Engine(model(), subwords(kind))


def write(prompt: str = "KING:\n", top_logprobs: int | None = None, **keys) -> Completion:
    vocabulary = subwords()
    bias = {vocabulary.end_of_text_id: -1000.0}
    controls = Controls(**{"logit_bias": bias, "max_new_tokens": 60, **keys})
    request = Request(tuple(vocabulary.encode(prompt)), controls, top_logprobs=top_logprobs)
    (completion,) = engine().complete([request])
    return completion


def ids(completion: Completion) -> list[int]:
    return [token.id for token in completion.tokens]


@pytest.fixture
def dictated(monkeypatch):
    """Return a function that lets an engine write a text, token by token, whatever its model."""

    def dictate(kind: str, text: str, **keys) -> Completion:
        vocabulary = subwords(kind)
        script: Iterator[int] = iter(vocabulary.encode(text))

        def draw(logits, drawers):
            token = next(script, vocabulary.end_of_text_id)
            drawers[0].append(token)
            return np.array([token])

        monkeypatch.setattr("chatgot.sampling.engine.draw", draw)
        request = Request(tuple(vocabulary.encode("KING:\n")), Controls(**keys))
        (completion,) = engine(kind).complete([request])
        return completion

    return dictate


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1000.0])
def test_a_row_without_a_token_is_never_drawn_nor_shown(temperature):
    """At the highest temperature each row would be equally likely."""
    completion = write(temperature=temperature, max_new_tokens=200, top_logprobs=500)
    drawn = {*ids(completion), *(i for token in completion.tokens for i, _ in token.top)}
    assert len(drawn) > 100
    assert max(drawn) < len(subwords())


def test_log_probabilities_are_the_models_own_over_all_rows():
    completion = write(temperature=1.0, max_new_tokens=3, top_logprobs=0)
    prompt = subwords().encode("KING:\n")
    with torch.no_grad():
        logits, _ = engine().model(torch.tensor([prompt + ids(completion)]))
    expected = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for row, token in zip(expected, completion.tokens, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)


def test_the_text_is_that_of_its_tokens_torn_characters_included():
    completion = write(temperature=1000.0, max_new_tokens=300)
    assert "\ufffd" in completion.text
    assert completion.text == subwords().decode(ids(completion))


def test_a_stop_string_may_begin_and_end_within_tokens():
    whole = write(temperature=1000.0, max_new_tokens=100).text
    for start in (3, 10, 50):
        stop = whole[start : start + 5]
        completion = write(temperature=1000.0, max_new_tokens=100, stop=(stop,))
        assert completion.text == whole[: whole.index(stop)]
        assert completion.stopped_by == stop


@pytest.mark.parametrize("kind", KINDS)
def test_a_speech_ends_before_the_next_speakers_line(dictated, kind):
    lines = speech_lines(["FOOL", "KING"])
    text = "Good morrow, 世界 🎭.\n\nFOOL:\nNo."
    completion = dictated(kind, text, stop_before_speaker=lines)
    assert (completion.text, completion.stopped_by) == ("Good morrow, 世界 🎭.", "FOOL:")


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_text_token_ends_a_text_and_is_not_shown(dictated, kind):
    completion = dictated(kind, "No.\n")
    assert (completion.text, completion.finish_reason) == ("No.\n", "stop")


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_ranked_by_its_line_as_it_would_be_in_a_text(kind):
    """The probabilities are those of the whole text's ids, from one pass each."""
    vocabulary = subwords(kind)
    names = ["KING", "FOOL", "Bo"]
    speeches = [Speech("KING", "No."), Speech("FOOL", "Good morrow, my lord")]
    text = "KING:\nNo.\n\nFOOL:\nGood morrow, my lord\n\n"
    scores = {}
    for name in names:
        whole = vocabulary.encode(f"{text}{name}:\n")
        with torch.no_grad():
            logits, _ = engine(kind).model(torch.tensor([whole]))
        logprobs = logits[0, :-1].double().log_softmax(-1)
        scores[name] = math.exp(sum(float(logprobs[i, id_]) for i, id_ in enumerate(whole[1:])))
    for name, chance in choose_speaker(engine(kind), vocabulary, speeches, names):
        assert chance == pytest.approx(scores[name] / sum(scores.values()), rel=1e-3)


def test_the_ranking_is_of_ids_that_the_prompt_alone_does_not_have():
    """Else the test above would prove nothing: two line feeds are one token at a text's end."""
    vocabulary = subwords("gpt2")
    prompt = vocabulary.encode("No.\n\n")
    assert vocabulary.encode("No.\n\nKING:\n")[: len(prompt)] != prompt


@pytest.mark.parametrize("kind", KINDS)
def test_the_speakers_of_a_text_are_those_counted_in_its_characters(kind):
    text = SPEECHES * 10 + "<|endoftext|>\n" + SPEECHES * 5
    vocabulary = subwords(kind)
    found = count_speakers(np.array(vocabulary.encode(text), np.uint16), vocabulary)
    characters = Characters("".join(sorted(set(text))))
    assert found == count_speakers(np.array(characters.encode(text), np.uint16), characters)
    assert [speaker.name for speaker in found] == ["KING", "FOOL", "QUEEN"]


@pytest.mark.parametrize("kind", KINDS)
def test_dry_lets_speakers_lines_repeat_and_nothing_else(kind):
    vocabulary = subwords(kind)
    controls = Controls(dry_multiplier=1.0, dry_allowed_length=1)
    line = vocabulary.encode("LADY KING:\n")
    assert len(line) > 3
    history = [*line, *vocabulary.encode("What?\n\n")]
    for known in (frozenset({tuple(line)}), frozenset()):
        row = Drawer(controls, history, 0, breakers=vocabulary.line_feeds, speaker_lines=known)
        for token, following in pairwise(line):
            row.append(token)
            scores = np.zeros(len(vocabulary))
            row.adjust(scores)
            is_free = bool(known) or following in vocabulary.line_feeds
            assert bool(scores[following] < 0) != is_free


def test_the_engine_knows_the_lines_that_may_repeat():
    lines = engine("qwen2")._encoded_lines(speech_lines(["KING"]))
    assert lines == {tuple(subwords("qwen2").encode("KING:\n"))}


def test_fewer_subwords_than_characters_may_repeat():
    assert DRY_LENGTH == {"characters": 12, "subwords": 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_of_a_text_of_subwords_is_a_prompt(kind):
    vocabulary = subwords(kind)
    text = np.array(vocabulary.encode(SPEECHES), np.uint16)
    for seed in range(5):
        prompt = line_start(text, vocabulary, seed)
        assert prompt in SPEECHES
        assert SPEECHES[SPEECHES.index(prompt) - 1] == "\n"
