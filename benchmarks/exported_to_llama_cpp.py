"""Print as JSON how far an exported model in llama.cpp is from ours.

    python benchmarks/exported_to_llama_cpp.py job.json

A side of the part `exports` of scripts/benchmark.py. llama.cpp serves the file on loopback, without
flash attention and with keys and values in fp32. Letters: T tokens, V vocabulary.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from torch import Tensor

from benchmarks.exported_model import BEYOND_ASCII, Ours, logits_of, read_job
from benchmarks.script_runs import ROOT, Figures
from chatgot.exchange.formats import Dtype
from chatgot.exchange.to_gguf import FILE, GGUF
from chatgot.model.gpt import GPT

SERVER = ROOT / "tests" / "programs" / "serve_with_llama_cpp.py"
DTYPES: tuple[Dtype, ...] = ("fp32", "q8_0")
TOP = 5  # log-probabilities of a position
STRIDE = 5  # tokens from one position to the next
ANSWER_S = 300.0
GREEDY = {"temperature": 0, "samplers": ["temperature"]}


def main() -> None:
    """Export a model, serve it with llama.cpp, compare."""
    ours = Ours(read_job())
    figures: Figures = {}
    for dtype in DTYPES:
        folder = ours.export(GGUF, dtype)
        model = GGUF.as_rounded(ours.loaded.model, dtype)
        with serving(folder / FILE, ours.context) as llama:
            name = f"llama_cpp_{dtype}"
            figures |= {f"{name}_{key}": value for key, value in compared(ours, model, llama)}
            if dtype == DTYPES[0]:
                figures |= same_tokens(ours, llama)
    print(json.dumps(figures))


def compared(ours: Ours, model: GPT, llama: httpx.Client) -> Iterator[tuple[str, object]]:
    """Yield figures: log-probabilities after many beginnings of the windows, and a greedy text.

    model: ours, with the weights that the file has.
    """
    differences = []
    for window in ours.windows.windows:
        expected = logits_of(model, window.ids).log_softmax(-1)  # (T, V)
        for end in range(1, len(window.ids), STRIDE):
            differences.append(difference(llama, window.ids[:end], expected[end - 1]))
    yield "top_5_logprobs", max(differences)
    yield "positions", len(differences)
    found = ask(
        llama,
        "/completion",
        prompt=ours.prompt_ids,
        n_predict=ours.tokens_within,
        cache_prompt=False,
        **GREEDY,
    )
    yield "greedy_equal", found["content"] == ours.greedy(model, ours.tokens_within)
    yield "greedy_characters", len(found["content"])


def difference(llama: httpx.Client, ids: Tensor, expected: Tensor) -> float:
    """Return the largest difference of log-probabilities after some ids (T,), of the likeliest.

    expected: ours, (V,).
    """
    answer = ask(llama, "/completion", prompt=ids.tolist(), n_predict=1, n_probs=TOP, **GREEDY)
    (step,) = answer["completion_probabilities"]
    top = step["top_logprobs"]
    assert len(top) == TOP, top
    return max(abs(float(token["logprob"]) - float(expected[token["id"]])) for token in top)


def same_tokens(ours: Ours, llama: httpx.Client) -> Figures:
    """Return whether texts become the same ids, characters beyond ASCII included."""
    known = BEYOND_ASCII
    if ours.vocabulary.kind == "characters":
        known = "".join(filter(ours.vocabulary.can_write, BEYOND_ASCII))
    texts = [known, *known, *(window.text for window in ours.windows.windows)]
    equal = [
        ask(llama, "/tokenize", content=text, add_special=True)["tokens"]
        == ours.vocabulary.encode(text)
        for text in texts
    ]
    return {
        "llama_cpp_tokens_equal": all(equal),
        "llama_cpp_characters_beyond_ascii": sum(not character.isascii() for character in known),
    }


def ask(llama: httpx.Client, path: str, **body: object) -> Any:
    """Return the answer to a POST."""
    return llama.post(path, json=body).raise_for_status().json()


@contextmanager
def serving(path: Path, context: int) -> Iterator[httpx.Client]:
    """Serve a file with llama.cpp, in a process that ends with the block."""
    command = [sys.executable, str(SERVER), str(path), str(context)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            sys.exit(f"llama.cpp does not load {path.name}")
        with httpx.Client(base_url=address, timeout=ANSWER_S) as client:
            yield client


if __name__ == "__main__":
    main()
