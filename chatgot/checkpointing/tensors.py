"""The tensors in a nested state: their names, whether they are finite, whether they fit."""

import json
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from chatgot.errors import CheckpointRejected

# A real checkpoint has 5 levels and thousands of values. The largest one has every character as a
# token, and each list as long as the bounds of the configuration allow. A crafted one may be
# endless.
MAX_DEPTH = 20
MAX_VALUES = 2_000_000


def all_tensors(state: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in a nested state, with its dotted name.

    Raises: ValueError for a state that is nested too deeply, cyclic, or larger than any checkpoint.
    """
    pending: list[tuple[str, object, int]] = [("", state, 0)]
    count = 0
    while pending:
        name, value, depth = pending.pop()
        items = _items(value)
        count += len(items)
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError("nested too deeply, cyclic, or with more values than any checkpoint")
        if isinstance(value, torch.Tensor):
            yield name, value
            continue
        children = [
            (f"{name}.{key}" if name else str(key), child, depth + 1)
            for key, child in items
            if isinstance(child, (torch.Tensor, dict, list, tuple))
        ]
        # reversed, because the last one is popped first
        pending += reversed(children)


def _items(value: object) -> Collection[tuple[object, object]]:
    if isinstance(value, dict):
        return value.items()
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else ()


def not_finite(state: dict[str, Any]) -> list[str]:
    """Return the names of the tensors in a nested state that contain NaN or infinity."""
    return [
        name
        for name, tensor in all_tensors(state)
        if tensor.is_floating_point() and not is_finite(tensor)
    ]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether every element is finite.

    A finite sum proves it, ten times faster than checking each element.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256, in hex, of named tensors in the order of their names.

    Names, dtypes, shapes and bytes count: the order in a file and its format do not.
    """
    digest = sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors(path: Path, stored: dict[str, Any], expected: dict[str, torch.Tensor]) -> None:
    """Check stored weights before loading, because load_state_dict could fail half-way.

    Names, shapes and dtypes must be the model's, and all values finite.
    Raises: CheckpointRejected.
    """
    problems = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    problems += [f"{name} is not in this model" for name in stored.keys() - expected.keys()]
    for name in expected.keys() & stored.keys():
        problems += tensor_problems(name, stored[name], expected[name].shape, expected[name].dtype)
    refuse(path, "the weights do not fit this model", problems)


def tensor_problems(name: str, tensor: object, shape: torch.Size, dtype: torch.dtype) -> list[str]:
    """Return the problems of a stored tensor; empty: none."""
    if not isinstance(tensor, torch.Tensor):
        return [f"{name} is not a plain CPU tensor"]
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return [f"{name} is not a plain CPU tensor"]
    if tensor.shape != shape:
        return [f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}"]
    if tensor.dtype != dtype:
        return [f"{name} is {tensor.dtype}, expected {dtype}"]
    return [] if is_finite(tensor) else [f"{name} contains NaN or infinity"]


def refuse(path: Path, what: str, problems: list[str], shown: int = 6) -> None:
    """Reject a checkpoint if there are problems; name at most `shown` of them.

    Raises: CheckpointRejected.
    """
    if not problems:
        return
    named = "; ".join(sorted(problems)[:shown])
    more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
    raise CheckpointRejected(f"{path}: {what}: {named}{more}")
