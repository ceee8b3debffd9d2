"""Whether a stored state is what a run has saved, and fits another one: names, kinds, ranges, shapes, finiteness."""

import math
import random
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.checkpointing.tensors import refuse, tensor_problems
from chatgot.errors import CheckpointRejected
from chatgot.model.attention import KERNELS
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.optim import state_names
from chatgot.run.run_state import RunState

MOST = {
    "threads": 4096,
    "micro_batch_size": 1 << 30,
    "eval_batch_size": 1 << 30,
}  # what every machine refuses anyway
LARGEST_COUNT, LONGEST_TEXT = 1 << 62, 1000


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume, and check its counters. Raises: CheckpointRejected."""
    checkpoint = load_checkpoint(path)
    if odd := odd_counters(checkpoint):
        raise CheckpointRejected(f"{path}: missing, or not what it should be: {', '.join(odd)}")
    return checkpoint


def odd_counters(stored: dict[str, Any]) -> list[str]:
    """Return the names of a stored run's counters and generators that cannot be what a run has saved."""
    run, rng = stored["run"], stored["rng"]
    kinds = {
        str: (str,),
        int: (int,),
        bool: (bool,),
        float: (int, float),
        float | None: (int, float, NoneType),
    }
    kinds |= {list: (list,)}
    names = {field.name: kinds[field.type] for field in fields(RunState)}
    odd = [name for name, kind in names.items() if name not in run or type(run[name]) not in kind]
    if odd or run.keys() - names.keys():
        return odd + sorted(map(str, run.keys() - names.keys()))
    least = {"best_step": -1, "last_eval_step": -1, "rewound_to": -1} | dict.fromkeys(MOST, 1)
    for name in names:
        if type(run[name]) is int:
            odd += (
                [name]
                if not least.get(name, 0) <= run[name] <= MOST.get(name, LARGEST_COUNT)
                else []
            )
    rows = {"bad_steps": [int, int, float, float], "skipped_ranges": [int] * 2}
    rows |= {"size_history": [int, int, int, str], "sizes_rejected": [int, int, int, str]}
    for name, types in rows.items():
        rows_fit = all(type(row) is list and [*map(type, row)] == types for row in run[name])
        small = rows_fit and all(_is_small(value) for row in run[name] for value in row)
        odd += [] if small else [name]
    odd += [] if all(type(loss) is float for loss in run["recent_losses"]) else ["recent_losses"]
    odd += ["time_s"] if not 0 <= run["time_s"] < math.inf else []
    odd += ["position"] if run["position"] < run["global_step"] else []
    odd += ["skipped_steps"] if run["skipped_steps"] > run["global_step"] else []
    odd += [name for name in ("run_id", "global_step") if run[name] != stored[name]]
    odd += ["attention"] if run["attention"] not in KERNELS else []
    odd += ["precision"] if run["precision"] not in ("fp32", "bf16", "fp16") else []
    odd += ["muon_precision"] if run["muon_precision"] not in ("fp32", "bf16") else []
    try:  # on generators of its own: what cannot be set there must not be half set later
        version, internal, gauss = rng["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        kind, keys, *rest = rng["numpy"]
        np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(rng["torch"])
    except (
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        IndexError,
        OverflowError,
        AttributeError,
    ):
        odd.append("rng")
    return odd


def _is_small(value: float | str) -> bool:
    """Return whether a value of a row is none that takes a machine's memory, or its patience."""
    return (
        len(value) <= LONGEST_TEXT
        if type(value) is str
        else type(value) is float or 0 <= value <= LARGEST_COUNT
    )


def check_optimizer(path: Path, found: dict[str, Any], optimizer: Optimizer, updates: int) -> None:
    """Hold a stored optimizer state against this optimizer, which itself accepts any shape. Raises: CheckpointRejected.

    updates: optimizer updates made so far; after the first one each parameter has a state.
    """
    expected = optimizer.state_dict()["param_groups"]
    groups, state = found.get("param_groups"), found.get("state")
    alike = isinstance(groups, list) and isinstance(state, dict) and len(groups) == len(expected)
    for group, own in zip(groups if alike else [], expected, strict=True) if alike else ():
        alike = (
            alike
            and isinstance(group, dict)
            and group.keys() == own.keys()
            and group["params"] == own["params"]
        )
    if not alike:
        raise CheckpointRejected(f"{path}: the optimizer's state is of another optimizer or model")
    settings = (
        (group, own, key)
        for group, own in zip(groups, expected, strict=True)
        for key in own
        if key != "lr"
    )
    refuse(
        path,
        "the optimizer's state was made with other settings",
        sorted({f"{key} is {group[key]!r:.40}, expected {own[key]!r}" for group, own, key in settings
                if key != "params" and (type(group[key]), group[key]) != (type(own[key]), own[key])}),
    )  # fmt: skip
    parameters = [
        (p, state_names(group)) for group in optimizer.param_groups for p in group["params"]
    ]
    problems = []
    for i, (parameter, names) in enumerate(parameters):
        values = state.get(i)
        if not isinstance(values, dict):
            problems += [f"parameter {i} has no state"] if updates else []
            continue
        for name in names:
            problems += tensor_problems(
                f"{name} of parameter {i}", values.get(name), parameter.shape, parameter.dtype
            )
        problems += tensor_problems(
            f"step of parameter {i}", values.get("step"), torch.Size([]), torch.float32
        )
    refuse(path, "the optimizer's state does not fit", problems)


def check_scaler(path: Path, found: dict[str, Any], scaler: SafeGradScaler) -> None:
    """Hold a stored scaler state against this scaler, which itself raises half-way. Raises: CheckpointRejected."""
    if not found:  # of torch's own scaler, disabled
        return
    expected = scaler.state_dict()
    problems = [f"{key} is missing or unknown" for key in found.keys() ^ expected.keys()]
    for key in found.keys() & expected.keys():
        number = type(found[key]) is type(expected[key]) and 0 <= found[key] < math.inf
        problems += [] if number else [f"{key} is {found[key]!r:.40}"]
    refuse(path, "the scaler's state does not fit", problems)
