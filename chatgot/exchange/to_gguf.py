"""The format `gguf`: one file for llama.cpp, Ollama and LM Studio, and a Modelfile beside it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import copy
import re
import shlex
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Stored

from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.chat_template import jinja_template
from chatgot.exchange.formats import Dtype
from chatgot.exchange.gguf_read_back import ACTIVATION, OpenedGguf, read_back
from chatgot.exchange.gguf_tensors import (
    Q8_BLOCK,
    architecture_of,
    bytes_in_gguf,
    stored_as,
    tensors_in_gguf,
    values_of,
)
from chatgot.exchange.gguf_vocabulary import TokensInGguf, padded, tokens_in_gguf
from chatgot.exchange.modelfile import modelfile
from chatgot.model.gpt import GPT
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import default_pair

FILE = "model.gguf"
MODELFILE = "Modelfile"
CHAT_TEMPLATE = "chat_template.jinja"
MOST_LAYERS = 512  # that llama.cpp reads
FILE_TYPES: dict[Dtype, gguf.LlamaFileType] = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}


class ToGguf:
    """Writes and reads GGUF files (see Format)."""

    name = "gguf"
    dtypes: tuple[Dtype, ...] = ("fp32", "fp16", "bf16", "q8_0")

    def write(self, loaded: LoadedModel, dtype: Dtype, folder: Path) -> list[str]:
        """Write all files of a model into an empty folder; return what the user should know.

        Raises: ExportImpossible for a tokenizer that has no name in llama.cpp, for more layers than
        it reads, and for a weight that the dtype cannot hold.
        """
        model = loaded.model
        cfg = model.cfg
        if cfg.n_layers > MOST_LAYERS:
            raise ExportImpossible(
                f"the model has {cfg.n_layers} layers, llama.cpp reads at most {MOST_LAYERS}; "
                "take another format"
            )
        tokens = padded(tokens_in_gguf(loaded.vocabulary), model.vocab_size)
        user, character = default_pair(loaded.speakers)
        template = jinja_template(user, character)

        writer = gguf.GGUFWriter(folder / FILE, architecture_of(cfg))
        writer.add_type("model")
        writer.add_name(loaded.run_id)
        writer.add_file_type(FILE_TYPES[dtype])
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, model)
        _add_tokens(writer, tokens, loaded.vocabulary.end_of_text_id)
        writer.add_chat_template(template)
        whole = _add_tensors(writer, model, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

        said = modelfile(FILE, user, character, cfg.max_seq_length, loaded.config.sampling)
        (folder / MODELFILE).write_text(said, encoding="utf-8", newline="\n")
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8", newline="\n")
        return [*_remarks(model, whole), *tokens.remarks]

    def open(self, folder: Path) -> OpenedGguf:
        """Read what was written. Raises: ImportRejected for a file that does not fit itself."""
        path = folder / FILE
        if not path.is_file():
            raise ImportRejected(f"{path}: there is no such file")
        return read_back(path)

    def as_rounded(self, model: GPT, dtype: Dtype) -> GPT:
        """Return a model whose weights went through the dtype and back; fp32: the model itself."""
        if dtype == "fp32":
            return model
        result = copy.deepcopy(model)
        positions = result.position_embedding
        for parameter in result.parameters():
            # positions stay fp32
            if positions is None or parameter is not positions.weight:
                stored = stored_as("", parameter.shape, dtype)
                array = bytes_in_gguf(parameter.detach().float().cpu(), stored)
                parameter.data = values_of(array, stored).to(parameter.device)
        result.tie()
        return result

    def how_to_use(self, folder: Path, named: Path | None = None) -> list[str]:
        """Return the lines that talk to the model in llama.cpp and in Ollama."""
        place = named or folder
        file = shlex.quote((place / FILE).as_posix())
        beside = shlex.quote((place / MODELFILE).as_posix())
        name = re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("._-") or "my-model"
        return [
            f"llama-cli -m {file} --jinja",
            f"llama-server -m {file} --jinja",
            f"ollama create {name} -f {beside}",
            f"ollama run {name}",
        ]


def _add_shape(writer: gguf.GGUFWriter, model: GPT) -> None:
    """Add the keys that say how large a model is, and how it computes."""
    cfg = model.cfg
    block = model.blocks[0]
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(cfg.max_seq_length)
    writer.add_embedding_length(cfg.d_model)
    writer.add_block_count(cfg.n_layers)
    writer.add_feed_forward_length(block.mlp.down.in_features)
    writer.add_head_count(cfg.n_head)
    if cfg.architecture == "gpt":
        writer.add_layer_norm_eps(cfg.layer_norm_eps)
        writer.add_string(ACTIVATION, cfg.activation)
        return
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_size)
    writer.add_value_length(cfg.head_size)
    writer.add_rope_dimension_count(cfg.head_size)
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_layer_norm_rms_eps(cfg.layer_norm_eps)


def _add_tokens(writer: gguf.GGUFWriter, tokens: TokensInGguf, end_of_text_id: int) -> None:
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(tokens.pre)
    writer.add_token_list(tokens.names)
    writer.add_token_types(tokens.types)
    writer.add_token_merges(tokens.merges)
    # without these, llama.cpp takes id 11 for both
    writer.add_bos_token_id(end_of_text_id)
    writer.add_eos_token_id(end_of_text_id)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)


def _add_tensors(writer: gguf.GGUFWriter, model: GPT, dtype: Dtype) -> list[str]:
    """Add all tensors; return the names of those that stay fp16, as Q8_0 cannot divide their rows.

    Raises: ExportImpossible for a weight that the dtype cannot hold.
    """
    kept = []
    for name, tensor in tensors_in_gguf(model).items():
        stored = stored_as(name, tensor.shape, dtype)
        array = bytes_in_gguf(tensor, stored)
        if not bool(torch.isfinite(values_of(array, stored)).all()):
            raise ExportImpossible(
                f"{dtype} cannot hold all weights of {name}: its largest is "
                f"{float(tensor.abs().max()):.3g}; take --dtype fp32 or bf16"
            )
        if dtype == "q8_0" and stored == Stored.F16:
            kept.append(name)
        writer.add_tensor(name, array, raw_dtype=stored)
    return kept


def _remarks(model: GPT, kept: list[str]) -> list[str]:
    remarks = []
    if model.cfg.architecture == "gpt":
        form = "with tanh, and " if model.cfg.activation == "gelu" else ""
        remarks.append(
            f"llama.cpp computes GELU {form}in fp16 on a CPU: log-probabilities there differ by "
            "about 1e-3"
        )
    if kept:
        names = sorted({re.sub(r"^blk\.\d+\.", "blk.*.", name) for name in kept})
        remarks.append(
            f"q8_0 needs rows of a multiple of {Q8_BLOCK} weights; these have other rows and stay "
            f"fp16: {', '.join(names)}"
        )
    return remarks


GGUF = ToGguf()
