"""The subwords of an imported tokenizer.json: what they read and write, and what is refused."""

import json
import unicodedata
from dataclasses import replace
from itertools import pairwise

import numpy as np
import parts
import pytest
import tiny_tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import SPECIALS, SPEECHES, changed, subwords, tokenizer_json
from tokenizers import Tokenizer

import chatgot.data.subwords
import chatgot.data.tokenizer_json
from chatgot.data.subwords import PROBE, Subwords
from chatgot.data.token_cache import load_tokens
from chatgot.data.tokenizer_json import byte_letters, read_tokenizer_json
from chatgot.data.vocabulary import END_OF_TEXT, Vocabulary, split_documents

KINDS = sorted(tiny_tokenizers.WORDS)
# where words, lines and documents can begin and end
FRAGMENTS = [
    *"\n\n\n \t\r\v\u00a0\u0085\u2028\x1c\u180e/.,:!'-aZé漢1٣½²Ⅳ_\0",
    *[
        "\n\n",
        "  ",
        "\r\n",
        "'ll",
        "KING",
        "🐉",
        f"\n{END_OF_TEXT}\n",
        END_OF_TEXT,
        "</s>",
        "\u0301",
    ],
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def as_a_whole(kind: str, text: str) -> list[int]:
    """Return the ids that the package gives a text at once, without any special token."""
    content = json.loads(tokenizer_json(kind))
    tokenizer = Tokenizer.from_str(json.dumps(content | {"added_tokens": []}))
    return tokenizer.encode(text, add_special_tokens=False).ids


# --------------------------------------------------------------------------------------------------
# Text to ids and back


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_ids_that_its_own_tokenizer_gives(kind):
    text = PROBE.replace(END_OF_TEXT, "") + SPEECHES
    vocabulary = subwords(kind)
    assert vocabulary.encode(text) == as_a_whole(kind, text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@given(text=any_text | texts)
@settings(max_examples=40)
def test_any_text_comes_back(kind, text):
    vocabulary: Vocabulary = subwords(kind)
    expected = unicodedata.normalize("NFC", text) if kind == "qwen2" else text
    assert vocabulary.decode(vocabulary.encode(text)) == "".join(split_documents(expected))


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@example(text="a\n\nb")
@example(text=".\n/x")
@example(text="x\n\n1")
@example(text="a \n \n\nb")
@settings(max_examples=150)
def test_a_cut_changes_no_id(kind, text):
    vocabulary = subwords(kind)
    cut = vocabulary.last_cut(text)
    both = vocabulary.encode_piece(text[:cut]) + vocabulary.encode_piece(text[cut:])
    assert both == vocabulary.encode_piece(text)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_speakers_line_is_a_piece_of_its_own(kind):
    """So a prompt has the ids that it has in the middle of a text."""
    vocabulary = subwords(kind)
    text = "No.\n\nKING:\n"
    cut = vocabulary.last_cut(text)
    assert text[cut:] in ("KING:\n", "\nKING:\n")
    followed = vocabulary.encode(text + "Good")
    assert followed[: len(vocabulary.encode(text))] == vocabulary.encode(text)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("longest", [1, 3, 1 << 16])
@given(text=texts, ends=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=100)
def test_ids_do_not_depend_on_where_chunks_end(kind, longest, text, ends):
    vocabulary = subwords(kind)
    places = [0, *sorted(min(end, len(text)) for end in ends), len(text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatgot.data.subwords, "LONGEST_PIECE", longest)
        encoder = vocabulary.encoder()
        ids = []
        for start, end in pairwise(places):
            ids += encoder.feed(text[start:end])
        ids += encoder.end()
        assert ids == vocabulary.encode(text)


def test_a_text_without_line_ends_is_not_held_back(monkeypatch):
    monkeypatch.setattr(chatgot.data.subwords, "LONGEST_PIECE", 100)
    encoder = subwords().encoder()
    text = "word " * 1000
    ids = encoder.feed(text)
    assert len(subwords().decode(ids)) >= len(text) - 100
    assert subwords().decode(ids + encoder.end()) == text


# --------------------------------------------------------------------------------------------------
# Special tokens


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_line_that_is_the_end_of_text_is_that_token(kind):
    vocabulary = subwords(kind)
    ids = vocabulary.encode(f"One.\n{END_OF_TEXT}\nTwo.")
    assert ids.count(vocabulary.end_of_text_id) == 1
    assert vocabulary.decode(ids) == "One.\n\nTwo."
    assert vocabulary.tokens[vocabulary.end_of_text_id] == END_OF_TEXT


@pytest.mark.parametrize("special", SPECIALS)
def test_a_text_that_looks_like_a_special_token_is_a_text(special):
    vocabulary = subwords()
    text = f"a {special} b{special}"
    ids = vocabulary.encode(text)
    assert not {vocabulary.tokens.index(name) for name in SPECIALS} & set(ids)
    assert vocabulary.decode(ids) == text


def test_special_tokens_show_nothing():
    vocabulary = subwords()
    specials = [vocabulary.tokens.index(name) for name in SPECIALS]
    whole = [vocabulary.encode("a")[0], *specials, vocabulary.encode("b")[0]]
    assert vocabulary.decode(whole) == "ab"
    decoder = vocabulary.decoder()
    assert "".join(decoder.feed(token) for token in whole) + decoder.end() == "ab"


def test_no_token_is_added_at_the_start_or_end():
    bos = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}]}
    vocabulary = Subwords.from_json(changed(post_processor=bos))
    assert vocabulary.encode("a") == subwords().encode("a")


