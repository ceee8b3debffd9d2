"""What no logit shows: sizes, the end of a text, what nothing reads. Mistakes in it are found."""

import json
from pathlib import Path
from typing import Any

import gguf
import plain_models
import pytest
import torch

from chatgot.errors import ProofFailed
from chatgot.exchange import gguf_tensors, html_page, html_weights, to_gguf, to_transformers
from chatgot.exchange.exporting import export
from chatgot.exchange.formats import Format
from chatgot.exchange.held_out import windows_for
from chatgot.exchange.known_formats import format_named
from chatgot.sampling.loading import LoadedModel

ALPHABET = "\n :ABCabc"


class SpoiltAfterwards:
    """A format in whose files a key is changed after they were written."""

    def __init__(self, name: str, file: str, keys: dict[str, Any]) -> None:
        self._format = format_named(name)
        self._file = file
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._format, name)

    def write(self, loaded: LoadedModel, dtype: Any, folder: Path) -> list[str]:
        remarks = self._format.write(loaded, dtype, folder)
        path = folder / self._file
        path.write_text(json.dumps(json.loads(path.read_bytes()) | self._keys))
        return remarks


def check_failure(
    kind: str, exported_as: Format | SpoiltAfterwards, folder: Path, words: str
) -> None:
    """Check that a spoilt export fails, with these words, and leaves nothing."""
    loaded = plain_models.loaded_model(kind, ALPHABET)
    with pytest.raises(ProofFailed) as raised:
        export(loaded, exported_as, exported_as.dtypes[0], folder / "out", windows_for(loaded))
    assert words in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    ("kind", "file", "keys", "words"),
    [
        ("qwen3", "config.json", {"max_position_embeddings": 16}, "model_max_length is 32"),
        ("qwen3", "tokenizer_config.json", {"model_max_length": 16}, "model_max_length is 16"),
        ("qwen3", "generation_config.json", {"max_length": 3}, "max_length is 3"),
        ("gpt", "generation_config.json", {"eos_token_id": 3}, "eos_token_id is 3"),
        ("gpt", "tokenizer_config.json", {"pad_token": "a"}, "pad_token is 'a'"),
        ("gpt", "config.json", {"scale_attn_weights": False}, "nothing reads scale_attn_weights"),
        ("llama", "config.json", {"rope_scaling": {}}, "nothing reads rope_scaling"),
        ("llama", "config.json", {"attention_bias": True}, "attention_bias is True"),
        ("llama", "tokenizer.json", {"added_tokens": []}, "what is shown of the end of a text"),
    ],
)
def test_mistake_in_a_folder_for_transformers_fails_the_proof(tmp_path, kind, file, keys, words):
    check_failure(kind, SpoiltAfterwards("hf", file, keys), tmp_path, words)


@pytest.mark.parametrize(
    ("method", "value", "words"),
    [
        ("add_context_length", 16, "context 16, the model has 32"),
        ("add_eos_token_id", 3, "bos_token_id is 0, expected 3"),
        ("add_add_eos_token", True, "add_eos_token is True"),
        ("add_embedding_length", 8, "embedding_length is 8"),
        ("add_feed_forward_length", 8, "feed_forward_length is 8"),
        ("add_vocab_size", 8, "vocab_size is 8"),
        ("add_token_types", [1] * 10, "no control token"),
    ],
)
def test_mistake_in_a_key_of_a_gguf_fails_the_proof(tmp_path, monkeypatch, method, value, words):
    right = getattr(gguf.GGUFWriter, method)
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda self, _: right(self, value))
    check_failure("qwen3", format_named("gguf"), tmp_path, words)


@pytest.mark.parametrize(
    ("kind", "lost", "added", "words"),
    [
        ("gpt_without_biases", "blk.0.ffn_up.bias", {}, "'blk.0.ffn_up.bias' is missing"),
        ("qwen3", "", {"blk.0.attn_q.bias": torch.ones(16)}, "nothing reads blk.0.attn_q.bias"),
        ("llama", "", {"rope_freqs.weight": torch.ones(4)}, "nothing reads rope_freqs.weight"),
    ],
)
def test_tensor_that_llama_cpp_reads_otherwise_fails_the_proof(
    tmp_path, monkeypatch, kind, lost, added, words
):
    def spoilt(model):
        tensors = gguf_tensors.tensors_in_gguf(model) | added
        return {name: tensor for name, tensor in tensors.items() if name != lost}

    monkeypatch.setattr(to_gguf, "tensors_in_gguf", spoilt)
    check_failure(kind, format_named("gguf"), tmp_path, words)


@pytest.mark.parametrize("name", ["hf", "gguf"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("\\n\\n", "\\n", "another prompt"),
        ("KING", "QUEEN", "another prompt"),
        ("endfor", "endwhile", "breaks"),
    ],
)
def test_mistake_in_a_chat_template_fails_the_proof(tmp_path, monkeypatch, name, old, new, words):
    module = {"hf": to_transformers, "gguf": to_gguf}[name]
    right = module.jinja_template
    assert old in right("KING", "QUEEN")
    monkeypatch.setattr(module, "jinja_template", lambda *who: right(*who).replace(old, new))
    check_failure("qwen3", format_named(name), tmp_path, words)


def test_other_context_in_a_page_fails_the_proof(tmp_path, monkeypatch):
    right = html_page._about

    def spoilt(*args):
        about = right(*args)
        about["model"]["max_seq_length"] = 64
        return about

    monkeypatch.setattr(html_page, "_about", spoilt)
    check_failure("qwen3", format_named("html"), tmp_path, "context 64, the model has 32")


def test_wrong_rounding_fails_the_proof(tmp_path, monkeypatch):
    monkeypatch.setattr(html_weights, "LARGEST", 40)
    loaded = plain_models.loaded_model("qwen3", ALPHABET)
    with pytest.raises(ProofFailed, match=r"rounded to q8_0, token_embedding.weight is not what"):
        export(loaded, format_named("html"), "q8_0", tmp_path / "out", windows_for(loaded))


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 7), ("end_of_text_id", 7)])
def test_other_number_beside_safetensors_fails_the_proof(tmp_path, key, value):
    spoilt = SpoiltAfterwards("safetensors", "config.json", {key: value})
    check_failure("qwen3", spoilt, tmp_path, f"{key} 7, the model has")
