"""A vocabulary of characters as a tokenizer.json: the same ids for every text."""

import json

import pytest
from tokenizers import Tokenizer

from chatgot.data.vocabulary import END_OF_TEXT, Characters
from chatgot.exchange.character_tokenizer import character_tokenizer_json, characters_of

TEXTS = [
    "",
    "ROMEO:\nO Romeo — “café señor” 漢字 don’t, 🐉! What  light?\n\nJULIET:\n",
    "a\r\nb\rc\td\n\n\n   e \n",
    "\ufeff",
    "\ufeffa\ufeff",
    "\u0085\u2028\u2029\x0b\x0c\x1c\x00",
    "e\u0301 é",
    "👩\u200d👩\u200d👧",
    "\"'\\{}<>&",
    "\n",
    " ",
]
WITH_END = [
    END_OF_TEXT,
    f"{END_OF_TEXT}\n",
    f"\n{END_OF_TEXT}",
    f"a\n{END_OF_TEXT}\nb\n{END_OF_TEXT}",
    f"{END_OF_TEXT}\n{END_OF_TEXT}\n\n{END_OF_TEXT}",
    f"a {END_OF_TEXT}",
    f"{END_OF_TEXT} b\n{END_OF_TEXT}c",
    f"{END_OF_TEXT}{END_OF_TEXT}",
    f"{END_OF_TEXT}\r\n{END_OF_TEXT}\u2028",
]
CHARACTERS = "".join(sorted(set("".join(TEXTS + WITH_END + ["ABCDEFabcdef?"]))))
VOCABULARY = Characters(CHARACTERS)


def loaded(vocabulary: Characters) -> Tokenizer:
    """Return the tokenizer as transformers sets it up, with split_special_tokens."""
    tokenizer = Tokenizer.from_str(character_tokenizer_json(vocabulary))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize("text", TEXTS + WITH_END)
def test_every_text_has_our_ids_and_comes_back(text):
    tokenizer = loaded(VOCABULARY)
    ids = tokenizer.encode(text).ids
    assert ids == VOCABULARY.encode(text)
    assert tokenizer.decode(ids) == VOCABULARY.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_tokenizer_that_finds_special_tokens_anywhere_differs_only_there():
    tokenizer = Tokenizer.from_str(character_tokenizer_json(VOCABULARY))
    for text in [*TEXTS, *WITH_END[:5]]:
        assert tokenizer.encode(text).ids == VOCABULARY.encode(text)
    assert tokenizer.encode(f"a {END_OF_TEXT}").ids != VOCABULARY.encode(f"a {END_OF_TEXT}")


def test_ids_and_tokens_are_those_of_the_vocabulary():
    tokenizer = loaded(VOCABULARY)
    assert tokenizer.get_vocab_size() == len(VOCABULARY)
    assert [tokenizer.id_to_token(i) for i in range(len(VOCABULARY))] == VOCABULARY.tokens


@pytest.mark.parametrize("characters", ["?ab", "_ab", "ab", "*ab?", "\nxy"])
def test_unknown_characters_become_what_they_become_here(characters):
    vocabulary = Characters(characters)
    text = "a~ü🐉b"
    known, _ = vocabulary.replace_unknown(text)
    assert loaded(vocabulary).encode(text).ids == vocabulary.encode(known)


def test_a_vocabulary_comes_back_from_its_own_tokenizer_json():
    assert characters_of(character_tokenizer_json(VOCABULARY)) == VOCABULARY


def other_kinds() -> dict[str, str]:
    content = json.loads(character_tokenizer_json(Characters("ab?")))
    merged = json.loads(json.dumps(content))
    merged["model"]["merges"] = [["a", "b"]]
    shifted = json.loads(json.dumps(content))
    shifted["model"]["vocab"] = {token: i + 1 for token, i in content["model"]["vocab"].items()}
    long = json.loads(json.dumps(content))
    long["model"]["vocab"]["ab"] = 4
    odd = json.loads(json.dumps(content))
    odd["model"]["vocab"]["a"] = "1"
    return {
        "merges": json.dumps(merged),
        "other ids": json.dumps(shifted),
        "a longer token": json.dumps(long),
        "an id that is no number": json.dumps(odd),
        "no JSON": "{",
        "a list": "[]",
        "another model": '{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}',
        "no model": "{}",
        "nested": "[" * 100_000,
    }


@pytest.mark.parametrize("kind", other_kinds())
def test_another_tokenizer_json_is_no_vocabulary_of_characters(kind):
    assert characters_of(other_kinds()[kind]) is None
