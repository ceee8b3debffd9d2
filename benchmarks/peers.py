"""Compare ChatGoT with nanoGPT, Lightning and the Hugging Face Trainer.

Each of them takes turns with ChatGoT in the same run, in a temporary folder, on the same text;
where speeds are compared, on the same ids.
Ratios are taken pair by pair. This needs, in addition to ChatGoT:

    git clone https://github.com/karpathy/nanoGPT
    python -m venv peers
    peers/bin/python -m pip install torch==2.13.0 lightning transformers accelerate
"""

import argparse
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.script_runs import (
    ROOT,
    Figures,
    Reached,
    precision_of,
    python_path,
    run_script,
    run_until,
)
from chatgot.config import Config
from chatgot.config_file import load_config
from chatgot.data.bits_per_byte import bits_per_byte, tokens_per_byte
from chatgot.data.configured_text import encoded, text_path
from chatgot.data.corpus import fetch_default_text
from chatgot.data.token_cache import Tokens
from chatgot.model.gpt import GPT

WARMUP = 2  # steps at the start of every run that do not count for tokens/s
CACHE = "data/cache"  # of the tokens, in the folder of a measurement
DATASET = "chatgot_text"  # the name of our text in nanoGPT's data folder

# nanoGPT's command for a CPU; max_iters and lr_decay_iters follow from --max_iters.
# Source: nanoGPT's README, "I only have a macbook".
DOCUMENTED = (
    "train.py",
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=1",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--dropout=0.0",
)
EVAL_INTERVAL = 250  # of config/train_shakespeare_char.py
ITERATION = re.compile(r"^iter \d+: loss \S+, time ([\d.]+)ms", re.MULTILINE)  # a line of nanoGPT's


@dataclass
class Ours:
    """Our side of a comparison."""

    config_path: Path
    overrides: list[str]  # of the YAML, key=value
    config: Config
    text: Path
    tokens: Tokens

    def parameters(self) -> int:
        return GPT(self.config.model, len(self.tokens.vocabulary)).parameter_count()

    def speed(self, folder: Path, steps: int) -> float:
        """Return the tokens/s of the training script after the warm-up."""
        run = run_script(folder, self.config_path, steps, *self.overrides, warmup=WARMUP)
        return run.tokens_per_s


def prepare(args: argparse.Namespace, folder: Path, *overrides: str) -> Ours:
    """Load our configuration and make its tokens, so that all sides can read them."""
    asked = [*overrides, *args.set]
    config, _ = load_config(args.config, asked)
    path = text_path(config)
    text = (folder / path if config.data.path is None else path).resolve()
    if config.data.path is None:
        fetch_default_text(text)
    tokens = encoded(config.data, text, folder / CACHE)
    asked += [f"data.path={text}", f"paths.cache={CACHE}"]
    return Ours(args.config, asked, config, text, tokens)


def same_dropout(args: argparse.Namespace) -> list[str]:
    """Return the overrides that give ChatGoT the same dropout as the other side."""
    return [f"model.dropout={args.dropout}", f"model.attention_dropout={args.dropout}"]


