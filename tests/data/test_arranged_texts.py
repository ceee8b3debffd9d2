"""Several texts, and texts split by documents, train on what they should and on nothing else."""

import logging
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chatgot.config import Config
from chatgot.data import arranged_text
from chatgot.data.configured_text import load_text, text_path
from chatgot.data.mixture import training_sources
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.errors import ConfigError

WORDS = ["king", "queen", "war", "love", "court", "tonight", "lord", "never", "come", "shall"]


def prose(seed: int, lines: int = 12) -> str:
    """Return lines of random words."""
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(WORDS, k=8)) + f" {seed}\n" for _ in range(lines))


def config_of(path, cache: Path, **data) -> Config:
    return Config.model_validate(
        {
            "model": {"d_model": 8, "n_layers": 1, "n_head": 1, "max_seq_length": 8},
            "training": {"max_steps": 1, "batch_size": 1},
            "data": {"path": path, **data},
            "paths": {"cache": str(cache)},
        }
    )


def loaded(path, cache: Path, **data) -> Tokens:
    config = config_of(path, cache, **data)
    return load_text(config, text_path(config))


def text_of(tokens: Tokens, begin: int, end: int) -> str:
    """Return the text of some tokens, with the line of each end-of-text token."""
    chunks = tokens.vocabulary.chunks_of_text(tokens.ids[begin:end], "\0")
    return "".join(chunks).replace("\0", END_OF_TEXT)


def both_parts(tokens: Tokens) -> tuple[str, str]:
    assert tokens.n_train is not None
    return text_of(tokens, 0, tokens.n_train), text_of(tokens, tokens.n_train, len(tokens.ids))


def documents(text: str) -> list[str]:
    parts = text.split(f"{END_OF_TEXT}\n")
    return [part for part in parts if part.strip()]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a file; it returns the path as a text."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


# --------------------------------------------------------------------------------------------------
# Several files


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_each_file_of_a_list_holds_out_its_own_end(write, tmp_path, tokenizer):
    one = prose(1, 50)
    other = prose(2, 30)
    paths = [write("one.txt", one), write("other.txt", other)]
    tokens = loaded(paths, tmp_path / "cache", tokenizer=tokenizer, vocab_size=300)
    train, held_out = both_parts(tokens)
    assert train.startswith(one[:800])
    assert train.endswith("\n")
    train_one, train_other = documents(train)
    held_one, held_other = documents(held_out)
    assert train_one + held_one == one
    assert train_other + held_other == other
    assert 0.9 * len(one) <= len(train_one) < 0.9 * len(one) + 60
    assert [part.name for part in tokens.parts] == ["one.txt", "other.txt"]
    for part, (train, held_out) in zip(
        tokens.parts, [(train_one, held_one), (train_other, held_other)], strict=True
    ):
        assert text_of(tokens, *part.train) == train
        assert text_of(tokens, *part.held_out) == held_out


def test_a_folder_is_one_source_with_its_files_in_natural_order(write, tmp_path):
    texts = {f"play/e{n}.txt": prose(n, 20) for n in (10, 2, 1)}
    for name, text in texts.items():
        write(name, text)
    write("play/.hidden", b"\0")
    tokens = loaded(str(tmp_path / "play"), tmp_path / "cache")
    train, held_out = both_parts(tokens)
    whole = train + held_out
    in_order = [texts[f"play/e{n}.txt"] for n in (1, 2, 10)]
    assert whole == f"{END_OF_TEXT}\n".join(in_order)
    assert len(tokens.parts) == 1


def test_files_of_several_encodings_become_one_text(write, tmp_path):
    accented = "Où est la reine à l'été; señor, déjà vu.\n" * 30
    paths = [write("a.txt", accented.encode("cp1252")), write("b.txt", "\ufeff" + accented)]
    tokens = loaded(paths, tmp_path / "cache")
    train, _ = both_parts(tokens)
    assert len(documents(train)) == 2
    assert "\ufeff" not in train
    assert set(train) <= set(accented + END_OF_TEXT)


def test_the_same_files_are_the_same_text_wherever_they_are(write, tmp_path):
    first = [write("x/one.txt", prose(1, 30)), write("x/two.txt", prose(2, 30))]
    second = [write("y/one.txt", prose(1, 30)), write("y/two.txt", prose(2, 30))]
    hashes = [loaded(paths, tmp_path / "cache").text_sha256 for paths in (first, second)]
    assert hashes[0] == hashes[1]
    assert loaded(first[::-1], tmp_path / "cache").text_sha256 != hashes[0]


