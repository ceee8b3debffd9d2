"""What does a GGUF file say? It is read back alone, and computed by the words of its architecture.

It shares no code with what writes the file, but for the package `gguf`.
Letters: T tokens, C width, H heads, D head size, R rows, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatgot.errors import ImportRejected
from chatgot.exchange.byte_level_bpe import CONTROL, ByteLevelBpe
from chatgot.exchange.formats import Said
from chatgot.exchange.gguf_header import open_gguf
from chatgot.exchange.plain_forward import (
    PlainBlock,
    PlainLinear,
    PlainModel,
    PlainNorm,
    plain_logits,
)
from chatgot.exchange.tensors_once_read import TensorsOnceRead

ARCHITECTURES = ("gpt2", "llama", "qwen3")
# llama.cpp computes the tanh form for every gpt2; this key of ours says what the model has
ACTIVATION = "chatgot.activation"


@dataclass(frozen=True)
class OpenedGguf:
    """A file, read back (see Opened)."""

    tokenizer: ByteLevelBpe
    model: PlainModel
    said: Said

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the tokens and merges that were written."""
        return self.tokenizer.encode(text)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (T, V), fp64, of one sequence of ids (T,)."""
        return plain_logits(self.model, ids)


def read_back(path: Path) -> OpenedGguf:
    """Read a file that an export wrote. Raises: ImportRejected for one that does not fit itself."""
    try:
        with open_gguf(path) as file:
            tensors = TensorsOnceRead({name: file.tensor(name) for name in file.places})
        model = _model(file.keys, tensors)
        tensors.check_all_read()
        return OpenedGguf(_tokenizer(file.keys), model, _said(file.keys, model))
    except KeyError as error:
        raise ImportRejected(f"{path}: {error} is missing") from error
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportRejected(f"{path}: cannot be read back: {reason}") from error


def _tokenizer(fields: dict[str, Any]) -> ByteLevelBpe:
    prefix = "tokenizer.ggml."
    if fields[f"{prefix}model"] != "gpt2" or fields[f"{prefix}add_bos_token"]:
        raise ValueError("its tokenizer is no plain byte-level BPE")
    return ByteLevelBpe(
        names=fields[f"{prefix}tokens"],
        types=fields[f"{prefix}token_type"],
        merges=fields[f"{prefix}merges"],
        pre=fields[f"{prefix}pre"],
    )


def _said(fields: dict[str, Any], model: PlainModel) -> Said:
    """Return what the keys say. Raises: KeyError; ValueError where they contradict each other."""
    architecture = fields["general.architecture"]
    sizes = {
        "embedding_length": model.embedding.shape[1],
        "feed_forward_length": len(model.blocks[0].up.weight),
        "vocab_size": len(model.embedding),
    }
    for name, size in sizes.items():
        _expect(f"{architecture}.{name}", fields, size)
    tokenizer = "tokenizer.ggml"
    end = fields[f"{tokenizer}.eos_token_id"]
    _expect(f"{tokenizer}.bos_token_id", fields, end)
    _expect(f"{tokenizer}.add_eos_token", fields, False)
    if fields[f"{tokenizer}.token_type"][end] != CONTROL:
        raise ValueError("the end of a text is no control token")
    context = fields[f"{architecture}.context_length"]
    return Said(context, sizes["vocab_size"], end, fields["tokenizer.chat_template"])


def _expect(name: str, fields: dict[str, Any], expected: object) -> None:
    if fields[name] != expected:
        raise ValueError(f"{name} is {fields[name]!r}, expected {expected!r}")


def _model(fields: dict[str, Any], tensors: Mapping[str, Tensor]) -> PlainModel:
    architecture = fields["general.architecture"]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"the architecture {architecture!r} is not written here")

    def key(name: str) -> Any:
        return fields[f"{architecture}.{name}"]

    gpt2 = architecture == "gpt2"
    H = key("attention.head_count")
    block = _gpt2_block if gpt2 else _modern_block(architecture, key)
    embedding = tensors["token_embd.weight"]
    return PlainModel(
        embedding=embedding,
        positions=tensors["position_embd.weight"] if gpt2 else None,
        blocks=[block(tensors, f"blk.{i}.") for i in range(key("block_count"))],
        norm_final=_norm(tensors, "output_norm"),
        head=tensors.get("output.weight", embedding),
        n_head=H,
        n_kv_head=H if gpt2 else key("attention.head_count_kv"),
        norm="layer" if gpt2 else "rms",
        eps=key("attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon"),
        rope_base=10_000.0 if gpt2 else key("rope.freq_base"),
        gelu="erf" if fields.get(ACTIVATION) == "gelu" else "tanh",
    )


def _gpt2_block(tensors: Mapping[str, Tensor], prefix: str) -> PlainBlock:
    weights = tensors[f"{prefix}attn_qkv.weight"].chunk(3)  # 3 x (C, C)
    biases = tensors[f"{prefix}attn_qkv.bias"].chunk(3)  # 3 x (C,)
    q, k, v = (PlainLinear(*parts) for parts in zip(weights, biases, strict=True))
    return PlainBlock(
        norm_attention=_norm(tensors, f"{prefix}attn_norm"),
        q=q,
        k=k,
        v=v,
        out=_linear(tensors, f"{prefix}attn_output"),
        norm_mlp=_norm(tensors, f"{prefix}ffn_norm"),
        up=_linear(tensors, f"{prefix}ffn_up"),
        down=_linear(tensors, f"{prefix}ffn_down"),
    )


def _modern_block(
    architecture: str, key: Callable[[str], Any]
) -> Callable[[Mapping[str, Tensor], str], PlainBlock]:
    """Return what reads a layer of llama or qwen3."""
    D = key("attention.key_length")
    if key("rope.dimension_count") != D or key("attention.value_length") != D:
        raise ValueError("a head is not rotated as a whole")

    def rotated(tensors: Mapping[str, Tensor], name: str) -> PlainLinear:
        """Return a layer of queries or keys whose halves are rotated with each other."""
        weight = tensors[f"{name}.weight"]  # (R, C)
        if architecture == "llama":  # neighbours are: first all even rows of a head, then all odd
            heads = weight.view(-1, D, weight.shape[-1])  # (H, D, C)
            weight = torch.cat((heads[:, 0::2], heads[:, 1::2]), dim=1).flatten(0, 1)  # (R, C)
        return PlainLinear(weight)

    def block(tensors: Mapping[str, Tensor], prefix: str) -> PlainBlock:
        normalised = architecture == "qwen3"
        return PlainBlock(
            norm_attention=_norm(tensors, f"{prefix}attn_norm"),
            q=rotated(tensors, f"{prefix}attn_q"),
            k=rotated(tensors, f"{prefix}attn_k"),
            v=_linear(tensors, f"{prefix}attn_v"),
            out=_linear(tensors, f"{prefix}attn_output"),
            norm_mlp=_norm(tensors, f"{prefix}ffn_norm"),
            up=_linear(tensors, f"{prefix}ffn_up"),
            down=_linear(tensors, f"{prefix}ffn_down"),
            gate=_linear(tensors, f"{prefix}ffn_gate"),
            q_norm=_norm(tensors, f"{prefix}attn_q_norm") if normalised else None,
            k_norm=_norm(tensors, f"{prefix}attn_k_norm") if normalised else None,
        )

    return block


def _norm(tensors: Mapping[str, Tensor], name: str) -> PlainNorm:
    return PlainNorm(tensors[f"{name}.weight"], _bias(tensors, name))


def _linear(tensors: Mapping[str, Tensor], name: str) -> PlainLinear:
    return PlainLinear(tensors[f"{name}.weight"], _bias(tensors, name))


def _bias(tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return a bias: in gpt2 llama.cpp asks for each of them, elsewhere for none."""
    return tensors[f"{name}.bias"] if "position_embd.weight" in tensors else None
