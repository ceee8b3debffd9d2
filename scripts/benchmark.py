"""Measure the figures of docs/benchmarks.md, each with a reference in the same run.

    python scripts/benchmark.py PART --help

Prints a table and writes it as JSON to --output. Runs the training script as a user does, in a
temporary folder.
"""

import sys
from pathlib import Path

# runs from any folder, with this checkout's chatgot
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import argparse
import importlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEAST_STEPS = 2  # the first one warms up
LEAST_PEER_STEPS = 3  # in a comparison with peers, the first two steps do not count


def absolute(text: str) -> Path:
    """Return the path as absolute, so that it is valid in every folder."""
    return Path(text).resolve()


# the arguments of add_argument for each option; a part can override the default
OPTIONS: dict[str, dict[str, Any]] = {
    "config": {
        "type": absolute,
        "default": "configs/models/debug/chatgot_small_14M_clean.yaml",
        "help": "experiment to measure",
    },
    "set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "set a key of --config; repeatable",
    },
    "compare": {
        "type": absolute,
        "metavar": "CONFIG",
        "help": "another experiment, measured in turn with --config",
    },
    "compare_set": {
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "set a key of --compare; repeatable",
    },
    "steps": {"type": int, "default": 8, "help": "optimizer steps of one run"},
    "rounds": {"type": int, "default": 3, "help": "how many times to measure each side"},
    "gigabytes": {"type": float, "default": 1.0, "help": "size of the large file"},
    "megabytes": {"type": float, "default": 50.0, "help": "size of each file"},
    "encoded_megabytes": {
        "type": float,
        "default": 20.0,
        "help": "size of a log in each old encoding",
    },
    "dropout": {"type": float, "default": 0.0, "help": "dropout of both sides"},
    "checkout": {
        "type": absolute,
        "required": True,
        "metavar": "DIR",
        "help": "a clone of https://github.com/karpathy/nanoGPT",
    },
    "device": {
        "choices": ("cuda", "cpu"),
        "default": "cuda",
        "help": "what to measure; cpu only rehearses, with tiny shapes",
    },
    "text": {
        "type": absolute,
        "metavar": "FILE",
        "help": "train on this text (default: the default text if it is there, else a made-up one)",
    },
    "python": {"required": True, "metavar": "PATH", "help": "Python that has the peers"},
    "precision": {
        "choices": ("bf16", "fp32"),
        "default": "bf16",
        "help": "precision of the frameworks",
    },
    "max_iters": {"type": int, "default": 2000, "help": "nanoGPT's iterations"},
    "minutes": {"type": float, "help": "end after this many minutes"},
    "folder": {
        "type": absolute,
        "default": ".",
        "metavar": "DIR",
        "help": "where checkpoints/ with the model lies",
    },
    "base": {
        "type": absolute,
        "metavar": "FILE",
        "help": "model to go on with (default: one of --config's shape, after two steps)",
    },
    "clients": {"type": int, "default": 64, "help": "clients that ask at once"},
    "table": {
        "type": absolute,
        "metavar": "CSV",
        "help": "measured runs, one a line (default: docs/measured-runs.csv)",
    },
    "runs": {
        "type": absolute,
        "action": "append",
        "default": [],
        "metavar": "DIR",
        "help": "add this finished run to the table first, by its folder in logs/tensorboard; "
        "repeatable",
    },
    "terabytes": {"type": float, "default": 10.0, "help": "size of the made-up tokens"},
    "shard_mib": {"type": int, "default": 64, "help": "size of a made-up shard, in MiB"},
    "seconds": {"type": float, "default": 60.0, "help": "how long to measure"},
    "output": {"type": absolute, "help": "also write the figures as JSON to this file"},
}

MIXED = "configs/models/debug/chatgot_small_14M_mixed_precision.yaml"
MINI = "configs/models/chatgot_mini.yaml"


@dataclass(frozen=True)
class Part:
    """One subcommand: its function in benchmarks/, and its options."""

    function: str  # module:function
    help: str
    options: tuple[str, ...]
    defaults: Mapping[str, object] = field(default_factory=dict)


