"""Exports of a model with a text's own subwords: other programs give a text the same ids."""

import random
from dataclasses import replace

import exported
import harness
import llama_cpp
import plain_models
import pytest

from chatgot.data.bpe import train_subwords
from chatgot.data.subwords import PROBE
from chatgot.exchange.html_page import HTML
from chatgot.exchange.to_gguf import GGUF
from chatgot.exchange.to_transformers import HF
from chatgot.sampling.loading import LoadedModel

MIXED = PROBE.replace("<|endoftext|>", "the end")  # several scripts, emoji, code, odd white space


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> LoadedModel:
    vocabulary = train_subwords([harness.make_text(), MIXED * 3], 600)
    model = plain_models.random_model("qwen3", len(vocabulary), max_seq_length=32)
    other = exported.loaded(tmp_path_factory.mktemp("loaded"))
    config = other.config.model_copy(update={"model": model.cfg})
    return replace(other, model=model, config=config, vocabulary=vocabulary)


def test_ids_in_the_exported_files_are_ours(loaded, tmp_path):
    text = MIXED * 2
    for form in (HF, GGUF, HTML):
        place = tmp_path / form.name
        place.mkdir()
        form.write(loaded, "fp32", place)
        assert form.open(place).encode(text) == loaded.vocabulary.encode(text)


@pytest.mark.slow  # transformers alone takes seconds to import, and llama.cpp to start
def test_ids_of_a_megabyte_are_ours_in_transformers_and_llama_cpp(loaded, tmp_path, monkeypatch):
    text = mixed_text(1 << 20)
    ours = loaded.vocabulary.encode(text)
    assert loaded.vocabulary.decode(ours) == text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    HF.write(loaded, "fp32", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text)["input_ids"] == ours
    assert theirs.decode(ours) == text
    GGUF.write(loaded, "fp32", tmp_path)
    (path,) = tmp_path.glob("*.gguf")
    with llama_cpp.serving(path) as server:
        assert server.tokens(text) == ours


def mixed_text(size: int) -> str:
    """Return so many bytes of made-up text: the probe's lines and words in any order."""
    chance = random.Random(0)
    lines = [line + "\n" for line in MIXED.split("\n")]
    words = [*MIXED.split(" "), " ", "  ", "\t", "\r\n", "\n\n", "'s", "\u00a0", "e\u0301", "🏳️‍🌈"]
    parts: list[str] = []
    length = 0
    while length < size:
        part = chance.choice(lines) + " ".join(chance.choices(words, k=9)) + harness.make_text(200)
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)
