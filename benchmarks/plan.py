"""How far a plan is off on a CPU: memory and time of a step, predicted and measured."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.script_runs import ROOT, Figures, json_lines, number, run_folder, run_script
from chatgot.data.corpus import fetch_default_text

MIB = 1 << 20
MODELS = ROOT / "configs" / "models"
# The last one is AdamW, the gpt architecture, fp32 and gradient checkpointing
CONFIGS = (
    MODELS / "chatgot_mini.yaml",
    MODELS / "chatgot_quick.yaml",
    MODELS / "chatgot_small_4M.yaml",
    MODELS / "chatgot_small_14M.yaml",
    MODELS / "debug" / "chatgot_small_14M_gradient_checkpoint.yaml",
)
# Whether compiling pays is decided by a measurement, which may decide otherwise for each side
SAME = ("training.compile=false",)


def plan(args: argparse.Namespace, folder: Path) -> Figures:
    """Plan each configuration, then train it for a few steps, in turn."""
    text = args.text
    if text is None:
        text = folder / "data" / "shakespeare.txt"
        fetch_default_text(text)
    settings = (*SAME, f"data.path={text}")
    figures: Figures = {}
    for config in CONFIGS:
        memory: list[float] = []
        planned: list[float] = []
        peaks: list[float] = []
        taken: list[float] = []
        for _ in range(args.rounds):
            found = planned_here(folder, config, settings)
            (row,) = found["rows"]
            memory.append(row["memory_bytes"] / MIB)
            planned.append(row["step_s"])
            figures["bf16_peak_gflop_per_s"] = found["peak_flops"] / 1e9
            run = run_script(folder, config, args.steps, *settings)
            peaks.append(run.peak_mib)
            taken.append(median_step_s(folder, found["tokens"] / found["steps"]))
        name = config.stem
        figures |= compared(f"{name}.memory_mib", memory, peaks)
        figures |= compared(f"{name}.step_s", planned, taken)
        print(
            f"{name}: memory {figures[f'{name}.memory_mib.ratio']:.3f}, "
            f"step {figures[f'{name}.step_s.ratio']:.3f} of what was measured",
            file=sys.stderr,
        )
    figures["load_average"] = round(os.getloadavg()[0], 1)
    return figures


def median_step_s(folder: Path, tokens_per_step: float) -> float:
    """Return the median seconds of a step of the only run in `folder`, without its first step."""
    rows = json_lines(run_folder(folder) / "metrics.jsonl")
    return statistics.median(tokens_per_step / number(row["tokens_per_s"]) for row in rows[1:])


def planned_here(
    folder: Path,
    config: Path,
    settings: Sequence[str],
    processes: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """Return what the plan of so many processes on this machine says.

    threads: of each process; None: as many as torch takes.
    """
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), "--config", str(config)]
    command += ["--machines", f"{processes}xcpu", "--json", "--tokens", "1e6"]
    for setting in settings:
        command += ["--set", setting]
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compared(name: str, predicted: Sequence[float], measured: Sequence[float]) -> Figures:
    """Return medians of both sides, and the first over the second."""
    one = statistics.median(predicted)
    other = statistics.median(measured)
    return {
        f"{name}.predicted": one,
        f"{name}.measured": other,
        f"{name}.ratio": one / other,
    }