PARTS = {
    "speed": Part(
        "speed:speed",
        "peaks, tokens/s, MFU, share of time per part, memory, for any --config",
        ("config", "set", "compare", "compare_set", "steps", "rounds"),
    ),
    "overhead": Part(
        "training:overhead",
        "the script's tokens/s against a bare loop on the same model",
        ("config", "steps", "rounds"),
    ),
    "contention": Part(
        "contention:contention",
        "tokens/s alone and beside one and two busy programs, and whether the bits are the same",
        ("config", "set", "seconds", "rounds"),
        {"config": "configs/models/chatgot_quick.yaml", "seconds": 10.0, "rounds": 2},
    ),
    "ranks": Part(
        "ranks:ranks",
        "tokens/s of two and four ranks under torchrun, and of processes that train alone",
        ("config", "set", "steps", "rounds"),
        {"config": "configs/models/chatgot_quick.yaml", "steps": 12, "rounds": 2},
    ),
    "folders": Part(
        "ranks:folders",
        "how long two ranks stand still for a checkpoint as one file, and as a folder",
        ("config", "set", "steps"),
        {"config": "configs/models/chatgot_small_85M.yaml", "steps": 13},
    ),
    "startup": Part(
        "training:startup",
        "default text, start to first step compared with import torch, resident memory",
        ("config", "rounds"),
        {"rounds": 5},
    ),
    "help_time": Part(
        "commands:help_time",
        "seconds of each script's --help, compared with python -c pass",
        ("rounds",),
        {"rounds": 10},
    ),
    "large_text": Part(
        "training:large_text",
        "a large text: first start, second start, memory, compared with a small text",
        ("config", "steps", "gigabytes"),
    ),
    "saving": Part(
        "files:saving",
        "seconds to save, verify and load a checkpoint, and its share of a run's time",
        ("config", "steps", "rounds"),
    ),
    "mixed": Part(
        "training:mixed",
        "the mixed_precision config's tokens/s against the clean one's",
        ("steps", "rounds"),
    ),
    "checks": Part(
        "training:checks",
        "the time of a step with all its checks, compared with the same step without them",
        ("config", "steps", "rounds"),
    ),
    "recompute": Part(
        "training:recompute",
        "memory for activations, and time, with and without gradient checkpointing",
        ("config", "rounds"),
    ),
    "batch_sizes": Part(
        "training:batch_sizes",
        "tokens/s of each micro-batch size, compared with the size found by the search",
        ("steps", "rounds"),
    ),
    "logging": Part(
        "files:logging_cost",
        "the share of a run's time that log, rows and curves take",
        ("steps",),
    ),
    "log_fixer": Part(
        "files:log_fixer",
        "MB/s and memory of the log fixer on large logs and in old encodings, and of a plain copy",
        ("rounds", "gigabytes", "encoded_megabytes"),
    ),
    "preparation": Part(
        "preparation:preparation",
        "MB/s and memory of preparing each kind of file, and of encoding, next to SHA-256",
        ("megabytes",),
    ),
    "shards": Part(
        "shards:shards",
        "ranks that train on made-up shards of 10 TB: memory, requests, bytes, time, doubles",
        ("terabytes", "shard_mib", "steps"),
        {"steps": 1022},  # two rounds of the larger steps
    ),
    "generation": Part(
        "generation:generation",
        "tokens/s of sampled text in one stream and over 16, and those of llama.cpp and others",
        ("python", "config", "set", "rounds"),
        {"config": "configs/models/chatgot_small_14M.yaml"},
    ),
    "serving": Part(
        "server_load:serving",
        "the server under many clients: answers, tokens/s, time to first token, memory",
        ("folder", "clients", "seconds"),
    ),
    "prediction": Part(
        "prediction:prediction",
        "fit the rule that predicts a run's loss to measured runs, and write its constants",
        ("table", "runs"),
    ),
    "plan": Part(
        "plan:plan",
        "memory and time of a step as a plan predicts them for this CPU, and as they are",
        ("text", "steps", "rounds"),
        {"steps": 4, "rounds": 1},
    ),
    "lora": Part(
        "adapters:lora",
        "tokens/s, memory and checkpoints of training only added weights, and of all weights",
        ("config", "set", "base", "steps", "rounds"),
        {"config": "configs/models/chatgot_small_14M.yaml"},
    ),
    "exports": Part(
        "exports:exports",
        "a model of --folder, or a random one of --config's shape, exported: its logits, tokens "
        "and texts in transformers, llama.cpp and a browser, and the speed of its page",
        ("folder", "config", "set", "rounds"),
        {"config": None},
    ),
    "gpu": Part(
        "gpu:gpu",
        "one NVIDIA card: speed, MFU, memory, saves, samples, resume bits, nanoGPT's shape",
        ("device", "text", "checkout", "minutes"),
        {"minutes": 8.0, "checkout": None},
    ),
    "nanogpt": Part(
        "peers:nanogpt",
        "tokens/s of nanoGPT's train.py with our model's shape, and of ChatGoT",
        ("checkout", "config", "set", "steps", "rounds", "dropout"),
        {"config": MIXED},
    ),
    "frameworks": Part(
        "peers:frameworks",
        "tokens/s of a plain GPT in Lightning and the Hugging Face Trainer, and of ChatGoT",
        ("python", "precision", "config", "set", "steps", "rounds", "dropout"),
        {"config": MIXED},
    ),
    "time_to_loss": Part(
        "peers:time_to_loss",
        "seconds until ChatGoT reaches the final loss of nanoGPT's documented CPU command",
        ("checkout", "config", "set", "max_iters", "rounds"),
        {"config": MINI},
    ),
}


