"""Models of transformers as starts for new runs: the weights, the shape, the tokens.

transformers is imported once for all tests: that takes seconds.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny_tokenizers
import torch
from model_folders import CHARACTERS, change_json, exported_folder
from plain_models import KINDS
from safetensors.torch import load_file, save_file

from chatgot.config import ModelConfig
from chatgot.data.vocabulary import Characters
from chatgot.errors import ImportRejected
from chatgot.exchange.from_transformers import read_hf
from chatgot.model.gpt import GPT
from chatgot.run.starting import SHAPE_KEYS, Start

TOLERANCE = 1e-4  # of logits in fp32
ROWS = 512  # of the embedding: more than the tokenizer has tokens
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
MODELS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_exact_gelu": ("GPT2", GPT2 | {"activation_function": "gelu", "n_inner": 40}),
    "gpt2_untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "llama": ("Llama", LLAMA),
    "llama_tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "llama_grouped": (
        "Llama",
        LLAMA | GROUPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "qwen3": ("Qwen3", LLAMA),
    "qwen3_tied": ("Qwen3", LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3_grouped": ("Qwen3", LLAMA | GROUPED | {"head_dim": 10}),
}


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setitem(os.environ, "TRANSFORMERS_VERBOSITY", "error")
        import transformers

        transformers.utils.logging.disable_progress_bar()
        yield transformers


@pytest.fixture(scope="module")
def saved(transformers, tmp_path_factory):
    """Return a function that makes a model, saves it, and returns it with its folder, once."""
    known = {}

    def save(name: str):
        if name not in known:
            model = make(transformers, name)
            folder = tmp_path_factory.mktemp(name)
            save_model(model, folder)
            known[name] = (model, folder)
        return known[name]

    return save


def make(transformers, name: str):
    """Return a model of transformers in which each weight and bias is random."""
    family, keys = MODELS[name]
    tokens = {"vocab_size": ROWS, "bos_token_id": 0, "eos_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**keys, **tokens, initializer_range=0.2)
    torch.manual_seed(5)
    class_name = f"{family}LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def save_model(model, folder: Path, **how) -> None:
    """Save a model, and a tokenizer of subwords beside it."""
    model.save_pretrained(folder, **how)
    (folder / "tokenizer.json").write_text(tiny_tokenizers.tokenizer_json(), encoding="utf-8")


def copied(saved, name: str, folder: Path) -> Path:
    """Return a copy of a saved model's folder."""
    shutil.copytree(saved(name)[1], folder, dirs_exist_ok=True)
    return folder


def ours(start: Start) -> GPT:
    """Return the model of ours that a start describes."""
    model = GPT(ModelConfig(**start.shape), len(start.tensors["token_embedding.weight"]))
    model.load_state_dict(start.tensors)
    return model.requires_grad_(False).eval()


