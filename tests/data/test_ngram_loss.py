"""How hard a text is for a counted n-gram model: against a slow twin, by hand, on odd texts."""

import math
import random
import time
from collections import Counter, defaultdict

import harness
import numpy as np
import pytest

from chatgot.data import ngram_loss
from chatgot.data.ngram_loss import difficulty, ngram_bits
from chatgot.data.token_cache import load_tokens
from chatgot.data.vocabulary import Characters


def codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def probabilities(learned: str, held_out: str, order: int) -> list[float]:
    return (2.0 ** -ngram_bits(codes(learned), codes(held_out), order)).tolist()


# The slow twin


class PlainModel:
    """The formula of `ngram_bits` as it is written, with dictionaries of texts."""

    def __init__(self, learned: str, order: int) -> None:
        self.uniform = 1 / (len(set(learned)) + 1)
        grams = Counter(learned[i : i + order] for i in range(len(learned) - order + 1))
        self.counts = {order: grams}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(longer[1:] for longer in self.counts[n + 1])
        self.discount = {}
        self.after: dict[str, int] = defaultdict(int)
        self.kinds: dict[str, int] = defaultdict(int)
        for n, counted in self.counts.items():
            once = sum(count == 1 for count in counted.values())
            twice = sum(count == 2 for count in counted.values())
            estimate = once / (once + 2 * twice) if once else 0.0
            self.discount[n] = min(0.9, max(0.1, estimate))
            for gram, count in counted.items():
                self.after[gram[:-1]] += count
                self.kinds[gram[:-1]] += 1

    def probability(self, context: str, character: str) -> float:
        shorter = self.probability(context[1:], character) if context else self.uniform
        if not self.after.get(context):
            return shorter
        n = len(context) + 1
        count = self.counts[n].get(context + character, 0)
        own = max(0.0, count - self.discount[n]) / self.after[context]
        left = self.discount[n] * self.kinds[context] / self.after[context]
        return own + left * shorter


def plain_bits(learned: str, held_out: str, order: int) -> list[float]:
    model = PlainModel(learned, order)
    return [
        -math.log2(model.probability(held_out[max(0, i - order + 1) : i], character))
        for i, character in enumerate(held_out)
    ]


@pytest.mark.parametrize("order", [1, 2, 3, 6])
@pytest.mark.parametrize("letters", ["ab", "abcd ", "aé漢🐉\n", "".join(map(chr, range(97, 123)))])
def test_fast_and_slow_model_agree_on_random_texts(order, letters):
    rng = random.Random(order)
    learned = "".join(rng.choices(letters, k=400))
    held_out = "".join(rng.choices(letters + "?", k=100))
    fast = ngram_bits(codes(learned), codes(held_out), order)
    np.testing.assert_allclose(fast, plain_bits(learned, held_out, order), rtol=1e-9)


def test_fast_and_slow_model_agree_on_a_dialogue():
    learned = harness.make_text(3000)
    held_out = harness.make_text(500, seed=1)
    fast = ngram_bits(codes(learned), codes(held_out))
    np.testing.assert_allclose(fast, plain_bits(learned, held_out, ngram_loss.ORDER), rtol=1e-9)


# By hand


def test_single_characters_cost_what_a_hand_computes():
    """A and b come twice, none once, so D is at its least, 0.1; each of 3 has 1/3 below."""
    expected = 1.9 / 4 + 0.1 * 2 / 4 / 3
    unknown = 0.1 * 2 / 4 / 3
    assert probabilities("abab", "abx", 1) == pytest.approx([expected, expected, unknown])


def test_pairs_cost_what_a_hand_computes():
    """The pairs aa and ab come once each, so D is at its most, 0.9, for pairs and for singles.

    Each of a and b has one character before it: 0.1 / 2 + 0.9 / 3. After a: 0.1 / 2 + 0.9 x that.
    Nothing ever came after b: there, what single characters say is left.
    """
    single = 0.05 + 0.3
    assert probabilities("aab", "ab", 2) == pytest.approx([single, 0.05 + 0.9 * single])
    assert probabilities("aab", "bb", 2) == pytest.approx([single, single])


