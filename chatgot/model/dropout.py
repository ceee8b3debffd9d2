"""Fast dropout: one comparison of 16 random bits per element.

The bits come from torch's global generator. On a CPU, torch.nn.functional.dropout draws one
Bernoulli number after the other, one for each element; here, 64 random bits decide four elements.
Source: dropout, Srivastava et al. 2014, JMLR 15.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 1 << 16  # 16 bits decide an element, so a rate is exact to 1 / 131,072


def _dropped_levels(rate: float) -> int:
    return min(round(rate * LEVELS), LEVELS - 1)


def keep_mask(shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
    """Draw a dropout mask, bool of `shape`, True: keep.

    Each element is dropped with probability `rate`, independently. The device's global generator is
    used, so a recomputation under `preserve_rng_state` draws the same mask.
    """
    levels = _dropped_levels(rate)
    if device.type != "cpu":
        # on a GPU one number per element is fast, and MPS cannot draw 64 bits
        return torch.rand(torch.Size(shape), device=device) >= levels / LEVELS
    n = torch.Size(shape).numel()
    draws = torch.empty((n + 3) // 4, dtype=torch.int64, device=device).random_(-(1 << 63), None)
    return (draws.view(torch.int16)[:n] >= levels - LEVELS // 2).view(shape)


def drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """Return x with dropped elements set to 0 and the others scaled up to keep the mean."""
    if keep is None:
        return x
    return x * keep * (1 / (1 - _dropped_levels(rate) / LEVELS))
