"""The gradient of one optimizer step: the same however its sequences are cut into micro-batches.

Letter: S sequences of the step.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chatgot.data.windows import TrainingWindows
from chatgot.machine.device import seed_generators


def add_gradients(
    model: nn.Module,
    windows: TrainingWindows,
    starts: np.ndarray,
    micro_batch_size: int,
    key: Sequence[int],
    scale: Callable[[Tensor], Tensor],
) -> Tensor:
    """Add up the gradients of the micro-batches; return the mean loss, () on the device.

    Runs in the precision of the autocast context that the caller has entered: one context for all
    micro-batches casts the weights once. Does not synchronise with the device.

    starts: of the step's windows, (S,).
    key: (seed, position); the global generator is set for each micro-batch by (*key, its first
    sequence) alone.
    scale: what a loss goes through before its backward.
    """
    S = len(starts)
    device = windows.device
    total = torch.zeros((), device=device)
    for first in range(0, S, micro_batch_size):
        x, y = windows.batch(starts[first : first + micro_batch_size])
        seed_generators(device, *key, first)
        _, loss = model(x, y)
        # Weighted by the micro-batch's share of the step's tokens: the sum is the mean over all.
        share = loss * (len(x) / S)
        scale(share).backward()  # type: ignore[no-untyped-call] # untyped in torch
        total += share.detach()
    return total
