"""Small folders of shards for the tests of what reads and writes them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import harness
import pytest

from chatgot.data.shards import storage
from chatgot.data.shards.writing import ShardSettings, write_shards

SMALL = ShardSettings(
    tokenizer="char", held_out=0.2, shard_bytes=4 * 512, block_bytes=512
)  # blocks of 256 tokens, 4 in a shard


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    """Try again at once."""
    monkeypatch.setattr(storage, "WAITS_S", (0.0, 0.0))


@pytest.fixture
def texts() -> list[str]:
    """Documents that all differ."""
    return [harness.make_text(400 + 37 * seed, seed=seed) for seed in range(30)]


@pytest.fixture
def jsonl(tmp_path, texts) -> Path:
    """Return a file with the documents, one a line."""
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": text, "source": "made up"}) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make(tmp_path, jsonl) -> Callable[..., Path]:
    """Return a function that makes a folder of shards, with changed settings."""

    def make(name: str = "shards", *inputs: Path, **changes: object) -> Path:
        folder = tmp_path / name
        given = [str(path) for path in inputs or [jsonl]]
        write_shards(given, str(folder), replace(SMALL, **changes))
        return folder

    return make
