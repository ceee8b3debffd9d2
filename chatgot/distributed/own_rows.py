"""Which rows of a checkpoint's tensors does a rank write?

Each writes the same share of the rows of every tensor, cut as torch cuts the weights of FSDP2. With
`ddp` each rank has all rows and writes its share of them. So a folder is the same with both.
"""

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from chatgot.checkpointing.shards import Part
from chatgot.distributed.strategies import first_row


def own_rows(content: dict[str, Any], rank: int, size: int) -> tuple[dict[str, Any], list[Part]]:
    """Return a checkpoint's content without the tensors that have rows, and a rank's part of those.

    Of weights and of the optimizer's state; numbers and the generators' states stay.

    content: with whole tensors, or with parts of them on each rank.
    """
    weights, parts = _without_rows(content["model_state_dict"], "model", rank, size)
    optimizer = content["optimizer_state_dict"]
    states = {}
    for index, values in optimizer["state"].items():
        states[index], more = _without_rows(values, f"optimizer/{index}", rank, size)
        parts += more
    left = {
        **content,
        "model_state_dict": weights,
        "optimizer_state_dict": {**optimizer, "state": states},
    }
    return left, parts


def _without_rows(
    values: dict[str, Any], place: str, rank: int, size: int
) -> tuple[dict[str, Any], list[Part]]:
    """Return the values that have no rows, and a rank's rows of the others."""
    left = {}
    parts = []
    for name, value in values.items():
        if isinstance(value, Tensor) and value.dim():
            parts.append(_part(f"{place}/{name}", value.detach(), rank, size))
        else:
            left[name] = value
    return left, parts


def _part(name: str, tensor: Tensor, rank: int, size: int) -> Part:
    R = tensor.shape[0]
    if isinstance(tensor, DTensor):
        return Part(name, tensor.to_local(), first_row(tensor), R)
    most = -(-R // size)
    first = min(R, rank * most)
    return Part(name, tensor[first : first + most].contiguous(), first, R)
