"""Dropout that costs little: one comparison of random bits per element.

The bits come from torch's global generator. torch.nn.functional.dropout draws a Bernoulli number
for each element, on a CPU one after the other; here each draw of 64 bits decides four elements.
Source: dropout, Srivastava et al. 2014, JMLR 15.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 1 << 16  # 16 bits decide an element: a rate is met to 1 / 131,072


def _dropped_levels(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)


def keep_mask(shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
    """Return which elements stay, bool of `shape`: each is dropped with probability `rate`.

    Elements are independent. The draws come from the device's global generator, so that a
    recomputation under `preserve_rng_state` repeats them.
    """
    levels = _dropped_levels(rate)
    if device.type != "cpu":
        # one number per element is fast there, and MPS cannot draw 64 bits
        return torch.rand(torch.Size(shape), device=device) >= levels / LEVELS
    n = torch.Size(shape).numel()
    draws = torch.empty((n + 3) // 4, dtype=torch.int64, device=device).random_(-(1 << 63), None)
    return (draws.view(torch.int16)[:n] >= levels - LEVELS // 2).view(shape)


def drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """Return x with dropped elements set to 0 and the others scaled up, so that the mean stays."""
    if keep is None:
        return x
    return x * keep * (1 / (1 - _dropped_levels(rate) / LEVELS))
