"""A model from a GGUF file, as llama.cpp and Ollama have them, under our own names.

Letters: C width, D head size, H heads, R rows of a matrix, V rows of the embedding.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from chatgot.config import FP32_MAX, ModelConfig
from chatgot.data.subwords import Subwords
from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.errors import ImportRejected
from chatgot.exchange.byte_level_bpe import (
    CONTROL,
    IGNORES_MERGES,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    WORDS,
    letters_of_bytes,
)
from chatgot.exchange.gguf_header import GgufFile, Values, open_gguf, shown
from chatgot.exchange.gguf_read_back import ACTIVATION, ARCHITECTURES
from chatgot.exchange.gguf_vocabulary import padding_name
from chatgot.exchange.stored_tensors import check_memory
from chatgot.run.starting import Start

# llama.cpp's names for the words of WORDS
OTHER_NAMES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe"}
BEGINS_TEXTS = frozenset({"llama-bpe"})  # llama.cpp puts a token before texts, if no key says no
TYPES = frozenset({NORMAL, CONTROL, USER_DEFINED, UNUSED})
# Keys of an architecture, without its name, and our own
SHAPE_KEYS = {
    "context_length": "max_seq_length",
    "embedding_length": "d_model",
    "block_count": "n_layers",
    "feed_forward_length": "d_hid",
    "attention.head_count": "n_head",
}
READ_KEYS = {
    *SHAPE_KEYS,
    "vocab_size",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
}
# Keys that may be there with a value that changes nothing
NEUTRAL = {
    "rope.scaling.type": "none",
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "tensor_data_layout": "Meta AI original pth",
}
BLOCK = "blk.{}."


def read_gguf(path: Path) -> Start:
    """Read the model of a GGUF file: GPT-2, Llama and Qwen3 as far as our keys can say them.

    Quantised weights become fp32. Raises: ImportRejected naming what is wrong, or not read here.
    """
    with open_gguf(path) as file:
        if file.keys.get("split.count", 1) not in (0, 1):
            raise ImportRejected(
                f"{path}: is one of several parts; join them with llama-gguf-split --merge"
            )
        architecture = file.keys.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ImportRejected(
                f"{path}: general.architecture is {shown(architecture)}; "
                f"{', '.join(ARCHITECTURES)} are read"
            )
        assert isinstance(architecture, str)
        shape = _shape(file, architecture)
        names = _texts(file, "tokenizer.ggml.tokens")
        _check_shapes(file, architecture, shape, len(names))
        # a file can have many bytes that take no place on the disk
        check_memory(path, 4 * sum(math.prod(place.shape) for place in file.places.values()))
        tokens, vocabulary = _tokens(file, names)
        tensors = _tensors(file, architecture, shape)
    return Start(tensors, tokens, "gguf", shape, vocabulary)


def _shape(file: GgufFile, architecture: str) -> dict[str, Any]:
    """Return the keys of `model` that the file asks for. Raises: ImportRejected."""
    said = _keys_of(file, architecture)
    gpt2 = architecture == "gpt2"
    shape: dict[str, Any] = {ours: _count(file, said, key) for key, ours in SHAPE_KEYS.items()}
    eps_key = "attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon"
    shape |= {
        "architecture": "gpt" if gpt2 else "modern",
        "layer_norm_eps": _number(file, said, eps_key),
        "tie_embeddings": "output.weight" not in file.places,
    }
    if gpt2:
        shape |= {"bias": True, "activation": file.keys.get(ACTIVATION, "gelu_tanh")}
    else:
        shape |= _rotary_shape(file, said, shape) | {"qk_norm": architecture == "qwen3"}
    try:
        ModelConfig.model_validate(shape)
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        reason = problem["msg"].removeprefix("Value error, ")
        raise ImportRejected(f"{file.path}: {name or 'its sizes'}: {reason}") from error
    if shape["n_layers"] > len(file.places):
        raise ImportRejected(
            f"{file.path}: {architecture}.block_count is {shape['n_layers']}, but it has only "
            f"{len(file.places)} tensors"
        )
    return shape


def _keys_of(file: GgufFile, architecture: str) -> dict[str, Values]:
    """Return the keys of an architecture without its name.

    Raises: ImportRejected for one that would change what is computed.
    """
    prefix = f"{architecture}."
    said = {
        key.removeprefix(prefix): value
        for key, value in file.keys.items()
        if key.startswith(prefix)
    }
    for key, value in said.items():
        if key in READ_KEYS or (key in NEUTRAL and NEUTRAL[key] == value):
            continue
        raise ImportRejected(
            f"{file.path}: {shown(prefix + key)} is {shown(value)}: ChatGoT cannot compute that"
        )
    return said


def _rotary_shape(
    file: GgufFile, said: Mapping[str, Values], shape: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a file with rotary positions says of its heads. Raises: ImportRejected."""
    H = shape["n_head"]
    head_dim = shape["d_model"] // H
    if "attention.key_length" in said:
        head_dim = _count(file, said, "attention.key_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if said.get(key, head_dim) != head_dim:
            raise ImportRejected(
                f"{file.path}: {key} is {shown(said[key])}, expected the head's {head_dim}: "
                "ChatGoT cannot compute that"
            )
    groups = _count(file, {"attention.head_count_kv": H, **said}, "attention.head_count_kv")
    return {
        "head_dim": head_dim,
        "n_kv_head": groups,
        "rope_base": _number(file, {"rope.freq_base": 10_000.0, **said}, "rope.freq_base"),
    }


def _count(file: GgufFile, said: Mapping[str, Values], key: str) -> int:
    """Return a whole number above 0. Raises: ImportRejected."""
    value = said.get(key)
    if type(value) is not int or value < 1:
        raise ImportRejected(f"{file.path}: {key} is {shown(value)}, expected a number above 0")
    return value


def _number(file: GgufFile, said: Mapping[str, Values], key: str) -> float:
    """Return a number as it was meant: a GGUF has 1e-5 as the nearest fp32."""
    value = said.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= FP32_MAX:
        raise ImportRejected(f"{file.path}: {key} is {shown(value)}, expected a number")
    return float(str(np.float32(value)))


def _tokens(file: GgufFile, names: list[str]) -> tuple[list[str], Subwords | None]:
    """Return the text of each id, and the subwords; None: they are single characters.

    Raises: ImportRejected.
    """
    merges = _texts(file, "tokenizer.ggml.merges")
    types = file.keys.get("tokenizer.ggml.token_type", [NORMAL] * len(names))
    model = file.keys.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise ImportRejected(
            f"{file.path}: tokenizer.ggml.model is {shown(model)}; byte-level BPE (gpt2) is read"
        )
    if not isinstance(types, list) or len(types) != len(names):
        raise ImportRejected(f"{file.path}: tokenizer.ggml.token_type: expected one for each token")
    odd = set(types) - TYPES
    if odd:
        raise ImportRejected(
            f"{file.path}: tokenizer.ggml.token_type: {shown(odd.pop())} is no type of byte-level "
            "BPE"
        )
    words = _words(file)
    if file.keys.get("tokenizer.ggml.add_bos_token", words in BEGINS_TEXTS) is not False:
        # nothing of ours would put it there
        raise ImportRejected(
            f"{file.path}: tokenizer.ggml.add_bos_token is not false: the model wants a token "
            "before each text, ChatGoT cannot compute that"
        )
    count = len(names)  # without the rows of the embedding that are no token
    while count and types[count - 1] == UNUSED and names[count - 1] == padding_name(count - 1):
        count -= 1
    names = names[:count]
    types = types[:count]
    characters = _characters(names, types)
    if characters is not None:
        return [END_OF_TEXT, *characters], None
    json_text = _tokenizer_json(file, words, names, types, merges)
    end = file.keys.get("tokenizer.ggml.eos_token_id")
    end_of_text = names[end] if type(end) is int and 0 <= end < len(names) else None
    try:
        vocabulary = Subwords.from_json(json_text, end_of_text)
    except ValueError as error:
        raise ImportRejected(f"{file.path}: its tokenizer: {error}") from error
    return vocabulary.tokens, vocabulary


def _texts(file: GgufFile, key: str) -> list[str]:
    values = file.keys.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ImportRejected(f"{file.path}: {key}: expected a list of texts")
    return [str(value) for value in values]


def _characters(names: list[str], types: list[Any]) -> list[str] | None:
    """Return the characters of a vocabulary as our exports write it; None: it is another one."""
    if names[:1] != [END_OF_TEXT] or types[:1] != [CONTROL] or set(types[1:]) - {NORMAL}:
        return None
    byte_of = {letter: byte for byte, letter in enumerate(letters_of_bytes())}
    characters = []
    for name in names[1:]:
        try:
            text = bytes(byte_of[letter] for letter in name).decode()
        except (KeyError, UnicodeDecodeError):
            return None
        if len(text) != 1:
            return None
        characters.append(text)
    return characters if len(set(characters)) == len(characters) else None


def _words(file: GgufFile) -> str:
    """Return the key of WORDS that says how a text is cut. Raises: ImportRejected."""
    pre = file.keys.get("tokenizer.ggml.pre")
    words = OTHER_NAMES.get(pre, pre) if isinstance(pre, str) else None
    if words not in WORDS:
        raise ImportRejected(
            f"{file.path}: tokenizer.ggml.pre is {shown(pre)}; {', '.join(WORDS)} are read"
        )
    return words


def _tokenizer_json(
    file: GgufFile, words: str, names: list[str], types: list[Any], merges: list[str]
) -> str:
    """Return the tokenizer.json of a vocabulary of subwords. Raises: ImportRejected."""
    added: list[dict[str, Any]] = []
    vocab: dict[str, int] = {}
    for i, (name, kind) in enumerate(zip(names, types, strict=True)):
        if kind in (CONTROL, USER_DEFINED, UNUSED):
            special = kind != USER_DEFINED
            added.append(
                {
                    "id": i,
                    "content": name,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": special,
                }
            )
        # those, too: the package tokenizers gives added tokens other ids if they are not here
        if vocab.setdefault(name, i) != i:
            raise ImportRejected(f"{file.path}: the token {shown(name)} comes twice")
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": words in IGNORES_MERGES,
        "vocab": vocab,
        "merges": [merge.split(" ") for merge in dict.fromkeys(merges)],  # the first one counts
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [*_splits(words), byte_level],
            },
            "post_processor": None,
            "decoder": byte_level | {"use_regex": True},
            "model": model,
        },
        ensure_ascii=False,
    )


