"""Print the tokens/s of transformers' generate, with random weights in fp32.

    python benchmarks/transformers_speed.py job.json STREAMS

A peer's side of the part `generation` of scripts/benchmark.py, in an environment with transformers.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

PROMPT = list(range(1, 9))
WARM_UP = 16  # tokens


def main() -> None:
    """Write texts with random weights, and print how many tokens a second."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    streams = int(sys.argv[2])
    torch.set_num_threads(job["threads"])
    shape = job["model"]
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=job["vocab_size"],
            hidden_size=shape["d_model"],
            intermediate_size=shape["d_hid"],
            num_hidden_layers=shape["n_layers"],
            num_attention_heads=shape["n_head"],
            num_key_value_heads=job["kv_heads"],
            head_dim=job["head_size"],
            max_position_embeddings=shape["max_seq_length"],
            tie_word_embeddings=True,
            eos_token_id=None,
        )
    ).eval()  # type: ignore[no-untyped-call] # untyped there
    ids = torch.tensor([[*PROMPT, 9 + i] for i in range(streams)])

    def write(new_tokens: int) -> float:
        started = time.perf_counter()
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            pad_token_id=0,
        )
        assert made.shape[1] == ids.shape[1] + new_tokens, made.shape
        return time.perf_counter() - started

    write(WARM_UP)
    print(streams * job["new_tokens"] / write(job["new_tokens"]))


if __name__ == "__main__":
    main()
