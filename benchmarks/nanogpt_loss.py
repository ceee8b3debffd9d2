"""Print the loss of nanoGPT's last checkpoint, found as ChatGoT finds its own.

    python benchmarks/nanogpt_loss.py CHECKPOINT VALIDATION_IDS STEP

Runs with PYTHONPATH naming this checkout and nanoGPT's folder, whose model.py it loads.
"""

import sys

import numpy as np
import torch
from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's own file

from chatgot.data.windows import ValidationWindows
from chatgot.training.evaluation import evaluate

SEQUENCES = 64  # at once


def main() -> None:
    """Measure the loss over every validation token."""
    checkpoint_path, ids_path, step = sys.argv[1:]
    checkpoint = torch.load(checkpoint_path, map_location="cpu", weights_only=True)
    if checkpoint["iter_num"] != int(step):
        sys.exit(f"found a checkpoint of step {checkpoint['iter_num']}, expected step {step}")
    arguments = checkpoint["model_args"]
    model = GPT(GPTConfig(**arguments))
    model.load_state_dict(checkpoint["model"])
    ids = np.fromfile(ids_path, dtype=np.uint16)
    cpu = torch.device("cpu")
    windows = ValidationWindows(ids, arguments["block_size"], arguments["vocab_size"], cpu)
    batches = ((x.contiguous(), y.contiguous()) for x, y in windows.every_token(SEQUENCES))
    measured = evaluate(model, batches, cpu, "fp32", lambda: False)
    assert measured is not None, "nothing stops it"
    print(measured.loss)


if __name__ == "__main__":
    main()
