"""From messages to text and back, and who speaks next."""

import math

import parts
import pytest
import torch

from chatgot.data.vocabulary import Characters
from chatgot.model.gpt import build_model
from chatgot.sampling.engine import Engine
from chatgot.sampling.speeches import (
    MOST_RANKED,
    Speech,
    choose_speaker,
    prompt_text,
    speech_lines,
    tidy,
)

VOCABULARY = Characters("\n ?:ABCDEFGabcdefghijklmnop")


@pytest.fixture(scope="module")
def engine() -> Engine:
    keys = {"max_seq_length": 64, "init_range": 0.5}
    model = build_model(parts.config(model=keys).model, len(VOCABULARY), parts.CPU, 4)
    return Engine(model, VOCABULARY)


def test_a_message_is_a_speakers_line_a_text_and_a_blank_line():
    speeches = [Speech("ANN", "Who is there?\nSpeak."), Speech("BOB", "I.")]
    expected = "ANN:\nWho is there?\nSpeak.\n\nBOB:\nI.\n\nANN:\n"
    assert prompt_text(speeches, "ANN") == expected


def test_a_system_text_comes_first_as_it_is():
    speeches = [Speech("", "ACT I\n\nScene 2. A room."), Speech("ANN", "Here.")]
    assert prompt_text(speeches, "BOB") == "ACT I\n\nScene 2. A room.\n\nANN:\nHere.\n\nBOB:\n"


def test_without_a_character_the_text_ends_before_a_speakers_line():
    assert prompt_text([Speech("ANN", "Here.")], "") == "ANN:\nHere.\n\n"
    assert prompt_text([], "BOB") == "BOB:\n"


def test_a_text_keeps_its_blank_and_speaker_like_lines_but_not_its_end():
    text = "  One.\n\nBOB:\nTwo."
    assert prompt_text([Speech("ANN", f"{text} \n\n\n")], "") == f"ANN:\n{text}\n\n"


@pytest.mark.parametrize("text", ["Yes.", "Yes.\n", "Yes.\n\n", "Yes. \n \n"])
def test_an_answer_is_kept_without_blank_lines_at_its_end(text):
    assert tidy(text) == "Yes."


def test_a_speakers_line_is_the_name_and_a_colon():
    assert speech_lines(["ANN", "KING B"]) == {"ANN:", "KING B:"}


def test_who_speaks_next_has_the_probability_of_the_speakers_line(engine):
    """The log-probabilities are summed here by hand, from one pass over prompt and line."""
    names = ["A", "BAD", "C"]
    speeches = [Speech("A", "am i"), Speech("BAD", "no")]
    chances = choose_speaker(engine, VOCABULARY, speeches, names)
    scores = {}
    prompt = VOCABULARY.encode("A:\nam i\n\nBAD:\nno\n\n")
    for name in names:
        line = VOCABULARY.encode(f"{name}:\n")
        with torch.no_grad():
            logits, _ = engine.model(torch.tensor([prompt + line]))
        logprobs = logits[0].log_softmax(-1)
        scores[name] = math.exp(
            sum(float(logprobs[len(prompt) + i - 1, id_]) for i, id_ in enumerate(line))
        )
    assert {name for name, _ in chances} == set(names)
    for name, chance in chances:
        assert chance == pytest.approx(scores[name] / sum(scores.values()), rel=1e-3)
    assert [chance for _, chance in chances] == sorted(dict(chances).values(), reverse=True)
    assert sum(chance for _, chance in chances) == pytest.approx(1)


def test_of_many_names_the_first_and_those_who_have_spoken_are_ranked(engine):
    names = [f"A{'abcdefgh'[i // 8]}{'abcdefgh'[i % 8]}" for i in range(MOST_RANKED + 10)]
    last = names[-1]
    chances = choose_speaker(engine, VOCABULARY, [Speech(last, "am i")], [names[0], *names])
    assert {name for name, _ in chances} == {*names[:MOST_RANKED], last}
    assert len(chances) == MOST_RANKED + 1


def test_the_choice_of_a_speaker_takes_any_text(engine):
    """Without speeches, without names, with characters outside the vocabulary."""
    assert choose_speaker(engine, VOCABULARY, [Speech("A", "no")], []) == []
    assert choose_speaker(engine, VOCABULARY, [], ["A"]) == [("A", 1.0)]
    chances = choose_speaker(engine, VOCABULARY, [Speech("Ö", "ß")], ["Ä", "A" * 40])
    assert sum(chance for _, chance in chances) == pytest.approx(1)
