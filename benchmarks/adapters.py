"""Measure what training only added weights (LoRA) saves: memory, time, and bytes on disk."""

import argparse
import os
import shutil
from pathlib import Path

from benchmarks.peers import ratio
from benchmarks.script_runs import Figures, ScriptRun, run_script

RANK = 8
LORA = (f"training.lora.rank={RANK}",)
# On both sides: added weights are always trained by AdamW, and whether compiling pays is decided by
# a measurement, which may decide otherwise for each
SAME = ("training.optimizer=adamw", "training.compile=false")


def lora(args: argparse.Namespace, folder: Path) -> Figures:
    """Train on from one checkpoint, all weights and the added ones in turn."""
    base = args.base or _base(args, folder)
    figures: Figures = {"rank": RANK, "base_mb": base.stat().st_size / 1e6}
    sides: dict[str, tuple[str, ...]] = {"all_weights": (), "lora": LORA}
    runs: dict[str, list[ScriptRun]] = {name: [] for name in sides}
    saved: dict[str, float] = {}
    for _ in range(args.rounds):
        for name, settings in sides.items():
            settings = (*SAME, *args.set, *settings)
            run = run_script(folder, args.config, args.steps, *settings, init_from=base)
            runs[name].append(run)
            saved[name] = run.saved_bytes / 1e6
    for name, of_side in runs.items():
        figures[f"{name}_tokens_per_s"] = max(run.tokens_per_s for run in of_side)
        figures[f"{name}_peak_mib"] = min(run.peak_mib for run in of_side)
        figures[f"{name}_checkpoint_mb"] = saved[name]
    of_all, of_lora = runs.values()
    figures |= ratio(
        "lora_over_all_weights",
        [run.tokens_per_s for run in of_lora],
        [run.tokens_per_s for run in of_all],
    )
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return figures | {"load_average": load}


def _base(args: argparse.Namespace, folder: Path) -> Path:
    """Return a checkpoint of the configuration, after two steps."""
    kept = folder / "base"
    kept.mkdir()
    run_script(kept, args.config, 2, *SAME, *args.set, keep_checkpoints=True)
    (made,) = (kept / "checkpoints").glob("*_step_2.pt")
    return Path(shutil.move(made, kept / made.name))
