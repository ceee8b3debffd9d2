"""The sum of a large file is remembered until the file changes."""

import os
from pathlib import Path

import numpy as np
import pytest

from chatgot.data import known_hashes
from chatgot.data.known_hashes import file_hash, ids_checksum
from chatgot.data.token_cache import load_tokens
from chatgot.errors import ConfigError

TEXT = "KING:\nGood morrow, my lord!\n\n"


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """Take every file for large; return those that are read for a sum."""
    paths = []
    monkeypatch.setattr(known_hashes, "LARGE", 0)
    for name in ("file_sha256", "_crc32_of"):
        add_up = getattr(known_hashes, name)
        monkeypatch.setattr(
            known_hashes, name, lambda path, add_up=add_up: paths.append(path) or add_up(path)
        )
    return paths


def make_old(path: Path, ns: int = 10**18) -> None:
    os.utime(path, ns=(ns, ns))


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20)
    make_old(path)
    return path


def test_a_second_start_reads_neither_text_nor_ids(text, tmp_path, read):
    cache = tmp_path / "cache"
    ids = load_tokens(text, cache).ids.copy()
    (ids_path,) = cache.glob("*.uint16")
    make_old(ids_path)
    load_tokens(text, cache)
    assert read == [text, ids_path]
    assert np.array_equal(load_tokens(text, cache).ids, ids)
    assert read == [text, ids_path]


@pytest.mark.parametrize("sum_of", [lambda p: file_hash(p, p.parent / "cache"), ids_checksum])
def test_a_file_that_changed_is_read_again(text, read, sum_of):
    before = sum_of(text)
    content = text.read_bytes()
    text.write_bytes(content[:-1] + b"!")  # as long as it was
    make_old(text, 10**18 + 1)
    assert sum_of(text) != before
    assert len(read) == 2
    text.write_bytes(content)
    make_old(text, 10**18 + 2)
    assert sum_of(text) == before


def test_a_file_that_has_just_changed_is_not_remembered(text, tmp_path, read):
    text.write_text(TEXT)
    file_hash(text, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["", "[]", "null", '[[1, 2, 3], "a"]', "{}"])
def test_a_damaged_note_is_made_again(text, tmp_path, read, damage):
    cache = tmp_path / "cache"
    expected = file_hash(text, cache)
    (note,) = cache.iterdir()
    note.write_text(damage)
    assert file_hash(text, cache) == expected
    assert file_hash(text, cache) == expected
    assert len(read) == 2


def test_damaged_ids_that_changed_their_time_are_noticed(text, tmp_path, read, caplog):
    cache = tmp_path / "cache"
    ids = load_tokens(text, cache).ids.copy()
    (ids_path,) = cache.glob("*.uint16")
    make_old(ids_path)
    load_tokens(text, cache)
    ids_path.write_bytes(bytes(ids_path.stat().st_size))
    assert np.array_equal(load_tokens(text, cache).ids, ids)
    assert "does not fit its token cache" in caplog.text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot be read"):
        file_hash(tmp_path / "none.txt", tmp_path)
