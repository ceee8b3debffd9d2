"""A text's own subwords: trained on its training part alone, the same on every machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chatgot.config import DataConfig
from chatgot.data import bpe, own_subwords
from chatgot.data.bpe import LONGEST_WORD, even_sample, text_blocks, text_size, train_subwords
from chatgot.data.configured_text import encoded
from chatgot.data.own_subwords import tokens_within
from chatgot.data.subwords import LONGEST_PIECE
from chatgot.data.vocabulary import END_OF_TEXT

SPEECH = "KING:\nGood morrow, my lord; what news?\n\nFOOL:\nNone, none at all. Naïve 世界 🎭\n\n"
HELD_OUT = "Zyzzyva zyzzyva "


def data(vocab_size=400, **keys) -> DataConfig:
    return DataConfig(tokenizer="bpe", vocab_size=vocab_size, **keys)


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SPEECH * 90 + f"{END_OF_TEXT}\n" + HELD_OUT * 30, encoding="utf-8")
    return path


def test_the_end_of_text_is_id_0_and_every_byte_is_a_token():
    vocabulary = train_subwords([SPEECH * 9], 300)
    assert len(vocabulary) == 300
    assert (vocabulary.end_of_text_id, vocabulary.tokens[0]) == (0, END_OF_TEXT)
    odd = "\x00\x7f\u0085\U0010ffff\n \r\n"
    assert vocabulary.decode(vocabulary.encode(odd)) == odd
    assert len(train_subwords(["x"], 300)) == 257


def test_the_end_of_text_token_is_no_text_to_train_on():
    vocabulary = train_subwords([f"{END_OF_TEXT}\n" * 99, f"a\n{END_OF_TEXT}\n" * 99], 300)
    assert not [token for token in vocabulary.tokens[1:] if "endo" in token]


def test_lines_that_begin_with_a_word_begin_with_a_token():
    vocabulary = train_subwords([SPEECH * 90], 500)
    texts = [vocabulary.bytes_of(token) for token in range(len(vocabulary))]
    assert b"?\n\n" in texts
    assert not [text for text in texts if b"\n" in text.rstrip(b"\n")]


def test_two_trainings_on_any_cores_give_the_same_tokenizer(tmp_path):
    program = (
        "import sys; from chatgot.data.bpe import train_subwords;"
        "text = open(sys.argv[1], encoding='utf-8').read();"
        "print(train_subwords([text[:999], text[999:]], 600).json)"
    )
    text = tmp_path / "text.txt"
    words = "".join(f"{a}{b} " for a in "bcdfgklm" for b in ("in", "out", "o世", "ié", "🎭a"))
    text.write_text(words * 3 + SPEECH, encoding="utf-8")
    jsons = []
    for threads in ("1", "2", "2"):
        surroundings = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", program, str(text)]
        jsons.append(subprocess.run(command, env=surroundings, capture_output=True, check=True))
    outputs = {job.stdout for job in jsons}
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())["model"]["vocab"]) > 300


def test_held_out_text_trains_no_subword(text, tmp_path):
    tokens = encoded(data(test_split=0.08), text, tmp_path / "cache")
    assert not [token for token in tokens.vocabulary.tokens if token.lower().startswith("zy")]
    everything = encoded(data(test_split=1e-6), text, tmp_path / "cache")
    assert [token for token in everything.vocabulary.tokens if token.startswith("Zy")]


@pytest.mark.parametrize("test_split", [0.05, 0.1, 0.37])
def test_both_kinds_of_tokens_hold_out_the_same_text(text, tmp_path, test_split):
    subwords = encoded(data(test_split=test_split), text, tmp_path / "cache")
    characters = encoded(DataConfig(test_split=test_split), text, tmp_path / "cache")

    def held_out(tokens) -> str:
        ids = tokens.ids[tokens.training_length(test_split) :]
        return "".join(tokens.vocabulary.chunks_of_text(ids, "\x03"))

    expected = held_out(characters)
    found = held_out(subwords)
    assert found.endswith(expected)
    first = subwords.ids[subwords.training_length(test_split)]
    assert len(found) - len(expected) < len(subwords.vocabulary.decode([int(first)])) or (
        found == expected
    )


def test_a_character_of_several_tokens_is_cut_off_whole():
    vocabulary = train_subwords(["a"], 257)
    ids = np.array(vocabulary.encode("aé世b"), dtype=np.uint16)  # 1, 2, 3 and 1 tokens
    assert [tokens_within(ids, vocabulary, n) for n in range(6)] == [0, 1, 3, 6, 7, 7]


def test_the_cache_remembers_subwords_of_a_text_and_its_settings(text, tmp_path, monkeypatch):
    first = encoded(data(), text, tmp_path / "cache")
    trained = []
    monkeypatch.setattr(own_subwords, "train_subwords", lambda *a: trained.append(a) or first)
    assert encoded(data(), text, tmp_path / "cache").vocabulary.json == first.vocabulary.json
    assert not trained
    for other in (data(vocab_size=401), data(test_split=0.2)):
        with pytest.raises(AttributeError):  # what was trained is no vocabulary here
            encoded(other, text, tmp_path / "cache")
    assert len(trained) == 2


def test_a_damaged_memory_of_subwords_is_trained_again(text, tmp_path):
    first = encoded(data(), text, tmp_path / "cache")
    (remembered,) = (tmp_path / "cache").glob("*.bpe.json")
    for damage in ("{", "[]", "{}", remembered.read_text().replace('"format": 1', '"format": 0')):
        remembered.write_text(damage)
        assert encoded(data(), text, tmp_path / "cache").vocabulary.json == first.vocabulary.json


def test_subwords_that_are_given_keep_the_split_by_characters(text, tmp_path):
    first = encoded(data(), text, tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    again = encoded(data(), text, tmp_path / "cache", first.vocabulary)
    assert again.n_train == first.n_train
    assert np.array_equal(again.ids, first.ids)
    assert not list((tmp_path / "cache").glob("*.bpe.json"))


def test_blocks_do_not_depend_on_where_chunks_end():
    text = f"{SPEECH * 2000}{END_OF_TEXT}\n{SPEECH}\n{END_OF_TEXT}\n{SPEECH * 900}"
    whole = list(text_blocks([text], 200_000))
    assert max(map(len, whole)) <= LONGEST_PIECE
    assert "".join(whole) == text.replace(END_OF_TEXT, "")[: 200_000 - 2]
    for size in (997, 70_001):
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        assert list(text_blocks(chunks, 200_000)) == whole
        assert text_size(chunks) == text_size([text])


def test_a_sample_is_spread_evenly_over_the_text():
    blocks = [str(number) for number in range(100)]
    assert list(even_sample(blocks, 1.5)) == blocks
    places = [int(block) for block in even_sample(blocks, 0.3)]
    assert len(places) == 30
    assert set(np.diff(places)) == {3, 4}


def test_a_long_text_trains_on_a_sample(text, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(own_subwords, "SAMPLE_BYTES", 2000)
    monkeypatch.setattr(bpe, "LONGEST_PIECE", 100)
    caplog.set_level("INFO")
    taken = []
    real = own_subwords.train_subwords

    def train(blocks, vocab_size):
        taken.extend(blocks)
        return real(taken, vocab_size)

    monkeypatch.setattr(own_subwords, "train_subwords", train)
    encoded(data(), text, tmp_path / "cache")
    assert 1500 < sum(len(block.encode()) for block in taken) < 2500
    assert "on 0.002 MB, evenly spread" in caplog.text


def test_a_word_without_end_is_cut_for_the_training():
    vocabulary = train_subwords(["ab" * 5000 + " " * 5000 + "世" * 5000], 1000)
    lengths = [len(vocabulary.bytes_of(token).decode(errors="ignore")) for token in range(280)]
    assert LONGEST_WORD // 2 <= max(lengths) <= LONGEST_WORD
