"""From texts to a model by shards, as a user does it: made, trained on, resumed, talked to."""

import json
import shutil
from pathlib import Path

import harness
import pytest
import torch

from chatgot.data.shards import storage
from chatgot.data.shards.writing import ShardSettings, write_shards
from chatgot.sampling.loading import load_model
from chatgot.sampling.training_text import training_text

DATA = {"path": None, "shards": "shards"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with shards of small blocks, and a run of 12 steps on them."""
    folder = tmp_path_factory.mktemp("shards")
    texts = [harness.make_text(500, seed=seed) for seed in range(30)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(lines)
    settings = ShardSettings("bpe", 290, held_out=0.2, shard_bytes=2048, block_bytes=512)
    write_shards([str(folder / "texts.jsonl")], str(folder / "shards"), settings)
    harness.write_config(folder, data=DATA)
    (folder / "text.txt").unlink()
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


def test_a_resumed_run_ends_in_the_same_bits(folder, tmp_path):
    resumed = tmp_path / "resumed"
    shutil.copytree(folder, resumed)
    start = ("--resume_from", str(harness.checkpoints(resumed)[5]))
    assert harness.train_here(resumed, "--config", "tiny.yaml", *start) == 0
    one = harness.load(harness.checkpoints(folder)[12])
    other = harness.load(harness.checkpoints(resumed)[12])
    assert harness.same(harness.trained(one), harness.trained(other))
    assert harness.rows(folder)[-1]["val_loss"] == harness.rows(resumed)[-1]["val_loss"]


def test_training_learns_from_shards(folder):
    rows = harness.rows(folder)
    assert rows[-1]["val_loss_full"] < rows[0]["val_loss"] - 0.5
    assert "text in shards of shards" in harness.log_of(folder)
    assert harness.events(folder, "originality") == []


def test_a_checkpoint_has_all_that_talking_needs(folder, monkeypatch):
    """The shards may be gone: vocabulary and speakers are in the file."""
    monkeypatch.chdir(folder)
    path = harness.checkpoints(folder)[12]
    shutil.move(folder / "shards", folder / "away")
    try:
        loaded = load_model(path, torch.device("cpu"))
        assert len(loaded.vocabulary) == 290
        assert {speaker.name for speaker in loaded.speakers} == {"KING", "QUEEN", "FOOL"}
        assert training_text(loaded) is None
        export = harness.load_script(harness.ROOT / "scripts" / "export.py")
        options = ["--to", str(folder / "out"), "--format", "safetensors"]
        assert export.main([str(path), *options]) == 0
        card = (folder / "out" / "README.md").read_text(encoding="utf-8")
        assert "--set data.shards=FOLDER" in card
        assert "documents, chosen by their content" in card
    finally:
        shutil.move(folder / "away", folder / "shards")


def test_other_shards_are_refused_on_resume(folder, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(other / "shards")
    settings = ShardSettings("bpe", 290, held_out=0.3, shard_bytes=2048, block_bytes=512)
    write_shards([str(folder / "texts.jsonl")], str(other / "shards"), settings)
    start = ("--resume_from", str(harness.checkpoints(other)[5]))
    assert harness.train_here(other, "--config", "tiny.yaml", *start) == 3
    assert "trained on another text" in capsys.readouterr().err


def test_a_damaged_shard_ends_the_run_with_exit_5(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(storage, "WAITS_S", (0.0,))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    shutil.rmtree(damaged / "checkpoints")
    shutil.rmtree(damaged / "logs")
    for shard in (damaged / "shards").glob("train-*"):
        if shard.name.startswith("train-000000"):
            continue  # the head of the text, which is read before the first step
        shard.write_bytes(bytes(shard.stat().st_size))
    head = ("--set", "training.eval_interval=100")
    assert harness.train_here(damaged, "--config", "tiny.yaml", *head) == 5
    lines = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert len(lines) == 1
    assert "is damaged" in lines[0]


def test_shards_beside_a_text_are_one_error_in_the_yaml(folder, capsys):
    options = ("--set", "data.path=texts.jsonl")
    assert harness.train_here(folder, "--config", "tiny.yaml", *options) == 2
    assert "set data.path=null or data.shards=null" in capsys.readouterr().err


def prepare(*arguments: object) -> int:
    script = harness.load_script(harness.ROOT / "scripts" / "prepare_data.py")
    return int(script.main(list(map(str, arguments))))


def test_the_command_makes_shards_and_says_what_to_do_next(folder, tmp_path, capsys):
    texts = folder / "texts.jsonl"
    target = tmp_path / "made"
    options = ("--vocab_size", 290, "--held_out", 0.2, "--shard_mib", 1)
    assert prepare(texts, texts, "--shards", target, *options) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("training: ")
    assert said[0].endswith("documents in 1 shard")
    assert said[2] == "left out: 30 documents whose text had come before"
    assert said[-1].endswith(f"--config chatgot_quick --set data.shards={target}")
    assert prepare(texts, "--shards", target) == 2
    assert "has shards already" in capsys.readouterr().err
    characters = ("--tokenizer", "char", "--held_out", 0.2)
    assert prepare(texts, "--shards", tmp_path / "characters", *characters) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tokenizer", "bpe", "--output", "o.txt"), "--tokenizer goes with --shards"),
        (("--shards", "s", "--output", "o.txt"), "--output does not go with --shards"),
        (("--shards", "s", "--merge", "a=b"), "--merge does not go with --shards"),
        (("--shards", "s", "--vocab_size", "9"), "--vocab_size: found 9, expected 257"),
        (("--shards", "s", "--tokenizer", "char", "--vocab_size", "300"), "goes with --tokenizer"),
        (("--shards", "s", "--held_out", "1"), "expected a share above 0 and below 1"),
        (("--shards", "s", "--shard_mib", "0"), "expected a number from 1 to 1024"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(options, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare("texts.jsonl", *options)
    assert words in capsys.readouterr().err
