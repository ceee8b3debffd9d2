"""The gradient of one optimizer step; it does not depend on the micro-batch size.

Letter: S sequences of the step.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from chatgot.data.windows import TrainingWindows
from chatgot.machine.device import seed_generators
from chatgot.numerics.cuda_graphs import GraphedPass
from chatgot.numerics.distillation import Teaching
from chatgot.numerics.input_noise import with_noise
from chatgot.numerics.multi_token import multi_token_losses


def add_gradients(  # noqa: PLR0913 what a step is computed from
    model: nn.Module,
    windows: TrainingWindows,
    starts: np.ndarray,
    micro_batch_size: int,
    key: Sequence[int],
    scale: Callable[[Tensor], Tensor],
    graphed: GraphedPass | None = None,
    teaching: Teaching | None = None,
    firsts: Sequence[int] | None = None,
    input_noise: float = 0.0,
    later: Sequence[float] = (),
) -> Tensor:
    """Add up the gradients of the micro-batches; return the mean loss, () on the device.

    The mean loss is that on the next token, over all targets of the step that are learned from.
    With teachers it is (3,): what is trained on, then its parts (see Teaching.losses).

    The caller enters the autocast context: with one context for all micro-batches, weights are cast
    only once. Does not synchronise with the device.

    starts: where the step's windows start in the text, (S,).
    key: (seed, position). Each micro-batch seeds the global generators from (*key, index of its
        first sequence) alone.
    scale: applied to each loss before its backward (loss scaling).
    graphed: replays micro-batches where it can; they see `scale` only as a factor then, so whether
        the loss is finite shows in the mean alone. With teachers or later tokens nothing is
        replayed.
    firsts: of the micro-batches to compute, the index of the first sequence; None: all. Of a part
        of them, the gradients and losses are that part's share of the step's.
    input_noise: `training.input_noise`.
    later: how much the tokens after the next one count (multi_token.py).
    """
    S = len(starts)
    device = windows.device
    targets = windows.targets(starts)  # (S,)
    total = torch.zeros(() if teaching is None else 3, device=device)
    for first in range(0, S, micro_batch_size) if firsts is None else firsts:
        x, y = windows.batch(starts[first : first + micro_batch_size])
        x = with_noise(x, input_noise, key, first)
        seed_generators(device, *key, first)
        # weighted by the micro-batch's share of the step, so the sum is the mean over all targets
        # that are learned from
        here = int(targets[first : first + micro_batch_size].sum())
        weight = here / int(targets.sum())
        share = None
        if teaching is not None:
            trained_on, told = teaching.losses(model, x, y, later)
            share = told * weight  # (3,)
            scale(trained_on * weight).backward()  # type: ignore[no-untyped-call] # untyped in torch
        elif later:
            trained_on, text = multi_token_losses(model, x, y, later)
            share = text * weight
            scale(trained_on * weight).backward()  # type: ignore[no-untyped-call] # untyped in torch
        elif graphed is not None:
            share = graphed.add_gradient(x, y, weight, scale)
        if share is None:
            _, loss = model(x, y)
            share = loss * weight
            scale(share).backward()  # type: ignore[no-untyped-call] # untyped in torch
        total += share.detach()
    return total