def difference(theirs, start: Start) -> float:
    """Return the largest difference of two logits."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, ROWS, (2, 32), generator=generator)
    with torch.no_grad():
        return float((theirs(input_ids=ids).logits - ours(start)(ids)[0]).abs().max())


# --------------------------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, saved):
    theirs, folder = saved(name)
    start = read_hf(folder)
    assert start.kind == "hf"
    assert difference(theirs, start) < TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_the_shape_has_each_key_that_weights_need(name, saved):
    start = read_hf(saved(name)[1])
    assert start.shape.keys() == set(SHAPE_KEYS[start.shape["architecture"]])
    assert start.shape["max_seq_length"] == (32 if name.startswith("gpt2") else 64)


def test_subwords_come_along(saved):
    start = read_hf(saved("gpt2")[1])
    assert start.vocabulary is not None
    assert start.tokens == start.vocabulary.tokens
    assert start.vocabulary.json == tiny_tokenizers.tokenizer_json()


def test_a_model_in_several_files_is_the_same(saved, tmp_path):
    theirs, folder = saved("qwen3")
    save_model(theirs, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole = read_hf(folder).tensors
    in_parts = read_hf(tmp_path).tensors
    assert whole.keys() == in_parts.keys()
    assert all(whole[name].equal(in_parts[name]) for name in whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_fp32(dtype, saved, tmp_path):
    folder = copied(saved, "llama_grouped", tmp_path)
    exact = read_hf(folder).tensors
    weights = load_file(folder / "model.safetensors")
    halves = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file(halves, folder / "model.safetensors")
    read = read_hf(folder).tensors
    assert all(read[name].equal(exact[name].to(dtype).float()) for name in exact)


@pytest.mark.parametrize("name", ["gpt2", "llama_tied"])
def test_a_model_saved_without_its_head_is_read(name, saved, tmp_path):
    theirs, folder = saved(name)
    save_model(theirs.base_model, tmp_path)
    assert all(
        tensor.equal(read_hf(folder).tensors[key])
        for key, tensor in read_hf(tmp_path).tensors.items()
    )


def test_words_of_version_4_mean_the_same(saved, tmp_path):
    theirs, _ = saved("llama_grouped")
    folder = copied(saved, "llama_grouped", tmp_path)
    words = {"rope_parameters": ..., "rope_theta": 500, "rope_scaling": None}
    change_json(folder / "config.json", **words)
    assert difference(theirs, read_hf(folder)) < TOLERANCE


def test_buffers_of_old_versions_are_left_out(saved, tmp_path):
    folder = copied(saved, "gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    old = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).bool() for i in range(2)}
    save_file({**weights, **old}, folder / "model.safetensors")
    assert read_hf(folder).tensors.keys() == read_hf(saved("gpt2")[1]).tensors.keys()


def test_qwen2_without_biases_is_read(saved, tmp_path):
    """It is a Llama then."""
    theirs, _ = saved("llama")
    folder = copied(saved, "llama", tmp_path)
    change_json(folder / "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    assert difference(theirs, read_hf(folder)) < TOLERANCE


# --------------------------------------------------------------------------------------------------
# Our own folders


@pytest.mark.parametrize("format_name", ["hf", "safetensors"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gpt_without_biases"])
def test_our_own_weights_come_back_bit_for_bit(kind, format_name, tmp_path):
    loaded = exported_folder(tmp_path, kind, format_name)
    start = read_hf(tmp_path)
    expected = loaded.model.state_dict()
    assert start.kind == format_name
    assert start.tensors.keys() == expected.keys()
    assert all(start.tensors[name].equal(expected[name]) for name in expected)
    assert start.tokens == Characters(CHARACTERS).tokens
    assert start.vocabulary is None
    model = ModelConfig(**start.shape)
    assert (model.kv_heads, model.head_size) == (
        loaded.model.cfg.kv_heads,
        loaded.model.cfg.head_size,
    )
    ids = torch.arange(20)[None]
    assert ours(start)(ids)[0].equal(loaded.model(ids)[0])


def test_a_model_without_biases_comes_back_with_biases_of_zero(tmp_path):
    loaded = exported_folder(tmp_path, "gpt_without_biases")
    start = read_hf(tmp_path)
    assert start.shape["bias"] is True
    ids = torch.arange(20)[None]
    assert (ours(start)(ids)[0] - loaded.model(ids)[0]).abs().max() < TOLERANCE


def test_our_own_folder_with_subwords_brings_them(tmp_path):
    exported_folder(tmp_path, "gpt", "safetensors")
    subwords = tiny_tokenizers.subwords()
    rows = len(subwords)
    weights = load_file(tmp_path / "model.safetensors")
    weights["token_embedding.weight"] = torch.zeros(rows, weights["token_embedding.weight"].size(1))
    save_file(weights, tmp_path / "model.safetensors")
    change_json(tmp_path / "config.json", vocab_size=rows, end_of_text_id=subwords.end_of_text_id)
    change_json(tmp_path / "vocabulary.json", kind="subwords", tokens=subwords.tokens)
    (tmp_path / "tokenizer.json").write_text(subwords.json, encoding="utf-8")
    start = read_hf(tmp_path)
    assert start.vocabulary is not None
    assert start.vocabulary.sha256 == subwords.sha256


# --------------------------------------------------------------------------------------------------
# The end of a text


def without_end_of_text() -> str:
    """Return a tokenizer.json whose special tokens have other names."""
    return tiny_tokenizers.tokenizer_json().replace("<|endoftext|>", "<|end|>")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, "</s>"),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}}}, "<|im_end|>"),
        ({"generation_config.json": {"eos_token_id": [2, 1]}}, "</s>"),
        ({"generation_config.json": {}}, "<|end|>"),  # config.json says 0
    ],
)
def test_the_end_of_a_text_is_what_the_files_say(files, expected, saved, tmp_path):
    folder = copied(saved, "gpt2", tmp_path)
    (folder / "tokenizer.json").write_text(without_end_of_text(), encoding="utf-8")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    vocabulary = read_hf(folder).vocabulary
    assert vocabulary is not None
    assert vocabulary.tokens[vocabulary.end_of_text_id] == expected


# --------------------------------------------------------------------------------------------------
# What we cannot compute


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("gpt", {"model_type": "mistral"}, 'model_type is "mistral"'),
        ("gpt", {"model_type": ...}, "model_type is null"),
        ("gpt", {"architectures": ["GPT2ForSequenceClassification"]}, "architectures is"),
        ("gpt", {"activation_function": "relu"}, 'activation_function is "relu"'),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is"),
        ("gpt", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("gpt", {"scale_attn_weights": 1}, "scale_attn_weights is 1"),
        ("gpt", {"vocab_size": 99}, "tokens, config.json says 99"),
        ("gpt", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is true"),
        ("gpt", {"add_cross_attention": True}, "add_cross_attention is true"),
        ("gpt", {"quantization_config": {"bits": 4}}, 'quantization_config is {"bits": 4}'),
        ("gpt", {"auto_map": {"AutoModel": "code.Model"}}, "auto_map is"),
        ("gpt", {"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes"'),
        ("gpt", {"tie_word_embeddings": False}, "lack lm_head.weight"),
        ("gpt", {"n_head": 7}, "must be a multiple of n_head"),
        ("gpt", {"n_embd": ...}, "n_embd is missing"),
        ("gpt", {"layer_norm_epsilon": -1}, "layer_norm_epsilon is -1"),
        ("llama", {"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ("llama", {"rope_scaling": {"rope_type": "yarn"}}, 'rope_scaling is {"rope_type": "yarn"}'),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters is"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "rope_parameters is"),
        ("llama", {"rope_theta": 7.0}, "rope_theta is [7.0, 10000.0]"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"attention_bias": True}, "attention_bias is true"),
        ("llama", {"mlp_bias": True}, "mlp_bias is true"),
        ("llama", {"sliding_window": 64}, "sliding_window is 64"),
        ("llama", {"num_key_value_heads": 3}, "must be a multiple of n_kv_head"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is true"),
        ("gpt", {"is_causal": False}, "is_causal is false"),
        ("qwen3", {"is_causal": False}, "is_causal is false"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, 'layer_types is "sliding_attention"'),
        ("qwen3", {"head_dim": 5}, "must be even"),
        ("qwen3", {"model_type": "llama", "architectures": ...}, "k_norm.weight"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(name, words, said, tmp_path):
    exported_folder(tmp_path, name)
    change_json(tmp_path / "config.json", **words)
    with pytest.raises(ImportRejected) as error:
        read_hf(tmp_path)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def test_keys_that_change_nothing_are_ignored(tmp_path):
    loaded = exported_folder(tmp_path, "qwen3")
    words = {"use_cache": False, "sliding_window": 4096, "max_window_layers": 28, "torch_dtype": 7}
    change_json(tmp_path / "config.json", **words)
    assert read_hf(tmp_path).tensors.keys() == loaded.model.state_dict().keys()


def test_biases_of_qwen2_are_refused_by_name(transformers, tmp_path):
    keys = {key: value for key, value in LLAMA.items() if key != "head_dim"}
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**keys, vocab_size=ROWS))
    save_model(model, tmp_path)
    with pytest.raises(ImportRejected, match=r"k_proj\.bias. is a bias that a model of ChatGoT"):
        read_hf(tmp_path)


def test_a_head_that_is_not_the_embedding_is_refused(saved, tmp_path):
    folder = copied(saved, "gpt2_untied", tmp_path)
    change_json(folder / "config.json", tie_word_embeddings=True)
    with pytest.raises(ImportRejected, match=r"lm_head\.weight is not transformer\.wte\.weight"):
        read_hf(folder)


def test_a_head_that_is_the_embedding_is_read(saved, tmp_path):
    folder = copied(saved, "gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert difference(saved("gpt2")[0], read_hf(folder)) < TOLERANCE


def test_a_tokenizer_that_is_not_read_here_is_refused(tmp_path):
    exported_folder(tmp_path)
    change_json(tmp_path / "tokenizer.json", model={"type": "Unigram"})
    with pytest.raises(ImportRejected, match=r"tokenizer\.json: model: found 'Unigram'"):
        read_hf(tmp_path)


def test_more_tokens_than_rows_are_refused(saved, tmp_path):
    exported_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizers.tokenizer_json(), encoding="utf-8")
    with pytest.raises(ImportRejected, match=r"has 500 tokens, config\.json says"):
        read_hf(tmp_path)


def test_no_global_generator_is_used(tmp_path):
    exported_folder(tmp_path)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    read_hf(tmp_path)
    assert torch.get_rng_state().equal(before)
