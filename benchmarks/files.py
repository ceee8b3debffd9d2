"""The parts of benchmark.py that measure what a run writes: checkpoints, logs and curves, and the log fixer."""

import argparse
import codecs
import filecmp
import logging
import math
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.script_runs import SCRIPT
from chatgot.checkpointing.checkpoint_file import is_whole, load_checkpoint, save_checkpoint
from chatgot.config_file import load_config
from chatgot.data.corpus import fetch_default_text
from chatgot.data.token_cache import load_tokens
from chatgot.logs.logging_setup import setup_logging
from chatgot.logs.metrics import MetricsWriter
from chatgot.run.assembly import assemble
from chatgot.training.log_lines import step_line
from chatgot.training.progress import Progress
from chatgot.training.step import accumulate_gradients, apply_gradients

ROOT = Path(__file__).resolve().parent.parent


def saving(args: argparse.Namespace, folder: Path) -> dict:
    """Save, verify and load the config's full state; the reference is a plain torch.save with fsync."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(args.config)
    run = assemble(config, load_tokens(text, folder / "data" / "cache"), torch.device("cpu"), None)
    run.state.run_id = "benchmark_20260101-000000"
    step_s = []
    for _ in range(args.steps):  # the first one also makes the optimizer's state
        begun = time.perf_counter()
        loss = accumulate_gradients(run.model, run.train_windows, run.state, config, run.scaler)
        apply_gradients(loss, run.model, run.optimizer, run.state, config, run.scaler)
        step_s.append(time.perf_counter() - begun)
    timed: dict[str, list[float]] = {"plain": [], "save": [], "verify": [], "load": []}

    def measure(what: str, do: Callable[[], object]) -> None:
        begun = time.perf_counter()
        do()
        timed[what].append(time.perf_counter() - begun)

    def plain(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(run.checkpoint(), file)
            file.flush()
            os.fsync(file.fileno())

    for i in range(args.rounds):
        path = folder / f"{i}.pt"
        measure("plain", lambda: plain(folder / "plain.pt"))
        measure("save", lambda path=path: save_checkpoint(path, run.checkpoint()))
        copy = shutil.copyfile(
            path, folder / f"copy{i}.pt"
        )  # nothing knows yet that this one is whole
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
        "save_over_plain": statistics.median(
            a / b for a, b in zip(timed["save"], timed["plain"], strict=True)
        ),
        "verify_s": median["verify"],
        "load_s": median["load"],
        "step_s": statistics.median(step_s[1:]),
        "seconds_between_saves": between_s,
        "share_of_the_time_percent": 100 * median["save"] / between_s,
    }


def logging_cost(args: argparse.Namespace, folder: Path) -> dict:
    """The share of the quick config's training time that its log lines, rows, curves and progress take."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(ROOT / "configs/models/chatgot_quick.yaml")
    run = assemble(config, load_tokens(text, folder / "data" / "cache"), torch.device("cpu"), None)
    run.model.train()
    state, interval = run.state, config.training.log_interval
    state.run_id, state.progress.lr = "benchmark_20260101-000000", 1e-3
    setup_logging("benchmark", "20260101-000000", folder / "logs")
    script = runpy.run_path(str(SCRIPT))
    metrics, progress, step_s, logging_s = MetricsWriter(folder), Progress(run), 0.0, []
    for step in range(args.steps * interval):
        begun = time.perf_counter()
        loss = accumulate_gradients(run.model, run.train_windows, state, config, run.scaler)
        apply_gradients(loss, run.model, run.optimizer, state, config, run.scaler)
        done = time.perf_counter()
        due = (step + 1) % interval == 0
        if due:
            logging.getLogger("chatgot.train").info("%s", step_line(run))
            script["write_row"](run, metrics)
        progress.step_done(run, due)
        logging_s.append(time.perf_counter() - done)
        step_s += done - begun
    return {
        "steps": len(logging_s),
        "step_ms": 1000 * step_s / len(logging_s),
        "logged_step_ms": 1000 * statistics.median(sorted(logging_s)[-args.steps :]),
        "share_percent": 100 * sum(logging_s) / (step_s + sum(logging_s)),
    }


def make_log(path: Path, size: int, with_terminal: bool) -> None:
    """Write a UTF-8 log of `size` bytes; with_terminal: coloured, and a progress bar of 20 states every 50 lines."""
    colours = ("\x1b[32m", "\x1b[1m", "\x1b[0m") if with_terminal else ("", "", "")
    lines = []
    for step in range(100_000):
        green, bold, off = colours
        lines.append(
            f"{green}2026-11-24 10:00:00{off} - INFO - {bold}step {step}{off} | loss 1.25 | 3,204 tokens/s\n"
        )
        if step % 10 == 0:
            lines.append("sample: “naïve café”, Größe → ✓ 日本語\n")
        if with_terminal and step % 50 == 0:
            lines.append(
                "".join(
                    f"\r{done:3}%|{'█' * (done // 5):20}| {done}/100" for done in range(5, 101, 5)
                )
                + "\n"
            )
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
            command = [
                str(ROOT / "scripts" / "fix_log_encoding.py"),
                str(source),
                "--output",
                str(target),
            ]
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True
            )
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
