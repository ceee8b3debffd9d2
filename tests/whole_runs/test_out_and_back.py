"""A model leaves as a user exports it, and comes back in as the start of a new run."""

from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import starts

from chatgot.exchange.known_formats import format_named
from chatgot.sampling.loading import load_model

FORMATS = ["hf", "gguf", "safetensors"]
ARCHITECTURES = ["gpt", "modern"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run of characters, of one architecture."""
    folder = tmp_path_factory.mktemp(request.param)
    harness.write_config(folder, model={"architecture": request.param}, training=starts.SHORT)
    assert starts.train(folder, "--config", "tiny.yaml") == 0
    return folder


def export(folder: Path, name: str, dtype: str, to: Path, run: str = "tiny") -> Path:
    """Export the model of a run; return what a new run starts from."""
    options = ("--format", name, "--dtype", dtype)
    assert starts.run_tool("export", folder, run, "--to", str(to), *options) == 0
    return to / "model.gguf" if name == "gguf" else to


def begun(folder: Path, start: Path, name: str, **keys: Any) -> dict[str, Any]:
    """Return the last checkpoint of a new run on the same text, which starts from a model."""
    assert starts.begin(folder, start, name=name, **keys) == 0
    return harness.load(starts.checkpoint_of(folder, name))


@pytest.mark.parametrize("name", FORMATS)
def test_training_goes_on_from_an_export_as_from_the_checkpoint(trained, name, tmp_path, capsys):
    """With dropout, and with the optimizer's state, all bits are the same."""
    checkpoint = harness.checkpoints(trained)[4]
    model = {"architecture": harness.load(checkpoint)["config"]["model"]["architecture"]}
    out = export(trained, name, "fp32", tmp_path / "out")
    direct = begun(tmp_path, checkpoint, "direct", model=model)
    around = begun(tmp_path, out, "around", model=model)
    for key in ("model_state_dict", "optimizer_state_dict", "rng", "loss", "vocabulary"):
        assert parts.same(around[key], direct[key]), key
    assert around["loss"] != harness.load(checkpoint)["loss"]
    assert around["imported"]["kind"] == name
    assert "imported" not in direct


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gguf", "bf16"),
        ("safetensors", "bf16"),
        *harness.slow(("hf", "bf16"), ("hf", "fp16"), ("gguf", "fp16")),
    ],
)
def test_a_rounded_export_brings_the_rounded_weights(trained, name, dtype, tmp_path):
    loaded = load_model(harness.checkpoints(trained)[4], parts.CPU)
    out = export(trained, name, dtype, tmp_path / "out")
    assert starts.begin(tmp_path, out, training={"max_steps": 1}) == 0
    weights = harness.load(starts.checkpoint_of(tmp_path, step=0))["model_state_dict"]
    rounded = format_named(name).as_rounded(loaded.model, dtype)
    assert not parts.same(dict(weights), dict(loaded.model.state_dict()))
    assert parts.same(dict(weights), dict(rounded.state_dict()))


@pytest.mark.parametrize("trained", ["modern"], indirect=True)
def test_a_text_alone_starts_from_an_export(trained, tmp_path, capsys):
    """Rows of characters that the model does not know are new."""
    text = harness.make_text(20_000).replace("q", "é")
    (tmp_path / "plays.txt").write_text(text, encoding="utf-8")
    out = export(trained, "gguf", "fp32", tmp_path / "out")
    capsys.readouterr()
    assert starts.train(tmp_path, "plays.txt", "--init_from", str(out), *starts.QUICK) == 0
    said = capsys.readouterr().err
    assert "recipe: chatgot_finetune" in said
    assert "20,000 characters" in said
    assert "their rows are new: 'é'" in said
