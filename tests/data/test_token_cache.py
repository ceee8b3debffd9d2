"""A text is encoded once; its cache is whole, or it is made again."""

import json
import os
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_tokenizers import changed, subwords, tokenizer_json

import chatgot.data.token_cache
from chatgot.data.code_points import END_OF_TEXT_POINT, code_points
from chatgot.data.encoding import CHUNK_BYTES
from chatgot.data.subwords import Subwords
from chatgot.data.text_file import text_chunks
from chatgot.data.token_cache import MAX_CHARACTERS, Tokens, load_tokens
from chatgot.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, Characters
from chatgot.errors import ConfigError, StorageError

TEXT = "KING:\nGood morrow, my lord! Grüße, 世界 🎭.\n\nFOOL:\nNo.\n"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 50, encoding="utf-8")
    return path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tokens_decode_to_the_text(text, tmp_path):
    tokens = load_tokens(text, tmp_path / "cache")
    assert tokens.vocabulary.decode(tokens.ids.tolist()) == TEXT * 50
    assert tokens.vocabulary.encode(TEXT * 50) == tokens.ids.tolist()
    assert list(tokens.vocabulary.characters) == sorted(set(TEXT))


def test_the_tokens_are_read_only(text, tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        load_tokens(text, tmp_path / "cache").ids[0] = 1


def test_a_cache_is_used_again_without_encoding(text, tmp_path, monkeypatch):
    first = load_tokens(text, tmp_path / "cache")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    monkeypatch.setattr(chatgot.data.token_cache, "_encode", None)  # any call would fail
    again = load_tokens(text, tmp_path / "cache")
    assert np.array_equal(first.ids, again.ids)
    assert (first.vocabulary, first.text_sha256, first.encoding) == (
        again.vocabulary,
        again.text_sha256,
        again.encoding,
    )
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before


def test_a_text_in_another_encoding_has_the_same_hash_and_ids(text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(TEXT * 50, encoding="utf-16")
    a, b = (load_tokens(path, tmp_path / "cache") for path in (text, other))
    assert a.text_sha256 == b.text_sha256
    assert np.array_equal(a.ids, b.ids)
    assert a.encoding != b.encoding


def test_a_changed_text_of_equal_size_and_time_is_encoded_again(text, tmp_path):
    before = load_tokens(text, tmp_path / "cache")
    about = text.stat()
    text.write_text((TEXT * 50).replace("N", "M", 1), encoding="utf-8")
    os.utime(text, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert text.stat().st_size == about.st_size
    after = load_tokens(text, tmp_path / "cache")
    assert after.text_sha256 != before.text_sha256
    assert after.vocabulary.decode(after.ids.tolist()) == text.read_text(encoding="utf-8")


@pytest.mark.parametrize("kept", [0, 1, 2, 1000])
def test_a_truncated_cache_is_made_again(text, tmp_path, kept, caplog):
    expected = load_tokens(text, tmp_path / "cache").ids.copy()
    (ids_path,) = (tmp_path / "cache").glob("*.uint16")
    whole = ids_path.read_bytes()
    assert kept < len(whole)
    ids_path.write_bytes(whole[:kept])
    assert np.array_equal(load_tokens(text, tmp_path / "cache").ids, expected)
    assert ids_path.read_bytes() == whole
    assert "encoding the text again" in caplog.text


@pytest.mark.parametrize("subword", [False, True])
@pytest.mark.parametrize("damage", [b"\xff\xff", b"\2\0"])
def test_ids_that_were_damaged_on_the_disk_are_made_again(text, tmp_path, damage, subword, caplog):
    """An id beyond the vocabulary would fail later; any other would train on other letters."""
    vocabulary = subwords() if subword else None
    expected = load_tokens(text, tmp_path / "cache", vocabulary).ids.copy()
    (ids_path,) = (tmp_path / "cache").glob("*.uint16")
    whole = ids_path.read_bytes()
    assert whole[100:102] != damage
    ids_path.write_bytes(whole[:100] + damage + whole[102:])
    assert np.array_equal(load_tokens(text, tmp_path / "cache", vocabulary).ids, expected)
    assert ids_path.read_bytes() == whole
    assert "encoding the text again" in caplog.text


@pytest.mark.parametrize(
    "about", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"format": 0, "tokens": 5}']
)
def test_a_cache_with_a_damaged_description_is_made_again(text, tmp_path, about, caplog):
    load_tokens(text, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    path.write_bytes(about)
    assert load_tokens(text, tmp_path / "cache").vocabulary.characters == "".join(sorted(set(TEXT)))
    assert json.loads(path.read_bytes())["tokens"] == len(TEXT * 50)
    assert "encoding the text again" in caplog.text


def test_a_cache_whose_description_lacks_a_key_is_made_again(text, tmp_path):
    load_tokens(text, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    about = json.loads(path.read_bytes())
    del about["vocabulary"]
    path.write_text(json.dumps(about))
    assert load_tokens(text, tmp_path / "cache").vocabulary.characters == "".join(sorted(set(TEXT)))


@pytest.mark.parametrize("vocabulary", ["\nab", ["a", "b"], [END_OF_TEXT, "aa"], None, 7])
def test_a_cache_whose_description_has_a_damaged_vocabulary_is_made_again(
    text, tmp_path, vocabulary
):
    tokens = load_tokens(text, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    about = json.loads(path.read_bytes())
    path.write_text(json.dumps(about | {"vocabulary": vocabulary}))
    assert load_tokens(text, tmp_path / "cache").vocabulary == tokens.vocabulary


def test_a_cache_of_the_format_without_end_of_text_token_is_made_again(text, tmp_path, caplog):
    tokens = load_tokens(text, tmp_path / "cache")
    expected = tokens.ids.copy()
    (path,) = (tmp_path / "cache").glob("*.json")
    (ids_path,) = (tmp_path / "cache").glob("*.uint16")
    about = json.loads(path.read_bytes())
    path.write_text(json.dumps(about | {"format": 1}))
    ids_path.write_bytes((expected - 1).astype("<u2").tobytes())
    assert np.array_equal(load_tokens(text, tmp_path / "cache").ids, expected)
    assert "encoding the text again" in caplog.text


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_encoding_leaves_no_file_and_the_error_names_the_folder(
    text, tmp_path, fails, monkeypatch
):
    fired = []

    def refuse(*args, **keywords):
        fired.append(args)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, refuse)
        with pytest.raises(StorageError, match=r"cache.*No space left"):
            load_tokens(text, tmp_path / "cache")
    assert fired
    assert names(tmp_path / "cache") == []
    load_tokens(text, tmp_path / "cache")
    assert len(names(tmp_path / "cache")) == 2


def test_a_cache_without_a_description_is_made_again(text, tmp_path):
    load_tokens(text, tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.json")
    (ids_path,) = (tmp_path / "cache").glob("*.uint16")
    path.unlink()
    # A kill between the two files could leave this
    ids_path.write_bytes(b"\0" * ids_path.stat().st_size)
    tokens = load_tokens(text, tmp_path / "cache")
    assert tokens.vocabulary.decode(tokens.ids.tolist()) == TEXT * 50


def test_a_file_of_only_a_byte_order_mark_is_refused_as_empty(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(ConfigError):
        load_tokens(tmp_path / "empty.txt", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "fifo"])
def test_anything_but_a_text_file_is_refused_before_a_cache_is_made(tmp_path, kind):
    path = tmp_path / "text.txt"
    make = {"folder": path.mkdir, "empty": path.touch, "fifo": lambda: os.mkfifo(path)}
    make.get(kind, lambda: None)()
    with pytest.raises(ConfigError, match=r"text\.txt"):
        load_tokens(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_tokens_have_the_type_that_is_in_the_cache(text, tmp_path):
    tokens = load_tokens(text, tmp_path / "cache")
    assert isinstance(tokens, Tokens)
    assert tokens.ids.dtype == np.dtype("<u2")


# The end-of-text token

PLAYS = f"KING:\nNo é.\n{END_OF_TEXT}\nFOOL:\n{END_OF_TEXT}!\n{END_OF_TEXT}\n{END_OF_TEXT}"


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "cp1252"])
def test_a_line_with_only_the_token_is_id_0_on_disk(tmp_path, encoding, line_end):
    path = tmp_path / "plays.txt"
    path.write_bytes(PLAYS.replace("\n", line_end).encode(encoding))
    tokens = load_tokens(path, tmp_path / "cache")
    assert tokens.ids.tolist() == tokens.vocabulary.encode(PLAYS)
    assert np.count_nonzero(tokens.ids == END_OF_TEXT_ID) == 3
    assert (
        tokens.vocabulary.decode(tokens.ids.tolist()) == "KING:\nNo é.\n\nFOOL:\n<|endoftext|>!\n\n"
    )
    assert tokens.text_sha256 == sha256(PLAYS.encode()).hexdigest()


def test_the_characters_of_the_token_do_not_enter_the_vocabulary(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(f"ba\n{END_OF_TEXT}\n")
    assert load_tokens(path, tmp_path / "cache").vocabulary == Characters("\nab")


@given(
    st.lists(st.sampled_from([END_OF_TEXT, END_OF_TEXT[:5], "\n", "\r\n", "é", "|>"]), max_size=9),
    st.integers(1, 15),
    st.sampled_from(["utf-8", "utf-16-le"]),
)
@example(["\n\n", END_OF_TEXT], 1, "utf-8")
@example(["|>", END_OF_TEXT], 2, "utf-8")
def test_tokens_are_the_same_in_chunks_of_any_size(tmp_path_factory, pieces, chunk_bytes, encoding):
    text = "".join(pieces)
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(text.encode(encoding))
    vocabulary = Characters("".join(sorted({*text})))
    chunks = code_points(text_chunks(path, encoding, chunk_bytes))
    points = [int(point) for blocks in chunks for block in blocks for point in block]
    id_of = {ord(c): 1 + i for i, c in enumerate(vocabulary.characters)} | {END_OF_TEXT_POINT: 0}
    expected = vocabulary.encode(text.replace("\r\n", "\n"))
    assert [id_of[point] for point in points] == expected


@pytest.mark.parametrize("before", [0, 1, 7, 12, 13, 14])
def test_a_token_at_the_edge_of_a_chunk_is_one_id(tmp_path, before):
    """`before` of its bytes are in the first chunk; with 14 the line end is there, too."""
    path = tmp_path / "text.txt"
    content = b"a" * (CHUNK_BYTES - before - 1) + f"\n{END_OF_TEXT}\nb".encode()
    path.write_bytes(content)
    tokens = load_tokens(path, tmp_path / "cache")
    assert tokens.vocabulary.characters == "\nab"
    assert tokens.ids[-4:].tolist() == [1, END_OF_TEXT_ID, 1, 3]
    assert len(tokens.ids) == len(content) - len(END_OF_TEXT) + 1


def test_a_text_of_only_the_token_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(END_OF_TEXT)
    with pytest.raises(ConfigError, match="holds no text"):
        load_tokens(path, tmp_path / "cache")


def test_65535_characters_fit_and_one_more_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    without = {*range(0xD800, 0xE000), 0xFEFF}
    characters = [chr(i) for i in range(0x20, 0x11001) if i not in without]
    path.write_text("".join(characters[:MAX_CHARACTERS]), encoding="utf-8")
    assert load_tokens(path, tmp_path / "cache").ids[-1] == MAX_CHARACTERS
    path.write_text("".join(characters[: MAX_CHARACTERS + 1]), encoding="utf-8")
    with pytest.raises(ConfigError, match="65536 different characters, at most 65535"):
        load_tokens(path, tmp_path / "cache")


# --------------------------------------------------------------------------------------------------
# Subwords


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_the_cache_has_the_ids_that_the_vocabulary_encodes(text, tmp_path, monkeypatch, kind):
    """Whatever the size of the chunks that are read and of the pieces that are encoded."""
    monkeypatch.setattr(chatgot.data.token_cache, "SUBWORD_CHUNK", 100)
    content = TEXT * 30 + f"{END_OF_TEXT}\n" + TEXT * 20
    text.write_text(content, encoding="utf-8")
    vocabulary = subwords(kind)
    tokens = load_tokens(text, tmp_path / "cache", vocabulary)
    assert tokens.ids.tolist() == vocabulary.encode(content)
    assert tokens.vocabulary is vocabulary
    assert tokens.text_sha256 == load_tokens(text, tmp_path / "cache").text_sha256
    assert tokens.ids.dtype == np.uint16


def test_subwords_are_found_again_and_have_a_place_of_their_own(text, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = load_tokens(text, cache, subwords())
    characters = load_tokens(text, cache)
    other = Subwords.from_json(changed(version="1.0 "))
    load_tokens(text, cache, other)
    assert len(names(cache)) == 6
    monkeypatch.setattr(chatgot.data.token_cache, "_encode", None)  # any call would fail
    monkeypatch.setattr(chatgot.data.token_cache, "_encode_subwords", None)
    assert np.array_equal(load_tokens(text, cache, subwords()).ids, first.ids)
    of_characters = characters.vocabulary
    assert np.array_equal(load_tokens(text, cache, of_characters).ids, characters.ids)


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}', "null"])
def test_a_damaged_cache_of_subwords_is_made_again(text, tmp_path, damage):
    cache = tmp_path / "cache"
    expected = load_tokens(text, cache, subwords()).ids.copy()
    (about,) = cache.glob("*.json")
    about.write_text(damage)
    assert np.array_equal(load_tokens(text, cache, subwords()).ids, expected)
    (ids,) = cache.glob("*.uint16")
    ids.write_bytes(b"")
    assert np.array_equal(load_tokens(text, cache, subwords()).ids, expected)


def test_more_than_65536_subwords_need_four_bytes_each(text, tmp_path):
    content = json.loads(tokenizer_json())
    ids = content["model"]["vocab"]
    ids |= {f"unused {i}": i for i in range(len(ids), 1 << 16)}
    load_tokens(text, tmp_path / "cache", Subwords.from_json(json.dumps(content)))
    last = {"id": 1 << 16, "content": "my lord", "special": False}
    content["added_tokens"].append(last)
    vocabulary = Subwords.from_json(json.dumps(content))
    tokens = load_tokens(text, tmp_path / "cache", vocabulary)
    assert tokens.ids.dtype == np.uint32
    assert 1 << 16 in tokens.ids
    assert vocabulary.decode(tokens.ids.tolist()) == TEXT * 50
    suffixes = [name.rpartition(".")[2] for name in names(tmp_path / "cache")]
    assert sorted(suffixes) == ["json", "json", "uint16", "uint32"]


def test_a_text_without_text_has_no_subwords(text, tmp_path):
    text.write_text(END_OF_TEXT)
    with pytest.raises(ConfigError, match="holds no text"):
        load_tokens(text, tmp_path / "cache", subwords())
    assert names(tmp_path / "cache") == []


def test_a_text_that_changes_while_it_becomes_subwords_is_refused(text, tmp_path, monkeypatch):
    chunks = chatgot.data.token_cache.text_chunks

    def growing(path, *arguments):
        yield from chunks(path, *arguments)
        with path.open("a") as file:
            file.write("more")

    monkeypatch.setattr(chatgot.data.token_cache, "text_chunks", growing)
    with pytest.raises(ConfigError, match="changed while it was read"):
        load_tokens(text, tmp_path / "cache", subwords())
    assert not list((tmp_path / "cache").glob("*.json"))
