"""How fast training is beside other programs that want the cores, with and without our care."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.script_runs import ROOT, Figures, number, python_path
from chatgot.data.corpus import fetch_default_text
from chatgot.spinning import POLICY, VARIABLE

NEIGHBOURS = (0, 1, 2)  # busy programs beside the training
WAYS = ("plain", "fair")
LONGEST_S = 300.0  # of one measurement; the busy programs end by themselves, too


def contention(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure tokens/s alone, and beside one and two busy programs; both ways take turns.

    The ratios are to the plain way alone in the same round.
    """
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    rates: dict[tuple[int, str], list[float]] = {(n, way): [] for n in NEIGHBOURS for way in WAYS}
    weights: set[str] = set()
    for round_number in range(args.rounds):
        for neighbours in NEIGHBOURS:
            for way in WAYS if round_number % 2 == 0 else reversed(WAYS):
                with busy_programs(neighbours):
                    found = measure(args, folder, text, way)
                print(f"{neighbours} busy, {way}: {found}", file=sys.stderr, flush=True)
                rates[neighbours, way].append(number(found["tokens_per_s"]))
                weights.add(str(found["weights"]))
    figures: Figures = {"same_weights": len(weights) == 1}
    for (neighbours, way), of_way in rates.items():
        name = f"{neighbours}_busy_{way}"
        figures[f"{name}_tokens_per_s"] = statistics.median(of_way)
        ratios = [rate / alone for rate, alone in zip(of_way, rates[0, "plain"], strict=True)]
        figures[f"{name}_over_plain_alone"] = statistics.median(ratios)
        figures[f"{name}_ratios"] = [round(ratio, 3) for ratio in ratios]
        own = [rate / alone for rate, alone in zip(of_way, rates[0, way], strict=True)]
        figures[f"{name}_over_itself_alone"] = statistics.median(own)
    return figures


def measure(args: argparse.Namespace, folder: Path, text: Path, way: str) -> dict[str, object]:
    """Return what one process prints that trains for `--seconds`."""
    program = ROOT / "benchmarks" / "neighbour_steps.py"
    cache = folder / "data" / "cache"
    command = [sys.executable, str(program), str(args.config), str(text), str(cache)]
    command += [str(args.seconds), way, *args.set]
    variables = python_path(ROOT)
    for name in (VARIABLE, POLICY):  # which an outer process may have set
        variables.pop(name, None)
    done = subprocess.run(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """Run so many programs, each of which keeps one core busy, beside the block."""
    program = str(ROOT / "benchmarks" / "busy_program.py")
    command = [sys.executable, program, str(LONGEST_S)]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()
