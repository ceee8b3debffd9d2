"""How well the model predicts held-out text."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from chatgot.data import Batch
from chatgot.model import evaluating
from chatgot.precision import autocast


def evaluate(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, precision: str, stopped: Callable[[], bool]
) -> float | None:
    """Return the mean loss in nats per token over all tokens of `batches`; None when `stopped` says so in between.

    Leaves the training's generators, mode and gradients as they are.
    """
    total, tokens = 0.0, 0
    with evaluating(model), autocast(device, precision):
        for x, y in batches:
            if stopped():
                return None
            _, loss = model(x, y)
            total += loss.item() * y.numel()
            tokens += y.numel()
    return total / tokens
