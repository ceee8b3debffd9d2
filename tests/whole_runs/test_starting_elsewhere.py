"""Runs that start from a model from elsewhere, as a user starts them."""

import shutil
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import starts
from tiny_tokenizers import tokenizer_json

from chatgot.exchange.importing import read_start
from chatgot.sampling.loading import load_model

GOES_ON = ("model_state_dict", "optimizer_state_dict", "rng", "imported", "tokenizer", "loss")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that transformers wrote: Llama with subwords, and rows that are no tokens."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    starts.save_pretrained(folder, "Llama")
    return folder


@pytest.fixture(scope="module")
def tuned(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run of a tiny YAML that started from the model."""
    folder = tmp_path_factory.mktemp("tuned")
    training = {"learning_rate": 1e-3, "lr_decay_steps": 8}
    assert starts.begin(folder, pretrained, training=training) == 0
    return folder


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    """Return a folder with a text of 20,000 characters."""
    (tmp_path / "plays.txt").write_text(harness.make_text(20_000), encoding="utf-8")
    return tmp_path


def last(folder: Path, name: str = "fine", step: int = 4) -> dict[str, Any]:
    """Return the checkpoint of a step of the only run of a name."""
    return harness.load(starts.checkpoint_of(folder, name, step))


def errors(capsys: pytest.CaptureFixture) -> list[str]:
    """Return the lines of stderr that are errors, without their times."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return [line.partition(" - ERROR - ")[2] for line in said.splitlines() if " - ERROR - " in line]


# With a YAML


def test_shape_and_subwords_come_from_the_model(pretrained, tuned):
    """All else comes from the YAML."""
    content = last(tuned)
    model = content["config"]["model"]
    shape = {key: value for key, value in read_start(pretrained).shape.items() if key in model}
    context = harness.TINY["model"]["max_seq_length"]
    assert {key: model[key] for key in shape} == shape | {"max_seq_length": context}
    assert model["dropout"] == harness.TINY["model"]["dropout"]
    assert content["config"]["training"]["learning_rate"] == 1e-3
    assert content["tokenizer"] == tokenizer_json()
    assert content["imported"]["kind"] == "hf"
    assert "(subwords)" in harness.log_of(tuned)


def test_training_begins_with_the_weights_of_the_model(pretrained, tuned):
    weights = harness.load(starts.checkpoint_of(tuned, step=0))["model_state_dict"]
    start = read_start(pretrained)
    assert parts.same(dict(weights), {name: start.tensors[name] for name in weights})
    assert not parts.same(last(tuned)["model_state_dict"], weights)


def test_resume_needs_neither_the_model_nor_its_shape(pretrained, tmp_path):
    """Neither --set nor the folder of the model."""
    model = shutil.copytree(pretrained, tmp_path / "model")
    undisturbed = tmp_path / "undisturbed"
    stopped = tmp_path / "stopped"
    horizon = {"lr_decay_steps": 8}
    for folder, steps in ((undisturbed, 4), (stopped, 2)):
        folder.mkdir()
        limit = f"training.max_steps={steps}"
        assert starts.begin(folder, model, "--set", limit, training=horizon) == 0
    shutil.rmtree(model)
    assert starts.resume(stopped) == 0
    whole = last(undisturbed)
    resumed = last(stopped)
    for key in GOES_ON:
        assert parts.same(resumed[key], whole[key]), key


def test_resume_refuses_another_shape_that_set_asks_for(pretrained, tmp_path, capsys):
    assert starts.begin(tmp_path, pretrained) == 0
    capsys.readouterr()
    more = ("--set", "training.max_steps=6")
    assert starts.resume(tmp_path, *more, "--set", "model.d_model=32") == 3
    (line,) = errors(capsys)
    assert "model.d_model: 16 -> 32" in line
    assert starts.resume(tmp_path, *more, "--set", "model.d_model=16") == 0


@pytest.mark.parametrize(
    ("key", "expected"),
    [("d_model=32", "has 16"), ("n_layers=3", "has 2"), ("max_seq_length=65", "has at most 64")],
)
def test_another_shape_than_the_models_is_refused(pretrained, tmp_path, capsys, key, expected):
    assert starts.begin(tmp_path, pretrained, "--set", f"model.{key}") == 2
    (line,) = errors(capsys)
    assert line == f"--set model.{key}: the model of {pretrained} {expected}; leave it out"
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_context_is_never_longer_than_the_models_which_is_said(pretrained, family, tmp_path):
    """With rotations and with learned positions."""
    model = pretrained
    if family == "GPT2":
        model = tmp_path / "gpt2"
        starts.save_pretrained(model, family)
    assert starts.begin(tmp_path, model, model={"max_seq_length": 128}) == 0
    assert last(tmp_path)["config"]["model"]["max_seq_length"] == 64
    words = f"model.max_seq_length: 64 instead of 128, which {model} was not trained with"
    assert words in harness.warnings(tmp_path)
    assert starts.resume(tmp_path, "--set", "training.max_steps=5") == 0


def test_learned_lines_are_found_in_subwords(pretrained, tmp_path):
    options = ("--set", "data.learn_from=[KING]", "--set", "training.eval_interval=2")
    assert starts.begin(tmp_path, pretrained, *options) == 0
    log = harness.log_of(tmp_path)
    assert "over every validation token that is learned from" in log
    assert "KING" in log.partition("learn")[2]


def test_samples_and_chat_speak_subwords(tuned, capsys):
    (sample, _) = [sample for sample in harness.samples(tuned) if sample["step"] == 4]
    assert sample["prompt"] == "KING: "
    assert sample["text"]
    options = ("--max_new_tokens", "12", "--temperature", "0")
    assert starts.run_tool("chat", tuned, "fine", "--prompt", "KING:\n", *options) == 0
    text = capsys.readouterr().out
    assert text.startswith("KING:\n")
    assert len(text) > len("KING:\n\n")


@pytest.mark.parametrize("name", ["hf", "gguf"])
def test_exports_of_the_run_come_back_as_its_model(tuned, name, tmp_path, capsys):
    options = ("--format", name, "--dtype", "fp32")
    assert starts.run_tool("export", tuned, "fine", "--to", str(tmp_path / "out"), *options) == 0
    assert "their tokens are equal" in capsys.readouterr().out
    out = tmp_path / "out" / "model.gguf" if name == "gguf" else tmp_path / "out"
    loaded = load_model(starts.checkpoint_of(tuned), parts.CPU)
    start = read_start(out)
    tokens = len(loaded.vocabulary)
    weights = {key: tensor[:tokens] for key, tensor in loaded.model.state_dict().items()}
    assert parts.same({key: start.tensors[key][:tokens] for key in weights}, weights)
    assert start.vocabulary.tokens == loaded.vocabulary.tokens
    assert starts.begin(tmp_path, out) == 0


# With a text alone


def test_text_alone_takes_the_recipe_for_fine_tuning(pretrained, plays, capsys):
    """The YAML that is written for the run has the shape; it resumes by its text."""
    options = ("--init_from", str(pretrained), "--minutes", "1", *starts.QUICK)
    assert starts.train(plays, "plays.txt", *options) == 0
    said = capsys.readouterr().err
    assert "recipe: chatgot_finetune" in said
    assert " tokens) and 1 minute" in said
    (path,) = (plays / "logs" / "tensorboard").glob("*/plays.yaml")
    words = path.read_text(encoding="utf-8")
    assert "  d_model: 16  # as in the model that the run starts from\n" in words
    assert "  max_seq_length: 64\n" in words or "  max_seq_length: 64  #" in words
    (again,) = [line for line in said.splitlines() if "the same run again: " in line]
    assert f"--init_from {pretrained}" in again
    assert starts.train(plays, "plays.txt", "--resume_from", "latest") == 0
    assert "is finished at step 2" in capsys.readouterr().err
    longer = ("--set", "training.max_steps=3")
    assert starts.train(plays, "plays.txt", "--resume_from", "latest", *longer) == 0
    assert last(plays, "plays", 3)["tokenizer"] == tokenizer_json()


def test_text_goes_on_from_any_checkpoint_in_its_shape(tuned, plays, tmp_path, capsys):
    """That of an imported model, and that of a run of another text."""
    (tmp_path / "plain").mkdir()
    harness.write_config(tmp_path / "plain", training=starts.SHORT, model={"n_layers": 1})
    assert starts.train(tmp_path / "plain", "--config", "tiny.yaml") == 0
    plain = harness.checkpoints(tmp_path / "plain")[4]
    for path, layers in ((starts.checkpoint_of(tuned), 2), (plain, 1)):
        capsys.readouterr()
        options = ("--init_from", str(path), *starts.QUICK, "--dry_run")
        assert starts.train(plays, "plays.txt", *options) == 0
        shown = capsys.readouterr()
        assert "recipe: chatgot_finetune" in shown.out
        count = len(harness.load(path)["model_state_dict"])
        assert f"init_from: {count} of {count} weights from {path}" in shown.err, layers


def test_short_text_is_counted_in_tokens(pretrained, tmp_path, capsys):
    (tmp_path / "short.txt").write_text(harness.make_text(400), encoding="utf-8")
    assert starts.train(tmp_path, "short.txt", "--init_from", str(pretrained)) == 2
    (line,) = errors(capsys)
    assert "tokens, at least" in line
