"""Measure ChatGoT against what its users come from: nanoGPT, Lightning, the Hugging Face Trainer.

    python scripts/benchmark_peers.py nanogpt --checkout nanoGPT       tokens/s of nanoGPT's train.py at our shape
    python scripts/benchmark_peers.py frameworks --python PYTHON       tokens/s of a plain GPT in both frameworks
    python scripts/benchmark_peers.py time_to_loss --checkout nanoGPT  seconds to the loss that nanoGPT ends with

Each takes its turn with ours in the same run, in a temporary folder, on the same ids; a ratio is taken pair by pair.
Prints a table and writes it as JSON to --output. `PART --help` lists what a part takes. What is needed beside ChatGoT:

    git clone https://github.com/karpathy/nanoGPT
    python -m venv peers && peers/bin/python -m pip install torch==2.13.0 lightning transformers accelerate
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder, with this checkout's chatgot

import argparse
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.script_runs import Reached, run_script, run_until, show
from chatgot.config import Config
from chatgot.config_file import load_config
from chatgot.data.corpus import fetch_default_text
from chatgot.data.token_cache import Tokens, load_tokens
from chatgot.data.windows import split_index
from chatgot.errors import UserError
from chatgot.model.gpt import GPT

WARMUP = 2  # steps at the start of every run that a rate leaves out
DATASET = "chatgot_text"  # the name of our text in nanoGPT's data folder

# Source: nanoGPT's README, "I only have a macbook"; max_iters and lr_decay_iters follow from --max_iters
DOCUMENTED = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"
)
EVAL_INTERVAL = 250  # of config/train_shakespeare_char.py

# Run in nanoGPT's folder: the loss of its last checkpoint, found as ChatGoT finds its own
FULL_LOSS = """
import sys
import numpy as np, torch
from chatgot.data.windows import ValidationWindows
from chatgot.training.evaluation import evaluate
from model import GPT, GPTConfig
checkpoint = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
assert checkpoint["iter_num"] == int(sys.argv[3]), "the checkpoint is not that of the last step"
arguments = checkpoint["model_args"]
model = GPT(GPTConfig(**arguments))
model.load_state_dict(checkpoint["model"])
ids, cpu = np.fromfile(sys.argv[2], dtype=np.uint16), torch.device("cpu")
windows = ValidationWindows(ids, arguments["block_size"], arguments["vocab_size"], cpu).every_token(64)
batches = ((x.contiguous(), y.contiguous()) for x, y in windows)
print(evaluate(model, batches, cpu, "fp32", lambda: False))
"""


@dataclass
class Ours:
    """Our side of a comparison."""

    config_path: Path
    overrides: list[str]  # of the YAML, key=value
    config: Config
    tokens: Tokens

    def parameters(self) -> int:
        return GPT(self.config.model, len(self.tokens.vocabulary)).parameter_count()

    def speed(self, folder: Path, steps: int) -> float:
        """Return the tokens/s of the training script after the warm-up."""
        return run_script(
            folder, self.config_path, steps, *self.overrides, warmup=WARMUP
        ).tokens_per_s


def prepare(args: argparse.Namespace, folder: Path, *overrides: str) -> Ours:
    """Read our configuration and make its tokens, so that every side begins with its data at hand."""
    config, _ = load_config(args.config, [*overrides, *args.set])
    text = Path(config.data.path or folder / "data" / "shakespeare.txt").resolve()
    if config.data.path is None:
        fetch_default_text(text)
    tokens = load_tokens(text, folder / "data" / "cache")
    return Ours(
        args.config,
        [*overrides, *args.set, f"data.path={text}", "paths.cache=data/cache"],
        config,
        tokens,
    )


def run_peer(command: list[str], folder: Path) -> tuple[str, float]:
    """Run a peer's program with this checkout's chatgot at hand; return what it printed and the seconds it took."""
    begun = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout, time.perf_counter() - begun


def in_turn(rounds: int, sides: dict[str, Callable[[], float]]) -> dict:
    """Measure each side's tokens/s once a round, every second round backwards; return medians and ratios to ours."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            speeds[name].append(sides[name]())
        print(
            ", ".join(f"{name} {of[-1]:,.0f} tokens/s" for name, of in speeds.items()),
            file=sys.stderr,
        )
    ours = speeds.pop("chatgot")
    figures = {"chatgot_tokens_per_s": statistics.median(ours)}
    for name, theirs in speeds.items():
        figures[f"{name}_tokens_per_s"] = statistics.median(theirs)
        figures |= ratio(f"chatgot_over_{name}", ours, theirs)
    return figures