def test_without_the_usual_end_the_named_token_plays_its_role():
    content = json.loads(tokenizer_json())
    i = content["model"]["vocab"].pop(END_OF_TEXT)
    content["model"]["vocab"]["<|end|>"] = i
    content["added_tokens"][0] |= {"content": "<|end|>", "id": i}
    text = json.dumps(content)
    vocabulary = Subwords.from_json(text, "<|end|>")
    assert vocabulary.end_of_text_id == i
    assert i in vocabulary.encode(f"a\n{END_OF_TEXT}\nb")
    for name in (None, "KING", "<|no|>"):
        with pytest.raises(ValueError, match="special token"):
            Subwords.from_json(text, name)
    assert subwords().end_of_text_id == Subwords.from_json(tokenizer_json(), "</s>").end_of_text_id


def test_an_added_token_that_is_not_special_is_read_and_shown():
    i = len(subwords())
    content = json.loads(tokenizer_json())
    content["added_tokens"].append({"id": i, "content": "<think>é", "special": False})
    vocabulary = Subwords.from_json(json.dumps(content))
    ids = vocabulary.encode("a<think>é")
    assert ids[-1] == i
    assert vocabulary.decode(ids) == "a<think>é"
    assert len(vocabulary) == i + 1


# --------------------------------------------------------------------------------------------------
# Many ids, one by one and in chunks


@given(ids=st.lists(st.integers(0, 400), max_size=12))
@example(ids=[])
def test_a_text_that_grows_ends_as_the_decoded_one(ids):
    """Bytes of torn characters among them."""
    vocabulary = subwords()
    decoder = vocabulary.decoder()
    grown = "".join(decoder.feed(token) for token in ids)
    assert vocabulary.decode(ids).startswith(grown)
    assert grown + decoder.end() == vocabulary.decode(ids)
    assert b"".join(map(vocabulary.bytes_of, ids)).decode(errors="replace") == vocabulary.decode(
        ids
    )


def test_a_character_of_many_tokens_is_shown_when_it_is_whole():
    vocabulary = subwords()
    ids = vocabulary.encode("🀄")
    assert len(ids) > 1
    decoder = vocabulary.decoder()
    assert [decoder.feed(token) for token in ids] == [""] * (len(ids) - 1) + ["🀄"]
    decoder.feed(ids[0])
    assert decoder.holds
    assert decoder.end() == "\ufffd"