def test_a_changed_file_is_arranged_again(write, tmp_path):
    paths = [write("one.txt", prose(1, 30)), write("two.txt", prose(2, 30))]
    before = loaded(paths, tmp_path / "cache")
    write("two.txt", prose(3, 30))
    after = loaded(paths, tmp_path / "cache")
    assert after.text_sha256 != before.text_sha256
    assert prose(3, 30)[:300] in both_parts(after)[0]


def test_an_arranged_text_is_found_again(write, tmp_path, monkeypatch):
    paths = [write("one.txt", prose(1, 30)), write("two.txt", prose(2, 30))]
    before = loaded(paths, tmp_path / "cache", split="documents", test_split=0.5)
    monkeypatch.setattr(arranged_text._Arranging, "_arrange", None)
    after = loaded(paths, tmp_path / "cache", split="documents", test_split=0.5)
    assert np.array_equal(before.ids, after.ids)
    assert before.parts == after.parts


@pytest.mark.parametrize(
    ("files", "listed", "words"),
    [
        ({"d/a.txt": "x", "d/e02.srt": "1", "d/e01.srt": "1"}, "d", "e01.srt and 1 more"),
        ({"d/.a": "x"}, "d", "a folder without a text"),
        ({"a.txt": "x"}, ["a.txt", "a.txt"], "listed twice"),
        ({"d/a.txt": prose(1), "d/b.txt": "x"}, ["d", "d/a.txt"], "a.txt is listed twice"),
        ({"a.txt": "x", "d/.b": ""}, ["a.txt", "d/../a.txt"], "one file, listed twice"),
        ({"d/a.txt": "", "d/b.txt": ""}, "d", "holds empty files only"),
        ({"a.txt": "x"}, ["a.txt", "b.txt"], "b.txt: no such file"),
        ({"a.txt": "x " * 900, "b.txt": prose(1)}, ["a.txt", "b.txt"], "no line begins in that"),
        ({"a.txt": "x\n", "b.txt": prose(1, 40)}, ["a.txt", "b.txt"], "a.txt is too short"),
    ],
)
def test_what_cannot_be_arranged_is_refused(write, tmp_path, files, listed, words):
    for name, content in files.items():
        write(name, content)
    paths = [listed] if isinstance(listed, str) else listed
    absolute = [str(tmp_path / path) for path in paths]
    with pytest.raises(ConfigError, match=words):
        loaded(absolute if len(paths) > 1 else absolute[0], tmp_path / "cache")


def test_empty_files_of_a_folder_are_left_out_and_named(write, tmp_path, caplog):
    write("d/a.txt", prose(1, 40))
    before = loaded(str(tmp_path / "d"), tmp_path / "cache")
    write("d/b.txt", "")
    after = loaded(str(tmp_path / "d"), tmp_path / "cache")
    assert before.text_sha256 == after.text_sha256
    assert "d: left out 1 empty file: b.txt" in caplog.text


def test_a_linked_text_has_the_name_that_is_listed(write, tmp_path):
    (tmp_path / "now.txt").symlink_to(write("version_3.txt", prose(1, 40)))
    tokens = loaded([str(tmp_path / "now.txt"), write("b.txt", prose(2, 40))], tmp_path / "cache")
    assert [part.name for part in tokens.parts] == ["now.txt", "b.txt"]


def test_texts_of_one_name_have_other_names_from_no_folder(write, tmp_path, monkeypatch):
    """The order of their windows depends on the names: a run can be resumed from any folder."""
    paths = [write("a/x.txt", prose(1, 40)), write("b/x.txt", prose(2, 40))]
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    relative = ["../a/x.txt", "../b/x.txt"]
    for listed in (paths, relative):
        tokens = loaded(listed, tmp_path / "cache")
        assert [part.name for part in tokens.parts] == ["a/x.txt", "b/x.txt"]
        config = config_of(listed, tmp_path / "cache", mixture=dict.fromkeys(listed, 1.0))
        assert [source.name for source in training_sources(tokens, config.data)] == [
            "a/x.txt",
            "b/x.txt",
        ]


# --------------------------------------------------------------------------------------------------
# Split by documents


def joined(texts: list[str]) -> str:
    return f"{END_OF_TEXT}\n".join(texts)


