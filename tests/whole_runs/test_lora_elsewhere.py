"""LoRA on a model from elsewhere: what is saved, how it goes on, and where the base has to be."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import harness
import parts
import pytest
import starts

from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.exchange.importing import read_start
from chatgot.sampling.loading import load_model

pytestmark = pytest.mark.slow  # the continuous tests have them

LORA = {"learning_rate": 1e-2, "lora": {"rank": 2}}
LONGER = ("--set", "training.max_steps=6")
KINDS = ["folder", "gguf"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model as a folder of transformers, and another one as a GGUF."""
    folder = tmp_path_factory.mktemp("models")
    starts.save_pretrained(folder / "llama", "Llama")
    starts.save_pretrained(folder / "gpt2", "GPT2")
    assert starts.begin(folder, folder / "gpt2", training={"max_steps": 1}) == 0
    options = ("--to", str(folder / "out"), "--format", "gguf", "--dtype", "fp32")
    assert starts.run_tool("export", folder, "fine", *options) == 0
    return {"folder": folder / "llama", "gguf": folder / "out" / "model.gguf"}


@pytest.fixture(scope="module", params=KINDS)
def tuned_once(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder with `base`, and a run that has LoRA on it."""
    folder = tmp_path_factory.mktemp(request.param)
    source = models[request.param]
    copy_of(source, folder / "base")
    assert starts.begin(folder, "base", training=LORA | {"lr_decay_steps": 8}) == 0
    return folder


@pytest.fixture
def tuned(tuned_once: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder, whose checkpoints say where the original base is."""
    return shutil.copytree(tuned_once, tmp_path / "tuned")


def copy_of(source: Path, target: Path) -> None:
    copy: Callable = shutil.copytree if source.is_dir() else shutil.copyfile
    copy(source, target)


def error_lines(capsys: pytest.CaptureFixture) -> list[str]:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()


def test_only_the_added_weights_are_saved(tuned_once):
    content = load_checkpoint(starts.checkpoint_of(tuned_once))
    assert all("lora" in name for name in content["model_state_dict"])
    assert content["base"]["path"] == str(tuned_once / "base")
    assert {"imported", "tokenizer"} <= content.keys()


def test_resume_ends_in_the_same_bits(tuned_once, tmp_path):
    """Without --set, and with the original base."""
    shutil.copytree(tuned_once, tmp_path / "tuned")
    harness.write_config(tmp_path, name="fine", training=starts.SHORT | LORA)
    training = LORA | {"lr_decay_steps": 8, "max_steps": 2}
    assert starts.begin(tmp_path, tuned_once / "base", training=training) == 0
    whole = starts.SHORT | training | {"max_steps": 4}
    harness.write_config(tmp_path, name="fine", training=whole)
    assert starts.resume(tmp_path) == 0
    resumed = harness.load(starts.checkpoint_of(tmp_path))
    undisturbed = harness.load(starts.checkpoint_of(tuned_once))
    for key in ("model_state_dict", "optimizer_state_dict", "rng", "base", "imported", "loss"):
        assert parts.same(resumed[key], undisturbed[key]), key


def test_chat_and_export_take_the_merged_model(tuned_once, tmp_path, capsys):
    options = ("--prompt", "KING:\n", "--max_new_tokens", "8", "--temperature", "0")
    assert starts.run_tool("chat", tuned_once, "fine", *options) == 0
    text = capsys.readouterr().out
    assert text.startswith("KING:\n")
    to = ("--to", str(tmp_path / "out"), "--format", "hf", "--dtype", "fp32")
    assert starts.run_tool("export", tuned_once, "fine", *to) == 0
    path = starts.checkpoint_of(tuned_once)
    merged = load_model(path, parts.CPU, read_start).model.state_dict()
    out = read_start(tmp_path / "out")
    assert parts.same({name: out.tensors[name] for name in merged}, dict(merged))
    base = read_start(tuned_once / "base").tensors
    name = "layers.0.attention.qkv.weight"
    assert not merged[name].equal(base[name])


@pytest.mark.parametrize("options", [(), ("--set", "training.lora.rank=null")])
def test_new_runs_start_from_the_merged_weights(tuned_once, tmp_path, options, capsys):
    """With LoRA again, and without; with a YAML, and with a text."""
    path = starts.checkpoint_of(tuned_once)
    assert starts.begin(tmp_path, path, *options, training=LORA) == 0
    merged = load_model(path, parts.CPU, read_start).model.state_dict()
    begun = load_model(starts.checkpoint_of(tmp_path, step=0), parts.CPU, read_start)
    assert parts.same(dict(begun.model.state_dict()), dict(merged))
    assert starts.resume(tmp_path, *LONGER, *options) == 0
    if options:
        (tmp_path / "plays.txt").write_text(harness.make_text(20_000), encoding="utf-8")
        quick = (*starts.QUICK, "--dry_run")
        assert starts.train(tmp_path, "plays.txt", "--init_from", str(path), *quick) == 0
        assert "recipe: chatgot_finetune" in capsys.readouterr().out


def test_base_next_to_the_checkpoint_is_found(tuned_once, tuned, capsys):
    (tuned / "base").rename(tuned / "checkpoints" / "base")
    hidden = tuned_once / "base"
    hidden.rename(tuned_once / "hidden")
    try:
        assert starts.run_tool("chat", tuned, "fine", "--prompt", "KING:") == 0
        assert starts.resume(tuned, *LONGER, path=starts.checkpoint_of(tuned)) == 0
    finally:
        (tuned_once / "hidden").rename(hidden)


def test_without_the_base_two_lines_say_where_it_has_to_be(tuned_once, tuned, capsys):
    hidden = tuned_once / "base"
    hidden.rename(tuned_once / "hidden")
    try:
        capsys.readouterr()
        assert starts.resume(tuned, *LONGER, path=starts.checkpoint_of(tuned)) == 3
        for tool in (("chat", "--prompt", "KING:"), ("export", "--to", "out", "--format", "hf")):
            assert starts.run_tool(tool[0], tuned, "fine", *tool[1:]) == 3
    finally:
        (tuned_once / "hidden").rename(hidden)
    lines = error_lines(capsys)
    assert len(lines) == 6
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert "holds only what LoRA has added to" in first
        assert "put that file back, or next to the checkpoint: " in second
    assert not (tuned / "out").exists()


def test_changed_base_is_refused_in_two_lines(tuned_once, tuned, models, capsys):
    """It has the same shape and the same tokens."""
    hidden = tuned_once / "base"
    hidden.rename(tuned_once / "hidden")
    other = tuned / "checkpoints" / "base"
    try:
        if (tuned / "base").is_dir():
            starts.save_pretrained(other, "Llama", seed=2)
        else:
            content = bytearray((tuned / "base").read_bytes())
            content[-3] ^= 0x10
            other.write_bytes(content)
        capsys.readouterr()
        assert starts.resume(tuned, *LONGER, path=starts.checkpoint_of(tuned)) == 3
        assert starts.run_tool("chat", tuned, "fine", "--prompt", "KING:") == 3
    finally:
        (tuned_once / "hidden").rename(hidden)
    lines = error_lines(capsys)
    assert len(lines) == 4
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert f"{Path('checkpoints', 'base')}: its weights are not those that" in first
        assert "put the right file there" in second


def test_layers_of_the_models_architecture_are_targets(models, tmp_path, capsys):
    """`up` is a layer of GPT-2's; a modern YAML alone would not take it."""
    modern = {"architecture": "modern"}
    up = ("--set", "training.lora.targets=[up]")
    assert starts.begin(tmp_path, models["gguf"], *up, model=modern, training=LORA) == 0
    weights = harness.load(starts.checkpoint_of(tmp_path))["model_state_dict"]
    assert {name.split(".")[3] for name in weights} == {"up"}
    said = capsys.readouterr().err
    command = shlex.split(said.rpartition("resume with: ")[2])
    options = command[command.index("--config") :]
    assert starts.train(tmp_path, *options, *LONGER) == 0
    assert starts.begin(tmp_path, models["folder"], *up, model=modern, training=LORA) == 2
    lines = [line for line in error_lines(capsys) if " - ERROR - " in line]
    assert len(lines) == 2
    assert "up: the linear layers of architecture modern are qkv" in lines[1]