def run_peer(command: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[str, float]:
    """Run a peer's program; return its output and its seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout, time.perf_counter() - start


def in_turn(rounds: int, sides: dict[str, Callable[[], float]]) -> Figures:
    """Measure each side's tokens/s once per round; return the medians and the ratios to ours.

    Every second round goes backwards.
    """
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        names = list(sides)
        if i % 2:
            names.reverse()
        for name in names:
            speeds[name].append(sides[name]())
        latest = [f"{name} {rates[-1]:,.0f} tokens/s" for name, rates in speeds.items()]
        print(", ".join(latest), file=sys.stderr)
    ours = speeds.pop("chatgot")
    figures: Figures = {"chatgot_tokens_per_s": statistics.median(ours)}
    for name, theirs in speeds.items():
        figures[f"{name}_tokens_per_s"] = statistics.median(theirs)
        figures |= ratio(f"chatgot_over_{name}", ours, theirs)
    return figures


def ratio(name: str, above: list[float], below: list[float]) -> Figures:
    """Return the median of the pairs' ratios, and all ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {name: statistics.median(ratios), f"{name}_all": [round(r, 3) for r in ratios]}


# --------------------------------------------------------------------------------------------------
# nanoGPT


def copy_nanogpt(checkout: Path, tokens: Tokens, test_split: float, folder: Path) -> Path:
    """Copy nanoGPT to `folder`, with our training and validation text; return the copy."""
    copy = shutil.copytree(checkout, folder / "nanoGPT", ignore=shutil.ignore_patterns(".git"))
    data = copy / "data" / DATASET
    data.mkdir(parents=True)
    cut = tokens.training_length(test_split)
    tokens.ids[:cut].tofile(data / "train.bin")
    tokens.ids[cut:].tofile(data / "val.bin")
    # whatever the ids stand for: nanoGPT's training reads no more than how many there are
    meta = {"vocab_size": len(tokens.vocabulary)}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return copy


def set_mlp_width(copy: Path, d_hid: int) -> None:
    """Set the width of nanoGPT's MLP, 4 x n_embd in both of its layers, to ours."""
    fixed = "4 * config.n_embd"
    source = (copy / "model.py").read_text(encoding="utf-8")
    count = source.count(fixed)
    if count != 2:
        sys.exit(
            f"{copy.name}/model.py: found {fixed!r} {count} times, expected 2: another nanoGPT?"
        )
    (copy / "model.py").write_text(source.replace(fixed, str(d_hid)), encoding="utf-8")


def iteration_seconds(output: str, expected: int) -> list[float]:
    """Return the seconds of each iteration, in order; there must be `expected` iterations."""
    seconds = [float(ms) / 1000 for ms in ITERATION.findall(output)]
    if len(seconds) != expected:
        sys.exit(
            f"nanoGPT printed {len(seconds)} iterations, expected {expected}:\n{output[-2000:]}"
        )
    return seconds


def revision(checkout: Path) -> str:
    """Return the commit of a checkout, according to git."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    git = subprocess.run(command, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def nanogpt(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure nanoGPT's train.py (eager, fp32, on a CPU) and our script in turn, in tokens/s."""
    ours = prepare(args, folder, *same_dropout(args))
    shape = ours.config.model
    training = ours.config.training
    copy = copy_nanogpt(args.checkout, ours.tokens, ours.config.data.test_split, folder)
    set_mlp_width(copy, shape.d_hid or 4 * shape.d_model)
    options = {
        "device": "cpu",
        "compile": False,
        "dataset": DATASET,
        "log_interval": 1,
        "eval_interval": 10**9,
        "eval_iters": 1,
        "max_iters": args.steps - 1,
        "batch_size": training.batch_size,
        "block_size": shape.max_seq_length,
        "gradient_accumulation_steps": training.accumulate_grad_batches,
        "n_layer": shape.n_layers,
        "n_head": shape.n_head,
        "n_embd": shape.d_model,
        "dropout": float(args.dropout),
        "bias": shape.bias,
    }
    command = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in options.items())]
    # nanoGPT leaves the positions out
    parameters = ours.parameters() - shape.max_seq_length * shape.d_model
    size = f"{parameters / 1e6:.2f}M"

    def speed() -> float:
        output, _ = run_peer(command, copy, os.environ)
        if f"number of parameters: {size}" not in output:
            sys.exit(f"nanoGPT's model is not of our size, {size}:\n{output[-2000:]}")
        seconds = iteration_seconds(output, args.steps)[WARMUP:]
        return len(seconds) * training.tokens_per_step(shape) / sum(seconds)

    sides = {"nanogpt": speed, "chatgot": lambda: ours.speed(folder, args.steps)}
    return in_turn(args.rounds, sides) | {
        "chatgot_precision": precision_of(folder),
        "nanogpt_commit": revision(args.checkout),
    }


# --------------------------------------------------------------------------------------------------
# Lightning and the Hugging Face Trainer