def test_texts_that_are_all_alike_are_refused_as_such(write, tmp_path):
    path = write("text.txt", joined([prose(1)] * 4))
    with pytest.raises(ConfigError, match="too alike: 3 nearly repeat held-out ones"):
        loaded(path, tmp_path / "cache", split="documents")


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_documents_are_held_out_whole(write, tmp_path, tokenizer):
    texts = [prose(n) for n in range(40)]
    path = write("text.txt", joined(texts))
    data = {"split": "documents", "test_split": 0.25, "tokenizer": tokenizer, "vocab_size": 300}
    tokens = loaded(path, tmp_path / "cache", **data)
    train, held_out = map(documents, both_parts(tokens))
    assert sorted(train + held_out) == sorted(texts)
    assert train == [text for text in texts if text in train]  # in their order
    assert 4 <= len(held_out) <= 17


def test_what_is_held_out_stays_so_when_others_are_added(write, tmp_path):
    texts = [prose(n) for n in range(30)]
    write("a.txt", joined(texts))
    write("b.txt", joined([prose(99), *reversed(texts), prose(98)]).replace("\n", "\r\n"))
    held_out = []
    for name in ("a.txt", "b.txt"):
        path = str(tmp_path / name)
        tokens = loaded(path, tmp_path / "cache", split="documents", test_split=0.3)
        held_out.append(set(documents(both_parts(tokens)[1])) & set(texts))
    assert held_out[0] == held_out[1]
    assert held_out[0]


def test_near_duplicates_of_held_out_documents_never_train(write, tmp_path, caplog):
    texts = [prose(n, 40) for n in range(30)]
    copies = [f"{text}One more line at the end.\n" for text in texts]
    path = write("text.txt", joined(texts + copies))
    with caplog.at_level(logging.INFO):
        tokens = loaded(path, tmp_path / "cache", split="documents", test_split=0.2)
    train, held_out = map(documents, both_parts(tokens))
    held_seeds = {text.split("\n")[0] for text in held_out}
    assert held_seeds
    assert not held_seeds & {text.split("\n")[0] for text in train}
    left_out = 60 - len(train) - len(held_out)
    assert left_out > 0
    assert f"{left_out} left out, which nearly repeat held-out ones" in caplog.text


def test_parts_of_sources_are_where_they_say(write, tmp_path):
    one = [prose(n) for n in range(20)]
    other = [prose(100 + n) for n in range(20)]
    paths = [write("one.txt", joined(one)), write("other.txt", joined(other))]
    tokens = loaded(paths, tmp_path / "cache", split="documents", test_split=0.3)
    for part, texts in zip(tokens.parts, (one, other), strict=True):
        found = documents(text_of(tokens, *part.train)) + documents(text_of(tokens, *part.held_out))
        assert sorted(found) == sorted(texts)


def test_of_few_documents_one_is_held_out(write, tmp_path):
    path = write("text.txt", joined([prose(1), prose(2), prose(3), prose(4)]))
    tokens = loaded(path, tmp_path / "cache", split="documents", test_split=1e-6)
    assert len(documents(both_parts(tokens)[1])) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (prose(1), "the text has 1 document "),
        (joined([prose(1, 4), prose(2, 4)]), "set data.split=tail"),
    ],
)
def test_a_text_that_has_no_documents_to_hold_out_is_refused(write, tmp_path, text, words):
    path = write("text.txt", text)
    with pytest.raises(ConfigError, match=words):
        loaded(path, tmp_path / "cache", split="documents", test_split=0.9999)


def test_arranging_does_not_depend_on_where_chunks_end(write, tmp_path, monkeypatch):
    texts = [f"\n\n{prose(n, 5)}\n \n" for n in range(20)]
    path = write("text.txt", joined(texts))
    hashes = set()
    chunks = arranged_text.text_chunks
    for chunk_bytes in (7, 64, 1 << 20):
        with monkeypatch.context() as patch:
            small = partial(chunks, chunk_bytes=chunk_bytes)
            patch.setattr(arranged_text, "text_chunks", small)
            cache = tmp_path / f"cache{chunk_bytes}"
            hashes.add(loaded(path, cache, split="documents", test_split=0.3).text_sha256)
            hashes.add(loaded([path, write("b.txt", prose(7, 90))], cache).text_sha256)
    assert len(hashes) == 2
