"""Whether a run that was stopped and resumed ends in the bits of the straight one."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.limited_runs import CaseFailedError, FinishedRun, run_limited_script
from benchmarks.script_runs import Figures
from chatgot.checkpointing.checkpoint_file import load_checkpoint

TRAINED = ("model_state_dict", "optimizer_state_dict", "scaler_state_dict", "loss")


def equal_bits(a: object, b: object) -> bool:
    """Return whether two nested states are equal in type and every bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        if not isinstance(b, dict) or list(a) != list(b):
            return False
        return all(equal_bits(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        if not isinstance(b, list | tuple) or type(a) is not type(b) or len(a) != len(b):
            return False
        return all(map(equal_bits, a, b))
    return type(a) is type(b) and a == b


def resume_bits(
    straight: FinishedRun, config: Path, overrides: Sequence[str], folder: Path, limit_s: float
) -> Figures:
    """Resume a copy of a finished run from its last checkpoint but one; compare both ends.

    Raises: CaseFailedError.
    """
    *_, middle, end = sorted(straight.checkpoints)
    shutil.copytree(straight.folder, folder)
    copied = folder / "checkpoints"
    (copied / straight.checkpoints[end].name).unlink()
    start = copied / straight.checkpoints[middle].name
    resumed = run_limited_script(config, overrides, folder, limit_s, resume_from=start)
    if end not in resumed.checkpoints:
        raise CaseFailedError(f"the resumed run did not save step {end}")
    ends = [load_checkpoint(run.checkpoints[end]) for run in (straight, resumed)]
    equal = {name: equal_bits(ends[0][name], ends[1][name]) for name in TRAINED}
    figures: Figures = {
        "equal_bits": all(equal.values()),
        "steps": end,
        "resumed_from": middle,
        "wall_s": resumed.wall_s,
    }
    if not all(equal.values()):
        figures["differing"] = [name for name, is_equal in equal.items() if not is_equal]
    return figures
