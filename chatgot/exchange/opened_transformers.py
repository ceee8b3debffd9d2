"""What does a folder for transformers say, when it is read back? It computes by plain_forward.py.

Only what to_transformers.py writes is read here. All else is refused, so that an error shows.

Letters: C width, H heads, G heads of keys and values, D head size, F width of the MLP.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from chatgot.data.vocabulary import split_documents
from chatgot.errors import ImportRejected
from chatgot.exchange.formats import Said
from chatgot.exchange.plain_forward import (
    PlainBlock,
    PlainLinear,
    PlainModel,
    PlainNorm,
    plain_logits,
)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
# Of config.json; another one may change what transformers computes
COMMON_KEYS = frozenset(
    {
        "architectures",
        "model_type",
        "vocab_size",
        "tie_word_embeddings",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "dtype",
        "torch_dtype",
        "use_cache",
    }
)
GPT2_KEYS = frozenset(
    {
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
        "activation_function",
        "layer_norm_epsilon",
        "embd_pdrop",
        "resid_pdrop",
        "attn_pdrop",
    }
)
LLAMA_KEYS = frozenset(
    {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_act",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "attention_bias",
        "attention_dropout",
    }
)
GELUS = {"gelu": "erf", "gelu_new": "tanh"}
Config = dict[str, Any]


@dataclass(frozen=True)
class OpenedTransformers:
    """The written files, read back (see Opened).

    end_of_text: the name that the token has in this tokenizer.
    """

    tokenizer: Tokenizer
    end_of_text: str
    model: PlainModel
    said: Said

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the tokenizer that was written.

        A line that is our END_OF_TEXT is that token, whatever its name is here.
        """
        named = self.end_of_text.join(split_documents(text))
        ids: list[int] = self.tokenizer.encode(named, add_special_tokens=False).ids
        return ids

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (T, V), fp64, of one sequence of ids (T,)."""
        return plain_logits(self.model, ids)


def open_transformers(folder: Path) -> OpenedTransformers:
    """Read a folder. Raises: ImportRejected for files that do not fit each other."""
    try:
        config: Config = json.loads((folder / CONFIG).read_bytes())
        tensors = _Tensors(load_file(folder / WEIGHTS))
        model = (
            _gpt2(config, tensors) if config["model_type"] == "gpt2" else _llama(config, tensors)
        )
        tensors.check_all_taken()
        settings = json.loads((folder / TOKENIZER_CONFIG).read_bytes())
        tokenizer = _tokenizer(folder, config, settings)
        generation = json.loads((folder / GENERATION_CONFIG).read_bytes())
        said = _said(config, settings, generation, tokenizer)
        return OpenedTransformers(tokenizer, settings["eos_token"], model, said)
    except KeyError as error:
        raise ImportRejected(f"{folder}: {error} is missing") from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ImportRejected(f"{folder}: cannot be read back: {reason}") from error


class _Tensors:
    """The tensors of a file; each is taken once, and must have the shape that is expected."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """Raises: KeyError, ValueError."""
        tensor = self._tensors.pop(name)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, expected {shape}")
        return tensor.float()

    def take_norm(self, name: str, size: int, biased: bool) -> PlainNorm:
        bias = self.take(f"{name}.bias", size) if biased else None
        return PlainNorm(self.take(f"{name}.weight", size), bias)

    def take_linear(self, name: str, rows: int, columns: int) -> PlainLinear:
        return PlainLinear(self.take(f"{name}.weight", rows, columns))

    def check_all_taken(self) -> None:
        """Raises: ValueError naming tensors that nothing reads."""
        if self._tensors:
            raise ValueError(f"nothing reads {', '.join(sorted(self._tensors)[:3])}")


def _tokenizer(folder: Path, config: Config, settings: Config) -> Tokenizer:
    """Return the tokenizer, set up as its settings say. Raises: KeyError, OSError, ValueError."""
    text = (folder / TOKENIZER).read_text(encoding="utf-8")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package `tokenizers` raises nothing narrower
        raise ValueError(f"{TOKENIZER}: {error}") from error
    tokenizer.encode_special_tokens = settings.get("split_special_tokens", False)
    size = tokenizer.get_vocab_size()
    if size > config["vocab_size"]:
        raise ValueError(f"{TOKENIZER} has {size} tokens, {CONFIG} says {config['vocab_size']}")
    for name in ("bos_token", "eos_token"):
        _expect(f"{CONFIG}: {name}_id", config[f"{name}_id"], tokenizer.token_to_id(settings[name]))
    return tokenizer


def _said(config: Config, settings: Config, generation: Config, tokenizer: Tokenizer) -> Said:
    """Return what all files say. Raises: KeyError; ValueError where they contradict each other."""
    context = config["n_positions" if "n_positions" in config else "max_position_embeddings"]
    end = config["eos_token_id"]
    _expect(f"{TOKENIZER_CONFIG}: model_max_length", settings["model_max_length"], context)
    _expect(f"{TOKENIZER_CONFIG}: pad_token", settings["pad_token"], settings["eos_token"])
    _expect(f"{GENERATION_CONFIG}: max_length", generation["max_length"], context)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        _expect(f"{GENERATION_CONFIG}: {name}", generation[name], end)
    _expect(f"{TOKENIZER}: what is shown of the end of a text", tokenizer.decode([end]), "")
    return Said(context, config["vocab_size"], end, settings["chat_template"])


def _gpt2(config: Config, tensors: _Tensors) -> PlainModel:
    """Return a GPT2LMHeadModel. Raises: KeyError, ValueError."""
    _expect("architectures", config["architectures"], ["GPT2LMHeadModel"])
    _expect_keys(config, COMMON_KEYS | GPT2_KEYS)
    V = config["vocab_size"]
    C = config["n_embd"]
    embedding = tensors.take("transformer.wte.weight", V, C)
    positions = tensors.take("transformer.wpe.weight", config["n_positions"], C)
    blocks = [_gpt2_block(config, tensors, f"transformer.h.{i}") for i in range(config["n_layer"])]
    activation = config["activation_function"]
    if activation not in GELUS:
        raise ValueError(f"{CONFIG}: activation_function {activation!r} is not known here")
    return PlainModel(
        embedding=embedding,
        positions=positions,
        blocks=blocks,
        norm_final=tensors.take_norm("transformer.ln_f", C, biased=True),
        head=_head(config, tensors, embedding),
        n_head=config["n_head"],
        n_kv_head=config["n_head"],
        norm="layer",
        eps=config["layer_norm_epsilon"],
        gelu="erf" if activation == "gelu" else "tanh",
    )


def _gpt2_block(config: Config, tensors: _Tensors, name: str) -> PlainBlock:
    """Return a block; GPT-2 stores its matrices (in, out), and q, k and v side by side."""
    C = config["n_embd"]
    F = config["n_inner"]

    def conv1d(layer: str, n_in: int, n_out: int) -> PlainLinear:
        weight = tensors.take(f"{name}.{layer}.weight", n_in, n_out)
        return PlainLinear(weight.T, tensors.take(f"{name}.{layer}.bias", n_out))

    qkv = conv1d("attn.c_attn", C, 3 * C)
    assert qkv.bias is not None
    q, k, v = (
        PlainLinear(weight, bias)
        for weight, bias in zip(torch.split(qkv.weight, C), torch.split(qkv.bias, C), strict=True)
    )
    return PlainBlock(
        norm_attention=tensors.take_norm(f"{name}.ln_1", C, biased=True),
        q=q,
        k=k,
        v=v,
        out=conv1d("attn.c_proj", C, C),
        norm_mlp=tensors.take_norm(f"{name}.ln_2", C, biased=True),
        up=conv1d("mlp.c_fc", C, F),
        down=conv1d("mlp.c_proj", F, C),
    )


def _llama(config: Config, tensors: _Tensors) -> PlainModel:
    """Return a Qwen3ForCausalLM or LlamaForCausalLM. Raises: KeyError, ValueError."""
    name = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[config["model_type"]]
    _expect("architectures", config["architectures"], [name])
    _expect_keys(config, COMMON_KEYS | LLAMA_KEYS)
    _expect("hidden_act", config["hidden_act"], "silu")
    _expect("attention_bias", config["attention_bias"], False)
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    _expect("rope_parameters", config["rope_parameters"], rope)
    C = config["hidden_size"]
    embedding = tensors.take("model.embed_tokens.weight", config["vocab_size"], C)
    layers = range(config["num_hidden_layers"])
    return PlainModel(
        embedding=embedding,
        positions=None,
        blocks=[_llama_block(config, tensors, f"model.layers.{i}") for i in layers],
        norm_final=tensors.take_norm("model.norm", C, biased=False),
        head=_head(config, tensors, embedding),
        n_head=config["num_attention_heads"],
        n_kv_head=config["num_key_value_heads"],
        norm="rms",
        eps=config["rms_norm_eps"],
        rope_base=config["rope_theta"],
    )


def _llama_block(config: Config, tensors: _Tensors, name: str) -> PlainBlock:
    C = config["hidden_size"]
    F = config["intermediate_size"]
    D = config["head_dim"]
    width = config["num_attention_heads"] * D
    kv_width = config["num_key_value_heads"] * D
    normalised = config["model_type"] == "qwen3"

    def head_norm(letter: str) -> PlainNorm | None:
        if not normalised:
            return None
        return tensors.take_norm(f"{name}.self_attn.{letter}_norm", D, biased=False)

    return PlainBlock(
        norm_attention=tensors.take_norm(f"{name}.input_layernorm", C, biased=False),
        q=tensors.take_linear(f"{name}.self_attn.q_proj", width, C),
        k=tensors.take_linear(f"{name}.self_attn.k_proj", kv_width, C),
        v=tensors.take_linear(f"{name}.self_attn.v_proj", kv_width, C),
        out=tensors.take_linear(f"{name}.self_attn.o_proj", C, width),
        norm_mlp=tensors.take_norm(f"{name}.post_attention_layernorm", C, biased=False),
        gate=tensors.take_linear(f"{name}.mlp.gate_proj", F, C),
        up=tensors.take_linear(f"{name}.mlp.up_proj", F, C),
        down=tensors.take_linear(f"{name}.mlp.down_proj", C, F),
        q_norm=head_norm("q"),
        k_norm=head_norm("k"),
    )


def _head(config: Config, tensors: _Tensors, embedding: Tensor) -> Tensor:
    """Return the head, (V, C): a matrix of its own, or the embedding."""
    if config["tie_word_embeddings"]:
        return embedding
    return tensors.take("lm_head.weight", *embedding.shape)


def _expect(name: str, found: object, expected: object) -> None:
    """Raises: ValueError."""
    if found != expected:
        raise ValueError(f"{name} is {found!r}, expected {expected!r}")


def _expect_keys(config: Config, known: frozenset[str]) -> None:
    """Raises: ValueError naming keys that nothing reads."""
    if config.keys() - known:
        raise ValueError(f"{CONFIG}: nothing reads {', '.join(sorted(config.keys() - known))}")
