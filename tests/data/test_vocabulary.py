"""Text becomes ids, and ids become the same text; unknown characters are replaced visibly."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatgot.data.vocabulary import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    Characters,
    DocumentSplitter,
    Vocabulary,
    split_documents,
)

TEXT = "KING:\nGood morrow, my lord! Grüße, 世界 🎭.\n\nFOOL:\nNo.\n"


def test_encode_and_decode_are_each_others_inverse():
    vocabulary = Characters("".join(sorted(set(TEXT))))
    assert vocabulary.decode(vocabulary.encode(TEXT)) == TEXT
    characters = list(range(1, len(vocabulary)))
    assert vocabulary.encode(vocabulary.decode(characters)) == characters
    with pytest.raises(KeyError):
        vocabulary.encode("§")


@pytest.mark.parametrize("characters", ["?ab", "ab", " ab", "\n"])
def test_unknown_characters_are_each_replaced_by_one_and_named(characters):
    vocabulary = Characters(characters)
    prompt = characters + "🎭é🎭" + characters
    text, unknown = vocabulary.replace_unknown(prompt)
    vocabulary.encode(text)
    assert unknown == "é🎭"
    assert len(text) == len(prompt)
    assert text.startswith(characters)
    assert text.endswith(characters)
    assert vocabulary.replace_unknown(characters) == (characters, "")


# The end-of-text token


def ids_line_by_line(vocabulary: Vocabulary, text: str) -> list[int]:
    """Encode by the definition: a line that is END_OF_TEXT is one token, else characters."""
    ids: list[int] = []
    for line in re.split("(\n)", text):
        ids += [0] if line == END_OF_TEXT else [1 + vocabulary.characters.index(c) for c in line]
    return ids


PIECES = [
    END_OF_TEXT,
    END_OF_TEXT[:6],
    END_OF_TEXT[6:],
    "\n",
    "\n\n",
    "<",
    ">",
    "a",
    "\u2028",
    "\r",
]
texts_with_the_token = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def test_the_token_has_id_0_and_characters_begin_at_id_1():
    vocabulary = Characters("abc")
    assert vocabulary.tokens == ["<|endoftext|>", "a", "b", "c"]
    assert (END_OF_TEXT_ID, len(vocabulary)) == (0, 4)
    assert vocabulary.encode("cab") == [3, 1, 2]


def test_a_vocabulary_is_rebuilt_from_its_tokens():
    vocabulary = Characters("".join(sorted(set(TEXT))))
    assert Characters.from_tokens(vocabulary.tokens) == vocabulary


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        ["a", "b"],
        ["a", END_OF_TEXT],
        [END_OF_TEXT, END_OF_TEXT],
        [END_OF_TEXT, "a", "b", "a"],
        [END_OF_TEXT, "ab"],
        [END_OF_TEXT, "ab", ""],
        [END_OF_TEXT, 1],
        [["<|endoftext|>"], "a"],
        "abc",
        END_OF_TEXT,
        (END_OF_TEXT, "a"),
    ],
)
def test_anything_but_a_list_of_tokens_is_refused(tokens):
    with pytest.raises(ValueError, match="vocabulary"):
        Characters.from_tokens(tokens)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|endoftext|>", [0]),
        ("a\n<|endoftext|>\na", [2, 1, 0, 1, 2]),
        ("<|endoftext|>\n<|endoftext|>\n", [0, 1, 0, 1]),
        ("\n<|endoftext|>", [1, 0]),
    ],
)
def test_a_line_with_only_the_token_is_one_id(text, ids):
    assert Characters("\na").encode(text) == ids


@pytest.mark.parametrize("before", ["a", " ", "\u2028", "\r", "\x0b", "<", "\n<|endoftext|>"])
def test_the_token_inside_a_longer_line_is_encoded_as_characters(before):
    vocabulary = Characters("".join(sorted({*before, *END_OF_TEXT})))
    for text in (before + END_OF_TEXT, END_OF_TEXT + before.replace("\n", "")):
        assert END_OF_TEXT_ID not in vocabulary.encode(text)
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_the_token_is_never_decoded_into_text():
    vocabulary = Characters("\na")
    assert vocabulary.decode([2, 1, 0, 1, 2]) == "a\n\na"
    assert vocabulary.decode([0]) == ""


def test_replacing_unknown_characters_keeps_the_line_of_the_token():
    text = "é\n<|endoftext|>\n<|endoftext|>é\n<|endoftext|>"
    replaced, unknown = Characters("\n?").replace_unknown(text)
    assert replaced == "?\n<|endoftext|>\n??????????????\n<|endoftext|>"
    assert unknown == "".join(sorted({*END_OF_TEXT, "é"}))


@given(texts_with_the_token)
def test_encoding_a_text_equals_encoding_it_line_by_line(text):
    vocabulary = Characters("".join(sorted({*"".join(PIECES)})))
    assert vocabulary.encode(text) == ids_line_by_line(vocabulary, text)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 15))
@example(["a", END_OF_TEXT], 1)
@example(["\n", END_OF_TEXT, "\n"], 1)
def test_documents_do_not_depend_on_the_chunk_borders(pieces, size):
    text = "".join(pieces)
    expected = split_documents(text)
    assert split_in_chunks(pieces) == expected
    assert split_in_chunks([text[i : i + size] for i in range(0, len(text), size)]) == expected


def split_in_chunks(chunks: list[str]) -> list[str]:
    splitter = DocumentSplitter()
    documents = [""]
    for first, *further in [*map(splitter.feed, chunks), splitter.end()]:
        documents[-1] += first
        documents += further
    return documents
