"""How does a model become a folder for transformers?

`gpt` leaves as GPT2LMHeadModel, `modern` as Qwen3ForCausalLM, without qk_norm as LlamaForCausalLM.
The folder has no code: transformers knows these classes.

Letters: C `d_model`, H `n_head`, G heads of keys and values, D head size, V vocabulary.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from chatgot.config import ModelConfig, SamplingConfig
from chatgot.data.vocabulary import Characters, Vocabulary
from chatgot.errors import ExportImpossible
from chatgot.exchange.character_tokenizer import character_tokenizer_json
from chatgot.exchange.chat_template import jinja_template
from chatgot.exchange.formats import Dtype
from chatgot.exchange.opened_transformers import (
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    OpenedTransformers,
    open_transformers,
)
from chatgot.exchange.rounding import TORCH_DTYPES, rounded_model
from chatgot.model.gpt import GPT
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import default_pair

Tensors = dict[str, Tensor]


class Transformers:
    """Writes and reads a folder for transformers (see Format)."""

    name = "hf"
    dtypes: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")

    def write(self, loaded: LoadedModel, dtype: Dtype, folder: Path) -> list[str]:
        """Write all files of a model into an empty folder; return what the user should know.

        Raises: ExportImpossible for a shape that LlamaForCausalLM refuses, and for weights that
        are too large for fp16.
        """
        model = loaded.config.model
        vocabulary = loaded.vocabulary
        _check_words(model)
        save_file(_rounded(_tensors(loaded.model), dtype), folder / WEIGHTS, {"format": "pt"})
        _write_json(folder / CONFIG, _config(loaded.model, vocabulary, dtype))
        generation = _generation_config(model, loaded.config.sampling, vocabulary)
        _write_json(folder / GENERATION_CONFIG, generation)
        _write_text(folder / TOKENIZER, _tokenizer_json(vocabulary))
        user, character = default_pair(loaded.speakers)
        tokenizer = _tokenizer_config(model, vocabulary, jinja_template(user, character))
        _write_json(folder / TOKENIZER_CONFIG, tokenizer)
        return _remarks(model, vocabulary, dtype)

    def open(self, folder: Path) -> OpenedTransformers:
        """Read what was written. Raises: ImportRejected for files that do not fit each other."""
        return open_transformers(folder)

    def as_rounded(self, model: GPT, dtype: Dtype) -> GPT:
        """Return a model with all weights rounded to the dtype, in fp32; fp32: the model itself."""
        return rounded_model(model, dtype)

    def how_to_use(self, folder: Path, named: Path | None = None) -> list[str]:
        """Return the lines of Python that let the model answer, or begin a text."""
        tokenizer = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        lines = [
            "from transformers import pipeline",
            f'write = pipeline("text-generation", model={str(named or folder)!r})',
        ]
        if "add_generation_prompt" not in tokenizer["chat_template"]:
            begin = "write.tokenizer.bos_token, return_full_text=False"
            return [*lines, f'print(write({begin})[0]["generated_text"])']
        return [
            *lines,
            'said = [{"role": "user", "content": "Who is there?"}]',
            # a speech ends with a blank line
            r'texts = write(said, stop_strings=["\n\n"], tokenizer=write.tokenizer)',
            'print(texts[0]["generated_text"][-1]["content"])',
        ]


def _check_words(model: ModelConfig) -> None:
    """Raise ExportImpossible for a model that none of the classes can be."""
    is_llama = model.architecture == "modern" and not model.qk_norm
    if is_llama and model.d_model % model.n_head:
        raise ExportImpossible(
            f"hf: the model has d_model {model.d_model}, n_head {model.n_head} and no qk_norm: "
            "transformers' Llama takes only a d_model that is a multiple of n_head\n"
            "use --format gguf or safetensors"
        )


def _tensors(model: GPT) -> Tensors:
    """Return a model's tensors by their names in transformers."""
    weights: Mapping[str, Tensor] = model.state_dict()
    write = _modern_tensors if model.cfg.architecture == "modern" else _gpt2_tensors
    tensors = write(model.cfg, weights)
    if not model.cfg.tie_embeddings:
        tensors["lm_head.weight"] = weights["head.weight"]
    return tensors


