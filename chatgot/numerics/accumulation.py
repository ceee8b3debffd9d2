"""The gradient of one optimizer step: the same however its sequences are cut into micro-batches."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chatgot.data.windows import TrainingWindows
from chatgot.machine.device import seed_generators
from chatgot.numerics.precision import autocast


def add_gradients(
    model: nn.Module, windows: TrainingWindows, starts: np.ndarray, micro_batch_size: int, key: Sequence[int],
    precision: str, scale: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Add up the gradients of the micro-batches; return the mean loss, () on the device, not synchronised.

    starts: of the step's windows, (S,). Each micro-batch's loss counts by its share of the step's tokens, so the sum is
    the mean over all of them. The global generator is set for each micro-batch by (*key, its first sequence) alone;
    `key` is (seed, position). `scale` is what a loss goes through before its backward.
    """
    S, device = len(starts), windows.device
    total = torch.zeros((), device=device)
    with autocast(device, precision):  # one context: weights are cast once for all micro-batches
        for first in range(0, S, micro_batch_size):
            x, y = windows.batch(starts[first : first + micro_batch_size])
            seed_generators(device, *key, first)
            _, loss = model(x, y)
            share = loss * (len(x) / S)  # all sequences have T tokens
            scale(share).backward()
            total += share.detach()
    return total
