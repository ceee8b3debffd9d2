"""Near-duplicates are found by what documents say, and nothing else is."""

import random

import numpy as np
import pytest

from chatgot.data.near_duplicates import (
    BLOCK,
    SHINGLE,
    NearDuplicates,
    content_hash,
    signature,
    similarity,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words_of(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(count)]


def with_changes(words: list[str], every: int) -> list[str]:
    """Return the words with every n-th one replaced."""
    return [f"new{place}" if place % every == 0 else word for place, word in enumerate(words)]


def jaccard(one: list[str], other: list[str]) -> float:
    sets = [
        {tuple(words[place : place + SHINGLE]) for place in range(len(words) - SHINGLE + 1)}
        for words in (one, other)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def found(one: list[str], other: list[str]) -> bool:
    documents = NearDuplicates[str]()
    assert documents.add("one", signature(" ".join(one))) is None
    return documents.find(signature(" ".join(other))) == "one"


@pytest.mark.parametrize(("every", "least", "most"), [(33, 0.8, 1.0), (12, 0.5, 0.65)])
def test_documents_are_near_duplicates_from_a_similarity_of_0_8(every, least, most):
    texts = [words_of(seed, 600) for seed in range(40)]
    changed = [with_changes(words, every) for words in texts]
    similarities = [jaccard(*pair) for pair in zip(texts, changed, strict=True)]
    assert all(least <= value <= most for value in similarities)
    hits = sum(found(*pair) for pair in zip(texts, changed, strict=True))
    assert hits >= 38 if least == 0.8 else hits <= 1


@pytest.mark.parametrize("count", [30, 3000])
@pytest.mark.parametrize("every", [20, 7])
def test_similarity_is_estimated_without_bias(count, every):
    errors = []
    for seed in range(30):
        words = words_of(seed, count)
        changed = with_changes(words, every)
        estimate = similarity(signature(" ".join(words)), signature(" ".join(changed)))
        errors.append(estimate - jaccard(words, changed))
    assert abs(np.mean(errors)) < 0.02  # four standard errors of a mean of 30
    assert np.max(np.abs(errors)) < 0.13


@pytest.mark.parametrize(
    "text", ["one two", "Das Öl? Ja: 7 Liter! " * 9000, "漢字かな交じり文 🙂 " * 9000]
)
def test_signature_does_not_depend_on_where_a_text_is_cut(text):
    rng = random.Random(4)
    cuts = sorted(rng.randrange(len(text)) for _ in range(40))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert np.array_equal(signature(iter(chunks)), signature(text))
    assert content_hash(chunks) == content_hash(text)


def test_case_and_punctuation_do_not_matter_to_a_signature_but_to_a_hash():
    one = "Öl -- und Feuer, Wasser!"
    other = 'öl und\n"FEUER" wasser'
    assert np.array_equal(signature(one), signature(other))
    assert content_hash(one) != content_hash(other)


def test_text_without_spaces_has_a_word_for_each_character():
    text = "".join(chr(0x4E00 + place) for place in numbers(800))
    changed = text[:400] + "龍" + text[401:]
    assert similarity(signature(text), signature(changed)) > 0.9
    assert similarity(signature(text), signature(text[::-1])) < 0.1


def numbers(count: int) -> list[int]:
    return random.Random(2).choices(range(5000), k=count)


@pytest.mark.parametrize("text", ["", " \n--- ...", "\ud800"])
def test_document_without_words_has_no_near_duplicates(text):
    documents = NearDuplicates[int]()
    assert documents.add(1, signature(text)) is None
    assert documents.add(2, signature(text)) is None
    assert len(documents) == 0


def test_short_different_documents_are_not_near_duplicates():
    documents = NearDuplicates[str]()
    for word in words_of(5, 2000):
        assert documents.add(word, signature(word)) in {None, word}


def test_many_documents_are_all_found_again_after_the_table_grew():
    texts = [" ".join(words_of(seed, 60)) for seed in range(700)]
    documents = NearDuplicates[int]()
    for place, text in enumerate(texts):
        assert documents.add(place, signature(text)) is None
    for place, text in enumerate(texts):
        assert documents.add(-1, signature(text)) == place
    assert len(documents) == len(texts)


def test_most_similar_document_is_the_one_that_is_named():
    words = words_of(8, 900)
    documents = NearDuplicates[str]()
    documents.add("changed", signature(" ".join(with_changes(words, 40))))
    documents.add("same", signature(" ".join(words)))
    assert documents.find(signature(" ".join(words))) == "same"


def test_band_that_many_documents_share_has_one_place():
    """Else a thousand form letters would be compared with a thousand."""
    words = words_of(9, 300)
    documents = NearDuplicates[int]()
    for number in range(1000):
        documents.add(number, signature(" ".join([*words, f"letter{number}"])))
    bands = documents._signatures.view(np.uint64)
    for band, holders in enumerate(documents._table):
        keys = bands[holders[holders >= 0], band]
        assert 1 <= len(keys) == len(set(keys.tolist())) < 100


def test_a_word_across_two_blocks_changes_next_to_nothing():
    text = " ".join(words_of(1, 30_000))
    assert len(text) > 2 * BLOCK
    assert similarity(signature(text), signature(f"xyz {text}")) > 0.95