def _gpt2_tensors(cfg: ModelConfig, weights: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of GPT2LMHeadModel; what has no bias here has one of zeros there."""
    tensors = {
        "transformer.wte.weight": weights["token_embedding.weight"],
        "transformer.wpe.weight": weights["position_embedding.weight"],
    }

    def add(theirs: str, ours: str) -> None:
        weight = weights[f"{ours}.weight"]  # (out, in), or (C,) of a norm
        tensors[f"transformer.{theirs}.weight"] = weight.T if weight.dim() == 2 else weight
        bias = weights.get(f"{ours}.bias")
        if bias is None:
            bias = torch.zeros(len(weight))
        tensors[f"transformer.{theirs}.bias"] = bias

    for i in range(cfg.n_layers):
        add(f"h.{i}.ln_1", f"layers.{i}.norm_attention")
        add(f"h.{i}.attn.c_attn", f"layers.{i}.attention.qkv")
        add(f"h.{i}.attn.c_proj", f"layers.{i}.attention.proj")
        add(f"h.{i}.ln_2", f"layers.{i}.norm_mlp")
        add(f"h.{i}.mlp.c_fc", f"layers.{i}.mlp.up")
        add(f"h.{i}.mlp.c_proj", f"layers.{i}.mlp.down")
    add("ln_f", "norm")
    return tensors


def _modern_tensors(cfg: ModelConfig, weights: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of Qwen3ForCausalLM and LlamaForCausalLM."""
    tensors = {
        "model.embed_tokens.weight": weights["token_embedding.weight"],
        "model.norm.weight": weights["norm.weight"],
    }
    rows = [heads * cfg.head_size for heads in (cfg.n_head, cfg.kv_heads, cfg.kv_heads)]
    names = {
        "input_layernorm": "norm_attention",
        "post_attention_layernorm": "norm_mlp",
        "self_attn.o_proj": "attention.proj",
        "mlp.down_proj": "mlp.down",
    }
    if cfg.qk_norm:
        names["self_attn.q_norm"] = "attention.q_norm"
        names["self_attn.k_norm"] = "attention.k_norm"
    for i in range(cfg.n_layers):
        block = f"model.layers.{i}"
        for theirs, ours in names.items():
            tensors[f"{block}.{theirs}.weight"] = weights[f"layers.{i}.{ours}.weight"]
        qkv = torch.split(weights[f"layers.{i}.attention.qkv.weight"], rows)
        for letter, weight in zip("qkv", qkv, strict=True):
            tensors[f"{block}.self_attn.{letter}_proj.weight"] = weight
        gate, up = weights[f"layers.{i}.mlp.gate_up.weight"].chunk(2)
        tensors[f"{block}.mlp.gate_proj.weight"] = gate
        tensors[f"{block}.mlp.up_proj.weight"] = up
    return tensors


def _rounded(tensors: Tensors, dtype: Dtype) -> Tensors:
    """Return tensors in the dtype, on the CPU, each with a memory of its own.

    Raises: ExportImpossible naming a tensor that becomes infinite.
    """
    rounded = {}
    for name, tensor in tensors.items():
        copied = torch.empty(tensor.shape, dtype=TORCH_DTYPES[dtype]).copy_(tensor)
        if tensor.isfinite().all() and not copied.isfinite().all():
            raise ExportImpossible(
                f"hf: {name} has values up to {float(tensor.abs().max()):.3g}, too large for "
                f"{dtype}; use --dtype bf16 or fp32"
            )
        rounded[name] = copied
    return rounded


def _config(written: GPT, vocabulary: Vocabulary, dtype: Dtype) -> dict[str, Any]:
    """Return config.json. `rope_theta` and `torch_dtype` are there for transformers 4."""
    model = written.cfg
    hidden_size = written.state_dict()["layers.0.mlp.down.weight"].shape[1]
    torch_dtype = str(TORCH_DTYPES[dtype]).removeprefix("torch.")
    # no pad_token_id: in training, its embedding would get no gradient
    common = {
        "vocab_size": written.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": min(model.init_range, 1.0),  # Llama's may not be larger
        "bos_token_id": vocabulary.end_of_text_id,
        "eos_token_id": vocabulary.end_of_text_id,
        "dtype": torch_dtype,
        "torch_dtype": torch_dtype,
        "use_cache": True,
    }
    if model.architecture == "gpt":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": model.d_model,
            "n_layer": model.n_layers,
            "n_head": model.n_head,
            "n_inner": hidden_size,
            "n_positions": model.max_seq_length,
            "activation_function": "gelu_new" if model.activation == "gelu_tanh" else "gelu",
            "layer_norm_epsilon": model.layer_norm_eps,
            "embd_pdrop": model.dropout,
            "resid_pdrop": model.dropout,
            "attn_pdrop": model.attention_dropout,
            **common,
        }
    name = "Qwen3" if model.qk_norm else "Llama"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": name.lower(),
        "hidden_size": model.d_model,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_head,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "intermediate_size": hidden_size,
        "max_position_embeddings": model.max_seq_length,
        "hidden_act": "silu",
        "rms_norm_eps": model.layer_norm_eps,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "attention_bias": False,
        "attention_dropout": model.attention_dropout,
        **common,
    }


