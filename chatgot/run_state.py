"""Everything that changes while training, in one place: collect it, hold a stored one against it, restore it."""

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from chatgot.errors import CheckpointRejected


@dataclass
class RunState:
    """The counters of a run; weights, optimizer and scaler keep their own state."""

    run_id: str  # {config}_{timestamp}
    precision: str  # fp32, bf16 or fp16: what is in force
    micro_batch_size: int  # sequences per forward and backward
    threads: int  # CPU threads: other numbers give other bits
    global_step: int = 0  # optimizer updates attempted
    position: int = 0  # index of the group of sequences that the next step trains on
    tokens: int = 0  # tokens trained on
    time_s: float = 0.0  # seconds in the training loop, over all resumes
    nan_counter: int = 0  # non-finite steps in a row
    skipped_steps: int = 0  # steps whose update was left out
    train_loss: float | None = None  # of the last step: token-weighted mean, nats per token
    grad_norm: float | None = None  # of the last step, before clipping
    lr: float | None = None  # of the last step
    tokens_per_s: float | None = None  # of the steps between the last two rows
    val_loss: float | None = None  # of the last evaluation, nats per token
    best_val_loss: float = math.inf
    best_step: int = -1
    last_eval_step: int = -1
    last_sample_step: int = 0  # untrained weights are not sampled, and not saved
    last_save_step: int = 0

    def due(self, interval: int | None, last: int) -> bool:
        """Return whether something done every `interval` steps, last at step `last`, is to be done now."""
        return interval is not None and self.global_step % interval == 0 and last != self.global_step


def collect_state(run: RunState, model: nn.Module, optimizer: Optimizer, scaler: GradScaler) -> dict[str, Any]:
    """Return everything that changes while training, as plain values and tensors (shared, not copied)."""
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        "run": asdict(run),
        "rng": generator_states(),
    }


def restore_state(
    stored: dict[str, Any], run: RunState, model: nn.Module, optimizer: Optimizer, scaler: GradScaler
) -> None:
    """Put a collected state back, generators last. The caller has checked that it fits."""
    model.load_state_dict(stored["model_state_dict"], strict=True)
    optimizer.load_state_dict(stored["optimizer_state_dict"])
    if scaler.is_enabled() and stored["scaler_state_dict"]:  # a disabled scaler has no state
        scaler.load_state_dict(stored["scaler_state_dict"])
    for field in fields(RunState):
        setattr(run, field.name, stored["run"][field.name])
    set_generator_states(stored["rng"])


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators as tensors, lists and plain numbers."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def all_tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a nested state with its dotted name."""
    if isinstance(state, torch.Tensor):
        yield name, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from all_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            yield from all_tensors(value, f"{name}.{i}")


def not_finite(state: dict[str, Any]) -> list[str]:
    """Return the names of the tensors of a nested state that hold NaN or infinity."""
    tensors = ((name, tensor) for name, tensor in all_tensors(state) if tensor.is_floating_point())
    return [name for name, tensor in tensors if not is_finite(tensor)]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether every element is finite; a finite sum says so in a tenth of the time that asking each takes."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def odd_counters(stored: dict[str, Any]) -> list[str]:
    """Return the names of a stored run's counters and generators that cannot be what a run has saved."""
    run, rng = stored["run"], stored["rng"]
    kinds = {str: str, int: int, float: (int, float), float | None: (int, float, NoneType)}
    names = {field.name: kinds[field.type] for field in fields(RunState)}
    odd = [name for name, kind in names.items() if name not in run or not isinstance(run[name], kind)]
    if odd or run.keys() - names.keys():
        return odd + sorted(map(str, run.keys() - names.keys()))
    least = {"global_step": 0, "position": 0, "tokens": 0, "micro_batch_size": 1, "threads": 1}
    odd = [name for name, smallest in least.items() if run[name] < smallest]
    odd += [name for name in ("run_id", "global_step") if run[name] != stored[name]]
    odd += ["precision"] if run["precision"] not in ("fp32", "bf16", "fp16") else []
    try:  # on generators of its own: what cannot be set there must not be half set later
        version, internal, gauss = rng["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        kind, keys, *rest = rng["numpy"]
        np.random.RandomState().set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.Generator().set_state(rng["torch"])
    except (KeyError, ValueError, TypeError, RuntimeError, IndexError, OverflowError, AttributeError):
        odd.append("rng")
    return odd


def check_tensors(path: Path, found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """Hold stored weights against the model's: names, shapes, dtypes, finiteness. Raises: CheckpointRejected."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in this model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        problems += _tensor_problems(name, found[name], expected[name].shape, expected[name].dtype)
    _reject(path, "the weights do not fit this model", problems)


def check_optimizer(path: Path, found: dict[str, Any], optimizer: Optimizer, updates: int) -> None:
    """Hold a stored optimizer state against this optimizer, which itself accepts any shape. Raises: CheckpointRejected.

    updates: optimizer updates made so far; after the first one each parameter has a state.
    """
    expected = optimizer.state_dict()["param_groups"]
    groups, state = found.get("param_groups"), found.get("state")
    alike = isinstance(groups, list) and isinstance(state, dict) and len(groups) == len(expected)
    for group, own in zip(groups if alike else [], expected, strict=True) if alike else ():
        alike = alike and isinstance(group, dict) and group.keys() == own.keys() and group["params"] == own["params"]
    if not alike:
        raise CheckpointRejected(f"{path}: the optimizer's state is of another optimizer or model")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    problems = []
    for i, parameter in enumerate(parameters):
        values = state.get(i)
        if not isinstance(values, dict):
            problems += [f"parameter {i} has no state"] if updates else []
            continue
        for name in ("exp_avg", "exp_avg_sq"):
            problems += _tensor_problems(f"{name} of parameter {i}", values.get(name), parameter.shape, parameter.dtype)
        problems += _tensor_problems(f"step of parameter {i}", values.get("step"), torch.Size([]), torch.float32)
    _reject(path, "the optimizer's state does not fit", problems)


def _tensor_problems(name: str, tensor: Any, shape: torch.Size, dtype: torch.dtype) -> list[str]:
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return [f"{name} is no plain tensor"]
    if tensor.shape != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"]
    if tensor.dtype != dtype:
        return [f"{name} is {tensor.dtype}, expected {dtype}"]
    return [] if is_finite(tensor) else [f"{name} holds NaN or infinity"]


def _reject(path: Path, what: str, problems: list[str], shown: int = 6) -> None:
    if problems:
        more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
        raise CheckpointRejected(f"{path}: {what}: {'; '.join(sorted(problems)[:shown])}{more}")
