"""Which blocks recompute their activations in backward: less memory, more time, the same numbers."""

import logging

from torch import nn

logger = logging.getLogger(__name__)


def enable_gradient_checkpointing(model: nn.Module, every: int = 1) -> bool:
    """Let the model's layer loop recompute every `every`-th block in backward; return whether it is on.

    The loop itself calls torch.utils.checkpoint (non-reentrant, generators restored), so dropout masks are the same in
    both passes. A model without such a loop: one warning, False.
    """
    if not hasattr(model, "layers") or not hasattr(model, "recompute_every"):
        logger.warning(
            "gradient checkpointing stays off: %s has no layer loop that could recompute", type(model).__name__
        )
        return False
    model.recompute_every = every
    return True


def disable_gradient_checkpointing(model: nn.Module) -> bool:
    """Switch recomputation off; return whether it was on."""
    was_on = bool(getattr(model, "recompute_every", None))
    if was_on:
        model.recompute_every = None
    return was_on