def _splits(words: str) -> list[dict[str, Any]]:
    """Return the steps that cut a text into words."""
    *digits, regex = WORDS[words]
    steps: list[dict[str, Any]] = []
    if digits:
        steps.append({"type": "Digits", "individual_digits": True})
    steps.append(
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    )
    return steps


def _check_shapes(
    file: GgufFile, architecture: str, shape: Mapping[str, Any], n_tokens: int
) -> None:
    """Compare the tensors' shapes with what the keys say; nothing is read.

    Raises: ImportRejected.
    """
    said = file.keys.get(f"{architecture}.vocab_size", n_tokens)
    if said != n_tokens:
        raise ImportRejected(
            f"{file.path}: {architecture}.vocab_size is {shown(said)}, but it has {n_tokens} tokens"
        )
    C = shape["d_model"]
    V = n_tokens
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, C)}
    if architecture == "gpt2":
        expected["position_embd.weight"] = (shape["max_seq_length"], C)
    if not shape["tie_embeddings"]:
        expected["output.weight"] = (V, C)
    norms = ("weight", "bias") if architecture == "gpt2" else ("weight",)
    expected |= {f"output_norm.{part}": (C,) for part in norms}
    of_block = _block_shapes(architecture, shape)
    for i in range(shape["n_layers"]):
        expected |= {BLOCK.format(i) + name: size for name, size in of_block.items()}
    _compare(file, expected)