def frameworks(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure a plain GPT of our shape in Lightning and in the HF Trainer, and our script."""
    ours = prepare(args, folder, *same_dropout(args))
    shape = ours.config.model
    training = ours.config.training
    cut = ours.tokens.training_length(ours.config.data.test_split)
    np.save(folder / "ids.npy", ours.tokens.ids[:cut])
    job = {
        "ids": str(folder / "ids.npy"),
        "folder": str(folder / "peers"),
        "steps": args.steps,
        "warmup": WARMUP,
        "precision": args.precision,
        "vocab_size": len(ours.tokens.vocabulary),
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "n_head": shape.n_head,
        "d_hid": shape.d_hid or 4 * shape.d_model,
        "max_seq_length": shape.max_seq_length,
        "bias": shape.bias,
        "dropout": args.dropout,
        "batch_size": training.sequences_per_step,
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    python = str(Path(args.python).absolute())  # not resolved: an environment's python is a link
    program = str(ROOT / "benchmarks" / "plain_gpt.py")
    about: Figures = {}

    def speed(framework: str) -> float:
        command = [python, program, framework, str(folder / "job.json")]
        output, _ = run_peer(command, folder, os.environ)
        result = json.loads(output.splitlines()[-1])
        if result.pop("parameters") != ours.parameters():
            sys.exit(f"the plain GPT is not of our size, {ours.parameters():,} parameters")
        tokens_per_s: float = result.pop("tokens_per_s")
        for key, value in result.items():
            about[key if key == framework else f"{framework}_{key}"] = value
        return tokens_per_s

    sides = {
        "lightning": lambda: speed("lightning"),
        "trainer": lambda: speed("trainer"),
        "chatgot": lambda: ours.speed(folder, args.steps),
    }
    return in_turn(args.rounds, sides) | {"chatgot_precision": precision_of(folder)} | about


# --------------------------------------------------------------------------------------------------
# Time to a loss


def nanogpt_to_its_end(copy: Path, max_iters: int) -> Reached:
    """Run nanoGPT's documented CPU command on our text; measure the loss of its last checkpoint.

    The loss is in nats per token, which is a character there.
    """
    # the last step must be one that is saved
    interval = EVAL_INTERVAL if max_iters % EVAL_INTERVAL == 0 else max_iters
    options = [
        f"--max_iters={max_iters}",
        f"--lr_decay_iters={max_iters}",
        f"--dataset={DATASET}",
        "--always_save_checkpoint=True",
        f"--eval_interval={interval}",
        "--out_dir=out",
    ]
    output, wall_s = run_peer([sys.executable, *DOCUMENTED, *options], copy, os.environ)
    # one more is made after the last save
    seconds = iteration_seconds(output, max_iters + 1)[:max_iters]
    # the others have an evaluation and a save in them
    plain = [s for i, s in enumerate(seconds) if i % interval]
    training_s = sum(plain) + (max_iters - len(plain)) * statistics.median(plain)
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "nanogpt_loss.py"),
        "out/ckpt.pt",
        f"data/{DATASET}/val.bin",
        str(max_iters),
    ]
    loss, _ = run_peer(command, copy, python_path(ROOT, copy))
    return Reached(float(loss.splitlines()[-1]), max_iters, training_s, wall_s)


def time_to_loss(args: argparse.Namespace, folder: Path) -> Figures:
    """Time nanoGPT's documented CPU command, and our run until it reaches nanoGPT's final loss.

    Losses are in bits per byte over the whole validation text: nanoGPT's command has characters,
    ours what the config says. Ours is measured at the end of the run, or at every evaluation with
    `--set training.eval_batches=all`.
    """
    ours = prepare(args, folder)
    key = "val_bits_per_byte"
    if ours.config.training.eval_batches != "all":
        key += "_full"
    data = ours.config.data.model_copy(update={"tokenizer": "char"})
    characters = encoded(data, ours.text, folder / CACHE)
    copy = copy_nanogpt(args.checkout, characters, data.test_split, folder)
    held_out = characters.ids[characters.training_length(data.test_split) :]
    each_byte = tokens_per_byte(held_out, characters.vocabulary)
    nanogpts = []
    chatgots = []
    for _ in range(args.rounds):
        theirs = nanogpt_to_its_end(copy, args.max_iters)
        theirs = replace(theirs, loss=bits_per_byte(theirs.loss, each_byte))
        print("nanogpt", theirs, file=sys.stderr)
        mine = run_until(theirs.loss, key, folder, ours.config_path, ours.overrides)
        print("chatgot", mine, file=sys.stderr)
        nanogpts.append(theirs)
        chatgots.append(mine)
    figures: Figures = {}
    for name, side in (("nanogpt", nanogpts), ("chatgot", chatgots)):
        figures[f"{name}_bits_per_byte"] = statistics.median(reached.loss for reached in side)
        figures[f"{name}_step"] = statistics.median(reached.step for reached in side)
        figures[f"{name}_training_s"] = statistics.median(reached.training_s for reached in side)
        figures[f"{name}_wall_s"] = statistics.median(reached.wall_s for reached in side)
    figures |= ratio(
        "nanogpt_over_chatgot_training_s",
        [reached.training_s for reached in nanogpts],
        [reached.training_s for reached in chatgots],
    )
    figures |= ratio(
        "nanogpt_over_chatgot_wall_s",
        [reached.wall_s for reached in nanogpts],
        [reached.wall_s for reached in chatgots],
    )
    return figures | {
        "chatgot_precision": precision_of(folder),
        "nanogpt_commit": revision(args.checkout),
    }
