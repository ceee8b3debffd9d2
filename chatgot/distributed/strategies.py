"""How the weights lie on the ranks: whole on each of them, or a part of each on every one.

`ddp`: each rank has all weights, and gradients are added up after a step's last micro-batch.
`fsdp`: torch's FSDP2. A rank keeps its rows of each weight, of its gradient and of the optimizer's
state; a block's weights are put together while that block computes.
Source: FSDP, Zhao et al. 2023, arXiv:2304.11277; DTensor, torch.distributed.tensor.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from chatgot.model.gpt import GPT

# Gradients are added up in fp32. Weights are sent in fp32, too: autocast rounds them after that, so
# a run may go from bf16 to fp32 and back.
POLICY = MixedPrecisionPolicy(reduce_dtype=torch.float32)


def shard(model: GPT, mesh: DeviceMesh | None = None) -> None:
    """Leave each rank its rows of all weights; every block, and what is outside them, is one unit.

    Gradients become sums over the ranks, not means.

    mesh: of the ranks; None: all of the default group.
    """
    units: list[nn.Module] = [*model.blocks, model]
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=POLICY)
        part = cast("FSDPModule", unit)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other


def add_up_in_backward(model: nn.Module, add_up: bool) -> None:
    """Choose whether the next backward pass adds the gradients up over the ranks.

    False while more micro-batches of the step are to come: their gradients stay on the rank.
    """
    sharded = cast("FSDPModule", model)
    sharded.set_is_last_backward(add_up)
    sharded.set_requires_gradient_sync(add_up)


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, cut by rows as the weight `like` is.

    A tensor that is a part already, or belongs to a whole weight, is returned as it is.
    """
    if not isinstance(like, DTensor) or isinstance(full, DTensor) or not full.dim():
        return full
    rows = like.to_local().shape[0]
    first = first_row(like)
    local = full[first : first + rows].to(like.device).contiguous().clone()
    return DTensor.from_local(
        local,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=full.shape,
        stride=torch.empty(full.shape, device="meta").stride(),
    )


def first_row(like: DTensor) -> int:
    """Return the first row of this rank's part of a weight.

    torch cuts all parts but the last ones equally.
    """
    ranks = like.device_mesh.size()
    rows = -(-like.shape[0] // ranks)
    return min(like.device_mesh.get_local_rank() * rows, like.shape[0])


def parts_of_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this rank's part of named weights."""
    own: dict[str, Tensor] = model.state_dict()
    return {name: part_of(tensor, own[name]) for name, tensor in weights.items()}


def parts_of_state(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's `state_dict` with this rank's part of each tensor."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {
            name: part_of(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    return {**state, "state": parts}


def zeros_for(p: Tensor, shape: torch.Size) -> Tensor:
    """Return this rank's part of zeros that belong to a weight; shape: of the whole."""
    return part_of(torch.zeros((), dtype=p.dtype, device=p.device).expand(shape), p)


def whole(value: Any) -> Any:
    """Return a nested state with whole tensors instead of parts; all ranks have to call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value
