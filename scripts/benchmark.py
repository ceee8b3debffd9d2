"""Measure what docs/benchmarks.md states, each figure beside a reference measured in the same run.

    python scripts/benchmark.py overhead      the script's tokens/s against a bare loop on the same model
    python scripts/benchmark.py startup       default text, start to first step, resident memory
    python scripts/benchmark.py large_text    a 1 GB text: first start, second start, memory beside a small text
    python scripts/benchmark.py saving        a checkpoint's save, verification and load, and the share of the time
    python scripts/benchmark.py mixed         the mixed_precision config's tokens/s against the clean one's
    python scripts/benchmark.py checks        the time of a step with all its checks against the same step without
    python scripts/benchmark.py recompute     gradient checkpointing's memory of activations and time against plain
    python scripts/benchmark.py log_fixer     the log fixer's MB/s and memory on 1 GB logs, a plain copy's MB/s

Prints a table and writes it as JSON to --output. Runs the training script as a user does, in a temporary folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder, with this checkout's chatgot

import argparse
import codecs
import filecmp
import json
import logging
import math
import os
import runpy
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from chatgot.assembly import assemble
from chatgot.batch_size import adapt, ladder
from chatgot.checkpoint_file import is_whole, load_checkpoint, save_checkpoint
from chatgot.config_file import load_config
from chatgot.corpus import fetch_default_text
from chatgot.data import load_tokens
from chatgot.device import seed_generators, set_threads
from chatgot.estimate import step_line
from chatgot.logging_setup import setup_logging
from chatgot.machine import cpu_name
from chatgot.metrics import MetricsWriter
from chatgot.model import build_model
from chatgot.optim import build_optimizer
from chatgot.precision import autocast
from chatgot.progress import Progress
from chatgot.recovery import recover
from chatgot.step import accumulate_gradients, apply_gradients

SCRIPT = ROOT / "scripts" / "train_with_samples.py"
QUIET = ("eval_interval", "sample_interval_steps", "save_checkpoint_steps", "checkpoint_interval_minutes")


@dataclass
class Run:
    """One run of the training script, as seen from outside."""

    start_s: float  # from the process's start to its first step
    tokens_per_s: float  # from the second row of metrics on
    peak_mib: float  # largest resident memory


def run_script(folder: Path, config: Path, steps: int, *settings: str) -> Run:
    """Train `steps` steps without evaluation, samples and saves between; every step gives a row."""
    shutil.rmtree(folder / "logs", ignore_errors=True)
    overrides = [f"training.max_steps={steps}", "training.epochs=null", "training.log_interval=1", *settings]
    overrides += [f"training.{key}=null" for key in QUIET]
    command = [sys.executable, str(SCRIPT), "--config", str(config), *(w for o in overrides for w in ("--set", o))]
    begun = time.time()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"the training script failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    (path,) = (folder / "logs" / "tensorboard").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    loop_begun = path.stat().st_mtime - rows[-1]["time_s"]  # the last row was written right after the last step
    for leftover in (folder / "checkpoints").iterdir():
        leftover.unlink()
    speeds = [row["tokens_per_s"] for row in rows[1:]] or [rows[0]["tokens_per_s"]]
    return Run(loop_begun - begun, statistics.harmonic_mean(speeds), usage.ru_maxrss / 1024)


def bare_loop(config_path: Path, text: Path, cache: Path, steps: int) -> float:
    """Return the tokens/s of a plain forward, backward, step loop on the same model and text, first step left out."""
    config, _ = load_config(config_path)
    set_threads(config.training.threads)
    tokens = load_tokens(text, cache)
    T, B = config.model.max_seq_length, config.training.batch_size
    ids = torch.from_numpy(tokens.ids[: 1 << 20].astype("int64"))
    model = build_model(config.model, len(tokens.vocabulary), torch.device("cpu"), config.seed)
    optimizer = build_optimizer(model, config.training)
    for step in range(steps):
        if step == 1:
            begun = time.perf_counter()
        starts = torch.randint(len(ids) - T, (B,)).tolist()
        x = torch.stack([ids[s : s + T] for s in starts])
        y = torch.stack([ids[s + 1 : s + T + 1] for s in starts])
        _, loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (steps - 1) * B * T / (time.perf_counter() - begun)


def overhead(args: argparse.Namespace, folder: Path) -> dict:
    """Script and bare loop in alternation; the ratio is taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    pairs = []
    for _ in range(args.rounds):
        bare = bare_loop(args.config, text, folder / "data" / "cache", args.steps)
        pairs.append((run_script(folder, args.config, args.steps).tokens_per_s, bare))
        print(f"script {pairs[-1][0]:,.0f} tokens/s, bare loop {pairs[-1][1]:,.0f}", file=sys.stderr)
    return {
        "script_tokens_per_s": statistics.median(script for script, _ in pairs),
        "bare_tokens_per_s": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(script / bare for script, bare in pairs),
        "ratios": [script / bare for script, bare in pairs],
    }