@pytest.mark.parametrize("context", ["", "t", "the k", "zzz", "king queen"])
def test_all_next_characters_together_have_probability_one(context):
    learned = harness.make_text(2000)
    alphabet = [*sorted(set(learned)), "☃"]  # the last one is any unknown character
    last = [probabilities(learned, context + character, 6)[-1] for character in alphabet]
    assert sum(last) == pytest.approx(1)


# What it says of texts


def measured(text: str, tmp_path, test_split: float = 0.1) -> ngram_loss.Difficulty:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    tokens = load_tokens(path, tmp_path / "cache")
    n_train = tokens.training_length(test_split)
    return difficulty(tokens.ids, n_train, tokens.vocabulary)


def test_random_letters_cost_their_entropy_and_a_rhyme_nearly_nothing(tmp_path):
    rng = random.Random(0)
    noise = "".join(rng.choices("abcd", k=50_000))
    rhyme = "the king is in the counting house\n" * 300
    assert measured(noise, tmp_path).bits_per_byte == pytest.approx(2, abs=0.1)
    assert measured(rhyme, tmp_path).bits_per_byte < 0.05
    assert 0.3 < measured(harness.make_text(50_000), tmp_path).bits_per_byte < 1.5


def test_bits_are_for_bytes_where_characters_have_several(tmp_path):
    rng = random.Random(0)
    found = measured("".join(rng.choices("абвг", k=50_000)), tmp_path)
    assert found.bits_per_byte == pytest.approx(1, abs=0.05)
    assert found.characters_per_byte == 0.5


def test_an_end_of_text_token_is_predicted_but_has_no_byte(tmp_path):
    document = "one two three four five six\n<|endoftext|>\n"  # 28 characters, the token, 1 more
    found = measured(document * 200, tmp_path, test_split=0.5)
    assert found.characters_per_byte == pytest.approx(30 / 29, rel=1e-9)


@pytest.mark.parametrize("text", ["a" * 1000, "ab" * 500, "".join(map(chr, range(33, 1033)))])
def test_a_text_of_no_use_still_has_finite_bits(tmp_path, text):
    assert 0 <= measured(text, tmp_path).bits_per_byte < 20


def test_thousands_of_different_characters_fit_into_the_keys(tmp_path):
    rng = random.Random(0)
    text = "".join(chr(0x4E00 + rng.randrange(20_000)) for _ in range(30_000))
    assert 3 < measured(text, tmp_path).bits_per_byte < 6


def test_parts_of_one_character_or_less_do_not_crash():
    vocabulary = Characters("ab")
    ids = np.array([1, 2], dtype=np.uint16)
    assert math.isfinite(difficulty(ids, 1, vocabulary).bits_per_byte)
    for n_train in (0, 2):
        with pytest.raises(ValueError, match="no character"):
            difficulty(ids, n_train, vocabulary)


def test_a_text_of_two_gigabytes_is_not_read_whole(monkeypatch):
    """One id in memory stands for all: copying all of them would take 4 GB."""
    monkeypatch.setattr(ngram_loss, "MOST_LEARNED", 200_000)
    ids = np.broadcast_to(np.uint16(1), (2_000_000_000,))
    began = time.process_time()
    found = difficulty(ids, 1_800_000_000, Characters("ab"))
    assert found.learned == 200_000
    assert found.bits_per_byte < 0.01
    assert time.process_time() - began < 20


def test_pieces_of_a_long_text_are_spread_over_it(monkeypatch):
    """Half of the text is noise, the other half one letter: both are among the pieces."""
    monkeypatch.setattr(ngram_loss, "MOST_LEARNED", 20_000)
    monkeypatch.setattr(ngram_loss, "MOST_HELD_OUT", 2_000)
    rng = np.random.default_rng(0)
    half = rng.integers(1, 5, 100_000).astype(np.uint16)
    ids = np.concatenate([half, np.full(100_000, 9, dtype=np.uint16)])
    found = difficulty(np.tile(ids, 2), 200_000, Characters("abcdefghi"))
    assert found.learned == 20_000
    assert found.bits_per_byte == pytest.approx(1, abs=0.1)
