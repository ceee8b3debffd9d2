"""How long `--help` of each script takes."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.script_runs import ROOT, Figures


def help_time(args: argparse.Namespace, folder: Path) -> Figures:
    """Time `--help` of every script and `python -c pass` in turn; return the medians."""
    commands = {"python_pass": ["-c", "pass"]}
    for script in sorted((ROOT / "scripts").glob("[!_]*.py")):
        commands[script.stem] = [str(script), "--help"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, check=True
            )
            seconds[name].append(time.perf_counter() - start)
    return {f"{name}_s": statistics.median(of_command) for name, of_command in seconds.items()}