def startup(args: argparse.Namespace, folder: Path) -> dict:
    """The default text's download and conversion, then the clean config's start with a cold and a warm token cache."""
    begun = time.perf_counter()
    fetch_default_text(folder / "data" / "shakespeare.txt")
    text_s = time.perf_counter() - begun
    cold, warm = (run_script(folder, args.config, 2) for _ in range(2))
    reference = subprocess.Popen([sys.executable, "-c", "import torch, torch.utils.tensorboard"])
    begun = time.perf_counter()
    reference.wait()
    return {
        "text_download_and_conversion_s": text_s,
        "start_cold_cache_s": cold.start_s,
        "start_warm_cache_s": warm.start_s,
        "import_torch_and_tensorboard_s": time.perf_counter() - begun,
        "peak_resident_mib": warm.peak_mib,
    }


def large_text(args: argparse.Namespace, folder: Path) -> dict:
    """The default text and the same text tiled to `--gigabytes`, each started twice."""
    small = folder / "data" / "shakespeare.txt"
    fetch_default_text(small)
    content, large = small.read_bytes(), folder / "large.txt"
    with large.open("wb") as file:
        for _ in range(int(args.gigabytes * 1e9 / len(content)) + 1):
            file.write(content)
    _, reference = (run_script(folder, args.config, args.steps) for _ in range(2))
    first, second = (run_script(folder, args.config, args.steps, f"data.path={large}") for _ in range(2))
    return {
        "large_text_bytes": large.stat().st_size,
        "start_small_s": reference.start_s,
        "start_large_first_s": first.start_s,
        "start_large_second_s": second.start_s,
        "peak_small_mib": reference.peak_mib,
        "peak_large_first_mib": first.peak_mib,
        "peak_large_second_mib": second.peak_mib,
        "memory_growth_mib": max(first.peak_mib, second.peak_mib) - reference.peak_mib,
    }


