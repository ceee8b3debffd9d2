"""A made-up memory limit, and tiny runs under it.

More sequences at once than the limit allows raise the error of the allocator.
"""

import math
from collections.abc import Callable
from typing import Any

import parts
import torch
from torch import nn

from chatgot.run.assembly import Run
from chatgot.training.batch_size import fit_micro_batch
from chatgot.training.recovery import Outcome, recover
from chatgot.training.step import compute_gradients, update_weights

# keys of dynamic_batch_size: trials come soon, and neither memory nor speed decides
CALM = {"growth_interval_steps": 10, "memory_headroom": 0.0, "minimum_gain": -1.0, "initial": 8}
STEADY = {"learning_rate": 1e-3, "min_learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 10_000}


def never() -> bool:
    """Say that nobody has asked the run to stop."""
    return False


def is_recomputing() -> bool:
    """Return whether this forward pass recomputes activations inside a backward pass."""
    return torch._C._current_graph_task_id() != -1


class MemoryLimit:
    """Raises where more than `limit` sequences go through `place`; `fired` lists their numbers.

    limit: sequences, or a function that returns them.
    place: "forward", "backward" or "recompute".
    """

    def __init__(
        self, limit: Callable[[], float] | float = math.inf, place: str = "forward"
    ) -> None:
        self.limit = limit
        self.place = place
        self.fired: list[int] = []

    def check(self, sequences: int) -> None:
        """Raise if `sequences` is more than the limit."""
        limit = self.limit() if callable(self.limit) else self.limit
        if sequences > limit:
            self.fail(sequences)

    def fail(self, sequences: int) -> None:
        """Raise the error of the allocator."""
        self.fired.append(sequences)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def watch(self, model: nn.Module) -> None:
        """Put the model under this limit."""

        def before_forward(module: nn.Module, args: tuple) -> None:
            if self.place == "forward" or (self.place == "recompute" and is_recomputing()):
                self.check(len(args[0]))

        def after_backward(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
            if self.place == "backward":
                self.check(len(outputs[0]))

        model.layers[1].register_forward_pre_hook(before_forward)
        model.layers[0].register_full_backward_hook(after_backward)


def dynamic_run(
    limit: MemoryLimit | None = None, size: int = 8, dropout: float = 0.0, **training: Any
) -> Run:
    """Return a run of 8 sequences a step under a limit; it begins with `size` of them at once."""
    dynamic = CALM | {"enabled": True, "initial": size} | training.pop("dynamic_batch_size", {})
    one_batch = {"batch_size": 8, "accumulate_grad_batches": 1}
    keys = STEADY | one_batch | {"dynamic_batch_size": dynamic} | training
    run = parts.run(training=keys, model={"dropout": dropout, "attention_dropout": dropout})
    run.state.micro_batch.size = size
    if limit is not None:
        limit.watch(run.model)
    return run


def gradient(run: Run) -> torch.Tensor:
    """Return the gradients of all parameters as one vector in fp64."""
    return torch.cat([p.grad.flatten().double() for p in run.model.parameters()])


def train_step(run: Run, gradients: list[torch.Tensor] | None = None) -> float:
    """Do one step like the script; return its loss, and append its gradient to `gradients`."""
    assert fit_micro_batch(run, never)
    loss = compute_gradients(run)
    if gradients is not None:
        gradients.append(gradient(run))
    update_weights(run, loss)
    assert recover(run) is Outcome.GOES_ON
    return run.state.progress.train_loss


def trained_state(run: Run) -> dict[str, Any]:
    """Return copies of the weights, the optimizer's state and the generators."""
    stored = run.collect_state()
    names = ("model_state_dict", "optimizer_state_dict", "rng")
    return parts.copied({name: stored[name] for name in names})


def size_changes(run: Run) -> list[tuple[int, int]]:
    """Return (old, new) of each change of the micro-batch size so far."""
    return [(change.old, change.new) for change in run.state.micro_batch.history]
