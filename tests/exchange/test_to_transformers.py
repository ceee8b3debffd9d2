"""A folder for transformers, read back by the plain forward pass; errors in it show."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_models import KINDS, loaded_model, random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.to_transformers import HF
from chatgot.sampling.loading import LoadedModel

CHARACTERS = "\n !',.:?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TEXT = "KING:\nWho is there?\n\nQUEEN:\nNo"
TOLERANCE = 1e-4  # as in the proof of an export


def write(folder: Path, kind: str, dtype: str = "fp32", **sections) -> LoadedModel:
    """Write a model into `folder`/out; return it."""
    loaded = loaded_model(kind, CHARACTERS, **sections)
    (folder / "out").mkdir()
    HF.write(loaded, dtype, folder / "out")
    return loaded


def difference(loaded: LoadedModel, folder: Path, dtype: str = "fp32") -> float:
    """Return the largest difference of what is read back; inf: the ids differ."""
    opened = HF.open(folder / "out")
    ids = loaded.vocabulary.encode(TEXT)
    if opened.encode(TEXT) != ids:
        return math.inf
    rounded = HF.as_rounded(loaded.model, dtype)
    ours = rounded(torch.tensor([ids]))[0][0]
    return float((opened.logits(torch.tensor(ids)) - ours).abs().max())


def read_json(folder: Path, name: str) -> dict:
    return json.loads((folder / "out" / name).read_text(encoding="utf-8"))


def change_json(folder: Path, name: str, **changes) -> None:
    content = {**read_json(folder, name), **changes}
    (folder / "out" / name).write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder: Path, change) -> None:
    """Let `change` edit the tensors of a folder."""
    path = folder / "out" / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_is_read_back_as_the_same_model(kind, tmp_path):
    assert difference(write(tmp_path, kind), tmp_path) < TOLERANCE


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["gpt", "qwen3_untied"])
def test_rounded_weights_are_those_of_the_rounded_model(kind, dtype, tmp_path):
    loaded = write(tmp_path, kind, dtype)
    assert difference(loaded, tmp_path, dtype) < TOLERANCE
    assert difference(loaded, tmp_path) > 1e-3
    assert read_json(tmp_path, "config.json")["dtype"] == {"fp16": "float16"}.get(dtype, "bfloat16")


def test_rounding_to_fp32_is_the_model_itself(tmp_path):
    loaded = loaded_model("gpt", CHARACTERS)
    assert HF.as_rounded(loaded.model, "fp32") is loaded.model
    half = HF.as_rounded(loaded.model, "fp16")
    assert half.head.weight is half.token_embedding.weight


def test_a_tied_head_is_stored_once(tmp_path):
    write(tmp_path, "qwen3")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - it is no dict


def test_the_folder_has_these_files_and_no_code(tmp_path):
    write(tmp_path, "gpt")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_texts_are_drawn_as_the_configuration_says(tmp_path):
    write(tmp_path, "gpt", sampling={"temperature": 0.7, "top_k": 9, "top_p": 0.5})
    config = read_json(tmp_path, "generation_config.json")
    assert config == {
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "max_length": 32,
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.5,
    }


def test_without_top_k_all_tokens_may_be_drawn(tmp_path):
    write(tmp_path, "gpt", sampling={"top_k": None, "top_p": None})
    config = read_json(tmp_path, "generation_config.json")
    assert (config["top_k"], config["top_p"]) == (0, 1.0)


def test_a_temperature_of_zero_is_greedy(tmp_path):
    write(tmp_path, "gpt", sampling={"temperature": 0.0, "top_k": 9})
    config = read_json(tmp_path, "generation_config.json")
    assert config["do_sample"] is False
    assert not {"temperature", "top_k", "top_p"} & set(config)


def test_large_weights_do_not_become_infinite_in_fp16(tmp_path):
    loaded = loaded_model("qwen3", CHARACTERS)
    with torch.no_grad():
        loaded.model.norm.weight[3] = 1e5
    with pytest.raises(ExportImpossible, match=r"model\.norm\.weight has values up to 1e\+05"):
        HF.write(loaded, "fp16", tmp_path)
    HF.write(loaded, "bf16", tmp_path)


def test_a_width_that_llama_refuses_is_not_written(tmp_path):
    loaded = loaded_model("llama_odd_width", CHARACTERS)
    with pytest.raises(ExportImpossible, match="d_model 16, n_head 3 and no qk_norm"):
        HF.write(loaded, "fp32", tmp_path)


def test_the_user_is_told_what_differs_in_transformers(tmp_path):
    loaded = loaded_model("gpt", CHARACTERS.replace("?", "_"))
    remarks = "\n".join(HF.write(loaded, "bf16", tmp_path))
    assert "become '_'" in remarks
    assert "at most 32 tokens" in remarks
    assert "computes in bf16" in remarks


def test_how_to_use_lets_the_model_answer_or_begin_a_text(tmp_path):
    write(tmp_path, "gpt")
    assert '"role": "user"' in "\n".join(HF.how_to_use(tmp_path / "out"))
    change_json(tmp_path, "tokenizer_config.json", chat_template="{{ messages }}")
    assert "bos_token" in "\n".join(HF.how_to_use(tmp_path / "out"))


def transpose(tensors) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    tensors[name] = tensors[name].T


def swap_gate_and_up(tensors) -> None:
    gate = "model.layers.0.mlp.gate_proj.weight"
    up = "model.layers.0.mlp.up_proj.weight"
    tensors[gate], tensors[up] = tensors[up], tensors[gate]


def shift_embedding(tensors) -> None:
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].roll(1, 0)


@pytest.mark.parametrize("error", [transpose, swap_gate_and_up, shift_embedding])
def test_a_planted_error_in_the_weights_shows(error, tmp_path):
    loaded = write(tmp_path, "qwen3")
    change_weights(tmp_path, error)
    assert difference(loaded, tmp_path) > 10 * TOLERANCE


def test_a_wrong_rope_shows(tmp_path):
    loaded = write(tmp_path, "qwen3")
    rope = {"rope_type": "default", "rope_theta": 9000.0}
    change_json(tmp_path, "config.json", rope_theta=9000.0, rope_parameters=rope)
    assert difference(loaded, tmp_path) > 10 * TOLERANCE


def test_a_shifted_vocabulary_shows(tmp_path):
    loaded = write(tmp_path, "qwen3")
    model = read_json(tmp_path, "tokenizer.json")["model"]
    *first, last = list(model["vocab"])[1:]
    model["vocab"] = {token: i for i, token in enumerate(["<|endoftext|>", last, *first])}
    change_json(tmp_path, "tokenizer.json", model=model)
    assert difference(loaded, tmp_path) == math.inf


def longer_head(tensors) -> None:
    tensors["lm_head.weight"] = torch.zeros(3, 16)


def a_bias(tensors) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)


def no_norm(tensors) -> None:
    del tensors["model.norm.weight"]


def wide_norm(tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(17)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (longer_head, "nothing reads lm_head.weight"),
        (a_bias, "nothing reads model.layers.0.self_attn.q_proj.bias"),
        (no_norm, "'model.norm.weight' is missing"),
        (wide_norm, r"model.norm.weight has the shape \(17,\), expected \(16,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(error, reason, tmp_path):
    write(tmp_path, "qwen3")
    change_weights(tmp_path, error)
    with pytest.raises(ImportRejected, match=reason):
        HF.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("config.json", {"vocab_size": 3}, "embed_tokens.weight has the shape"),
        ("config.json", {"rope_theta": 9000.0}, "rope_parameters is"),
        ("config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "architectures is"),
        ("config.json", {"model_type": "mamba"}, "'mamba' is missing"),
        ("config.json", {"eos_token_id": 1}, "eos_token_id is 1, expected 0"),
        ("tokenizer_config.json", {"bos_token": "A"}, "bos_token_id is 0, expected"),
        ("tokenizer.json", {"model": {"type": "none"}}, "tokenizer.json: "),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, changes, reason, tmp_path):
    write(tmp_path, "qwen3")
    change_json(tmp_path, name, **changes)
    with pytest.raises(ImportRejected, match=reason):
        HF.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("config.json", "[]"), ("model.safetensors", "lies")],
)
def test_damaged_files_are_refused_in_one_line(name, content, tmp_path):
    write(tmp_path, "gpt")
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ImportRejected) as caught:
        HF.open(tmp_path / "out")
    assert "\n" not in str(caught.value)


def byte_level_tokenizer(end_of_text: str, begins_texts: bool) -> str:
    """Return a small tokenizer.json of byte-level BPE, as it comes with other models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[end_of_text],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if begins_texts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{end_of_text} $A", special_tokens=[(end_of_text, 0)]
        )
    return tokenizer.to_str()


@pytest.mark.parametrize("end_of_text", ["<|endoftext|>", "</s>"])
@pytest.mark.parametrize("begins_texts", [False, True])
def test_subwords_keep_their_tokenizer(end_of_text, begins_texts, tmp_path):
    subwords = pytest.importorskip("chatgot.data.subwords")
    text = byte_level_tokenizer(end_of_text, begins_texts)
    vocabulary = subwords.Subwords.from_json(text, end_of_text)
    model = random_model("qwen3", len(vocabulary) + 5)  # others' embeddings may be longer
    loaded = loaded_model("qwen3", CHARACTERS)
    config = loaded.config.model_copy(update={"model": model.cfg})
    loaded = replace(loaded, vocabulary=vocabulary, model=model, config=config)
    remarks = HF.write(loaded, "fp32", tmp_path)
    assert any("add_special_tokens=False" in remark for remark in remarks) == begins_texts
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == text
    opened = HF.open(tmp_path)
    documents = "One\n<|endoftext|>\nKING:\nWho is there? — é"
    ids = vocabulary.encode(documents)
    assert opened.encode(documents) == ids
    ours = model(torch.tensor([ids]))[0][0]
    assert float((opened.logits(torch.tensor(ids)) - ours).abs().max()) < TOLERANCE