def saving(args: argparse.Namespace, folder: Path) -> dict:
    """Save, verify and load the config's full state; the reference is a plain torch.save with fsync."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(args.config)
    training = assemble(config, load_tokens(text, folder / "data" / "cache"), torch.device("cpu"), None)
    training.run.run_id = "benchmark_20260101-000000"
    step_s = []
    for _ in range(args.steps):  # the first one also makes the optimizer's state
        begun = time.perf_counter()
        loss = accumulate_gradients(training.model, training.train_windows, training.run, config, training.scaler)
        apply_gradients(loss, training.model, training.optimizer, training.run, config, training.scaler)
        step_s.append(time.perf_counter() - begun)
    timed: dict[str, list[float]] = {"plain": [], "save": [], "verify": [], "load": []}

    def measure(what: str, do: Callable[[], object]) -> None:
        begun = time.perf_counter()
        do()
        timed[what].append(time.perf_counter() - begun)

    def plain(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(training.checkpoint(), file)
            file.flush()
            os.fsync(file.fileno())

    for i in range(args.rounds):
        path = folder / f"{i}.pt"
        measure("plain", lambda: plain(folder / "plain.pt"))
        measure("save", lambda path=path: save_checkpoint(path, training.checkpoint()))
        copy = shutil.copyfile(path, folder / f"copy{i}.pt")  # nothing knows yet that this one is whole
        measure("verify", lambda copy=copy: is_whole(copy))
        measure("load", lambda copy=copy: load_checkpoint(copy))
    median = {what: statistics.median(times) for what, times in timed.items()}
    between_s = min(
        (config.training.save_checkpoint_steps or math.inf) * statistics.median(step_s[1:]),
        60 * (config.training.checkpoint_interval_minutes or math.inf),
    )
    return {
        "checkpoint_mb": path.stat().st_size / 1e6,
        "save_s": median["save"],
        "plain_torch_save_and_fsync_s": median["plain"],
        "save_over_plain": statistics.median(a / b for a, b in zip(timed["save"], timed["plain"], strict=True)),
        "verify_s": median["verify"],
        "load_s": median["load"],
        "step_s": statistics.median(step_s[1:]),
        "seconds_between_saves": between_s,
        "share_of_the_time_percent": 100 * median["save"] / between_s,
    }


def mixed(args: argparse.Namespace, folder: Path) -> dict:
    """The clean and the mixed_precision config in alternation; the ratio is taken pair by pair."""
    fetch_default_text(folder / "data" / "shakespeare.txt")
    debug, pairs = ROOT / "configs/models/debug", []
    for _ in range(args.rounds):
        configs = (debug / f"chatgot_small_14M_{kind}.yaml" for kind in ("mixed_precision", "clean"))
        pairs.append([run_script(folder, config, args.steps).tokens_per_s for config in configs])
        print(f"mixed {pairs[-1][0]:,.0f} tokens/s, clean {pairs[-1][1]:,.0f}", file=sys.stderr)
    log = (folder / "output.txt").read_text()
    return {
        "mixed_tokens_per_s": statistics.median(mixed for mixed, _ in pairs),
        "clean_tokens_per_s": statistics.median(clean for _, clean in pairs),
        "ratio": statistics.median(mixed / clean for mixed, clean in pairs),
        "ratios": [round(mixed / clean, 3) for mixed, clean in pairs],
        "clean_precision": "fp32" if "precision: fp32" in log else "unexpected",
    }


def batch_sizes(args: argparse.Namespace, folder: Path) -> dict:
    """Steps of the mixed_precision config with each fixed micro-batch and with the one that the search finds, in turn.

    A round begins with a search of its own; its ratio is taken of the medians over its steps.
    """
    fetch_default_text(folder / "data" / "shakespeare.txt")
    config, _ = load_config(
        ROOT / "configs/models/debug/chatgot_small_14M_mixed_precision.yaml",
        ["training.dynamic_batch_size.enabled=true", "training.dynamic_batch_size.growth_interval_steps=1000000"],
    )
    tokens, sizes = load_tokens(folder / "data" / "shakespeare.txt", folder / "data" / "cache"), ladder(config.training)
    speeds: dict[int | str, list[float]] = {kind: [] for kind in (*sizes, "auto")}
    found, search_s, ratios = [], [], []
    for _ in range(args.rounds):
        training = assemble(config, tokens, torch.device("cpu"), None)
        training.model.train()
        begun = time.perf_counter()
        adapt(training, lambda: False)
        search_s.append(round(time.perf_counter() - begun, 1))
        found.append(training.run.micro_batch_size)
        seconds: dict[int | str, list[float]] = {kind: [] for kind in speeds}
        for step in range(args.steps + 1):
            for kind in list(seconds)[:: 1 if step % 2 else -1]:
                training.run.micro_batch_size = found[-1] if kind == "auto" else kind
                begun = time.perf_counter()
                loss = accumulate_gradients(
                    training.model, training.train_windows, training.run, config, training.scaler
                )
                apply_gradients(loss, training.model, training.optimizer, training.run, config, training.scaler)
                seconds[kind] += [time.perf_counter() - begun] if step else []  # the first ones warm up
        of_round = {
            kind: config.training.tokens_per_step(config.model) / statistics.median(seconds[kind]) for kind in seconds
        }
        for kind, speed in of_round.items():
            speeds[kind].append(speed)
        ratios.append(of_round["auto"] / max(of_round[size] for size in sizes))
        print({kind: round(speed) for kind, speed in of_round.items()}, found[-1], search_s[-1], file=sys.stderr)
    return {
        **{f"micro_batch_{kind}_tokens_per_s": statistics.median(of_kind) for kind, of_kind in speeds.items()},
        "auto_over_best": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "found": found,
        "search_s": search_s,
    }


def checks(args: argparse.Namespace, folder: Path) -> dict:
    """Steps with and without the checks in alternation, on two models alike; the ratio is taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(args.config)
    tokens = load_tokens(text, folder / "data" / "cache")
    checked, bare = (assemble(config, tokens, torch.device("cpu"), None) for _ in range(2))
    ratios = []

    def checked_step() -> None:
        loss = accumulate_gradients(checked.model, checked.train_windows, checked.run, config, checked.scaler)
        apply_gradients(loss, checked.model, checked.optimizer, checked.run, config, checked.scaler)
        recover(checked)

    def bare_step() -> None:  # the same step: same data, seeds, clipping; nothing is looked at
        run, S = bare.run, config.training.sequences_per_step
        starts = bare.train_windows.starts(run.position, S)
        with autocast(bare.device, run.precision):
            for first in range(0, S, run.micro_batch_size):
                x, y = bare.train_windows.batch(starts[first : first + run.micro_batch_size])
                seed_generators(bare.device, config.seed, run.position, first)
                _, loss = bare.model(x, y)
                (loss * (len(x) / S)).backward()
        torch.nn.utils.clip_grad_norm_(bare.model.parameters(), config.training.grad_clip)
        bare.optimizer.step()
        bare.optimizer.zero_grad(set_to_none=True)
        run.position += 1

    for step in range(args.steps * args.rounds + 1):
        seconds = []
        for do in (checked_step, bare_step) if step % 2 else (bare_step, checked_step):
            begun = time.perf_counter()
            do()
            seconds.append(time.perf_counter() - begun)
        if step > 0:  # the first one makes the optimizers' state
            ratios.append(seconds[0] / seconds[1] if step % 2 else seconds[1] / seconds[0])
    return {
        "precision": checked.run.precision,
        "pairs": len(ratios),
        "checked_over_bare": statistics.median(ratios),
        "quartiles": [round(q, 4) for q in statistics.quantiles(ratios)],
    }


