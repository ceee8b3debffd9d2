"""What a model has copied from its training text is found, to the character."""

import random

import numpy as np
import pytest

from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.sampling import suffix_index
from chatgot.sampling.originality import (
    LEAST_COPY,
    copies_in,
    longest_matches,
    originality_of,
    originality_of_held_out,
)
from chatgot.sampling.suffix_index import SuffixIndex, index_of

LETTERS = "abcdefghijklmnopqrstuvwxyz äöé—漢🐉\n"


def random_text(length: int, seed: int, letters: str = LETTERS) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


def tokens_of(text: str, n_train: int, cache=None) -> Tokens:
    """Return the tokens of a text as characters."""
    vocabulary = Characters("".join(sorted(set(text.replace(END_OF_TEXT, "")))))
    ids = np.array(vocabulary.encode(text), dtype=np.uint16)
    return Tokens(ids, vocabulary, "", "utf-8", cache, n_train)


def slow_lengths(text: str, training: str) -> list[int]:
    """Return what `longest_matches` should, by trying each length."""
    lengths = []
    for place in range(len(text)):
        length = 0
        while place + length < len(text) and text[place : place + length + 1] in training:
            length += 1
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("seed", range(4))
def test_longest_matches_are_those_of_a_plain_search(seed):
    training = random_text(3000, seed, "ab cé—🐉")
    text = random_text(200, seed + 10, "ab cé—🐉") + training[500:560] + "x"
    index = SuffixIndex.of_text(training.encode())
    assert longest_matches(text, index) == slow_lengths(text, training)


@pytest.mark.parametrize("letters", ["ab", "a", "é漢", "a\ud800\udfff", "\0a"])
def test_long_matches_in_odd_texts_are_those_of_a_plain_search(letters):
    for seed in range(8):
        training = random_text(300, seed, letters)
        text = random_text(20, seed + 10, letters) + 2 * training[50 : 150 + seed] + "b"
        index = SuffixIndex.of_text(training.encode("utf-8", "surrogatepass"))
        assert longest_matches(text, index) == slow_lengths(text, training)


@pytest.mark.parametrize("letters", [LETTERS, "a"])
def test_the_search_time_grows_with_the_text_not_with_its_copies(letters, monkeypatch):
    """A copy as long as the text is found by few pieces, and by short ones."""
    training = random_text(20_000, 1, letters)
    index = SuffixIndex.of_text(training.encode())
    looked_up = []
    find = index.find
    monkeypatch.setattr(index, "find", lambda piece: looked_up.append(len(piece)) or find(piece))
    assert longest_matches(training[5000:15_000], index)[0] == 10_000
    assert sum(looked_up) < 100


@pytest.mark.parametrize("length", [LEAST_COPY, 31, 57, 400])
@pytest.mark.parametrize("place", [0, 13, 200])
def test_a_planted_copy_is_found_at_its_exact_length(length, place):
    training = random_text(20_000, 1)
    before = random_text(place, 2).replace(training[699], "0")
    text = f"{before}0{training[700 : 700 + length]}0{random_text(50, 3)}"
    measured = originality_of([text], SuffixIndex.of_text(training.encode()))
    assert measured.longest == length
    assert measured.copies == (((place + 1, place + 1 + length),),)
    assert measured.share == length / len(text)


def test_a_run_one_character_too_short_is_no_copy():
    training = random_text(20_000, 1)
    text = f"0{training[700 : 700 + LEAST_COPY - 1]}0"
    measured = originality_of([text], SuffixIndex.of_text(training.encode()))
    assert measured.longest == LEAST_COPY - 1
    assert measured.share == 0
    assert measured.copies == ((),)


def test_copies_that_overlap_or_touch_are_one_stretch():
    lengths = [0] * 100
    lengths[10] = 30
    lengths[20] = 40
    lengths[60] = 31
    assert copies_in(lengths) == ((10, 91),)
    lengths[60] = 29
    assert copies_in(lengths) == ((10, 60),)


def test_no_copy_reaches_over_the_end_of_a_document():
    text = "the king is here today at last\n" * 2 + f"{END_OF_TEXT}\nnobody saw the queen come in\n"
    tokens = tokens_of(text + "held out", n_train=text.count("\n") * 31)
    index = index_of(tokens, len(tokens.ids) - 8)
    across = "is here today at last\n\nnobody saw the queen come in\n"
    assert originality_of([across], index).longest == len("\nnobody saw the queen come in\n")
    assert b"\0" in index.text


def test_held_out_text_is_measured_in_windows_as_long_as_a_sample():
    training = random_text(4000, 5)
    held_out = training[100:1100] + random_text(3000, 6)
    tokens = tokens_of(training + held_out, len(training))
    index = index_of(tokens, len(training))
    measured = originality_of_held_out(tokens, len(training), 100, index)
    assert measured.characters == 4000
    assert measured.longest == 100  # no run is longer than a window
    assert measured.share == pytest.approx(0.25, abs=0.01)


def test_the_index_is_remembered_and_made_again_when_damaged(tmp_path, monkeypatch):
    training = random_text(4000, 7)
    tokens = tokens_of(training + "held out", len(training), tmp_path / "abc")
    first = index_of(tokens, len(training))
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(SuffixIndex, "of_text", None)  # it is not called
        again = index_of(tokens, len(training))
    assert np.array_equal(again.places, first.places)
    assert again.find(training[50:90].encode()) is not None
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert np.array_equal(index_of(tokens, len(training)).places, first.places)


def test_an_index_of_another_text_is_not_used(tmp_path):
    text = random_text(4000, 8)
    other = random_text(4000, 9)
    length = 3000
    index_of(tokens_of(text, length, tmp_path / "abc"), length)
    index = index_of(tokens_of(other, length, tmp_path / "abc"), length)
    assert index.find(other[50:90].encode()) is not None


def test_of_a_text_too_long_even_blocks_are_indexed(monkeypatch):
    monkeypatch.setattr(suffix_index, "BLOCK_TOKENS", 100)
    text = random_text(10_000, 10, "abcdefgh")
    index = index_of(tokens_of(text, 10_000), 10_000, most_bytes=1000)
    assert len(index.text) <= 1000
    assert index.share == pytest.approx(0.1, abs=0.01)
    assert index.find(text[:90].encode()) is not None
    assert index.find(text[-100:-15].encode()) is not None


def test_nothing_is_copied_from_an_empty_text():
    assert originality_of(["hello"], SuffixIndex.of_text(b"")).longest == 0
    assert originality_of([], SuffixIndex.of_text(b"abc")).share == 0
