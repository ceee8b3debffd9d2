"""The tensors of a nested state: their names, whether they are finite, whether they fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from chatgot.errors import CheckpointRejected

MAX_DEPTH, MAX_VALUES = (
    20,
    1_000_000,
)  # a checkpoint has 5 and some thousands; a crafted one may have no end


def all_tensors(state: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a nested state with its dotted name. Raises: ValueError where it has no end."""
    pending, seen = [("", state, 0)], 0
    while pending:
        name, value, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_VALUES:
            raise ValueError("holds more than any checkpoint, or itself")
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (dict, list, tuple)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [
                (f"{name}.{key}" if name else str(key), child, depth + 1) for key, child in inner
            ][::-1]


def not_finite(state: dict[str, Any]) -> list[str]:
    """Return the names of the tensors of a nested state that hold NaN or infinity."""
    tensors = ((name, tensor) for name, tensor in all_tensors(state) if tensor.is_floating_point())
    return [name for name, tensor in tensors if not is_finite(tensor)]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether every element is finite; a finite sum says so in a tenth of the time that asking each takes."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_tensors(path: Path, found: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """Hold stored weights against the model's: names, shapes, dtypes, finiteness. Raises: CheckpointRejected."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not in this model" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        problems += tensor_problems(name, found[name], expected[name].shape, expected[name].dtype)
    refuse(path, "the weights do not fit this model", problems)


def tensor_problems(name: str, tensor: Any, shape: torch.Size, dtype: torch.dtype) -> list[str]:
    if (
        not isinstance(tensor, torch.Tensor)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
    ):
        return [f"{name} is no plain tensor"]
    if tensor.shape != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"]
    if tensor.dtype != dtype:
        return [f"{name} is {tensor.dtype}, expected {dtype}"]
    return [] if is_finite(tensor) else [f"{name} holds NaN or infinity"]


def refuse(path: Path, what: str, problems: list[str], shown: int = 6) -> None:
    if problems:
        more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
        raise CheckpointRejected(f"{path}: {what}: {'; '.join(sorted(problems)[:shown])}{more}")