def logging_cost(args: argparse.Namespace, folder: Path) -> dict:
    """The share of the quick config's training time that its log lines, rows, curves and progress take."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(ROOT / "configs/models/chatgot_quick.yaml")
    training = assemble(config, load_tokens(text, folder / "data" / "cache"), torch.device("cpu"), None)
    training.model.train()
    run, interval = training.run, config.training.log_interval
    run.run_id, run.lr = "benchmark_20260101-000000", 1e-3
    setup_logging("benchmark", "20260101-000000", folder / "logs")
    script = runpy.run_path(str(SCRIPT))
    metrics, progress, step_s, logging_s = MetricsWriter(folder), Progress(training), 0.0, []
    for step in range(args.steps * interval):
        begun = time.perf_counter()
        loss = accumulate_gradients(training.model, training.train_windows, run, config, training.scaler)
        apply_gradients(loss, training.model, training.optimizer, run, config, training.scaler)
        done = time.perf_counter()
        due = (step + 1) % interval == 0
        if due:
            logging.getLogger("chatgot.train").info("%s", step_line(training))
            script["write_row"](training, metrics)
        progress.step_done(training, due)
        logging_s.append(time.perf_counter() - done)
        step_s += done - begun
    return {
        "steps": len(logging_s),
        "step_ms": 1000 * step_s / len(logging_s),
        "logged_step_ms": 1000 * statistics.median(sorted(logging_s)[-args.steps :]),
        "share_percent": 100 * sum(logging_s) / (step_s + sum(logging_s)),
    }


RECOMPUTE = """
import gc, json, sys, time
from pathlib import Path
import torch
from chatgot.config_file import load_config
from chatgot.device import set_threads
from chatgot.memory import reuse_freed_memory
from chatgot.gradient_checkpointing import enable_gradient_checkpointing
from chatgot.model import build_model
from chatgot.optim import build_optimizer

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

config, _ = load_config(Path(sys.argv[1]))
set_threads(config.training.threads)
reuse_freed_memory()
model = build_model(config.model, 75, torch.device("cpu"), 0)
optimizer = build_optimizer(model, config.training)
for p in model.parameters():
    p.grad = torch.zeros_like(p)
optimizer.step()
if sys.argv[2] != "plain":
    assert enable_gradient_checkpointing(model, every=int(sys.argv[2]))
model.train()
x = torch.randint(75, (int(sys.argv[3]), config.model.max_seq_length))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, seconds = resident("VmRSS"), []
for _ in range(3):
    begun = time.perf_counter()
    _, loss = model(x, x)
    loss.backward()
    seconds.append(time.perf_counter() - begun)
