"""Check that a stored state can come from a run, and that it fits this run."""

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch.optim import Optimizer

from chatgot.checkpointing.checkpoint_file import wrong_keys, wrong_settings
from chatgot.checkpointing.checkpoints import load_checkpoint
from chatgot.checkpointing.tensors import refuse, tensor_problems
from chatgot.errors import CheckpointRejected
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.optim import state_shapes
from chatgot.run.run_state import Part, RunState, Stored

SHOWN_VALUE = 40  # characters of a value in a message


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume; also check its counters and generators.

    Raises: CheckpointRejected with file and reason.
    """
    checkpoint = load_checkpoint(path)  # its keys are right
    invalid = invalid_counters(checkpoint)
    if invalid:
        raise CheckpointRejected(f"{path}: invalid or missing values: {', '.join(invalid)}")
    return checkpoint


def check_loadable(content: Mapping[str, Any]) -> None:
    """Check what a run is about to save with all that is asked of a checkpoint when it is loaded.

    The tensors are checked elsewhere: by their file, and by `check_state`.
    Raises: ValueError; it is our mistake.
    """
    problems = [*wrong_keys(dict(content)), *wrong_settings(content["config"])]
    problems = problems or invalid_counters(content)
    if problems:
        raise ValueError(f"what is to be saved could not be loaded again: {', '.join(problems)}")


def invalid_counters(stored: Stored) -> list[str]:
    """Return the names of counters and generators with values that no run can have saved."""
    invalid = []
    try:
        state = RunState.model_validate(stored["state"])
    except ValidationError as error:
        invalid += _names_of_problems(error)
    else:
        invalid += _missing(state)
        if state.run_id != stored["run_id"]:
            invalid.append("run_id")
        if state.progress.global_step != stored["global_step"]:
            invalid.append("global_step")
    if not _generators_fit(stored["rng"]):
        invalid.append("rng")
    return invalid


def _missing(part: Part, prefix: str = "") -> list[str]:
    """Return the names of counters that the stored state lacked, and that every one has had."""
    names = []
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        extra = field.json_schema_extra
        may_be_missing = isinstance(extra, dict) and extra.get("may_be_missing")
        if name not in part.model_fields_set:
            names += [] if may_be_missing else [f"{prefix}{name}"]
        elif isinstance(value, Part):
            names += _missing(value, f"{name}.")
    return names


def _names_of_problems(error: ValidationError) -> list[str]:
    """Return each problem once.

    A problem is a field's name, or the validator's message if two fields contradict each other.
    """
    names = []
    for problem in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in problem["loc"][:2]) or "state"
        if problem["type"] == "value_error":
            name = str(problem["ctx"]["error"])
        if name not in names:
            names.append(name)
    return names


def _generators_fit(states: Mapping[str, Any]) -> bool:
    """Return whether temporary generators accept the states.

    Checked before restoring, because a restore that fails would be half done.
    """
    try:
        version, internal, gauss = states["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        kind, keys, *rest = states["numpy"]
        np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(states["torch"])
    except (
        KeyError,
        ValueError,
        TypeError,
        RuntimeError,
        IndexError,
        OverflowError,
        AttributeError,
    ):
        return False
    return True


def check_optimizer(
    path: Path, stored: Mapping[str, Any], optimizer: Optimizer, updates: int
) -> None:
    """Check a stored optimizer state before loading, because load_state_dict accepts any shape.

    updates: optimizer updates so far; after the first one, every parameter must have a state.
    Raises: CheckpointRejected.
    """
    own_groups = optimizer.state_dict()["param_groups"]
    groups = stored.get("param_groups")
    state = stored.get("state")
    if not (isinstance(state, dict) and _same_groups(groups, own_groups)):
        raise CheckpointRejected(
            f"{path}: the optimizer's state belongs to another optimizer or model"
        )
    assert isinstance(groups, list)
    refuse(
        path,
        "the optimizer's state was made with other settings",
        _other_settings(groups, own_groups),
    )
    parameters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    problems: list[str] = []
    for i, (parameter, group) in enumerate(parameters):
        values = state.get(i)
        if not isinstance(values, dict):
            if updates:
                problems.append(f"parameter {i} has no state")
            continue
        for name, shape in state_shapes(group, parameter).items():
            label = f"{name} of parameter {i}"
            problems += tensor_problems(label, values.get(name), shape, parameter.dtype)
        label = f"step of parameter {i}"
        problems += tensor_problems(label, values.get("step"), torch.Size([]), torch.float32)
    refuse(path, "the optimizer's state does not fit", problems)


def _same_groups(groups: Any, own_groups: list[dict[str, Any]]) -> bool:
    """Return whether stored parameter groups have the same keys and parameters as our own."""
    if not isinstance(groups, list) or len(groups) != len(own_groups):
        return False
    for group, own in zip(groups, own_groups, strict=True):
        if not isinstance(group, dict) or group.keys() != own.keys():
            return False
        if group["params"] != own["params"]:
            return False
    return True


def _other_settings(groups: list[dict[str, Any]], own_groups: list[dict[str, Any]]) -> list[str]:
    """Return one line for each setting that differs; each step sets the learning rate anew."""
    lines = set()
    for group, own in zip(groups, own_groups, strict=True):
        for key in own.keys() - {"lr", "params"}:
            stored_value = group[key]
            own_value = own[key]
            if type(stored_value) is not type(own_value) or stored_value != own_value:
                lines.add(f"{key} is {stored_value!r:.{SHOWN_VALUE}}, expected {own_value!r}")
    return sorted(lines)


def check_scaler(path: Path, stored: Mapping[str, Any], scaler: SafeGradScaler) -> None:
    """Check a stored scaler state before loading, because load_state_dict could fail half-way.

    Raises: CheckpointRejected.
    """
    if not stored:  # from torch's own GradScaler, disabled
        return
    own = scaler.state_dict()
    problems = [f"{key} is missing or unknown" for key in stored.keys() ^ own.keys()]
    for key in stored.keys() & own.keys():
        value = stored[key]
        if type(value) is not type(own[key]) or not 0 <= value < math.inf:
            problems.append(f"{key} is invalid: {value!r:.{SHOWN_VALUE}}")
    refuse(path, "the scaler's state does not fit", problems)
