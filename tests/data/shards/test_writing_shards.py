"""Texts become shards: each document once, whole, in its part; a kill does no damage."""

import gzip
import json
from hashlib import sha256
from pathlib import Path

import fsspec
import numpy as np
import pytest

from chatgot.data import subwords
from chatgot.data.arranged_text import arrange
from chatgot.data.bpe import train_subwords
from chatgot.data.shards import documents, seen, writing
from chatgot.data.shards.index import INDEX, ShardIndex, read_index, vocabulary_of
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.seen import SeenTexts, text_digest
from chatgot.data.shards.storage import Folder
from chatgot.data.shards.writing import ShardSettings, write_shards
from chatgot.data.text_sources import text_sources
from chatgot.errors import ConfigError, StorageError


def index_of(folder: Path) -> ShardIndex:
    return read_index((folder / INDEX).read_bytes(), str(folder))


def parts_of(folder: Path) -> tuple[list[str], list[str]]:
    """Return the documents that train and those that are held out, from the tokens alone."""
    index = index_of(folder)
    vocabulary = vocabulary_of(index, "")
    found = []
    for part in (index.train, index.held_out):
        ids = BlockReader(Folder(str(folder)), index, part).head(part.tokens)
        assert len(ids) == part.tokens
        ends = np.flatnonzero(ids == vocabulary.end_of_text_id)
        documents = [vocabulary.decode(some.tolist()) for some in np.split(ids, ends + 1)]
        assert documents.pop() == ""
        assert len(documents) == part.documents
        found.append(documents)
    return found[0], found[1]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_every_document_is_in_one_part_as_it_was(make, texts, tokenizer):
    folder = make(tokenizer=tokenizer, vocab_size=300)
    train, held_out = parts_of(folder)
    expected = sorted(f"\n{text.strip(chr(10))}\n" for text in texts)
    assert sorted(train + held_out) == expected
    assert 0 < len(held_out) < len(train)


def test_a_text_that_comes_again_is_left_out(make, jsonl, texts, tmp_path):
    again = tmp_path / "again.txt"
    cafe = ["Un cafe\u0301 noir", "Un café  noir"]  # two forms of one letter
    spaced = texts[3].replace(" ", "  ").replace("\n\n", "\n\n\n")
    again.write_text("\n<|endoftext|>\n".join([texts[5], *cafe, spaced, texts[0].upper()]))
    folder = make("shards", jsonl, again)
    train, held_out = parts_of(folder)
    assert len(train) + len(held_out) == len(texts) + 2
    assert index_of(folder).duplicates == 3
    assert f"\n{cafe[0]}\n" in train + held_out


def test_held_out_is_what_a_split_by_documents_holds_out(make, texts, tmp_path):
    """So a text that was trained on as a file holds out the same when it becomes shards."""
    plain = tmp_path / "plain.txt"
    plain.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    _, held_out = parts_of(make("shards", plain))
    arranged = arrange(text_sources([plain]), "documents", 0.2, "utf-8", tmp_path / "cache")
    # an end-of-text token counts as one character
    whole = arranged.path.read_text(encoding="utf-8").replace("<|endoftext|>", "\0")
    expected = [text.strip("\n") for text in whole[arranged.n_train :].split("\0")]
    assert sorted(text.strip("\n") for text in held_out) == sorted(filter(None, expected))


def test_a_document_stays_held_out_when_others_are_added(make, jsonl, tmp_path):
    _, before = parts_of(make("one"))
    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"text": f"New text {n}."}) + "\n" for n in range(40)))
    train, after = parts_of(make("two", more, jsonl))
    assert set(before) < set(after)
    assert not set(before) & set(train)


def test_shards_have_the_size_and_hashes_that_the_index_says(make):
    folder = make()
    index = index_of(folder)
    for part in (index.train, index.held_out):
        for shard in part.shards:
            content = (folder / shard.name).read_bytes()
            assert sha256(content).hexdigest() == shard.sha256
            assert shard.sha256[:16] in shard.name
            assert len(content) == shard.bytes
    sizes = [shard.tokens for shard in index.train.shards]
    assert sizes[:-1] == [4 * 256] * (len(sizes) - 1)


def test_the_hash_of_a_shards_text_is_that_of_its_documents(make):
    folder = make()
    index = index_of(folder)
    train, _ = parts_of(folder)
    hashes = [sha256() for _ in index.train.shards]
    begin = 0
    for document in train:
        hashes[begin // (4 * 256)].update(f"{document}<|endoftext|>".encode())
        begin += len(document) + 1
    assert [each.hexdigest() for each in hashes] == [s.text_sha256 for s in index.train.shards]


def test_the_same_texts_give_the_same_bytes_anywhere(make, jsonl, tmp_path):
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(jsonl.read_bytes()))
    one = make("one", tokenizer="bpe", vocab_size=300)
    two = make("two", packed, tokenizer="bpe", vocab_size=300)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, two)]
    assert files[0] == files[1]
    settings = ShardSettings("bpe", 300, 0.2, 2048, 512)
    write_shards([str(jsonl)], "memory://same", settings)
    memory = fsspec.filesystem("memory")
    assert {name: memory.cat_file(f"/same/{name}") for name in files[0]} == files[0]


def test_a_large_vocabulary_takes_four_bytes_a_token(make, monkeypatch):
    narrow = make("narrow")
    monkeypatch.setattr(writing, "MOST_NARROW", 10)
    wide = make("wide")
    assert index_of(narrow).token_bytes == 2
    assert index_of(wide).token_bytes == 4
    assert index_of(wide).block_tokens == 128
    assert parts_of(wide) == parts_of(narrow)


