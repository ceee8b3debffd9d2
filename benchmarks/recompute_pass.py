"""Measure a forward and backward pass with or without gradient checkpointing: memory and time.

    python benchmarks/recompute_pass.py CONFIG plain|1|2 SEQUENCES

The second argument: no gradient checkpointing, or that of every, or every second, block. Prints
JSON: the peak of resident memory above what weights, gradients and optimizer state take (Linux),
and the seconds of the fastest of three passes.
"""

import gc
import json
import sys
import time
from pathlib import Path

import torch
from torch.optim import Optimizer

from chatgot.config_file import load_config
from chatgot.machine.device import set_threads
from chatgot.machine.memory import reuse_freed_memory
from chatgot.model.gpt import GPT, build_model
from chatgot.numerics.gradient_checkpointing import enable_gradient_checkpointing
from chatgot.numerics.optim import allocate_state, build_optimizer

CHARACTERS = 75  # of the default text
PASSES = 3


def resident_mib(key: str) -> float:
    """Return a line of /proc/self/status, which is in KiB: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def prepare_model(config_path: Path, kind: str) -> tuple[GPT, Optimizer]:
    """Make a model and an optimizer, with gradients and states, as in the middle of a run."""
    config, _ = load_config(config_path)
    set_threads(config.training.threads)
    reuse_freed_memory()
    V = config.data.vocab_size if config.data.tokenizer == "bpe" else CHARACTERS
    model = build_model(config.model, V, torch.device("cpu"), 0)
    optimizer = build_optimizer(model, config.training)
    allocate_state(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    if kind != "plain" and not enable_gradient_checkpointing(model, every=int(kind)):
        sys.exit("gradient checkpointing stays off: its proof failed")
    model.train()
    return model, optimizer


def main() -> None:
    """Measure what the command line asks for."""
    config_path, kind, sequences = sys.argv[1:]
    model, optimizer = prepare_model(Path(config_path), kind)
    x = torch.randint(CHARACTERS, (int(sequences), model.cfg.max_seq_length))  # (B, T)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, see proc(5)
    before_mib = resident_mib("VmRSS")
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        _, loss = model(x, x)
        loss.backward()
        seconds.append(time.perf_counter() - start)
    activations_mib = resident_mib("VmHWM") - before_mib
    assert optimizer.state, "if it were freed, its memory would be reused for activations"
    print(json.dumps({"activations_mib": activations_mib, "seconds": min(seconds)}))


if __name__ == "__main__":
    main()
