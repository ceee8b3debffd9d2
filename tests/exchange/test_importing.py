"""What a new run may start from: checkpoints, folders, .gguf files, and what is none of them."""

import os
import sys
from pathlib import Path
from types import ModuleType

import exported
import parts
import pytest
import tiny_tokenizers
import torch
from model_folders import exported_folder

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config import ModelConfig
from chatgot.data.configured_text import load_text
from chatgot.errors import CheckpointRejected, ImportRejected
from chatgot.exchange.importing import read_start
from chatgot.model.gpt import GPT
from chatgot.run.assembly import assemble
from chatgot.run.resuming import start_from
from chatgot.run.starting import CONTEXT, SHAPE_KEYS, Start


def checkpoint_of_import(folder: Path, start: Start) -> Path:
    """Save a run that starts from a model from elsewhere, in a context of 16; return its path."""
    text = folder / "text.txt"
    text.write_text(tiny_tokenizers.SPEECHES * 12, encoding="utf-8")
    config = parts.config(
        data={"path": str(text)},
        paths={"cache": str(folder / "cache")},
        model=start.shape | {CONTEXT: 16},
    )
    tokens = load_text(config, text, start.vocabulary)
    run = assemble(config, tokens, parts.CPU, None, start.tensors)
    run.state.run_id = parts.RUN_ID
    start_from(run, start, Path("model"))
    path = folder / f"{parts.RUN_ID}_step_0.pt"
    save_checkpoint(path, run.checkpoint())
    return path


def same(start: Start, other: Start) -> bool:
    """Return whether two models have the same weights, but for late positions."""
    return start.tensors.keys() == other.tensors.keys() and all(
        tensor[: len(other.tensors[name])].equal(other.tensors[name])
        for name, tensor in start.tensors.items()
    )


def test_a_checkpoint_of_characters_leaves_a_yaml_its_shape(tmp_path):
    """As ever: what fits is taken."""
    path = exported.checkpoint(tmp_path)
    start = read_start(path)
    assert (start.kind, start.binds_yaml, start.vocabulary) == ("checkpoint", False, None)
    assert start.tokens == exported.a_run(tmp_path).vocabulary.tokens


def test_weights_without_a_run_are_read(tmp_path):
    """Of any torch.save file."""
    torch.save({"norm.weight": torch.ones(4)}, tmp_path / "weights.pt")
    start = read_start(tmp_path / "weights.pt")
    assert start.tensors["norm.weight"].equal(torch.ones(4))
    assert (start.tokens, start.shape) == (None, {})


def test_a_folder_is_the_one_of_a_model(tmp_path):
    exported_folder(tmp_path)
    assert read_start(tmp_path).kind == "hf"


def test_a_run_from_an_import_passes_its_shape_on(tmp_path):
    (tmp_path / "model").mkdir()
    exported_folder(tmp_path / "model", "qwen3_grouped")
    start = read_start(tmp_path / "model")
    passed_on = read_start(checkpoint_of_import(tmp_path, start))
    assert passed_on.kind == "checkpoint"
    assert passed_on.vocabulary is None
    assert passed_on.shape == start.shape | {CONTEXT: 16}


def test_a_checkpoint_with_subwords_brings_them_and_its_shape(tmp_path):
    subwords = tiny_tokenizers.subwords()
    torch.manual_seed(1)
    cfg = ModelConfig(d_model=16, n_layers=1, n_head=2, max_seq_length=32, activation="gelu_tanh")
    shape = {key: cfg.model_dump()[key] for key in SHAPE_KEYS["gpt"]}
    weights = dict(GPT(cfg, len(subwords) + 12).state_dict())
    start = Start(weights, subwords.tokens, "hf", shape, subwords)
    passed_on = read_start(checkpoint_of_import(tmp_path, start))
    assert passed_on.vocabulary is not None
    assert passed_on.vocabulary.sha256 == subwords.sha256
    assert passed_on.shape == shape | {CONTEXT: 16}
    assert same(start, passed_on)


@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_a_gguf_is_known_by_its_name_or_its_first_bytes(name, tmp_path, monkeypatch):
    module = ModuleType("chatgot.exchange.from_gguf")
    module.read_gguf = lambda path: Start({}, None, f"read {path.name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / name).write_bytes(b"GGUF" if name == "model.bin" else b"?")
    assert read_start(tmp_path / name).kind == f"read {name}"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{}", b"\x80\x02}."])
def test_a_file_that_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointRejected) as error:
        read_start(path)
    assert str(error.value).startswith(str(path))
    assert error.value.exit_code == 3


def test_a_name_without_a_file_is_refused(tmp_path):
    with pytest.raises(CheckpointRejected, match="cannot be opened"):
        read_start(tmp_path / "gone.pt")


def test_a_model_that_is_not_on_this_disk_is_not_downloaded(tmp_path):
    with pytest.raises(ImportRejected, match="no such file or folder here; nothing is downloaded"):
        read_start(tmp_path / "SmolLM2-135M")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointRejected, match="not a regular file"):
        read_start(tmp_path / "pipe")


def test_weights_without_their_folder_are_refused(tmp_path):
    exported_folder(tmp_path)
    with pytest.raises(ImportRejected, match="name the folder"):
        read_start(tmp_path / "model.safetensors")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(
        ImportRejected, match=r"has no config\.json: expected the folder of a model"
    ):
        read_start(tmp_path)
