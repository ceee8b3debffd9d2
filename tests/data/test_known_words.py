"""Looking words up gives the ids that `tokenizers` gives, whatever is in the text."""

import random

import numpy as np
import pytest
from tiny_tokenizers import subwords

from chatgot.data import subwords as subwords_module
from chatgot.data.bpe import train_subwords
from chatgot.data.known_words import KnownWords, odd_characters, regexes
from chatgot.data.subwords import PROBE, Subwords

NEW = "\U0001faea"  # of Unicode 16, a picture
ODD = ("\ud7ff", "\u0378", "\u200b", "\u1c8a", "\U00010330", "\U0001f102")


def words_of(vocabulary: Subwords, text: str) -> list[str]:
    """Return the words of a text as `tokenizers` cuts it."""
    found = vocabulary._encodes.pre_tokenizer.pre_tokenize_str(text)
    return [text[begin:end] for _, (begin, end) in found]


@pytest.fixture(scope="module")
def vocabulary() -> Subwords:
    return train_subwords([PROBE * 4], 400)


def test_every_plain_character_is_judged_as_tokenizers_judges_it(vocabulary):
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    odd = set(odd_characters(every))
    plain = [character for place, character in enumerate(every) if place not in odd]
    assert len(plain) > 60_000
    assert {"z", "é", "世", "안", "ش", "\u00a0", "½", "🎭", "\ue000"} <= set(plain)
    for start in range(0, len(plain), 1000):
        text = "".join(f"a{c}{c}1 {c}\n{c}'{c} " for c in plain[start : start + 1000])
        assert regexes()[0].findall(text) == words_of(vocabulary, text)


@pytest.mark.parametrize("character", [*ODD, NEW])
def test_what_two_versions_of_unicode_may_judge_differently_is_odd(character):
    assert odd_characters(f"ab{character}") == [2]


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_those_of_tokenizers_on_any_text(vocabulary, monkeypatch, seed):
    monkeypatch.setattr(subwords_module, "LEAST_FAST", 0)
    chance = random.Random(seed)
    parts = [*"aB1 \t\n\r'.-:/é世🎭½\u0301\u00a0", "KING:\n", " the", "'ll", "I'VE", "  ", "\n\n"]
    parts += [*ODD, NEW, "\u180e", "\x1c", "\x85", *PROBE.split(" ")]
    text = "".join(chance.choices(parts, k=4000))
    ids = vocabulary.encode_piece(text)
    assert ids == vocabulary._encode_slowly(text)
    assert vocabulary.decode(ids) == text


def test_most_of_a_text_with_odd_characters_is_looked_up(vocabulary, monkeypatch):
    monkeypatch.setattr(subwords_module, "LEAST_FAST", 0)
    slowly: list[str] = []
    real = Subwords._encode_slowly
    monkeypatch.setattr(
        Subwords, "_encode_slowly", lambda self, text: slowly.append(text) or real(self, text)
    )
    vocabulary.encode_piece(
        "KING:\nGood morrow.\n" * 50 + f"I\nam {NEW} so.\n" + "FOOL:\nNo.\n" * 50
    )
    assert slowly == [f"am {NEW} so.\n"]


def test_a_lone_surrogate_is_no_text_for_the_fast_way_either(vocabulary, monkeypatch):
    monkeypatch.setattr(subwords_module, "LEAST_FAST", 0)
    with pytest.raises(KeyError, match="ud800"):
        vocabulary.encode_piece("abc\n" * 9 + "\ud800")


def test_a_word_is_encoded_once_and_a_very_long_one_is_not_kept():
    asked: list[str] = []
    words = KnownWords(lambda word: asked.append(word) or [len(word)])
    long = "x" * 1000
    assert words.encode(f"be be be {long} {long}") == [2, 3, 3, 1001, 1001]
    assert asked == ["be", " be", f" {long}", f" {long}"]


@pytest.mark.parametrize("kind", ["gpt2", "smollm2", "qwen2", "llama3"])
def test_other_tokenizers_are_left_to_the_package(kind):
    """That of qwen2 composes accents here."""
    assert subwords(kind)._words is None


def test_a_long_text_takes_the_fast_way(vocabulary):
    text = PROBE.replace("\ud800", "") * 40
    assert vocabulary._words is not None
    before = len(vocabulary._words._ids_of)
    ids = vocabulary.encode(text)
    assert len(vocabulary._words._ids_of) > before
    assert np.array_equal(ids, [i for _ in range(40) for i in vocabulary._encode_slowly(PROBE)])