def _generation_config(
    model: ModelConfig, sampling: SamplingConfig, vocabulary: Vocabulary
) -> dict[str, Any]:
    """Return generation_config.json: how texts are drawn where nobody says."""
    end = vocabulary.end_of_text_id
    config: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": model.max_seq_length,
        "do_sample": sampling.temperature > 0,
    }
    if sampling.temperature > 0:
        config["temperature"] = sampling.temperature
        config["top_k"] = sampling.top_k or 0  # 0: from all; where it is missing it is 50
        config["top_p"] = sampling.top_p or 1.0
    return config


def _tokenizer_json(vocabulary: Vocabulary) -> str:
    """Return tokenizer.json; that of subwords is as it came."""
    if isinstance(vocabulary, Characters):
        return character_tokenizer_json(vocabulary)
    text: str = getattr(vocabulary, "json")  # noqa: B009
    return text


def _adds_tokens(tokenizer_json: str) -> bool:
    """Return whether a tokenizer adds tokens of its own, at the beginning or end of a text."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    return bool(tokenizer.num_special_tokens_to_add(is_pair=False))


def _tokenizer_config(
    model: ModelConfig, vocabulary: Vocabulary, chat_template: str
) -> dict[str, Any]:
    # no unk_token: transformers would not show that character
    end = vocabulary.tokens[vocabulary.end_of_text_id]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "model_max_length": model.max_seq_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }
    if isinstance(vocabulary, Characters):
        config["split_special_tokens"] = True  # see character_tokenizer.py
    return config


def _remarks(model: ModelConfig, vocabulary: Vocabulary, dtype: Dtype) -> list[str]:
    remarks = []
    if isinstance(vocabulary, Characters):
        substitute, _ = vocabulary.replace_unknown("\ud800")
        remarks.append(f"characters that the model does not know become {substitute!r} there")
    elif _adds_tokens(_tokenizer_json(vocabulary)):
        remarks.append(
            "the tokenizer adds tokens to a text in transformers, which ChatGoT does not: pass "
            "add_special_tokens=False"
        )
    remarks.append(
        f"prompt and answer together have at most {model.max_seq_length} tokens there; nothing is "
        "forgotten to make room"
    )
    if dtype != "fp32":
        remarks.append(f"transformers computes in {dtype}, too, unless you pass dtype='float32'")
    return remarks


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


HF = Transformers()
