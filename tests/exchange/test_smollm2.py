"""A real model of others: SmolLM2 as a GGUF with four bits a weight, against llama.cpp.

llama.cpp rounds what it multiplies four-bit weights with, to eight bits, so that it may choose
another one of two tokens that are nearly as likely. So the texts are compared with what it makes of
the same weights in fp32.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import parts
import pytest
import smollm2
import torch

from chatgot.config import ModelConfig
from chatgot.data.subwords import PROBE
from chatgot.exchange.importing import read_start
from chatgot.model.gpt import GPT, build_model
from chatgot.run.starting import Start

CONTEXT = 128
NEW_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a king who",
    "def add(a, b):\n",
    "ROMEO:\nBut soft, what light",
    "1 2 3 4 5",
)
KEYS_OF_WEIGHTS = {"general.architecture", "general.file_type", "general.quantization_version"}

pytestmark = [
    pytest.mark.slow,  # 93 MB are fetched; the model has 135 million weights
    pytest.mark.network,
]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that is gone afterwards; pytest would keep 700 MB."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def in_fp32(source: Path, target: Path) -> Path:
    """Write a file again with its weights in fp32; return its path."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in KEYS_OF_WEIGHTS:
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def model_of(start: Start) -> GPT:
    """Return the model of a start, in evaluation."""
    shape = start.shape | {"max_seq_length": CONTEXT}
    vocab_size = len(start.tensors["token_embedding.weight"])
    model = build_model(ModelConfig(**shape), vocab_size, parts.CPU, seed=1)
    model.load_state_dict(start.tensors)
    return model.eval()


def likeliest(model: GPT, ids: list[int]) -> list[int]:
    """Return the likeliest next tokens, one after the other."""
    all_ids = list(ids)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([all_ids]))[0][0, -1]  # (V,)
            all_ids.append(int(logits.argmax()))
    return all_ids[len(ids) :]


def test_smollm2_has_the_ids_and_the_texts_of_llama_cpp(folder):
    file = smollm2.fetch(folder)
    start = read_start(file)
    vocabulary = start.vocabulary
    model = model_of(start)
    probe, _ = vocabulary.replace_unknown(PROBE)
    with llama_cpp.serving(in_fp32(file, folder / "fp32.gguf"), CONTEXT) as server:
        # names of special tokens are ordinary text to us
        answer = server.ask("/tokenize", content=probe, parse_special=False)
        assert vocabulary.encode_piece(probe) == answer["tokens"]
        for prompt in PROMPTS:
            ids = vocabulary.encode(prompt)
            assert ids == server.tokens(prompt)
            expected = server.complete(ids, NEW_TOKENS, return_tokens=True)
            assert likeliest(model, ids) == expected["tokens"]
            assert vocabulary.decode(expected["tokens"]) == expected["content"]
