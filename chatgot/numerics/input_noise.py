"""Noise in what a model reads, against learning a short text by heart.

Some tokens of a window are replaced by others of it, while the targets stay: a model that knows the
text by heart cannot rely on each token before the one that it predicts.
Source: unigram noising, Xie et al. 2017, arXiv:1703.02573.

Letters: B sequences at once, T tokens of each.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STREAM = 1703  # sets these draws apart from others of the same seed


def with_noise(x: Tensor, share: float, key: Sequence[int], first: int) -> Tensor:
    """Return x, (B, T) int64, with about a share of its tokens replaced by others of their window.

    The draws of a sequence depend on `key` and its index alone, not on which ones go through the
    model with it.

    key: (seed, position) of the step. first: the index of x's first sequence in the step.
    """
    if not share:
        return x
    B, T = x.shape
    places = np.tile(np.arange(T), (B, 1))  # where each token comes from
    for row, from_where in enumerate(places):
        generator = np.random.default_rng([*key, first + row, STREAM])
        replaced = generator.random(T) < share
        from_where[replaced] = generator.integers(T, size=int(replaced.sum()))
    return x.gather(1, torch.from_numpy(places).to(x.device))
