"""The proof of an export: a mistake in what was written is found, and named."""

import json
from pathlib import Path

import exported
import pytest
import torch
from exported import Spoilt
from safetensors.torch import load_file, save_file

from chatgot.errors import ProofFailed
from chatgot.exchange.exporting import export
from chatgot.exchange.held_out import Windows, windows_for
from chatgot.exchange.plain_safetensors import SAFETENSORS


def spoil_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def spoil_json(path: Path, change) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def transpose(folder: Path) -> None:
    def change(tensors):
        tensors["layers.1.attention.proj.weight"] = tensors["layers.1.attention.proj.weight"].T

    spoil_weights(folder, change)


def flip_one_weight(folder: Path) -> None:
    def change(tensors):
        tensors["layers.0.mlp.down.weight"][3, 5] *= -1

    spoil_weights(folder, change)


def one_nan(folder: Path) -> None:
    def change(tensors):
        tensors["norm.weight"][0] = float("nan")

    spoil_weights(folder, change)


def other_rope(folder: Path) -> None:
    spoil_json(folder / "config.json", lambda content: content["model"].update(rope_base=1e6))


def shift_vocabulary(folder: Path) -> None:
    def change(content):
        first, second, *rest = content["tokens"]
        content["tokens"] = [first, *rest, second]

    spoil_json(folder / "vocabulary.json", change)


def lose_a_character(folder: Path) -> None:
    spoil_json(folder / "vocabulary.json", lambda content: content["tokens"].remove("e"))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def other_shape(folder: Path) -> None:
    def change(tensors):
        tensors["token_embedding.weight"] = tensors["token_embedding.weight"][:-1]

    spoil_weights(folder, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (transpose, ["start of the held-out text", "differ from the model's", "largest logit"]),
        (flip_one_weight, ["start of the held-out text", "from token", "differ"]),
        (one_nan, ["start of the held-out text", "from token 0", "nan"]),
        (other_rope, ["start of the held-out text", "from token 1 "]),
        (shift_vocabulary, ["other ids", "token 0 is", "expected"]),
        (lose_a_character, ["the written vocabulary lacks 'e'"]),
        (no_config, ["not readable", "config.json"]),
        (other_shape, ["do not compute"]),
    ],
)
def test_planted_mistake_fails_the_proof_and_leaves_nothing(tmp_path, spoil, words):
    loaded = exported.loaded(tmp_path, architecture="modern")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ProofFailed) as raised:
        export(loaded, Spoilt(spoil), "fp32", tmp_path / "out", windows_for(loaded))
    message = str(raised.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 2
    assert ".tmp" not in message
    assert raised.value.exit_code == 3
    assert {*tmp_path.iterdir()} - {*before} <= {tmp_path / "cache"}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_mistake_in_rounded_weights_fails_the_proof_too(tmp_path, dtype):
    loaded = exported.loaded(tmp_path)
    with pytest.raises(ProofFailed):
        export(loaded, Spoilt(flip_one_weight), dtype, tmp_path / "out", windows_for(loaded))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_proof_of_a_right_export_says_what_was_compared(tmp_path, architecture):
    loaded = exported.loaded(tmp_path, architecture=architecture)
    done = export(loaded, SAFETENSORS, "fp32", tmp_path / "out", windows_for(loaded))
    proof = done.proof
    assert (proof.windows, proof.tokens) == (3, 85)
    assert 0 <= proof.difference <= 1e-4
    assert proof.largest_logit > 0.1
    assert proof.rounding is None
    said = " ".join(proof.lines())
    assert f"{proof.difference:.1e}" in said
    assert f"largest logit {proof.largest_logit:.1f}" in said
    assert "3 windows, 85 tokens, of held-out text" in said


def test_cost_of_rounding_is_that_of_the_logits_and_of_the_loss(tmp_path):
    loaded = exported.loaded(tmp_path)
    windows = windows_for(loaded)
    done = export(loaded, SAFETENSORS, "bf16", tmp_path / "out", windows)
    rounded = SAFETENSORS.as_rounded(loaded.model, "bf16")
    differences = []
    losses = torch.zeros(2)
    for window in windows.windows:
        x = window.ids[None]
        differences.append((rounded(x)[0] - loaded.model(x)[0]).abs().max())
        for place, model in enumerate((loaded.model, rounded)):
            loss = model(x[:, :-1], x[:, 1:])[1]
            losses[place] += loss * (len(window.ids) - 1)
    rounding = done.proof.rounding
    assert rounding.difference == pytest.approx(float(max(differences)), abs=1e-4)
    assert rounding.loss == pytest.approx(float(losses[1] - losses[0]) / 82, abs=1e-5)
    assert rounding.difference > 1e-3
    assert "rounding the weights" in done.proof.lines()[-1]


def test_without_any_text_there_is_no_proof(tmp_path):
    loaded = exported.loaded(tmp_path)
    with pytest.raises(ProofFailed, match="no text"):
        export(loaded, SAFETENSORS, "fp32", tmp_path / "out", Windows((), "nowhere"))
    assert not (tmp_path / "out").exists()