def _tensors(file: GgufFile, architecture: str, shape: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights under our own names, fp32; their shapes were checked.

    Raises: ImportRejected.
    """
    norms = ("weight", "bias") if architecture == "gpt2" else ("weight",)
    tensors = {
        "token_embedding.weight": file.tensor("token_embd.weight"),
        **{f"norm.{part}": file.tensor(f"output_norm.{part}") for part in norms},
    }
    tied = shape["tie_embeddings"]
    tensors["head.weight"] = (
        tensors["token_embedding.weight"] if tied else file.tensor("output.weight")
    )
    if architecture == "gpt2":
        tensors["position_embedding.weight"] = file.tensor("position_embd.weight")
    block = _gpt2_block if architecture == "gpt2" else _modern_block
    of_block = _block_shapes(architecture, shape)
    for i in range(shape["n_layers"]):
        weights = {name: file.tensor(BLOCK.format(i) + name) for name in of_block}
        ours = block(weights, shape)
        tensors |= {f"layers.{i}.{name}": tensor for name, tensor in ours.items()}
    return tensors


def _compare(file: GgufFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse tensors that are missing, not known here, or of another shape."""
    for name in sorted(expected.keys() - file.places.keys()):
        raise ImportRejected(f"{file.path}: {name} is missing")
    for name in sorted(file.places.keys() - expected.keys()):
        raise ImportRejected(f"{file.path}: it has {shown(name)}: ChatGoT cannot compute that")
    for name, size in expected.items():
        found = file.places[name].shape
        if found != size:
            raise ImportRejected(f"{file.path}: {name} has the shape {found}, expected {size}")


def _block_shapes(architecture: str, shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a block."""
    return _gpt2_shapes(shape) if architecture == "gpt2" else _modern_shapes(shape)


def _gpt2_shapes(shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    C = shape["d_model"]
    hidden = shape["d_hid"]
    matrices = {
        "attn_qkv": (3 * C, C),
        "attn_output": (C, C),
        "ffn_up": (hidden, C),
        "ffn_down": (C, hidden),
    }
    sizes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in matrices.items():
        sizes[f"{name}.weight"] = (rows, columns)
        sizes[f"{name}.bias"] = (rows,)
    for name in ("attn_norm", "ffn_norm"):
        sizes |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
    return sizes


def _modern_shapes(shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    C = shape["d_model"]
    D = shape["head_dim"]
    width = shape["n_head"] * D
    kv_width = shape["n_kv_head"] * D
    hidden = shape["d_hid"]
    sizes: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (C,),
        "attn_q.weight": (width, C),
        "attn_k.weight": (kv_width, C),
        "attn_v.weight": (kv_width, C),
        "attn_output.weight": (C, width),
        "ffn_norm.weight": (C,),
        "ffn_gate.weight": (hidden, C),
        "ffn_up.weight": (hidden, C),
        "ffn_down.weight": (C, hidden),
    }
    if shape["qk_norm"]:
        sizes |= {"attn_q_norm.weight": (D,), "attn_k_norm.weight": (D,)}
    return sizes


def _gpt2_block(weights: Mapping[str, Tensor], shape: Mapping[str, Any]) -> dict[str, Tensor]:
    names = {
        "attn_norm": "norm_attention",
        "attn_qkv": "attention.qkv",
        "attn_output": "attention.proj",
        "ffn_norm": "norm_mlp",
        "ffn_up": "mlp.up",
        "ffn_down": "mlp.down",
    }
    return {
        f"{ours}.{part}": weights[f"{theirs}.{part}"]
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    }


def _modern_block(weights: Mapping[str, Tensor], shape: Mapping[str, Any]) -> dict[str, Tensor]:
    q = weights["attn_q.weight"]
    k = weights["attn_k.weight"]
    if not shape["qk_norm"]:  # llama
        q, k = (_halves_first(t, shape["head_dim"]) for t in (q, k))
    tensors = {
        "norm_attention.weight": weights["attn_norm.weight"],
        "attention.qkv.weight": torch.cat((q, k, weights["attn_v.weight"])),
        "attention.proj.weight": weights["attn_output.weight"],
        "norm_mlp.weight": weights["ffn_norm.weight"],
        "mlp.gate_up.weight": torch.cat((weights["ffn_gate.weight"], weights["ffn_up.weight"])),
        "mlp.down.weight": weights["ffn_down.weight"],
    }
    if shape["qk_norm"]:
        tensors["attention.q_norm.weight"] = weights["attn_q_norm.weight"]
        tensors["attention.k_norm.weight"] = weights["attn_k_norm.weight"]
    return tensors


def _halves_first(weight: Tensor, D: int) -> Tensor:
    """Return the rows of queries or keys (R, C) in our order.

    llama.cpp's llama rotates elements 2 i and 2 i + 1 of a head with each other; we rotate i and
    i + D / 2.
    """
    heads = weight.view(-1, D // 2, 2, weight.size(1))  # (H, D / 2, 2, C)
    return heads.transpose(1, 2).reshape(weight.shape)  # (R, C)
