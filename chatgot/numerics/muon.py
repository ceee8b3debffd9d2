"""Muon for the hidden matrices, AdamW for the rest, behind one optimizer's interface.

Letters: n matrices of one shape, R rows, C columns.
Sources: Muon, Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. NorMuon, Li et al.
2025, arXiv:2510.05491.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from chatgot.machine.measured import bf16_gain
from chatgot.numerics.eager_optimizers import AdamW, EagerOptimizer

# Coefficients of x, (x x^T) x and (x x^T)^2 x, one row for each iteration. Each row is the minimax
# polynomial for the interval of singular values that the last iteration leaves. The first interval
# is 0.01 to 1; after the third iteration the singular values lie in 0.73 to 1.27.
ITERATIONS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))


# Below it the mean square of a row is not divided by: a row without a gradient has 0.
LEAST_SQUARE = 1e-20


class Muon(EagerOptimizer, torch.optim.Muon):
    """torch.optim.Muon with an update that is fast on a CPU.

    `orthogonal` needs three iterations, torch's own version five. Matrices of one shape are
    orthogonalised together, in batched products. A weight that stacks several matrices (queries,
    keys and values, say) is split first: `pieces` in its group is the number of matrices of equal
    height, or lists the rows of each.

    dtype: of the products. torch's own class always uses bf16, which is a hundred times slower than
    fp32 on CPUs without bf16 instructions.
    beta2: None, or NorMuon: each row of an update is divided by the root of the running mean of its
        mean square, whose decay rate this is. The update keeps its Frobenius norm.
    together: momentum, decay and update of all parameters are one operation each. On a GPU that is
        fewer launches; on a CPU, where it computes the same bits, a gradient would leave the cache
        between two of them.
    """

    def __init__(  # noqa: PLR0913 those of torch's Muon, dtype and NorMuon's rate
        self,
        params: ParamsT,
        dtype: torch.dtype,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool = True,
        beta2: float | None = None,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ITERATIONS,  # type: ignore[arg-type] # torch repeats one row
            ns_steps=len(ITERATIONS),
        )
        if beta2 is not None:
            for group in self.param_groups:
                group["beta2"] = beta2
        self.dtype = dtype
        self.together: bool = self.param_groups[0]["params"][0].is_cuda

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Update the weights by the momentum of their gradients, made orthogonal."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p, momentum in zip(parameters, self._momenta(parameters, group), strict=True):
                by_shape[p.shape].append((p, momentum))
            for pairs in by_shape.values():
                self._update(pairs, group)

    def _momenta(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the momenta by the gradients; return the matrices to orthogonalise."""
        if not self.together or not parameters:
            return [self._momentum(p, group) for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        buffers: list[Tensor] = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        if not group["nesterov"]:
            return buffers
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])  # noqa: SLF001 in torch
        return list(ahead)

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Update a parameter's momentum by its gradient; return the matrix to orthogonalise."""
        assert p.grad is not None
        buffer: Tensor = self.state[p]["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer

    def _update(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """Decay parameters of one shape, then update them by their orthogonalised momentum.

        pairs: each parameter with its momentum, both (height, C).
        """
        stack = torch.stack([momentum for _, momentum in pairs])  # (parameters, height, C)
        means = [self.state[p].get("second_moment") for p, _ in pairs]
        for rows, updates, factor in self.orthogonal_pieces(stack, means, group):
            self._apply(
                [p[rows] for p, _ in pairs],
                updates,
                decay=1 - group["lr"] * group["weight_decay"],
                rate=group["lr"] * factor,
            )

    def orthogonal_pieces(
        self, stack: Tensor, means: Sequence[Tensor | None], group: dict[str, Any]
    ) -> Iterator[tuple[slice, Tensor, float]]:
        """Yield the updates of parameters of one shape, one run of equal pieces after the other.

        Each time: the rows of a run; their updates, (parameters, rows of the run, C); and a factor
        on the learning rate.

        stack: momenta, (parameters, height, C).
        means: NorMuon's running means of each parameter, (height, 1), which take in the updates.
        """
        _, height, C = stack.shape
        for rows, R in _runs(group["pieces"], height):
            of_rows = [mean[rows] for mean in means if mean is not None]
            updates = self.orthogonal_rows(stack[:, rows], of_rows, R, group)
            factor = max(1.0, R / C) ** 0.5  # on the learning rate, as torch's adjust_lr "original"
            yield rows, updates, factor

    def orthogonal_rows(
        self, rows: Tensor, means: list[Tensor], R: int, group: dict[str, Any]
    ) -> Tensor:
        """Return the updates of the same rows of some parameters, (parameters, rows, C).

        rows: of their momenta, (parameters, rows, C); each R of them are a matrix.
        means: NorMuon's running means of these rows, which take in the updates; without it, none.
        """
        count, _, C = rows.shape
        x = rows.reshape(-1, R, C).to(self.dtype)  # (n, R, C)
        updates = orthogonal(x, group["ns_coefficients"], group["eps"])  # (n, R, C)
        if "beta2" in group:
            updates = normalised(updates, means, group["beta2"])  # (n, R, C)
        return updates.reshape(count, -1, C)

    def _apply(self, weights: list[Tensor], updates: Tensor, decay: float, rate: float) -> None:
        """Multiply weights by `decay`, then subtract `rate` x updates; updates: stacked."""
        if not self.together:
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(decay)
                weight.add_(update, alpha=-rate)
            return
        # one launch needs one dtype and layout of all; torch would take them one by one otherwise
        alike = updates.to(weights[0].dtype).contiguous()
        torch._foreach_mul_(weights, decay)
        torch._foreach_add_(weights, list(alike.unbind()), alpha=-rate)


def _runs(pieces: int | Sequence[int], height: int) -> Iterator[tuple[slice, int]]:
    """Yield each run of neighbouring pieces of equal height: all its rows, and R of one piece."""
    if isinstance(pieces, int):
        yield slice(0, height), height // pieces
        return
    assert sum(pieces) == height
    begin = 0
    for R, equal_ones in groupby(pieces):
        end = begin + sum(equal_ones)
        yield slice(begin, end), R
        begin = end


def orthogonal(x: Tensor, iterations: Sequence[tuple[float, float, float]], eps: float) -> Tensor:
    """Return matrices close to the nearest orthogonal ones; x is (n, R, C).

    First x is divided by the fourth root of the sum of its singular values' fourth powers. The
    first product gives this number; it is never below the largest singular value and much closer to
    it than the Frobenius norm. Singular values of 0.01 or more after this division end between 0.7
    and 1.3; in bf16 the largest may reach 1.6.

    Source: quintic Newton-Schulz iteration, Jordan et al. 2024; its coefficients: Amsel et al.,
    arXiv:2505.16932.
    """
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.transpose(1, 2)  # from here on R <= C
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for i, (a, b, c) in enumerate(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))  # (n, R, R)
        if i == 0:
            size = gram.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # (n, 1, 1)
            x = x / size.sqrt()
            gram = gram / size
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (n, R, R)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.transpose(1, 2) if tall else x


def normalised(x: Tensor, means: list[Tensor], beta2: float) -> Tensor:
    """Return updates whose rows are alike in size over time; x is (n, R, C).

    Each row is divided by the root of its running mean of mean squares. Then each matrix gets its
    Frobenius norm back, so the means need no correction for having started at 0.

    means: the running means of one parameter's rows each, (rows, 1); they take in `x` here.
    Source: NorMuon, arXiv:2510.05491, algorithm 1.
    """
    squares = x.float().square().mean(dim=-1, keepdim=True)  # (n, R, 1)
    torch._foreach_lerp_(means, list(squares.view(len(means), -1, 1).unbind()), 1 - beta2)
    mean = torch.stack(means).view_as(squares).clamp(min=LEAST_SQUARE)  # (n, R, 1)
    scaled = (squares / mean).sum(dim=1, keepdim=True).clamp(min=LEAST_SQUARE)  # (n, 1, 1)
    restored = squares.sum(dim=1, keepdim=True) / scaled  # (n, 1, 1)
    return x * (restored / mean).sqrt()


class MuonWithAdamW(EagerOptimizer):
    """One optimizer over two: the groups of `muon`, then those of `adamw`; all share one state."""

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self.muon = muon
        self.adamw = adamw
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        count = len(self.muon.param_groups)
        self.muon.param_groups = self.param_groups[:count]
        self.adamw.param_groups = self.param_groups[count:]
        self.muon.state = self.state
        self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` has returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Update all weights.

        All `step` counters of Muon's groups are raised before Muon changes its first weight.
        """
        assert closure is None
        groups = self.muon.param_groups
        counters = [self.state[p]["step"] for group in groups for p in group["params"]]
        torch._foreach_add_(counters, 1)
        self.muon.step()
        self.adamw.step()


def pick_muon_precision(model: nn.Module, device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the dtype for Muon's products: bf16 if it is fast on this machine, else fp32."""
    if device.type != "cpu":
        return "bf16"
    shapes = (p.shape for p in model.parameters() if p.dim() == 2)
    rows, columns = max(shapes, key=lambda shape: shape.numel())
    return "fp32" if bf16_gain(columns, rows) < 1 else "bf16"
