"""torch's optimizers without torch's compiler, whose import takes half as long as torch's own."""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class EagerOptimizer(Optimizer):
    """An optimizer that never imports `torch._dynamo`.

    torch wraps these methods, so that its compiler leaves them alone, and each wrapper imports that
    compiler. Here they are as torch wrote them, without their wrappers.
    """

    add_param_group = unwrap(Optimizer.add_param_group)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    state_dict = unwrap(Optimizer.state_dict)
    zero_grad = unwrap(Optimizer.zero_grad)


class AdamW(EagerOptimizer, torch.optim.AdamW):
    """torch's AdamW, which computes the same bits."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Update the weights."""
        assert closure is None
        _adamw_step(self)


_adamw_step = unwrap(torch.optim.AdamW.step)
