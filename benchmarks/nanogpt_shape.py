"""NanoGPT's documented configuration for one card, by nanoGPT's train.py and by our script."""

import os
import sys
from pathlib import Path

import torch

from benchmarks.limited_runs import chosen, figures_of, run_limited, run_limited_script
from benchmarks.one_device import OneDevice
from benchmarks.peers import DATASET, copy_nanogpt, iteration_seconds, revision
from benchmarks.script_runs import Figures
from chatgot.config_file import load_config
from chatgot.sampling.loading import load_model

DOCUMENTED = "config/train_shakespeare_char.py"
# That file's values, in our words. nanoGPT compiles its model and computes in bf16 by itself.
YAML = """\
model:
  d_model: 384
  n_layers: 6
  n_head: 6
  d_hid: 1536
  max_seq_length: 256
  bias: false
  dropout: 0.2
  attention_dropout: 0.2
training:
  max_steps: 5000
  batch_size: 64
  learning_rate: 1e-3
  min_learning_rate: 1e-4
  betas: [0.9, 0.99]
  warmup_steps: 100
  mixed_precision: true
"""


ITERATIONS = 200
WARMUP = 30  # the first ones compile
REHEARSED = 4
# a rehearsal's: the shapes of one_device.SMALL in nanoGPT's words
SMALL = ("n_layer=1", "block_size=32", "batch_size=2", "compile=False")


def beside_nanogpt(device: OneDevice, folder: Path, checkout: Path | None) -> Figures:
    """Return tokens/s of our script and, with a checkout, of nanoGPT's on the same ids.

    One after the other. Raises: CaseFailedError.
    """
    steps = REHEARSED if device.rehearses else ITERATIONS
    warmup = 1 if device.rehearses else WARMUP
    config = folder / "nanogpt_shape.yaml"
    config.write_text(YAML, encoding="utf-8")
    overrides = device.overrides(f"training.log_interval={1 if device.rehearses else 10}")
    limit_s = device.left_s
    run = run_limited_script(config, overrides, folder / "ours", limit_s, until_step=steps)
    loaded = load_model(run.last_checkpoint, torch.device("cpu"))
    ours = figures_of(run, loaded.model.flops_per_token(), device.peak) | chosen(run)
    if checkout is None:
        return ours | {"nanogpt": "not measured: no --checkout"}
    settings, _ = load_config(config, overrides)
    copy = copy_nanogpt(checkout, device.tokens, settings.data.test_split, folder)
    options = [
        f"device={device.device.type}",
        f"dataset={DATASET}",
        "log_interval=1",
        "eval_interval=1000000000",
        "eval_iters=1",
        f"max_iters={steps - 1}",
        *(SMALL if device.rehearses else ()),
    ]
    command = [sys.executable, "train.py", DOCUMENTED, *(f"--{option}" for option in options)]
    output, wall_s = run_limited(command, copy, device.left_s, os.environ)
    seconds = iteration_seconds(output, steps)[warmup:]
    tokens_per_step = settings.training.tokens_per_step(settings.model)
    theirs = len(seconds) * tokens_per_step / sum(seconds)
    rate = ours["tokens_per_s"]
    assert isinstance(rate, float)
    return ours | {
        "nanogpt_tokens_per_s": theirs,
        "over_nanogpt": rate / theirs,
        "nanogpt_wall_s": wall_s,
        "nanogpt_commit": revision(checkout),
    }
