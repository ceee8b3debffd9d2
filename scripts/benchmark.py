"""Measure what docs/benchmarks.md states, each figure beside a reference measured in the same run.

    python scripts/benchmark.py speed         peaks, tokens/s, MFU, share of time per part, memory, for any --config
    python scripts/benchmark.py overhead      the script's tokens/s against a bare loop on the same model
    python scripts/benchmark.py startup       default text, start to first step, resident memory
    python scripts/benchmark.py large_text    a 1 GB text: first start, second start, memory beside a small text
    python scripts/benchmark.py saving        a checkpoint's save, verification and load, and the share of the time
    python scripts/benchmark.py mixed         the mixed_precision config's tokens/s against the clean one's
    python scripts/benchmark.py checks        the time of a step with all its checks against the same step without
    python scripts/benchmark.py recompute     gradient checkpointing's memory of activations and time against plain
    python scripts/benchmark.py batch_sizes   each micro-batch's tokens/s against what the search at the start finds
    python scripts/benchmark.py logging       the share of a run's time that its lines, rows and curves take
    python scripts/benchmark.py log_fixer     the log fixer's MB/s and memory on 1 GB logs, a plain copy's MB/s

Prints a table and writes it as JSON to --output. Runs the training script as a user does, in a temporary folder.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from any folder, with this checkout's chatgot

import argparse
import tempfile

from benchmarks.files import log_fixer, logging_cost, saving
from benchmarks.script_runs import show
from benchmarks.speed import speed
from benchmarks.training import batch_sizes, checks, large_text, mixed, overhead, recompute, startup

PARTS = {
    "speed": speed, "overhead": overhead, "startup": startup, "large_text": large_text, "saving": saving,
    "mixed": mixed, "batch_sizes": batch_sizes, "checks": checks, "recompute": recompute, "log_fixer": log_fixer,
    "logging": logging_cost,
}  # fmt: skip


def main() -> int:
    """Measure one part and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    default = ROOT / "configs/models/debug/chatgot_small_14M_clean.yaml"

    def path(text: str) -> Path:
        return Path(text).resolve()

    parser.add_argument(
        "--config", type=path, default=default, help="experiment to measure (default: 14M clean)"
    )
    parser.add_argument(
        "--compare", type=path, metavar="CONFIG", help="speed: another one, in turn with --config"
    )
    for name, whose in (("--set", "--config"), ("--compare_set", "--compare")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"speed: set a key of {whose}; repeatable",
        )
    parser.add_argument(
        "--steps", type=int, default=8, help="optimizer steps of one run (default: 8)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternations of script and reference (default: 3)"
    )
    parser.add_argument(
        "--gigabytes", type=float, default=1.0, help="size of the large text (default: 1)"
    )
    parser.add_argument(
        "--output", type=Path, help="write the figures as JSON to this file as well"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chatgot_benchmark_") as name:
        figures = PARTS[args.part](args, Path(name))
    show(figures, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
