"""A run on a text's own subwords, as a user starts it: sampled, resumed, gone on with."""

from pathlib import Path

import harness
import pytest

from chatgot.checkpointing.stored_vocabulary import subwords_in
from chatgot.data.subwords import PROBE
from chatgot.exchange.importing import read_start

SETTINGS = ("data.tokenizer=bpe", "data.vocab_size=320")


def train(folder: Path, *arguments: str, settings: tuple[str, ...] = SETTINGS) -> int:
    overrides = [word for setting in settings for word in ("--set", setting)]
    return harness.train_here(folder, "--config", "tiny.yaml", *arguments, *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of six steps, with a checkpoint after three."""
    place = tmp_path_factory.mktemp("own")
    model = {"architecture": "modern", "d_model": 32, "n_head": 2, "d_hid": 32}
    training = {"max_steps": 6, "save_checkpoint_steps": 3}
    harness.write_config(place, model=model, training=training)
    assert train(place) == 0
    return place


def test_rows_and_log_have_bits_per_byte(folder):
    rows = harness.rows(folder)
    assert rows[-1]["val_bits_per_byte"] > 0
    assert rows[-1]["val_bits_per_byte_full"] == pytest.approx(
        rows[-1]["val_bits_per_byte"] * rows[-1]["val_loss_full"] / rows[-1]["val_loss"]
    )
    assert "bits per byte) at step" in harness.log_of(folder)
    assert "(subwords), a vocabulary of 320" in harness.log_of(folder)
    assert len(harness.samples(folder)) > 0


def test_a_resumed_run_is_the_whole_run_without_cache_or_training(folder, tmp_path):
    """The tokenizer comes from the checkpoint: the resumed run could not train it anew."""
    whole = harness.load(harness.checkpoints(folder)[6])
    for name in ("tiny.yaml", "text.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    place = tmp_path / "checkpoints"
    place.mkdir()
    start = place / harness.checkpoints(folder)[3].name
    start.write_bytes(harness.checkpoints(folder)[3].read_bytes())
    assert train(tmp_path, "--resume_from", str(start)) == 0
    resumed = harness.load(harness.checkpoints(tmp_path)[6])
    assert harness.same(harness.trained(whole), harness.trained(resumed))
    assert resumed["tokenizer"] == whole["tokenizer"]
    assert not list((tmp_path / "data" / "cache").glob("*.bpe.json"))


@pytest.mark.parametrize("change", ["data.tokenizer=char", "data.vocab_size=321"])
def test_a_resumed_run_keeps_its_tokens(folder, change, capsys):
    files = harness.checkpoints(folder)
    settings = (*SETTINGS, change, "training.max_steps=7")
    assert train(folder, "--resume_from", str(files[6]), settings=settings) == 3
    key, _, asked = change.partition("=")
    stored = "320" if asked == "321" else "bpe"
    assert f"(stored -> asked): {key}: {stored} -> {asked}" in capsys.readouterr().err
    assert harness.checkpoints(folder) == files


def test_a_new_run_on_another_text_takes_the_subwords_over(folder, tmp_path):
    start = read_start(harness.checkpoints(folder)[6])
    assert start.vocabulary is not None
    harness.write_config(tmp_path, training={"max_steps": 1})
    text = harness.make_text(seed=5) + PROBE
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    assert train(tmp_path, "--init_from", str(harness.checkpoints(folder)[6])) == 0
    (path,) = [file for step, file in harness.checkpoints(tmp_path).items() if step == 1]
    theirs = subwords_in(path)
    assert theirs is not None
    assert theirs.json == start.vocabulary.json
    assert "data.vocab_size=320 has no effect" in harness.log_of(tmp_path)
    assert not list((tmp_path / "data" / "cache").glob("*.bpe.json"))
