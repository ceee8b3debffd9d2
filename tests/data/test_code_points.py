"""Characters become ids in arrays as narrow as the text allows: the ids are the same in all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatgot.data import code_points as module
from chatgot.data.code_points import CharacterIds, CharacterSet, code_points
from chatgot.data.odd_characters import ODD, has_odd_characters
from chatgot.data.vocabulary import END_OF_TEXT, Characters

NO_BREAK = "".join(map(chr, [*range(0x0D), *range(0x0E, 0x100)]))  # all of one byte but \r
LINE = f"\n{END_OF_TEXT}\n"


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        (f"plain{LINE}text", {1}),
        (f"né{LINE}ÿ", {1}),
        (f"Привет{LINE}né", {1, 2}),
        (f"{LINE}🎭 né", {1, 4}),
        (NO_BREAK, {1}),
        (f"{NO_BREAK}{LINE}Привет 🎭", {1, 2, 4}),
    ],
)
def test_ids_are_those_of_the_vocabulary_in_all_widths(monkeypatch, text, widths):
    """`NO_BREAK` has all ids that a byte can write: 255 characters and the token are 256."""
    monkeypatch.setattr(module, "BLOCK", 4)
    chunks = list(code_points([text[:7], text[7:]]))
    assert {block.itemsize for blocks in chunks for block in blocks} == widths
    characters = CharacterSet()
    for blocks in chunks:
        characters.add(blocks)
    vocabulary = Characters("".join(map(chr, characters.found())))
    table = CharacterIds(characters.found())
    ids = np.concatenate([table.ids(blocks) for blocks in chunks])
    assert set(vocabulary.characters) == set(text.replace(END_OF_TEXT, ""))
    assert ids.tolist() == vocabulary.encode(text)


@given(st.text(st.sampled_from("a\n\0\x0b\x0c\x7f\x85\xa0é\u0400\ufdd0\ufffd🎭"), max_size=6))
def test_the_fast_look_finds_the_odd_characters_of_the_regex(text):
    assert has_odd_characters(text) == bool(ODD.search(text))