def ratio(name: str, above: list[float], below: list[float]) -> dict:
    """Return the median of the ratios pair by pair, and all of them."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {name: statistics.median(ratios), f"{name}_all": [round(r, 3) for r in ratios]}


def our_precision(folder: Path) -> str:
    """Return the precision that the last run of the training script computed in, from its log's header."""
    found = re.search(r"precision: (\w+);", (folder / "output.txt").read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


# ---------------------------------------------------------------------------------------------------------------------
# nanoGPT


def copy_nanogpt(checkout: Path, ours: Ours, folder: Path) -> Path:
    """Copy nanoGPT into `folder` and give it our text, cut where ours is cut; return the copy."""
    copy = shutil.copytree(checkout, folder / "nanoGPT", ignore=shutil.ignore_patterns(".git"))
    data, ids = copy / "data" / DATASET, ours.tokens.ids
    data.mkdir()
    cut = split_index(len(ids), ours.config.data.test_split)
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    characters = ours.tokens.vocabulary.characters
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters))}
    meta["stoi"] = {character: i for i, character in meta["itos"].items()}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    return copy


def set_mlp_width(copy: Path, d_hid: int) -> None:
    """Replace the width of nanoGPT's MLP, 4 x n_embd in both of its layers, with ours."""
    source, fixed = (copy / "model.py").read_text(encoding="utf-8"), "4 * config.n_embd"
    if source.count(fixed) != 2:
        sys.exit(
            f"{copy.name}/model.py: found {fixed!r} {source.count(fixed)} times, expected 2: another nanoGPT?"
        )
    (copy / "model.py").write_text(source.replace(fixed, str(d_hid)), encoding="utf-8")


def iteration_seconds(output: str, expected: int) -> list[float]:
    """Return the time of each iteration, in order, from nanoGPT's lines; there must be `expected` of them."""
    seconds = [
        float(ms) / 1000
        for ms in re.findall(r"^iter \d+: loss \S+, time ([\d.]+)ms", output, re.MULTILINE)
    ]
    if len(seconds) != expected:
        sys.exit(
            f"nanoGPT printed {len(seconds)} iterations, expected {expected}:\n{output[-2000:]}"
        )
    return seconds


def revision(checkout: Path) -> str:
    """Return the commit of a checkout, as far as git can tell."""
    git = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return git.stdout.strip() or "unknown"


