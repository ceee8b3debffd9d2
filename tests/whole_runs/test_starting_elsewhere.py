"""Runs that start from a model from elsewhere, as a user starts them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
from plain_models import loaded_model, random_model
from tiny_tokenizers import tokenizer_json

from chatgot.data.subwords import Subwords
from chatgot.exchange.known_formats import format_named
from chatgot.exchange.to_transformers import HF
from chatgot.sampling.loading import load_model

MODERN = {"architecture": "modern"}
SHORT: dict[str, Any] = {"max_steps": 4, "warmup_steps": 0, "eval_interval": None}


def last(folder: Path, name: str, step: int = 4) -> dict[str, Any]:
    """Return the checkpoint of a step of the only run of a configuration's name."""
    (path,) = (folder / "checkpoints").glob(f"{name}_*_step_{step}.pt")
    return harness.load(path)


def begin(folder: Path, name: str, start: Path, *options: str, **sections: Any) -> int:
    """Train four steps from a model; return the exit code."""
    training = SHORT | sections.pop("training", {})
    harness.write_config(folder, name=name, training=training, **sections)
    return harness.train_here(
        folder, "--config", f"{name}.yaml", "--init_from", str(start), *options
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of four steps, and its last checkpoint as `model.pt`."""
    folder = tmp_path_factory.mktemp("trained")
    harness.write_config(folder, model=MODERN, training=SHORT)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of transformers with a model of subwords."""
    folder = tmp_path_factory.mktemp("pretrained")
    vocabulary = Subwords.from_json(tokenizer_json())
    model = random_model("llama_grouped", len(vocabulary))
    loaded = loaded_model("llama_grouped", "abc")
    config = loaded.config.model_copy(update={"model": model.cfg})
    out = folder / "pretrained"
    out.mkdir()
    HF.write(replace(loaded, vocabulary=vocabulary, model=model, config=config), "fp32", out)
    return out


@pytest.mark.parametrize("name", ["hf", "gguf", "safetensors"])
def test_training_goes_on_from_an_export_as_from_the_checkpoint(trained, name, tmp_path):
    checkpoint = harness.checkpoints(trained)[4]
    loaded = load_model(checkpoint, parts.CPU)
    out = tmp_path / "out.gguf" if name == "gguf" else tmp_path / "out"
    written = tmp_path / "written"
    written.mkdir()
    format_named(name).write(loaded, "fp32", written)
    (written / "model.gguf" if name == "gguf" else written).rename(out)
    assert begin(tmp_path, "direct", checkpoint.resolve(), model=MODERN) == 0
    assert begin(tmp_path, "around", out, model=MODERN) == 0
    ours = last(tmp_path, "around")
    assert parts.same(ours["model_state_dict"], last(tmp_path, "direct")["model_state_dict"])
    assert ours["imported"]["kind"] == name


def test_shape_and_subwords_come_from_the_model(pretrained, tmp_path, capsys):
    """The YAML has another shape, and all else comes from it."""
    assert begin(tmp_path, "fine", pretrained, training={"learning_rate": 1e-4}) == 0
    content = last(tmp_path, "fine")
    model = content["config"]["model"]
    assert model["architecture"] == "modern"
    assert model["n_kv_head"] == 1
    assert model["max_seq_length"] == harness.TINY["model"]["max_seq_length"]
    assert content["config"]["training"]["learning_rate"] == 1e-4
    assert content["tokenizer"] == (pretrained / "tokenizer.json").read_text(encoding="utf-8")
    assert "(subwords)" in capsys.readouterr().err
    assert load_model(harness.checkpoints(tmp_path)[4], parts.CPU).vocabulary.kind == "subwords"


def test_resume_needs_neither_the_model_nor_its_shape(pretrained, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    stopped = tmp_path / "stopped"
    for folder, steps in ((undisturbed, 4), (stopped, 2)):
        folder.mkdir()
        limit = f"training.max_steps={steps}"
        horizon = {"lr_decay_steps": 4}
        assert begin(folder, "fine", pretrained, "--set", limit, training=horizon) == 0
    assert harness.train_here(stopped, "--config", "fine.yaml", "--resume_from", "latest") == 0
    whole = last(undisturbed, "fine")
    resumed = last(stopped, "fine")
    for key in ("model_state_dict", "optimizer_state_dict", "imported", "tokenizer"):
        assert parts.same(resumed[key], whole[key]), key


def test_another_shape_than_the_models_is_refused(pretrained, tmp_path, capsys):
    assert begin(tmp_path, "fine", pretrained, "--set", "model.n_layers=3") == 2
    said = capsys.readouterr().err
    assert "--set model.n_layers=3: the model of" in said
    assert "has 2; leave it out" in said
    assert not (tmp_path / "checkpoints").exists() or not harness.checkpoints(tmp_path)


def test_context_is_never_longer_than_the_models(pretrained, tmp_path):
    assert begin(tmp_path, "fine", pretrained, model={"max_seq_length": 64}) == 0
    assert last(tmp_path, "fine")["config"]["model"]["max_seq_length"] == 32


def test_lora_on_a_folder_saves_what_it_adds_and_resumes(pretrained, tmp_path):
    options = ("--set", "training.lora.rank=2", "--set", "training.max_steps=2")
    assert begin(tmp_path, "fine", pretrained, *options, training={"lr_decay_steps": 4}) == 0
    resume = ("--resume_from", "latest", "--set", "training.lora.rank=2")
    assert harness.train_here(tmp_path, "--config", "fine.yaml", *resume) == 0
    content = last(tmp_path, "fine")
    assert all("lora" in name for name in content["model_state_dict"])
    assert content["base"]["path"] == str(pretrained.resolve())


def test_text_alone_takes_the_recipe_for_fine_tuning(pretrained, tmp_path, capsys):
    (tmp_path / "plays.txt").write_text(harness.make_text(20_000), encoding="utf-8")
    options = ["--set", "training.batch_size=2", "--set", "training.max_steps=2"]
    options += ["--set", "training.threads=1", "--set", "device=cpu"]
    assert harness.train_here(tmp_path, "plays.txt", "--init_from", str(pretrained), *options) == 0
    said = capsys.readouterr().err
    assert "recipe: chatgot_finetune" in said
    assert harness.train_here(tmp_path, "plays.txt", "--resume_from", "latest") == 0
    assert "is finished at step 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "config.json"),
        ({"pytorch_model.bin": b"x", "config.json": b"{}"}, "model_type"),
        ({"config.json": b'{"model_type": "bert"}'}, "bert"),
    ],
)
def test_folder_that_is_no_model_is_refused_in_one_line(content, words, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    assert begin(tmp_path, "fine", folder) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "ERROR" in line]
    assert words in line
