"""What a group of ranks on this machine costs, beside processes that know nothing of each other.

And what a plan says of the same groups.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.plan import SAME, planned_here
from benchmarks.script_runs import (
    Figures,
    json_lines,
    number,
    run_folder,
    script_command,
)

THREADS = 1  # of each process: two ranks take two cores
MOST_RANKS = 4
WARM_UP = 2  # steps that the rate leaves out
SAVE_EVERY = 4  # steps


def ranks(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure one process, two at once that train alone, and groups of two and four ranks.

    Each process has one thread and computes micro-batches of one size. What two processes reach
    that train alone is the limit for two ranks: they share the machine's cores, caches and memory,
    but send nothing. The plan is made first, with one thread, too.
    """
    planned = _planned(args, folder)
    sides: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, starts, ranks_each, strategy in (
            ("one process", 1, 0, "ddp"),
            ("two processes, each alone", 2, 0, "ddp"),
            ("two ranks, ddp", 1, 2, "ddp"),
            ("two ranks, fsdp", 1, 2, "fsdp"),
            ("four ranks, ddp", 1, 4, "ddp"),
        ):
            speed = _tokens_per_s(args, folder, starts, ranks_each, strategy)
            sides.setdefault(name, []).append(speed)
    best = {name: max(speeds) for name, speeds in sides.items()}
    figures: Figures = {f"{name}, tokens/s": speed for name, speed in best.items()}
    limit = best["two processes, each alone"]
    for name in ("two ranks, ddp", "two ranks, fsdp"):
        figures[f"{name}: share of the limit"] = best[name] / limit
    for N, name in ((1, "one process"), (2, "two ranks, ddp"), (4, "four ranks, ddp")):
        figures[f"{name}: planned over measured"] = planned[N] / best[name]
    return figures


def _planned(args: argparse.Namespace, folder: Path) -> dict[int, float]:
    """Return the tokens/s that a plan says for each number of ranks with whole weights."""
    overrides = [*args.set, *SAME, "distributed.strategy=ddp"]
    found = planned_here(folder, args.config, overrides, MOST_RANKS, THREADS)
    tokens = found["tokens"] / found["steps"]
    return {row["ranks"]: tokens / row["step_s"] for row in found["rows"]}


def folders(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure for how long two ranks stand still for a checkpoint: one file, or a folder.

    Of a folder that is written beside the steps, and of one that they wait for. The last save of a
    run is left out: all wait for it.
    """
    ways = {
        "file": ("distributed.one_file_gb=1e9",),
        "folder": ("distributed.one_file_gb=0",),
        "folder, all wait": ("distributed.one_file_gb=0", "training.background_saves=false"),
    }
    figures: Figures = {}
    for strategy in ("ddp", "fsdp"):
        for name, overrides in ways.items():
            run = folder / f"{strategy}_{name.replace(', ', '_').replace(' ', '_')}"
            run.mkdir()
            saves = (*overrides, f"training.save_checkpoint_steps={SAVE_EVERY}")
            _end_well(_start(args, run, 2, strategy, saves), run)
            events = json_lines(run_folder(run) / "events.jsonl")
            stood_still = []
            written = []
            for event in [event for event in events if event["kind"] == "save"][:-1]:
                written.append(number(event["seconds"]))
                stood_still.append(number(event.get("waited_seconds", event["seconds"])))
            figures[f"{strategy}, {name}: stands still, s"] = statistics.median(stood_still)
            figures[f"{strategy}, {name}: until it is there, s"] = statistics.median(written)
            shutil.rmtree(run / "checkpoints")
    return figures


def _end_well(process: "subprocess.Popen[bytes]", run: Path) -> None:
    """Wait for a run; end the program where it has failed."""
    if process.wait() != 0:
        sys.exit(f"the training script failed:\n{(run / 'output.txt').read_text()[-2000:]}")


def _tokens_per_s(
    args: argparse.Namespace, folder: Path, starts: int, ranks_each: int, strategy: str
) -> float:
    """Return the tokens/s of `starts` runs at once, added up; each has so many ranks, 0: none."""
    folders = [
        folder / f"{strategy}{ranks_each}_{i}_{len(list(folder.iterdir()))}" for i in range(starts)
    ]
    processes = []
    for run in folders:
        run.mkdir()
        processes.append(_start(args, run, ranks_each, strategy))
    for process, run in zip(processes, folders, strict=True):
        _end_well(process, run)
    return sum(_speed(run) for run in folders)


def _start(
    args: argparse.Namespace,
    folder: Path,
    ranks_each: int,
    strategy: str,
    more: Sequence[str] = (),
) -> "subprocess.Popen[bytes]":
    overrides = [
        *args.set,
        f"training.max_steps={args.steps}",
        f"training.threads={THREADS}",
        "training.log_interval=1",
        "training.max_minutes=null",
        "training.eval_interval=null",
        "training.sample_interval_steps=null",
        "training.report=false",
        "training.compile=false",
        f"distributed.strategy={strategy}",
        *more,
    ]
    command = script_command(args.config, overrides)
    if ranks_each:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks_each}"]
        command[1:1] = launcher
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)


def _speed(folder: Path) -> float:
    """Return the median of a run's tokens/s after the first steps."""
    rows = json_lines(run_folder(folder) / "metrics.jsonl")
    speeds = [number(row["tokens_per_s"]) for row in rows if row["tokens_per_s"]]
    return statistics.median(speeds[WARM_UP:])
