"""How does a folder for transformers become a start for a new run?

GPT2LMHeadModel becomes `gpt`; LlamaForCausalLM, Qwen3ForCausalLM, and Qwen2ForCausalLM without
biases become `modern`. No code of the folder runs, and no pickle is read. What config.json says is
compared with the headers of the weights before any weight is read.
"""

import re
from pathlib import Path

from torch import Tensor

from chatgot.config import ModelConfig
from chatgot.errors import ImportRejected
from chatgot.exchange.from_plain_safetensors import is_ours, read_ours
from chatgot.exchange.model_folder import CONFIG, is_there, read_json
from chatgot.exchange.stored_tensors import (
    EMBEDDING,
    HEAD,
    Piece,
    StoredTensors,
    open_weights,
    read_pieces,
    shapes_of,
)
from chatgot.exchange.tokenizer_of_folder import TOKENIZER, read_tokens
from chatgot.exchange.transformers_config import read_config
from chatgot.run.starting import Start

THEIR_HEAD = "lm_head.weight"
LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
# Files of old versions have these, which follow from the configuration
UNREAD = re.compile(r".*\.(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)")
GPT2_NAMES = {
    "token_embedding.weight": "wte.weight",
    "position_embedding.weight": "wpe.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
GPT2_LAYER = {
    "norm_attention": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.proj": "attn.c_proj",
    "norm_mlp": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
LLAMA_NAMES = {"token_embedding.weight": "embed_tokens.weight", "norm.weight": "norm.weight"}
# What is one matrix here is several there, one below the other
LLAMA_LAYER = {
    "norm_attention": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.proj": ("self_attn.o_proj",),
    "norm_mlp": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}


def read_hf(folder: Path) -> Start:
    """Read a model folder: of transformers, or one that `--format safetensors` wrote.

    Raises: ImportRejected.
    """
    path = folder / CONFIG
    if not is_there(path):
        raise ImportRejected(f"{folder}: has no {CONFIG}: expected the folder of a model")
    config = read_json(path)
    if is_ours(config):
        return read_ours(folder, config, path)
    shape, vocab_size = read_config(config, path)
    model = ModelConfig.model_validate(shape)
    with open_weights(folder) as stored:
        pieces = _pieces(model, vocab_size, stored)
        unread = {name for name in stored.names if UNREAD.fullmatch(name)}
        if model.tie_embeddings:
            unread.add(THEIR_HEAD)
        tokens, subwords = read_tokens(folder, config)
        # some models with subwords have more rows than tokens
        if len(tokens) > vocab_size or (subwords is None and len(tokens) < vocab_size):
            raise ImportRejected(
                f"{folder / TOKENIZER}: has {len(tokens)} tokens, {CONFIG} says {vocab_size}"
            )
        tensors = read_pieces(pieces, stored, unread)
        if model.tie_embeddings:
            tensors[HEAD] = tensors[EMBEDDING]
            _check_tied(stored, pieces[EMBEDDING][0], tensors[HEAD])
    return Start(tensors, tokens, "hf", shape, subwords)


def _pieces(model: ModelConfig, vocab_size: int, stored: StoredTensors) -> dict[str, list[Piece]]:
    """Return which stored tensors each of ours is made of. Raises: ImportRejected."""
    shapes = shapes_of(model, vocab_size, stored)
    is_gpt = model.architecture == "gpt"
    prefix = "transformer." if is_gpt else "model."
    if not any(name.startswith(prefix) for name in stored.names):
        prefix = ""  # the model was saved without its head
    pieces = {}
    for name, shape in shapes.items():
        if name == HEAD:
            pieces[name] = [Piece(THEIR_HEAD, tuple(shape))]
        elif is_gpt:
            pieces[name] = [_gpt2_piece(prefix, name, shape)]
        else:
            pieces[name] = _llama_pieces(prefix, name, shape, model)
    return pieces


def _gpt2_piece(prefix: str, name: str, shape: list[int]) -> Piece:
    """Return the piece that is one of our tensors; GPT-2 stores its layers' matrices (in, out)."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return Piece(prefix + GPT2_NAMES[name], tuple(shape))
    i, part, kind = layer.groups()
    theirs = f"{prefix}h.{i}.{GPT2_LAYER[part]}.{kind}"
    return Piece(theirs, tuple(reversed(shape)), transposed=len(shape) == 2)


def _llama_pieces(prefix: str, name: str, shape: list[int], model: ModelConfig) -> list[Piece]:
    layer = LAYER.fullmatch(name)
    if layer is None:
        return [Piece(prefix + LLAMA_NAMES[name], tuple(shape))]
    i, part, _ = layer.groups()
    rows = [shape[0]]
    if part == "attention.qkv":
        rows = [heads * model.head_size for heads in (model.n_head, model.kv_heads, model.kv_heads)]
    elif part == "mlp.gate_up":
        rows = [shape[0] // 2] * 2
    return [
        Piece(f"{prefix}layers.{i}.{theirs}.weight", (count, *shape[1:]))
        for theirs, count in zip(LLAMA_LAYER[part], rows, strict=True)
    ]


def _check_tied(stored: StoredTensors, embedding: Piece, tied: Tensor) -> None:
    """Check that a stored head is the embedding, as config.json says. Raises: ImportRejected."""
    if THEIR_HEAD not in stored.names:
        return
    head = Piece(THEIR_HEAD, embedding.shape)
    stored.check(head)
    if not stored.read(head).equal(tied):
        raise ImportRejected(
            f"{stored.path_of(THEIR_HEAD)}: {THEIR_HEAD} is not {embedding.name}, "
            f"but {CONFIG} says tie_word_embeddings"
        )
