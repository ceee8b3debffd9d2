"""How the benchmarks run the training script as a user does, from outside, and how they show what they found.

The scripts beside this file import it; they have put the checkout on sys.path before.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chatgot.machine.measured import cpu_name

SCRIPT = Path(__file__).resolve().parent / "train_with_samples.py"
QUIET = (
    "eval_interval",
    "sample_interval_steps",
    "save_checkpoint_steps",
    "checkpoint_interval_minutes",
)


@dataclass
class Run:
    """One run of the training script, as seen from outside."""

    start_s: float  # from the process's start to its first step
    tokens_per_s: float  # after the warm-up steps
    peak_mib: float  # largest resident memory


@dataclass
class Reached:
    """One way to a loss."""

    loss: float  # nats per token on held-out text
    step: int
    training_s: float  # in optimizer steps
    wall_s: float  # since the start of the command


def script_command(config: Path, overrides: Sequence[str]) -> list[str]:
    """Return the command that trains `config` with each of `overrides` (key=value) set; the last one wins."""
    return [
        sys.executable,
        str(SCRIPT),
        "--config",
        str(config),
        *(w for o in overrides for w in ("--set", o)),
    ]


def run_script(folder: Path, config: Path, steps: int, *settings: str, warmup: int = 1) -> Run:
    """Train `steps` steps without evaluation, samples and saves between; every step gives a row.

    folder: where the run happens; its log stays in output.txt. warmup: steps at the start that the rate leaves out.
    """
    shutil.rmtree(folder / "logs", ignore_errors=True)
    overrides = [
        *settings,
        f"training.max_steps={steps}",
        "training.epochs=null",
        "training.log_interval=1",
    ]
    overrides += [f"training.{key}=null" for key in QUIET]
    begun = time.time()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            script_command(config, overrides), cwd=folder, stdout=output, stderr=output
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"the training script failed:\n{(folder / 'output.txt').read_text()[-2000:]}")
    (path,) = (folder / "logs" / "tensorboard").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    loop_begun = (
        path.stat().st_mtime - rows[-1]["time_s"]
    )  # the last row was written right after the last step
    for leftover in (folder / "checkpoints").iterdir():
        leftover.unlink()
    speeds = [row["tokens_per_s"] for row in rows[warmup:] or rows[-1:]]
    return Run(loop_begun - begun, statistics.harmonic_mean(speeds), usage.ru_maxrss / 1024)


def run_until(
    loss: float, key: str, folder: Path, config: Path, overrides: Sequence[str]
) -> Reached:
    """Train until a row's `key` is at `loss` or below, then stop; rows are looked for every 0.1 s.

    As on a machine that ChatGoT has never run on: nothing is remembered of it, nothing is compiled yet.
    training_s comes from the rates in the rows, each of which is about the steps since the row before.
    """
    for name in ("logs", "checkpoints", "user-cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    begun, seen, tokens, training_s, best, running = time.perf_counter(), 0, 0, 0.0, math.inf, True
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            script_command(config, overrides), cwd=folder, stdout=output, stderr=output,
            env=os.environ | {"XDG_CACHE_HOME": str(folder / "user-cache")},
        )  # fmt: skip
    try:
        while running:
            running = (
                process.poll() is None
            )  # asked before the rows are read: the last one is not missed
            content = "".join(
                p.read_text() for p in (folder / "logs" / "tensorboard").glob("*/metrics.jsonl")
            )
            wall_s = time.perf_counter() - begun
            rows = [
                json.loads(line)
                for line in content.splitlines(keepends=True)
                if line.endswith("\n")
            ]
            for row in rows[seen:]:
                if row["tokens_per_s"]:
                    training_s += (row["tokens"] - tokens) / row["tokens_per_s"]
                    tokens = row["tokens"]
                best = min(
                    best, math.inf if row.get(key) is None else row[key]
                )  # the last row alone has the full loss
                if best <= loss:
                    return Reached(best, row["step"], training_s, wall_s)
            seen = len(rows)
            time.sleep(0.1)
    finally:
        process.terminate()  # it saves and ends; one that has ended is left alone
        process.wait()
    tail = (folder / "output.txt").read_text()[-1000:]
    sys.exit(
        f"the script ended (exit code {process.returncode}) at loss {best:.4f}, not at {loss:.4f}:\n{tail}"
    )


def show(figures: dict, output: Path | None) -> None:
    """Print a table of the figures and of the machine they were measured on; write it as JSON to `output`, if given."""
    figures = figures | {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for key, value in figures.items():
        print(f"{key:34} {value:,.3f}" if isinstance(value, float) else f"{key:34} {value}")
    if output:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