def nanogpt(args: argparse.Namespace, folder: Path) -> dict:
    """nanoGPT's train.py, eager and fp32 as it is on a CPU, and the training script, in turn, at the same shape."""
    ours = prepare(
        args, folder, f"model.dropout={args.dropout}", f"model.attention_dropout={args.dropout}"
    )
    shape, training, steps = ours.config.model, ours.config.training, args.steps
    copy = copy_nanogpt(args.checkout, ours, folder)
    set_mlp_width(copy, shape.d_hid or 4 * shape.d_model)
    options = {
        "device": "cpu", "compile": False, "dataset": DATASET, "log_interval": 1, "eval_interval": 10**9,
        "eval_iters": 1, "max_iters": steps - 1, "batch_size": training.batch_size, "block_size": shape.max_seq_length,
        "gradient_accumulation_steps": training.accumulate_grad_batches, "n_layer": shape.n_layers,
        "n_head": shape.n_head, "n_embd": shape.d_model, "dropout": float(args.dropout), "bias": shape.bias,
    }  # fmt: skip
    command = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in options.items())]
    parameters = (
        ours.parameters() - shape.max_seq_length * shape.d_model
    )  # nanoGPT leaves the positions out

    def speed() -> float:
        output, _ = run_peer(command, copy)
        if f"number of parameters: {parameters / 1e6:.2f}M" not in output:
            sys.exit(
                f"nanoGPT's model is not of our size, {parameters / 1e6:.2f}M:\n{output[-2000:]}"
            )
        seconds = iteration_seconds(output, steps)[WARMUP:]
        return len(seconds) * training.tokens_per_step(shape) / sum(seconds)

    figures = in_turn(args.rounds, {"nanogpt": speed, "chatgot": lambda: ours.speed(folder, steps)})
    return figures | {
        "chatgot_precision": our_precision(folder),
        "nanogpt_commit": revision(args.checkout),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Lightning and the Hugging Face Trainer


def frameworks(args: argparse.Namespace, folder: Path) -> dict:
    """A plain GPT of our shape in Lightning and in the Hugging Face Trainer, and the training script, in turn."""
    ours = prepare(
        args, folder, f"model.dropout={args.dropout}", f"model.attention_dropout={args.dropout}"
    )
    shape, training, ids = ours.config.model, ours.config.training, ours.tokens.ids
    np.save(folder / "ids.npy", ids[: split_index(len(ids), ours.config.data.test_split)])
    job = {
        "ids": str(folder / "ids.npy"), "folder": str(folder / "peers"), "steps": args.steps, "warmup": WARMUP,
        "precision": args.precision, "vocab_size": len(ours.tokens.vocabulary), "d_model": shape.d_model,
        "n_layers": shape.n_layers, "n_head": shape.n_head, "d_hid": shape.d_hid or 4 * shape.d_model,
        "max_seq_length": shape.max_seq_length, "bias": shape.bias, "dropout": args.dropout,
        "batch_size": training.sequences_per_step,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    about, python = (
        {},
        str(Path(args.python).absolute()),
    )  # not resolved: an environment's python is a link

    def speed(framework: str) -> float:
        program = [str(ROOT / "scripts" / "plain_gpt.py"), framework, str(folder / "job.json")]
        found = json.loads(run_peer([python, *program], folder)[0].splitlines()[-1])
        if found.pop("parameters") != ours.parameters():
            sys.exit(f"the plain GPT is not of our size, {ours.parameters():,} parameters")
        tokens_per_s = found.pop("tokens_per_s")
        about.update(
            {
                key if key == framework else f"{framework}_{key}": value
                for key, value in found.items()
            }
        )
        return tokens_per_s

    sides = {
        "lightning": lambda: speed("lightning"),
        "trainer": lambda: speed("trainer"),
        "chatgot": lambda: ours.speed(folder, args.steps),
    }
    return in_turn(args.rounds, sides) | {"chatgot_precision": our_precision(folder)} | about


# ---------------------------------------------------------------------------------------------------------------------
# Time to a loss


def nanogpt_to_its_end(copy: Path, max_iters: int) -> Reached:
    """Run nanoGPT's documented CPU command on our text, then measure the loss of what it has saved at the last step."""
    interval = (
        EVAL_INTERVAL if max_iters % EVAL_INTERVAL == 0 else max_iters
    )  # the last step is one that is saved
    options = [f"--max_iters={max_iters}", f"--lr_decay_iters={max_iters}", f"--dataset={DATASET}"]
    options += ["--always_save_checkpoint=True", f"--eval_interval={interval}", "--out_dir=out"]
    output, wall_s = run_peer([sys.executable, *DOCUMENTED.split(), *options], copy)
    seconds = iteration_seconds(output, max_iters + 1)[
        :max_iters
    ]  # one more is made after the last save
    plain = [
        s for i, s in enumerate(seconds) if i % interval
    ]  # the others hold an evaluation and a save as well
    files = ["out/ckpt.pt", f"data/{DATASET}/val.bin"]
    loss, _ = run_peer([sys.executable, "-c", FULL_LOSS, *files, str(max_iters)], copy)
    training_s = sum(plain) + (max_iters - len(plain)) * statistics.median(plain)
    return Reached(float(loss.splitlines()[-1]), max_iters, training_s, wall_s)


def time_to_loss(args: argparse.Namespace, folder: Path) -> dict:
    """Seconds of nanoGPT's documented CPU command, and seconds until our configuration is at the loss it ends with.

    Losses are over the whole validation part: what we measure at our run's end, or at every evaluation with `--set
    training.eval_batches=all`.
    """
    ours = prepare(args, folder)
    counts = "val_loss" if ours.config.training.eval_batches == "all" else "val_loss_full"
    copy = copy_nanogpt(args.checkout, ours, folder)
    sides: dict[str, list[Reached]] = {"nanogpt": [], "chatgot": []}
    for _ in range(args.rounds):
        sides["nanogpt"].append(nanogpt_to_its_end(copy, args.max_iters))
        print("nanogpt", sides["nanogpt"][-1], file=sys.stderr)
        loss = sides["nanogpt"][-1].loss
        sides["chatgot"].append(run_until(loss, counts, folder, ours.config_path, ours.overrides))
        print("chatgot", sides["chatgot"][-1], file=sys.stderr)
    figures = {}
    for key in ("loss", "step", "training_s", "wall_s"):
        for name, of in sides.items():
            figures[f"{name}_{key}"] = statistics.median(getattr(reached, key) for reached in of)
    for key in ("training_s", "wall_s"):
        theirs, mine = (
            [getattr(reached, key) for reached in sides[name]] for name in ("nanogpt", "chatgot")
        )
        figures |= ratio(f"nanogpt_over_chatgot_{key}", theirs, mine)
    return figures | {
        "chatgot_precision": our_precision(folder),
        "nanogpt_commit": revision(args.checkout),
    }


def parse_arguments() -> argparse.Namespace:
    """Return the part, as the function to call, and what it takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for part in (nanogpt, frameworks, time_to_loss):
        options = parts.add_parser(part.__name__, description=part.__doc__, help=part.__doc__)
        options.set_defaults(measure=part)
        default = ROOT / "configs/models/debug/chatgot_small_14M_mixed_precision.yaml"
        if part is time_to_loss:
            default = ROOT / "configs/models/chatgot_mini.yaml"
            options.add_argument(
                "--max_iters", type=int, default=2000, help="nanoGPT's iterations (default: 2000)"
            )
        else:
            options.add_argument(
                "--steps", type=int, default=8, help="optimizer steps of one run (default: 8)"
            )
            options.add_argument(
                "--dropout", type=float, default=0.0, help="on both sides (default: 0.0)"
            )
        if part is frameworks:
            options.add_argument(
                "--python",
                type=shutil.which,
                required=True,
                metavar="PATH",
                help="their interpreter",
            )
            options.add_argument(
                "--precision",
                choices=("bf16", "fp32"),
                default="bf16",
                help="theirs (default: bf16)",
            )
        else:
            options.add_argument(
                "--checkout", type=Path, required=True, metavar="DIR", help="a clone of nanoGPT"
            )
        options.add_argument(
            "--config", type=Path, default=default, help=f"ours (default: {default.name})"
        )
        options.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="set any key of ours"
        )
        options.add_argument(
            "--rounds", type=int, default=3, help="turns of each side (default: 3)"
        )
        options.add_argument(
            "--output", type=Path, help="write the figures as JSON to this file as well"
        )
    args = parser.parse_args()
    if getattr(args, "steps", WARMUP + 1) <= WARMUP or args.rounds < 1:
        parser.error(
            f"at least {WARMUP + 1} steps and one round are needed: the first {WARMUP} steps are left out"
        )
    if "checkout" in args and not (args.checkout / "train.py").is_file():
        parser.error(
            f"{args.checkout}: no train.py there; git clone https://github.com/karpathy/nanoGPT"
        )
    if "python" in args and args.python is None:
        parser.error("--python: no such interpreter")
    args.config = args.config.resolve()
    return args


def main() -> int:
    """Measure one part and print its table."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="chatgot_peers_") as name:
        try:
            figures = args.measure(args, Path(name).resolve())
        except UserError as error:
            sys.exit(str(error))
    show(figures, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