@given(ids=st.lists(st.integers(0, 300), max_size=12), chunk=st.integers(1, 4))
def test_chunks_of_many_ids_are_the_text_with_its_document_ends(ids, chunk):
    vocabulary = subwords()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatgot.data.subwords, "CHUNK", chunk)
        text = "".join(vocabulary.chunks_of_text(np.array(ids, np.uint16), "\0"))
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == vocabulary.end_of_text_id:
            documents.append([])
        else:
            documents[-1].append(token)
    assert text == "\0".join(map(vocabulary.decode, documents))


def test_line_feeds_are_all_tokens_with_one():
    vocabulary = subwords("qwen2")
    assert vocabulary.line_feeds >= {vocabulary.encode("\n")[0], vocabulary.encode("KING:\n")[-1]}
    assert all("\n" in vocabulary.decode([token]) for token in vocabulary.line_feeds)


def test_only_lone_surrogates_cannot_be_written():
    vocabulary = subwords()
    assert vocabulary.can_write("漢\0🐉\u0085")
    assert not vocabulary.can_write("a\ud800")
    assert vocabulary.replace_unknown("a\udfff漢\ud800") == ("a?漢?", "\ud800\udfff")
    with pytest.raises(KeyError):
        vocabulary.encode("a\ud800")


# --------------------------------------------------------------------------------------------------
# Tokenizers that lack a few bytes


