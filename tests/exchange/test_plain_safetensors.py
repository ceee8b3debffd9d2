"""The format `safetensors`: our own weights by our own names, and what its files say."""

import json

import exported
import pytest
import torch
from safetensors.torch import load_file

from chatgot.config import ModelConfig
from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.plain_safetensors import SAFETENSORS
from chatgot.model.gpt import evaluating

SHAPES = [
    {"architecture": "gpt"},
    {"architecture": "gpt", "bias": False, "activation": "gelu_tanh", "tie_embeddings": False},
    {"architecture": "modern"},
    {"architecture": "modern", "n_head": 4, "n_kv_head": 2, "qk_norm": False, "rope_base": 500.0},
    {"architecture": "modern", "head_dim": 12, "tie_embeddings": False},
]
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", SAFETENSORS.dtypes)
def test_files_read_back_compute_what_the_rounded_model_does(tmp_path, shape, dtype):
    loaded = exported.loaded(tmp_path, **shape)
    folder = tmp_path / "out"
    folder.mkdir()
    assert SAFETENSORS.write(loaded, dtype, folder) == []
    rounded = SAFETENSORS.as_rounded(loaded.model, dtype)
    with evaluating(rounded):
        expected = rounded(IDS[None])[0][0]
        unrounded = loaded.model(IDS[None])[0][0]
    assert (SAFETENSORS.open(folder).logits(IDS) - expected).abs().max() < 2e-5
    assert (rounded is loaded.model) == (dtype == "fp32")
    assert torch.equal(expected, unrounded) == (dtype == "fp32")
    if loaded.config.model.tie_embeddings:
        assert rounded.head.weight is rounded.token_embedding.weight


@pytest.mark.parametrize("tied", [True, False])
def test_weights_have_our_names_and_tied_ones_are_written_once(tmp_path, tied):
    loaded = exported.loaded(tmp_path, tie_embeddings=tied)
    SAFETENSORS.write(loaded, "bf16", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    names = set(loaded.model.state_dict())
    assert stored.keys() == (names - {"head.weight"} if tied else names)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_config_and_vocabulary_say_all_that_a_reader_needs(tmp_path):
    loaded = exported.loaded(tmp_path)
    SAFETENSORS.write(loaded, "fp16", tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    assert ModelConfig.model_validate(config.pop("model")) == loaded.config.model
    assert config == {
        "format": "chatgot",
        "version": 1,
        "dtype": "fp16",
        "vocab_size": len(loaded.vocabulary),
        "end_of_text_id": 0,
    }
    vocabulary = json.loads((tmp_path / "vocabulary.json").read_bytes())
    assert vocabulary == {"kind": "characters", "tokens": loaded.vocabulary.tokens}
    text = "KING:\nMy lord.\n<|endoftext|>\nQ"
    assert SAFETENSORS.open(tmp_path).encode(text) == loaded.vocabulary.encode(text)


def test_weight_too_large_for_fp16_is_refused_by_name(tmp_path):
    loaded = exported.loaded(tmp_path)
    loaded.model.norm.weight[3] = 1e6
    with pytest.raises(ExportImpossible, match=r"norm.weight has values that fp16 cannot hold"):
        SAFETENSORS.write(loaded, "fp16", tmp_path)


def test_commands_read_the_weights(tmp_path):
    SAFETENSORS.write(exported.loaded(tmp_path), "fp32", tmp_path)
    names: dict[str, object] = {}
    exec("\n".join(SAFETENSORS.how_to_use(tmp_path)), names)
    assert "token_embedding.weight" in names["weights"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b'{"format": "other", "version": 1}'),
        ("config.json", b'{"format": "chatgot", "version": 1, "model": {"d_model": -1}}'),
        ("vocabulary.json", b'{"kind": "characters", "tokens": ["a"]}'),
        ("vocabulary.json", b"[]"),
        ("model.safetensors", b"\0" * 40),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, name, content):
    SAFETENSORS.write(exported.loaded(tmp_path), "fp32", tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImportRejected) as raised:
        SAFETENSORS.open(tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_missing_tensor_is_named(tmp_path):
    SAFETENSORS.write(exported.loaded(tmp_path, n_layers=2), "fp32", tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["model"]["n_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ImportRejected, match=r"layers\.2\."):
        SAFETENSORS.open(tmp_path)
