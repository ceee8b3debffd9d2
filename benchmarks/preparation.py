"""How fast texts are prepared and encoded, and in how much memory.

Each kind of file is measured in a process of its own, which also measures SHA-256: how fast that is
says how much of the machine there was.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.made_up_files import KINDS, make_file
from benchmarks.script_runs import ROOT, Figures

PROGRAM = ROOT / "benchmarks" / "one_preparation.py"
PEAK_PROGRAM = ROOT / "benchmarks" / "peak_memory.py"
ENCODED = ("characters", "bpe")  # of made-up prose
ENDINGS = {"telegram": "json", "srt": "srt", "csv": "csv"}


def preparation(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure all kinds of files of `--megabytes`, and both ways to encode a text."""
    figures: Figures = {}
    for kind in KINDS:
        path = folder / f"{kind}.{ENDINGS.get(kind, 'txt')}"
        figures[f"{kind}_bytes"] = make_file(kind, path, int(args.megabytes * 1e6))
        figures |= measured(kind, "prepare", path, folder)
        if kind == "prose":
            for encoded in ENCODED:
                figures |= measured(encoded, encoded, path, folder)
        path.unlink()
    return figures


def measured(name: str, task: str, path: Path, folder: Path) -> Figures:
    """Return what one task takes on a file, each figure with a name in front.

    task: one of TASKS in one_preparation.py.
    """
    words = (sys.executable, PEAK_PROGRAM, PROGRAM, task, path, folder / name)
    command = [str(word) for word in words]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    *_, result, peak_kib = output.splitlines()
    figures = json.loads(result) | {"peak_mib": int(peak_kib) / 1024}
    print(f"{name}: {figures['mb_per_cpu_s']:.1f} MB/s of CPU time", file=sys.stderr)
    return {f"{name}_{key}": value for key, value in figures.items()}
