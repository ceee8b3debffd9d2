"""A run whose weights and optimizer state are shared out: each rank keeps its rows of them."""

from typing import Any

import torch
from torch.optim import Optimizer

from chatgot.distributed.sharded_muon import ShardedMuon
from chatgot.distributed.strategies import parts_of_state, parts_of_weights, shard, zeros_for
from chatgot.numerics.optim import allocate_state, build_optimizer
from chatgot.run.assembly import Run
from chatgot.run.run_state import Stored


def shard_run(run: Run) -> None:
    """Leave each rank its part of the weights and of the optimizer's state.

    Before this each rank has the whole weights, the same on all of them. So it is with the weights
    that the run began with, which a rewind may go back to.
    """
    before = run.optimizer.state_dict()
    began_with = None
    if run.start is not None:
        began_with = run.start["model_state_dict"]
    shard(run.model)
    settings = run.config.training
    run.optimizer = build_optimizer(
        run.model, settings, run.state.modes.muon_precision, ShardedMuon
    )
    run.optimizer.load_state_dict(parts_of_state(run.optimizer, before))
    allocate_state(run.optimizer, zeros_for)
    run.own_part = lambda stored: own_part(run, stored)
    if run.start is not None and began_with is not None:
        run.start["model_state_dict"] = parts_of_weights(run.model, began_with)
        run.start["optimizer_state_dict"] = _as_at_the_start(run.optimizer)


def _as_at_the_start(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's `state_dict` as it was before the first update: all zeros."""
    state = optimizer.state_dict()
    zeros = {
        index: {name: torch.zeros_like(value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": zeros}


def own_part(run: Run, stored: Stored) -> Stored:
    """Return a stored state with this rank's part of each weight and of the optimizer's state."""
    return {
        **stored,
        "model_state_dict": parts_of_weights(run.model, stored["model_state_dict"]),
        "optimizer_state_dict": parts_of_state(run.optimizer, stored["optimizer_state_dict"]),
    }