print(json.dumps({"activations_mib": resident("VmHWM") - before, "seconds": min(seconds)}))
"""


def recompute(args: argparse.Namespace, folder: Path) -> dict:
    """Peak memory above weights, gradients and optimizer state, and time, at batch 32: plain, and recomputing."""
    found: dict[str, list[dict]] = {"plain": [], "1": [], "2": []}
    for _ in range(args.rounds):
        for kind, results in found.items():
            command = [sys.executable, "-c", RECOMPUTE, str(args.config), kind, "32"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    figures = {}
    for kind, name in (("plain", "plain"), ("1", "every_layer"), ("2", "every_2nd_layer")):
        for what in ("activations_mib", "seconds"):
            figures[f"{name}_{what}"] = statistics.median(result[what] for result in found[kind])
            if kind != "plain":
                pairs = zip(found[kind], found["plain"], strict=True)
                figures[f"{name}_{what}_over_plain"] = statistics.median(a[what] / b[what] for a, b in pairs)
    return figures


def make_log(path: Path, size: int, with_terminal: bool) -> None:
    """Write a UTF-8 log of `size` bytes; with_terminal: coloured, and a progress bar of 20 states every 50 lines."""
    colours = ("\x1b[32m", "\x1b[1m", "\x1b[0m") if with_terminal else ("", "", "")
    lines = []
    for step in range(100_000):
        green, bold, off = colours
        lines.append(f"{green}2026-11-24 10:00:00{off} - INFO - {bold}step {step}{off} | loss 1.25 | 3,204 tokens/s\n")
        if step % 10 == 0:
            lines.append("sample: “naïve café”, Größe → ✓ 日本語\n")
        if with_terminal and step % 50 == 0:
            lines.append("".join(f"\r{done:3}%|{'█' * (done // 5):20}| {done}/100" for done in range(5, 101, 5)) + "\n")
    block = "".join(lines).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)


def plain_copy_mb_per_s(source: Path, target: Path) -> float:
    """Copy a file, decoding it strictly, and fsync it."""
    begun, decoder = time.perf_counter(), codecs.getincrementaldecoder("utf-8")()
    with source.open("rb") as file, target.open("wb") as copy:
        while chunk := file.read(1 << 20):
            copy.write(decoder.decode(chunk).encode())
        os.fsync(copy.fileno())
    return source.stat().st_size / 1e6 / (time.perf_counter() - begun)


# A process of its own measures: the peak of a child begins with the memory of the process that forks it
PEAK = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def log_fixer(args: argparse.Namespace, folder: Path) -> dict:
    """The log fixer, as a process, and a plain decoding copy on a clean log and on a terminal's; medians of rounds."""
    figures, source, target = {}, folder / "run.log", folder / "out.log"
    for name, with_terminal in (("clean", False), ("terminal", True)):
        make_log(source, int(args.gigabytes * 1e9), with_terminal)
        speeds, copies, peaks = [], [], []
        for _ in range(args.rounds):
            command = [str(ROOT / "scripts" / "fix_log_encoding.py"), str(source), "--output", str(target)]
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True)
            speeds.append(source.stat().st_size / 1e6 / (time.perf_counter() - begun))
            peaks.append(int(done.stdout.split()[-1]) / 1024)
            if not with_terminal and not filecmp.cmp(source, target, shallow=False):
                sys.exit("the log fixer changed a clean log")
            copies.append(plain_copy_mb_per_s(source, target))
        figures |= {
            f"{name}_bytes": source.stat().st_size,
            f"{name}_mb_per_s": statistics.median(speeds),
            f"{name}_plain_copy_mb_per_s": statistics.median(copies),
            f"{name}_peak_mib": max(peaks),
        }
    return figures


PARTS = {
    "overhead": overhead, "startup": startup, "large_text": large_text, "saving": saving, "mixed": mixed,
    "batch_sizes": batch_sizes, "checks": checks, "recompute": recompute, "log_fixer": log_fixer,
    "logging": logging_cost,
}  # fmt: skip


def main() -> int:
    """Measure one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    default = ROOT / "configs/models/debug/chatgot_small_14M_clean.yaml"
    parser.add_argument(
        "--config",
        type=lambda text: Path(text).resolve(),
        default=default,
        help="experiment to measure (default: 14M clean)",
    )
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps of one run (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="alternations of script and reference (default: 3)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the large text (default: 1)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON to this file as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chatgot_benchmark_") as name:
        figures = PARTS[args.part](args, Path(name))
    figures |= {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for key, value in figures.items():
        print(f"{key:34} {value:,.3f}" if isinstance(value, float) else f"{key:34} {value}")
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
