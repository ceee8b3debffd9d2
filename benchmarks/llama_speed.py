"""Print llama.cpp's tokens/s with random weights in fp32, through the package xllamacpp.

    python benchmarks/llama_speed.py job.json STREAMS

A peer's side of the part `generation` of scripts/benchmark.py, in an environment with xllamacpp,
gguf and numpy.
"""

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from numpy.typing import NDArray

WARM_UP = 16  # tokens


def main() -> None:
    """Write texts with random weights, and print how many tokens a second."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    streams = int(sys.argv[2])
    path = Path(job["folder"]) / "random.gguf"
    if not path.exists():
        write_model(path, job)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = job["model"]["max_seq_length"] * streams
    params.n_parallel = streams
    params.port = 0
    params.verbosity = 0
    params.cpuparams.n_threads = job["threads"]
    params.cpuparams_batch.n_threads = job["threads"]
    server = xllamacpp.Server(params)
    seconds_of(server.listening_address, streams, WARM_UP)
    seconds = seconds_of(server.listening_address, streams, job["new_tokens"])
    print(streams * job["new_tokens"] / seconds)


def seconds_of(address: str, streams: int, new_tokens: int) -> float:
    """Return the seconds of writing so many texts side by side."""
    threads = [
        threading.Thread(target=complete, args=(address, chr(65 + i), new_tokens))
        for i in range(streams)
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def complete(address: str, prompt: str, new_tokens: int) -> None:
    """Have one text written, greedy."""
    body = {
        "prompt": f"ABCDEFG {prompt}",
        "n_predict": new_tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "temperature": 0,
        "samplers": ["top_k"],
        "top_k": 1,
    }
    request = urllib.request.Request(
        f"{address}/completion",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        made = json.load(answer)["tokens_predicted"]
    assert made == new_tokens, made


def write_model(path: Path, job: dict[str, object]) -> None:
    """Write a model of the job's shape, arch qwen3, with a vocabulary of single characters."""
    shape = job["model"]
    assert isinstance(shape, dict)
    C = shape["d_model"]
    D = job["head_size"]
    hidden = shape["d_hid"]
    V = job["vocab_size"]
    assert isinstance(D, int)
    assert isinstance(V, int)
    width = shape["n_head"] * D
    kv_width = int(str(job["kv_heads"])) * D
    rng = np.random.default_rng(0)

    def random(*sizes: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.02, sizes).astype(np.float32)

    def ones(size: int) -> NDArray[np.float32]:
        return np.ones(size, dtype=np.float32)

    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_context_length(shape["max_seq_length"])
    writer.add_embedding_length(C)
    writer.add_block_count(shape["n_layers"])
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(shape["n_head"])
    writer.add_head_count_kv(int(str(job["kv_heads"])))
    writer.add_key_length(D)
    writer.add_value_length(D)
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_layer_norm_rms_eps(shape["layer_norm_eps"])
    writer.add_vocab_size(V)
    # GPT-2's alphabet of bytes: a space is written as the letter G with a dot
    characters = ["\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", *map(chr, range(33, 31 + V))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_merges([f"{characters[1]} {characters[2]}"])
    writer.add_token_list([*characters, "<|endoftext|>"])
    writer.add_token_types([1] * (V - 1) + [3])
    writer.add_bos_token_id(V - 1)
    writer.add_eos_token_id(V - 1)
    writer.add_add_bos_token(False)
    writer.add_tensor("token_embd.weight", random(V, C))
    writer.add_tensor("output_norm.weight", ones(C))
    for layer in range(shape["n_layers"]):
        tensors = {
            "attn_norm": ones(C),
            "attn_q": random(width, C),
            "attn_k": random(kv_width, C),
            "attn_v": random(kv_width, C),
            "attn_output": random(C, width),
            "attn_q_norm": ones(D),
            "attn_k_norm": ones(D),
            "ffn_norm": ones(C),
            "ffn_gate": random(hidden, C),
            "ffn_up": random(hidden, C),
            "ffn_down": random(C, hidden),
        }
        for name, tensor in tensors.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
