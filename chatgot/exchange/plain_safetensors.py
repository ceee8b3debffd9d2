"""The format `safetensors`: our own weights by our own names, for whoever writes a reader.

model.safetensors holds the tensors, a tied embedding and head once. config.json says the model's
shape: our section `model`. vocabulary.json names each id; a model with subwords has their
tokenizer.json beside it, as it came.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from chatgot.config import ModelConfig
from chatgot.data.vocabulary import Characters
from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.formats import Dtype, Said
from chatgot.exchange.plain_forward import (
    PlainBlock,
    PlainLinear,
    PlainModel,
    PlainNorm,
    plain_logits,
)
from chatgot.exchange.rounding import TORCH_DTYPES, rounded_model
from chatgot.exchange.tensors_once_read import TensorsOnceRead
from chatgot.model.gpt import GPT
from chatgot.sampling.loading import LoadedModel

VERSION = 1  # of config.json
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
TOKENIZER = "tokenizer.json"
EMBEDDING = "token_embedding.weight"
HEAD = "head.weight"


class PlainSafetensors:
    """Writes and reads our own weights (see Format)."""

    name = "safetensors"
    dtypes: tuple[Dtype, ...] = ("fp32", "fp16", "bf16")

    def write(self, loaded: LoadedModel, dtype: Dtype, folder: Path) -> list[str]:
        """Write all files of a model into an empty folder; return nothing to know.

        Raises: ExportImpossible for weights that are too large for fp16.
        """
        tensors = {
            name: tensor.to("cpu", TORCH_DTYPES[dtype]).contiguous()
            for name, tensor in loaded.model.state_dict().items()
        }
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise ExportImpossible(
                    f"safetensors: {name} has values that {dtype} cannot hold; use --dtype fp32"
                )
        model = loaded.config.model
        if model.tie_embeddings:
            del tensors[HEAD]
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "format": "chatgot",
            "version": VERSION,
            "dtype": dtype,
            "vocab_size": loaded.model.vocab_size,
            "end_of_text_id": loaded.vocabulary.end_of_text_id,
            "model": model.model_dump(mode="json"),
        }
        _write_json(folder / CONFIG, config)
        # only subwords have a file of their own
        tokenizer = getattr(loaded.vocabulary, "json", None)
        kind = "characters" if tokenizer is None else "subwords"
        _write_json(folder / VOCABULARY, {"kind": kind, "tokens": loaded.vocabulary.tokens})
        if tokenizer is not None:
            (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8", newline="")
        return []

    def open(self, folder: Path) -> "OpenedSafetensors":
        """Read what was written. Raises: ImportRejected for files that do not fit each other."""
        try:
            config = json.loads((folder / CONFIG).read_bytes())
            if (config["format"], config["version"]) != ("chatgot", VERSION):
                raise ImportRejected(
                    f"{folder / CONFIG}: not a model of ChatGoT, version {VERSION}"
                )
            model = ModelConfig.model_validate(config["model"])
            tensors = load_file(folder / WEIGHTS)
            vocabulary = json.loads((folder / VOCABULARY).read_bytes())
            tokenizer: Characters | Tokenizer
            if vocabulary["kind"] == "subwords":
                tokenizer = Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
            else:
                tokenizer = Characters.from_tokens(vocabulary["tokens"])
            said = Said(model.max_seq_length, config["vocab_size"], config["end_of_text_id"])
            return OpenedSafetensors(tokenizer, plain_model(model, tensors), said)
        except KeyError as error:
            raise ImportRejected(f"{folder}: {error} is missing") from error
        except (OSError, ValueError, TypeError, ValidationError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ImportRejected(f"{folder}: cannot be read back: {reason}") from error

    def as_rounded(self, model: GPT, dtype: Dtype) -> GPT:
        """Return a model with all weights rounded to the dtype, in fp32; fp32: the model itself."""
        return rounded_model(model, dtype)

    def how_to_use(self, folder: Path, named: Path | None = None) -> list[str]:
        """Return the lines that load the weights in Python."""
        path = (named or folder) / WEIGHTS
        return [
            "from safetensors.torch import load_file",
            f"weights = load_file({path.as_posix()!r})",
        ]


@dataclass(frozen=True)
class OpenedSafetensors:
    """The written files, read back (see Opened)."""

    tokenizer: Characters | Tokenizer
    model: PlainModel
    said: Said

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the vocabulary that was written."""
        if isinstance(self.tokenizer, Characters):
            return self.tokenizer.encode(text)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (T, V), fp64, of one sequence of ids (T,)."""
        return plain_logits(self.model, ids)


def plain_model(model: ModelConfig, stored: Mapping[str, Tensor]) -> PlainModel:
    """Return the model that our tensors and our section `model` describe.

    Raises: KeyError naming a tensor that is missing; ValueError naming one that nothing reads.
    """
    tensors = TensorsOnceRead({name: tensor.float() for name, tensor in stored.items()})
    modern = model.architecture == "modern"
    plain = PlainModel(
        embedding=tensors[EMBEDDING],
        positions=None if modern else tensors["position_embedding.weight"],
        blocks=[_block(model, tensors, f"layers.{i}.") for i in range(model.n_layers)],
        norm_final=_norm(tensors, "norm"),
        head=tensors[EMBEDDING if model.tie_embeddings else HEAD],
        n_head=model.n_head,
        n_kv_head=model.kv_heads,
        norm="rms" if modern else "layer",
        eps=model.layer_norm_eps,
        rope_base=model.rope_base,
        gelu="tanh" if model.activation == "gelu_tanh" else "erf",
    )
    tensors.check_all_read()
    return plain


def _block(model: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> PlainBlock:
    modern = model.architecture == "modern"
    normalised = modern and model.qk_norm
    width = model.n_head * model.head_size
    kv_width = model.kv_heads * model.head_size
    q, k, v = _split(tensors, f"{prefix}attention.qkv", [width, kv_width, kv_width])
    if modern:
        rows = tensors[f"{prefix}mlp.gate_up.weight"].shape[0] // 2
        gate, up = _split(tensors, f"{prefix}mlp.gate_up", [rows, rows])
    else:
        gate = None
        up = _linear(tensors, f"{prefix}mlp.up")
    return PlainBlock(
        norm_attention=_norm(tensors, f"{prefix}norm_attention"),
        q=q,
        k=k,
        v=v,
        out=_linear(tensors, f"{prefix}attention.proj"),
        norm_mlp=_norm(tensors, f"{prefix}norm_mlp"),
        up=up,
        down=_linear(tensors, f"{prefix}mlp.down"),
        gate=gate,
        q_norm=_norm(tensors, f"{prefix}attention.q_norm") if normalised else None,
        k_norm=_norm(tensors, f"{prefix}attention.k_norm") if normalised else None,
    )


def _split(tensors: Mapping[str, Tensor], name: str, rows: list[int]) -> list[PlainLinear]:
    """Return the layers whose rows are stored one below the other in one matrix."""
    weights = torch.split(tensors[f"{name}.weight"], rows)
    bias = tensors.get(f"{name}.bias")
    if bias is None:
        return [PlainLinear(weight) for weight in weights]
    biases = torch.split(bias, rows)
    return [PlainLinear(*parts) for parts in zip(weights, biases, strict=True)]


def _linear(tensors: Mapping[str, Tensor], name: str) -> PlainLinear:
    return PlainLinear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def _norm(tensors: Mapping[str, Tensor], name: str) -> PlainNorm:
    return PlainNorm(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8", newline="\n")


SAFETENSORS = PlainSafetensors()
