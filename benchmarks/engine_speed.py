"""Print the tokens/s of ChatGoT's engine, for the part `generation` of scripts/benchmark.py.

python benchmarks/engine_speed.py job.json compiled|eager|without_cache STREAMS [NEW_TOKENS]
"""

import json
import sys
import time
from pathlib import Path

import torch

from chatgot.config import ModelConfig
from chatgot.data.vocabulary import END_OF_TEXT_ID, Characters
from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request

PROMPT = tuple(range(1, 9))
WARM_UP = 16  # tokens


def main() -> None:
    """Write texts with random weights, and print how many tokens a second."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    how = sys.argv[2]
    streams = int(sys.argv[3])
    new_tokens = int(sys.argv[4]) if len(sys.argv) > 4 else job["new_tokens"]
    torch.set_num_threads(job["threads"])
    model = build_model(ModelConfig(**job["model"]), job["vocab_size"], torch.device("cpu"), 1)
    if how == "without_cache":
        print(new_tokens / seconds_without_cache(model, new_tokens))
        return
    vocabulary = Characters("".join(chr(32 + i) for i in range(job["vocab_size"] - 1)))
    engine = Engine(model, vocabulary)
    if how == "compiled":
        engine.compile()
    write(engine, streams, WARM_UP)
    print(streams * new_tokens / write(engine, streams, new_tokens))


def write(engine: Engine, streams: int, new_tokens: int) -> float:
    """Return the seconds of writing so many texts side by side."""
    controls = Controls(
        temperature=0, max_new_tokens=new_tokens, logit_bias={END_OF_TEXT_ID: -100.0}
    )
    requests = [Request((*PROMPT, 9 + i), controls) for i in range(streams)]
    started = time.perf_counter()
    engine.complete(requests)
    return time.perf_counter() - started


@torch.no_grad()
def seconds_without_cache(model: GPT, new_tokens: int) -> float:
    """Return the seconds of a text for each of whose tokens the whole context is computed."""
    text = list(PROMPT)
    started = time.perf_counter()
    with evaluating(model):
        for _ in range(new_tokens):
            logits, _ = model(torch.tensor([text[-model.cfg.max_seq_length :]]))
            text.append(int(logits[0, -1].argmax()))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
