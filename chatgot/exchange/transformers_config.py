"""Which shape of ours has the model of a config.json for transformers?

Where a key is missing, transformers' own default is meant. Each key that would change the result
must have a value that we can compute; all other keys are of no matter here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from chatgot.config import (
    FP32_MAX,
    MAX_HEAD_SIZE,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_LENGTH,
    MAX_WIDTH,
    ModelConfig,
)
from chatgot.data.tokenizer_json import MOST_TOKENS
from chatgot.errors import ImportRejected
from chatgot.exchange.model_folder import Json, shown

MOST_LAYERS = 10_000  # as model.n_layers
NOT_HERE = "ChatGoT cannot compute that"
CLASSES = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# Keys that must have one of these values; a key that is missing has the first one
ALWAYS = {
    "quantization_config": (None,),
    "auto_map": (None,),  # code that comes with the model
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "is_causal": (True,),  # or else each token sees those after it, too
}
GPT2_ONLY = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False,),
}
LLAMAS_ONLY = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1.0, None),
}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
DEFAULT_THETA = 10_000.0
# of a class, where config.json does not say it
DEFAULT_HEADS = {"qwen2": 32, "qwen3": 32}  # of keys and values; llama: as of queries
DEFAULT_HEAD_SIZE = {"qwen3": 128}  # others: hidden_size / num_attention_heads
DEFAULT_CONTEXT = {"gpt2": 1024, "llama": 2048, "qwen2": 32768, "qwen3": 32768}


class TheirConfig:
    """A config.json, whose values are checked as they are asked for."""

    def __init__(self, content: Json, path: Path) -> None:
        self.content = content
        self.path = path

    def refuse(self, key: str, value: object, why: str) -> ImportRejected:
        """Return the error that names a key and its value."""
        return ImportRejected(f"{self.path}: {key} is {shown(value)}: {why}")

    def only(self, allowed: dict[str, tuple[Any, ...]]) -> None:
        """Check that each key has one of its values, or is missing. Raises: ImportRejected."""
        for key, values in allowed.items():
            found = self.content.get(key, values[0])
            if not any(_same(found, value) for value in values):
                raise self.refuse(key, found, NOT_HERE)

    def count(self, key: str, most: int, default: int | None = None) -> int:
        """Return a whole number of at least 1. Raises: ImportRejected."""
        value = self.content.get(key)
        if value is None:
            if default is None:
                raise ImportRejected(f"{self.path}: {key} is missing")
            return default
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(key, value, f"expected a whole number from 1 to {most}")
        return value

    def number(self, key: str, least: float, most: float, default: float) -> float:
        """Return a number. Raises: ImportRejected."""
        value = self.content.get(key)
        if value is None:
            return default
        return self.in_range(key, value, least, most)

    def in_range(self, key: str, value: object, least: float, most: float) -> float:
        """Return a value that is a number in a range. Raises: ImportRejected."""
        if type(value) not in (int, float) or not least <= value <= most:  # type: ignore[operator]
            raise self.refuse(key, value, f"expected a number from {least:g} to {most:g}")
        return float(value)  # type: ignore[arg-type]

    def truth(self, key: str, default: bool) -> bool:
        """Return a truth value. Raises: ImportRejected."""
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, "expected true or false")
        return value


def read_config(content: Json, path: Path) -> tuple[dict[str, Any], int]:
    """Return the keys of `model` that a config.json asks for, and the rows of the embedding.

    Raises: ImportRejected naming a key that we cannot compute, and its value.
    """
    config = TheirConfig(content, path)
    family = content.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        raise config.refuse("model_type", family, f"ChatGoT reads {', '.join(CLASSES)}")
    classes = {
        "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    }.get(family, (f"{CLASSES[family]}ForCausalLM", f"{CLASSES[family]}Model"))
    architectures = content.get("architectures")
    if architectures is not None and architectures not in [[name] for name in classes]:
        raise config.refuse("architectures", architectures, f"ChatGoT reads {classes[0]}")
    config.only(ALWAYS)
    read: Callable[[TheirConfig, str], dict[str, Any]] = _gpt2 if family == "gpt2" else _llama
    shape = read(config, family)
    shape["tie_embeddings"] = config.truth("tie_word_embeddings", default=family == "gpt2")
    try:
        ModelConfig.model_validate(shape)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ImportRejected(f"{path}: not a model that ChatGoT can build: {reason}") from error
    return shape, config.count("vocab_size", MOST_TOKENS)


def _gpt2(config: TheirConfig, family: str) -> dict[str, Any]:
    config.only(GPT2_ONLY)
    activation = config.content.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise config.refuse("activation_function", activation, NOT_HERE)
    width = config.count("n_embd", MAX_WIDTH)
    return {
        "architecture": "gpt",
        "d_model": width,
        "n_layers": config.count("n_layer", MOST_LAYERS),
        "n_head": config.count("n_head", MAX_HEADS),
        "n_kv_head": None,
        "head_dim": None,
        "d_hid": config.count("n_inner", MAX_HIDDEN, 4 * width),
        "max_seq_length": config.count("n_positions", MAX_LENGTH, DEFAULT_CONTEXT[family]),
        "layer_norm_eps": config.number("layer_norm_epsilon", 1e-20, 1e10, 1e-5),
        "bias": True,
        "activation": ACTIVATIONS[activation],
    }


def _llama(config: TheirConfig, family: str) -> dict[str, Any]:
    """Return the shape of Llama, Qwen2 or Qwen3; the last one normalises queries and keys."""
    config.only(LLAMAS_ONLY)
    _check_windows(config, family)
    width = config.count("hidden_size", MAX_WIDTH)
    heads = config.count("num_attention_heads", MAX_HEADS)
    head_size = DEFAULT_HEAD_SIZE.get(family) or max(1, width // heads)
    # the longest one that a model may have: a text is far shorter
    context = config.count("max_position_embeddings", 1 << 40, DEFAULT_CONTEXT[family])
    return {
        "architecture": "modern",
        "d_model": width,
        "n_layers": config.count("num_hidden_layers", MOST_LAYERS),
        "n_head": heads,
        "n_kv_head": config.count(
            "num_key_value_heads", MAX_HEADS, DEFAULT_HEADS.get(family, heads)
        ),
        "head_dim": config.count("head_dim", MAX_HEAD_SIZE, head_size),
        "d_hid": config.count("intermediate_size", MAX_HIDDEN),
        "max_seq_length": min(context, MAX_LENGTH),
        "rope_base": _rope_base(config),
        "qk_norm": family == "qwen3",
        "layer_norm_eps": config.number("rms_norm_eps", 1e-20, 1e10, 1e-6),
    }


def _check_windows(config: TheirConfig, family: str) -> None:
    """Check that each token sees all before it. Raises: ImportRejected."""
    kinds = config.content.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise config.refuse("layer_types", kinds, NOT_HERE)
    for kind in kinds or ():
        if kind != "full_attention":
            raise config.refuse("layer_types", kind, NOT_HERE)
    window = config.content.get("sliding_window")
    # Qwen says how long a window would be, and with `use_sliding_window` that there is none
    if family == "llama" and window is not None:
        raise config.refuse("sliding_window", window, NOT_HERE)


def _rope_base(config: TheirConfig) -> float:
    """Return the base of the rotary positions. Raises: ImportRejected for another kind of them.

    Version 4 of transformers says it in rope_theta and rope_scaling, version 5 in rope_parameters.
    """
    bases = {
        config.in_range(key, values["rope_theta"], 1, FP32_MAX)
        for key, values in _rope_words(config).items()
        if values.get("rope_theta") is not None
    }
    if len(bases) > 1:
        given = sorted(bases)
        raise config.refuse("rope_theta", given, "expected one base of the rotary positions")
    return bases.pop() if bases else DEFAULT_THETA


def _rope_words(config: TheirConfig) -> dict[str, Json]:
    """Return all that says something of rotary positions, by its key. Raises: ImportRejected."""
    words: dict[str, Json] = {"rope_theta": {"rope_theta": config.content.get("rope_theta")}}
    for key in ("rope_scaling", "rope_parameters"):
        value = config.content.get(key)
        if value is None:
            continue
        if not isinstance(value, dict) or not value.keys() <= ROPE_KEYS:
            raise config.refuse(key, value, NOT_HERE)
        kinds = [value[name] for name in ("rope_type", "type") if value.get(name) is not None]
        part = value.get("partial_rotary_factor")
        if any(kind != "default" for kind in kinds) or not (part is None or _same(part, 1.0)):
            raise config.refuse(key, value, NOT_HERE)
        words[key] = value
    return words


def _same(found: object, value: object) -> bool:
    """Return whether two values are the same in JSON, where 1 and 1.0 are, but true is none."""
    if isinstance(found, bool) or isinstance(value, bool):
        return found is value
    return found == value