def lacking(text: str, kind: str = "gpt2", **parts: object) -> str:
    """Return a tokenizer.json without tokens for the bytes of a text, nor any made of them."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    gone = {letters[byte] for byte in text.encode("latin-1")}
    content = json.loads(changed(kind, **parts))
    model = content["model"]
    kept = [name for name in model["vocab"] if name in SPECIALS or not gone & set(name)]
    model["vocab"] = {name: i for i, name in enumerate(kept)}
    model["merges"] = [pair for pair in model["merges"] if not gone & set("".join(pair))]
    for token in content["added_tokens"]:
        token["id"] = model["vocab"][token["content"]]
    return json.dumps(content)


# the bytes that SmolLM2 lacks, and those that begin é, 漢 and 🐉
LACKING = lacking("\x04\x06\x13\xc0\xc1\xc3\xe6\xf0\xf1\xf5\xff")


def test_what_lacks_a_byte_cannot_be_written_and_is_shown():
    vocabulary = Subwords.from_json(LACKING)
    text = "a\x04 é漢字🐉ab\x06\ud800!"
    assert vocabulary.replace_unknown(text) == ("a? ??字?ab??!", "\x04\x06é漢\ud800🐉")
    assert not vocabulary.can_write("é")
    assert vocabulary.can_write("字 \x05")
    for character in "\x04é漢🐉\ud800":
        with pytest.raises(KeyError) as caught:
            vocabulary.encode(f"a{character}b")
        assert caught.value.args == (character,)


@given(text=any_text | texts | st.text(st.sampled_from("\x04é漢🐉\U00040000\x7fÿĀ"), max_size=9))
@settings(max_examples=200)
def test_what_can_be_written_comes_back_without_those_bytes(text):
    vocabulary = Subwords.from_json(LACKING)
    known, unknown = vocabulary.replace_unknown(text)
    assert vocabulary.can_write(text) == (unknown == "") == (known == text)
    assert vocabulary.decode(vocabulary.encode(known)) == "".join(split_documents(known))
    gone = b"\x04\x06\x13\xc3\xe6\xf0\xf1"
    assert set(unknown) == {c for c in text if set(c.encode()) & set(gone)}


def test_every_character_is_known_or_not_by_its_bytes():
    vocabulary = Subwords.from_json(LACKING)
    gone = set(b"\x04\x06\x13\xc3\xe6\xf0\xf1")
    edges = [0x7F, 0x80, 0xBF, 0xC0, 0xFF, 0x100, 0x7FF, 0x800, 0x5FFF, 0x6000, 0x6FFF, 0x7000]
    edges += [0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x7FFFF, 0x80000, 0x10FFFF]
    for point in (*range(0x80), *edges):
        assert vocabulary.can_write(chr(point)) == (not gone & set(chr(point).encode()))


def test_byte_within_a_longer_token_alone_cannot_be_written():
    """The token of two tabs is there; nothing makes it of two bytes that have no token."""
    content = json.loads(lacking("\t"))
    content["model"]["vocab"]["ĉĉ"] = len(content["model"]["vocab"])
    vocabulary = Subwords.from_json(json.dumps(content))
    assert vocabulary.replace_unknown("a\t\tb") == ("a??b", "\t")


@pytest.mark.parametrize("byte", ["\n", " ", "~", "A", "\x80", "\xbf"])
def test_tokenizer_that_lacks_a_byte_of_ordinary_text_is_refused(byte):
    with pytest.raises(ValueError, match="lacks 1 of the bytes of ordinary text"):
        Subwords.from_json(lacking(byte))


def test_tokenizer_that_composes_accents_must_have_all_bytes():
    """A text without the byte may need it when it has been composed: e and an accent are é."""
    for byte in ("\xc3", "\x04"):
        with pytest.raises(ValueError, match="composes accents"):
            Subwords.from_json(lacking(byte, "qwen2"))
    unused = lacking("\xc0\xc1\xf5\xff", "qwen2")  # UTF-8 has no such bytes
    assert Subwords.from_json(unused).can_write("e\u0301é")


def test_text_is_read_once_with_a_warning_and_question_marks(tmp_path, caplog):
    path = tmp_path / "text.txt"
    path.write_text("Café\x04!\n漢字\n", encoding="utf-8")
    vocabulary = Subwords.from_json(LACKING)
    for _ in range(2):
        tokens = load_tokens(path, tmp_path / "cache", vocabulary)
        assert vocabulary.decode(tokens.ids.tolist()) == "Caf??!\n?字\n"
    warnings = [message for message in caplog.messages if "becomes ?" in message]
    assert len(warnings) == 1
    assert "'\\x04é漢', which becomes ?" in warnings[0]
    assert str(path) in warnings[0]


# --------------------------------------------------------------------------------------------------
# What is refused


def without(vocab: dict, name: str) -> dict:
    return {key: i for key, i in vocab.items() if key != name}


VOCAB = json.loads(tokenizer_json())["model"]["vocab"]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
EVIL = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TOKEN = {"id": len(VOCAB), "content": "<x>", "special": False}
REFUSED = {
    "another model": ({"model": {"type": "Unigram"}}, "model: found"),
    "no model": ({"model": {"type": None}}, "model: found null"),
    "random merges": ({"model": {"dropout": 0.1}}, "model.dropout"),
    "bytes as tokens of text": ({"model": {"byte_fallback": True}}, "byte_fallback"),
    "a mark at the end of words": ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word"),
    "a byte less": (
        {"model": {"vocab": without(VOCAB, "Ġ")}},
        "lacks 1 of the bytes of ordinary text, such as 0x20",
    ),
    "a merge of no token": ({"model": {"merges": ["a zzz"]}}, "makes no token"),
    "a merge of nothing": ({"model": {"merges": [["", "a"]]}}, "makes no token"),
    "a merge of three": ({"model": {"merges": ["a b c"]}}, "makes no token"),
    "merges that are no list": ({"model": {"merges": {"a": "b"}}}, "expected a list"),
    "an id twice": ({"model": {"vocab": VOCAB | {"zzz": 5}}}, "ids of its"),
    "a negative id": ({"model": {"vocab": VOCAB | {"zzz": -1}}}, "ids of its"),
    "a huge id": ({"model": {"vocab": VOCAB | {"zzz": 1 << 62}}}, "ids of its"),
    "an id that is no number": ({"model": {"vocab": VOCAB | {"zzz": "5"}}}, "ids of its"),
    "a token without text": ({"model": {"vocab": VOCAB | {"": len(VOCAB)}}}, "expected the id"),
    "half a surrogate": ({"model": {"vocab": VOCAB | {"\ud800": len(VOCAB)}}}, "expected the id"),
    "lower case": ({"normalizer": {"type": "Lowercase"}}, "normalizer: found"),
    "a space before words": ({"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer: found"),
    "a space before a text": (
        {"pre_tokenizer": BYTE_LEVEL | {"use_regex": True, "add_prefix_space": True}},
        "add_prefix_space",
    ),
    "a regex of a stranger": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [EVIL, BYTE_LEVEL]}},
        "is not known here",
    ),
    "no words": ({"pre_tokenizer": BYTE_LEVEL}, "one known regex"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "pre_tokenizer: found null"),
    "another decoder": ({"decoder": {"type": "Replace"}}, "decoder: found"),
    "an added token that takes the space": ({"added_tokens": [TOKEN | {"lstrip": True}]}, "around"),
    "an added line end": ({"added_tokens": [TOKEN | {"content": "\n"}]}, "around"),
    "an added token with a gap": ({"added_tokens": [TOKEN | {"id": 10**6}]}, "ids of its"),
    "an added token of another id": ({"added_tokens": [TOKEN | {"content": "K"}]}, "two ids"),
    "a letter as a special token": (
        {"added_tokens": [TOKEN | {"content": "K", "id": VOCAB["K"], "special": True}]},
        "ordinary text",
    ),
    "added tokens that are no list": ({"added_tokens": "<x>"}, "added_tokens: expected"),
    "an added token that is none": ({"added_tokens": [{"id": 1}]}, "is no token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_of_tokenizer_is_refused_in_one_line(case):
    parts_, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason) as caught:
        Subwords.from_json(changed(**parts_))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


HOSTILE = {
    "no JSON": "{",
    "no object": "[1, 2]",
    "a number too long": "1" * 10_000,
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep where it is read": '{"model": ' * 3000 + "1" + "}" * 3000,
    "no text": "",
    "surrogates": '"\\ud800"',
    "not a number": '{"model": NaN}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_json_is_refused_at_once(case):
    with parts.at_once(), pytest.raises(ValueError, match=r"\w") as caught:
        Subwords.from_json(HOSTILE[case])
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_file_that_is_too_large_is_not_parsed(monkeypatch):
    monkeypatch.setattr(chatgot.data.tokenizer_json, "MOST_CHARACTERS", 1000)
    with pytest.raises(ValueError, match="at most 1000 are read"):
        Subwords.from_json(tokenizer_json())


@pytest.mark.parametrize("part", ["[]", "{}", "0"])
def test_a_file_of_too_many_parts_is_not_parsed(part, monkeypatch):
    """As JSON, they take twenty times the memory of their text."""
    monkeypatch.setattr(chatgot.data.tokenizer_json, "MOST_PARTS", 50)
    monkeypatch.setattr(chatgot.data.tokenizer_json, "MOST_VALUES", 100)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(ValueError, match=r"at most (50|100) are read"):
        Subwords.from_json("[" + ",".join([part] * 102) + "]")


def test_too_many_tokens_are_refused(monkeypatch):
    monkeypatch.setattr(chatgot.data.tokenizer_json, "MOST_TOKENS", 300)
    with pytest.raises(ValueError, match="at most 300 are read"):
        Subwords.from_json(tokenizer_json())


def test_a_panic_of_the_package_is_a_refusal(monkeypatch):
    class PanicException(BaseException):
        """As pyo3 raises it: no Exception."""

    class Panicking:
        @staticmethod
        def from_str(text: str) -> None:
            raise PanicException("index out of bounds\nmore")

    monkeypatch.setattr("tokenizers.Tokenizer", Panicking)
    with pytest.raises(ValueError, match=r"cannot be loaded: index out of bounds$"):
        Subwords.from_json(tokenizer_json())


def test_a_tokenizer_whose_words_reach_over_lines_fails_the_proof():
    """As if its regex were in the wrong list."""
    tokenizer = read_tokenizer_json(tokenizer_json())
    wrong = replace(tokenizer, splits_before_line_feed=False)
    with pytest.raises(ValueError, match="over the ends of lines"):
        Subwords(tokenizer_json(), wrong, END_OF_TEXT)


def test_the_probe_is_composed_and_has_what_it_says():
    assert unicodedata.normalize("NFC", PROBE) == PROBE
    for part in ("\r\n", "\t", "  ", "\n\n", "🐉", "'ll", "漢", "def f(x)"):
        assert part in PROBE
