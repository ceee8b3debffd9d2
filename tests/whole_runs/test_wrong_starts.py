"""What a user gives that no run can start from: one or two lines, and the right exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
import starts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `llama`, a model of transformers."""
    folder = tmp_path_factory.mktemp("models")
    starts.save_pretrained(folder / "llama", "Llama")
    return folder


def error_lines(capsys: pytest.CaptureFixture) -> list[str]:
    """Return all lines of stderr, which are errors, without their times."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = said.splitlines()
    assert all(" - ERROR - " in line for line in lines), said
    return [line.partition(" - ERROR - ")[2] for line in lines]


def without(name: str) -> Callable[[Path], Path]:
    def spoil(model: Path) -> Path:
        (model / name).unlink()
        return model

    return spoil


def empty_folder(model: Path) -> Path:
    shutil.rmtree(model)
    model.mkdir()
    return model


def only_a_pickle(model: Path) -> Path:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    return model


def pipeline_of_diffusion(model: Path) -> Path:
    empty_folder(model)
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (model / "unet").mkdir()
    return model


def model_of_diffusion(model: Path) -> Path:
    config = {"_class_name": "UNet2DConditionModel", "in_channels": 4}
    (model / "config.json").write_text(json.dumps(config))
    return model


def text_named_gguf(model: Path) -> Path:
    path = model / "text.gguf"
    path.write_text(harness.make_text(), encoding="utf-8")
    return path


def folder_with_a_gguf(model: Path) -> Path:
    empty_folder(model)
    (model / "model.gguf").write_bytes(b"GGUF")
    return model


def folder_of_checkpoints(model: Path) -> Path:
    empty_folder(model)
    for step in (2, 4):
        (model / f"tiny_20250102-030405_step_{step}.pt").write_bytes(b"PK")
    return model


def weights_alone(model: Path) -> Path:
    return model / "model.safetensors"


def a_json(model: Path) -> Path:
    return model / "config.json"


def nothing(model: Path) -> Path:
    return model / "nothing"


WRONG: dict[Callable[[Path], Path], str] = {
    without("config.json"): "llama: has no config.json: expected the folder of a model",
    without("model.safetensors"): "llama: ",
    without("tokenizer.json"): "tokenizer.json: is missing",
    empty_folder: "llama: has no config.json",
    only_a_pickle: "pytorch_model.bin: a pickle, which is not read",
    pipeline_of_diffusion: "llama: has no config.json",
    model_of_diffusion: "config.json: model_type is null: ChatGoT reads gpt2, llama, qwen2, qwen3",
    text_named_gguf: "text.gguf: no whole GGUF file: it does not begin with GGUF",
    folder_with_a_gguf: "has no config.json, but 1 .gguf; name that file: ",
    folder_of_checkpoints: "but 2 .pt; name one of them, such as ",
    weights_alone: "model.safetensors: weights alone; name the folder that they are in",
    a_json: "config.json: not a torch.save zip file",
    nothing: "nothing: no such file or folder here; nothing is downloaded",
}


@pytest.mark.parametrize("with_yaml", [True, False])
@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_what_is_no_model_is_exit_3_in_one_line(models, tmp_path, capsys, spoil, with_yaml):
    """With a YAML, and with a text; nothing is written."""
    start = spoil(shutil.copytree(models / "llama", tmp_path / "llama"))
    harness.write_config(tmp_path)
    what = ("--config", "tiny.yaml") if with_yaml else ("text.txt",)
    assert starts.train(tmp_path, *what, "--init_from", str(start)) == 3
    (line,) = error_lines(capsys)
    assert WRONG[spoil] in line
    assert str(start) in line
    assert {path.name for path in tmp_path.iterdir()} == {"llama", "text.txt", "tiny.yaml"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "modell.d_model=16"), "modell.d_model: unknown key"),
        (("--set", "training.lora.targets=[up]"), "training.lora.targets: up: the linear layers"),
        (("--set", "data.learn_from=[NOBODY]"), "NOBODY never speaks in the training part"),
        (("--set", "data.path=nothing.txt"), "nothing.txt"),
        (("--set", "model.architecture=gpt"), "--set model.architecture=gpt: the model of"),
    ],
)
def test_what_does_not_fit_the_run_is_exit_2(models, tmp_path, capsys, options, words):
    assert starts.begin(tmp_path, models / "llama", *options) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if " - ERROR - " in line]
    assert len(errors) in (1, 2)
    assert words in errors[-1]
    assert not list(tmp_path.glob("checkpoints/*.pt"))


def test_text_that_is_short_in_tokens_is_exit_2(models, tmp_path, capsys):
    """The YAML's batches have more tokens than the text."""
    (tmp_path / "text.txt").write_text(harness.make_text(200), encoding="utf-8")
    assert starts.begin(tmp_path, models / "llama") == 2
    (line,) = error_lines(capsys)
    assert "subwords, at least" in line


def test_vocabulary_may_be_larger_than_the_text(models, tmp_path):
    """500 tokens, of which the text has a few."""
    (tmp_path / "text.txt").write_text("KING:\nNo.\n\n" * 60, encoding="utf-8")
    assert starts.begin(tmp_path, models / "llama", training={"batch_size": 1}) == 0
    vocabulary = harness.load(starts.checkpoint_of(tmp_path))["vocabulary"]
    assert len(vocabulary) > len(set((tmp_path / "text.txt").read_text()))


def test_dry_run_reads_the_model_and_writes_no_run(models, tmp_path, capsys):
    assert starts.begin(tmp_path, models / "llama", "--dry_run") == 0
    shown = capsys.readouterr()
    assert "parameters: " in shown.out
    assert "speed: " in shown.out
    assert not (tmp_path / "logs").exists()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("what", [("--config", "tiny.yaml"), ("text.txt",)])
def test_lora_without_a_model_is_refused_at_once(tmp_path, capsys, what):
    """Before this machine is measured."""
    harness.write_config(tmp_path)
    assert starts.train(tmp_path, *what, "--set", "training.lora.rank=2") == 2
    (line,) = error_lines(capsys)
    assert "name it with --init_from" in line