def add_options(parser: argparse.ArgumentParser, part: Part) -> None:
    """Give a subcommand its options, with its own defaults."""
    for name in (*part.options, "output"):
        settings = dict(OPTIONS[name])
        if name in part.defaults:
            settings.pop("required", None)
        default = part.defaults.get(name, settings.get("default"))
        if default not in (None, []):
            settings["help"] += f" (default: {default})"
        if name == "config" and default is not None:
            default = str(ROOT / str(default))
        if not settings.get("required"):
            settings["default"] = default
        parser.add_argument(f"--{name}", **settings)


def parse_arguments() -> argparse.Namespace:
    """Return the part to measure and its options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, part in PARTS.items():
        add_options(parts.add_parser(name, help=part.help, description=part.help), part)
    args = parser.parse_args()
    if "rounds" in args and args.rounds < 1:
        parser.error(f"--rounds: found {args.rounds}, expected at least 1")
    least_steps = LEAST_PEER_STEPS if "dropout" in args else LEAST_STEPS
    if "steps" in args and args.steps < least_steps:
        parser.error(
            f"--steps: found {args.steps}, expected at least {least_steps}: "
            "the first steps do not count"
        )
    checkout = getattr(args, "checkout", None)
    if checkout is not None and not (checkout / "train.py").is_file():
        parser.error(
            f"--checkout {checkout}: found no train.py in it, expected the folder of: "
            "git clone https://github.com/karpathy/nanoGPT"
        )
    text = getattr(args, "text", None)
    if text is not None and not text.is_file():
        parser.error(f"--text {text}: no such file")
    if "python" in args:
        interpreter = shutil.which(args.python)
        if interpreter is None:
            parser.error(f"--python {args.python}: no such interpreter")
        args.python = interpreter
    return args


def main() -> int:
    """Measure one part and print its table."""
    args = parse_arguments()
    from benchmarks.script_runs import show, with_machine, write_json
    from chatgot.errors import UserError

    module, _, function = PARTS[args.part].function.partition(":")
    measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    with tempfile.TemporaryDirectory(prefix="chatgot_benchmark_") as name:
        try:
            figures = with_machine(measure(args, Path(name).resolve()))
        except UserError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    show(figures)
    if args.output:
        write_json(figures, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