def test_more_characters_than_can_be_told_apart_are_refused(make, tmp_path):
    wide = "".join(map(chr, range(0x20000, 0x20000 + 66_000)))
    path = tmp_path / "wide.txt"
    path.write_text(wide, encoding="utf-8")
    with pytest.raises(ConfigError, match="found 66,001 different characters"):
        make("wide", path)


class Killed(BaseException):
    """What a kill is for the code that it meets."""


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_a_kill_leaves_no_index_and_the_next_try_makes_the_same(make, monkeypatch, after):
    whole = make("whole")
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    write = Folder.write
    written = []

    def write_or_die(self: Folder, name: str, content: bytes) -> None:
        if len(written) == after:
            raise Killed
        written.append(name)
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", write_or_die)
        with pytest.raises(Killed):
            make("killed")
    killed = whole.with_name("killed")
    assert not (killed / INDEX).exists()
    left_by_others = killed / "train-000099-0123456789abcdef.tokens"
    killed.mkdir(exist_ok=True)
    left_by_others.write_bytes(b"of another text")
    (killed / "notes.txt").write_text("of the user")
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", lambda *args: (written.append(args[1]), write(*args))[1])
        make("killed")
    assert len(written) == len(expected) - after  # what was there is not written again
    expected["notes.txt"] = b"of the user"
    assert {path.name: path.read_bytes() for path in killed.iterdir()} == expected


def test_the_index_is_written_last(make, monkeypatch):
    order = []
    write = Folder.write
    monkeypatch.setattr(Folder, "write", lambda *args: (order.append(args[1]), write(*args))[1])
    make()
    assert order.index(INDEX) == len(order) - 1


def test_shards_that_are_there_are_never_written_over(make):
    folder = make()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="has shards already"):
        make(tokenizer="bpe")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("share", [1e-9, 0.999999])
def test_texts_of_which_one_part_would_be_empty_are_refused(make, share, tmp_path):
    with pytest.raises(ConfigError, match="of which none") as caught:
        make(held_out=share)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "shards" / INDEX).exists()


def test_a_given_tokenizer_is_taken_as_it_is(make, texts, tmp_path):
    vocabulary = train_subwords(texts, 290)
    path = tmp_path / "tokenizer.json"
    path.write_text(vocabulary.json, encoding="utf-8")
    index = index_of(make(tokenizer=str(path)))
    assert index.tokenizer == vocabulary.json
    for given, words in (("nowhere.json", "No such file"), (str(tmp_path / "bad"), "take bpe")):
        (tmp_path / "bad").write_text("{}")
        with pytest.raises(ConfigError, match=words):
            make("other", tokenizer=given)


def test_a_folder_that_cannot_be_written_is_a_storage_error(make, monkeypatch, jsonl):
    memory = fsspec.filesystem("memory")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(memory, "pipe_file", fail)
    with pytest.raises(StorageError, match="cannot be written, tried 3 times: OSError: no room"):
        write_shards([str(jsonl)], "memory://full", ShardSettings("char", held_out=0.2))


def test_digests_tell_texts_apart_by_their_words(tmp_path):
    digests = SeenTexts(tmp_path)
    texts = ["a b", "a  b", " a\nb ", "ab", "A b", "é", "e\u0301", "x" * 10]
    new = [text for text in texts if digests.is_new(text_digest(text))]
    digests.close()
    assert new == ["a b", "ab", "A b", "é", "x" * 10]


def test_many_digests_are_on_disk_not_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "CACHE_KIB", 64)
    monkeypatch.setattr(seen, "ADDED_AT_ONCE", 1000)
    digests = SeenTexts(tmp_path)
    numbers = np.random.default_rng(0).permutation(20_000).tolist()
    assert all(digests.is_new(sha256(b"%d" % n).digest()[:16]) for n in numbers)
    assert not any(digests.is_new(sha256(b"%d" % n).digest()[:16]) for n in numbers[::7])
    digests.close()
    assert (tmp_path / "seen.sqlite3").stat().st_size > 20_000 * 16


def test_a_document_has_the_ids_that_it_has_alone(make, texts, monkeypatch):
    """Many are encoded together, which is faster for short ones."""
    monkeypatch.setattr(writing, "BATCH", 3_000)
    monkeypatch.setattr(subwords, "LEAST_FAST", 2_000)
    folder = make(tokenizer="bpe", vocab_size=300)
    index = index_of(folder)
    vocabulary = vocabulary_of(index, "")
    monkeypatch.setattr(subwords, "LEAST_FAST", 10**9)
    expected = {tuple(vocabulary.encode("\n" + text.strip("\n") + "\n")) for text in texts}
    ids = BlockReader(Folder(str(folder)), index, index.train).head(index.train.tokens)
    ends = np.flatnonzero(ids == vocabulary.end_of_text_id)
    found = [tuple(some.tolist()) for some in np.split(ids, ends + 1)[:-1]]
    assert {each[:-1] for each in found} < expected


def test_a_cut_before_an_end_of_text_makes_no_document(make, monkeypatch, tmp_path):
    """Within a line it was no token, and does not become one."""
    monkeypatch.setattr(documents, "LONGEST", 14)
    path = tmp_path / "odd.jsonl"
    texts = ["abcdefghijklmn<|endoftext|>\nrest", *(f"text {n}" for n in range(20))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train, held_out = parts_of(make("odd", path, tokenizer="bpe", vocab_size=300))
    assert len(train) + len(held_out) == 23
    assert {"\nabcdefghijklmn\n", "\nrest\n", "\ntext 19\n"} <= {*train, *held_out}
