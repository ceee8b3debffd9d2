"""Muon for the hidden matrices, AdamW for the rest, behind one optimizer's interface.

Source: Muon, Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from chatgot.machine.measured import bf16_gain

# Of x, (x x^T) x and (x x^T)^2 x, iteration by iteration: each leaves the smallest greatest distance from 1 for the
# singular values that the one before it can leave, beginning with 0.01 to 1; after the third they lie in 0.73 to 1.27.
ITERATIONS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


class Muon(torch.optim.Muon):
    """torch.optim.Muon with its update computed so that it is fast on a CPU.

    `orthogonal` makes do with three iterations where torch's has five. Matrices of one shape are orthogonalised
    together, in batched products; a matrix that stacks several (queries, keys and values, say) is taken apart first:
    `pieces` in its group says into how many. In torch's own class every product is a bf16 one, which CPUs without bf16
    instructions compute a hundred times slower than fp32: here they are fp32 then (`dtype`).
    """

    def __init__(self, params: Any, dtype: torch.dtype, **settings: Any) -> None:
        super().__init__(params, ns_coefficients=ITERATIONS, ns_steps=len(ITERATIONS), **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the weights by the momentum of their gradients, made orthogonal; `closure` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            by_shape = defaultdict(list)
            for p in parameters:
                buffer = self.state[p]["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                by_shape[p.shape].append((p, update))
            for (rows, columns), pairs in by_shape.items():
                one = (-1, rows // group["pieces"], columns)  # of a stack of matrices
                stack = torch.stack([update for _, update in pairs]).view(one)
                updates = orthogonal(stack.to(self.dtype), group["ns_coefficients"], group["eps"])
                factor = (
                    max(1.0, one[1] / columns) ** 0.5
                )  # of the learning rate, as torch's "original"
                for (p, _), update in zip(
                    pairs, updates.reshape(len(pairs), rows, columns), strict=True
                ):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * factor)


def orthogonal(x: Tensor, iterations: Sequence[tuple[float, float, float]], eps: float) -> Tensor:
    """Return the nearest orthogonal matrices, roughly; x is (n, R, C).

    Singular values from 0.01 of the first estimate on end between 0.7 and 1.3, in bf16 the greatest up to 1.6.

    A matrix is first divided by the fourth root of the sum of its singular values' fourth powers, which the first
    product gives: that is never below the greatest of them, and much nearer to it than the Frobenius norm.
    Source: quintic Newton-Schulz iteration, Jordan et al. 2024; its coefficients: Amsel et al., arXiv:2505.16932.
    """
    tall = x.size(1) > x.size(2)
    x = x.transpose(1, 2) if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for i, (a, b, c) in enumerate(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))  # (n, R, R)
        if i == 0:
            size = gram.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # (n, 1, 1)
            x, gram = x / size.sqrt(), gram / size
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


class MuonWithAdamW(Optimizer):
    """One optimizer over two: the groups of `muon` first, then those of `adamw`; they share groups and state."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self.muon.param_groups)
        self.muon.param_groups, self.adamw.param_groups = (
            self.param_groups[:count],
            self.param_groups[count:],
        )
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` has returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all weights; the `step` of all of Muon's is counted before the first of them is changed."""
        assert closure is None
        for group in self.muon.param_groups:
            for p in group["params"]:
                self.state[p]["step"] += 1
        self.muon.step()
        self.adamw.step()


def pick_muon_precision(model: nn.Module, device: torch.device) -> str:
    """Return bf16 or fp32, for Muon's products: bf16 where this machine is fast at it."""
    rows, columns = max(
        (p.shape for p in model.parameters() if p.dim() == 2), key=lambda shape: shape.numel()
    )
    return "fp32" if device.type == "cpu" and bf16_gain(columns, rows) < 1 else "bf16"
