"""Muon where each rank has a part of every matrix: each orthogonalises some whole matrices.

Letters: n matrices of one shape, R rows, C columns.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from chatgot.numerics.muon import Muon


class ShardedMuon(Muon):
    """Muon on parts: gather, iterate, scatter.

    Momentum is updated on the parts. Then each matrix goes to one rank, its owner, which gets the
    parts of all others, orthogonalises the whole matrix, and sends each rank its rows of the
    update. So every rank does an equal share of the products. NorMuon's running means travel with
    the matrix, as one more column.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # takes no closure
        """Update the weights by the momentum of their gradients, made orthogonal."""
        assert closure is None
        numbers = count()  # of the matrices, which go to the ranks in turn
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[DTensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for parameters in by_shape.values():
                owners = [next(numbers) for _ in parameters]
                self._update_parts(parameters, owners, group)

    def _update_parts(
        self, parameters: list[DTensor], owners: list[int], group: dict[str, Any]
    ) -> None:
        """Update parameters of one shape; owners: their numbers, by which the ranks take turns."""
        mesh = parameters[0].device_mesh
        ranks = mesh.size()
        owned = [
            [i for i, number in enumerate(owners) if number % ranks == rank]
            for rank in range(ranks)
        ]
        rows = _rows_of_ranks(parameters[0].shape[0], ranks)
        own = [self._own_part(p, group) for p in parameters]  # each (rows here, C or C + 1)
        exchange = _Exchange(owned, rows, mesh.get_local_rank(), mesh.get_group())
        stack = exchange.gather(own)  # (owned here, height, C or C + 1)
        C = parameters[0].shape[1]
        updates = torch.empty_like(stack)
        if len(stack):
            means = [matrix[:, C:].contiguous() for matrix in stack]
            for run, pieces, factor in self.orthogonal_pieces(stack[:, :, :C], means, group):
                updates[:, run, :C] = pieces.to(updates.dtype) * factor
            for i, mean in enumerate(means):
                updates[i, :, C:] = mean
        parts = exchange.scatter(updates)  # each (rows here, C or C + 1)
        for p, part in zip(parameters, parts, strict=True):
            local = p.to_local()
            local.mul_(1 - group["lr"] * group["weight_decay"])
            local.add_(part[:, :C], alpha=-group["lr"])
            if "beta2" in group:
                self.state[p]["second_moment"].to_local().copy_(part[:, C:])

    def _own_part(self, p: DTensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum of this rank's rows; return what the owner needs of them."""
        assert isinstance(p.grad, DTensor)
        gradient = p.grad.to_local()
        buffer = self.state[p]["momentum_buffer"].to_local()
        buffer.lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        if "beta2" not in group:
            return ahead
        return torch.cat([ahead, self.state[p]["second_moment"].to_local()], dim=1)


def _rows_of_ranks(height: int, ranks: int) -> list[int]:
    """Return how many rows of a matrix each rank has; torch cuts all but the last ones equally."""
    most = -(-height // ranks)
    return [max(0, min(most, height - rank * most)) for rank in range(ranks)]


class _Exchange:
    """Sends rows of matrices to their owners and back.

    owned: the matrices of each rank. rows: how many rows of a matrix each rank has.
    """

    def __init__(
        self, owned: Sequence[Sequence[int]], rows: Sequence[int], rank: int, group: Any
    ) -> None:
        self._owned = owned
        self._rows = rows
        self._rank = rank
        self._group = group

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the whole matrices that this rank owns, (n, R, C), from all ranks' rows of all."""
        C = parts[0].shape[1]
        out = torch.cat([parts[i].reshape(-1) for owned in self._owned for i in owned])
        here = self._rows[self._rank]
        mine = len(self._owned[self._rank])
        sent = [len(owned) * here * C for owned in self._owned]
        received = [mine * rows * C for rows in self._rows]
        flat = self._send(out, sent, received)
        pieces = [
            piece.view(mine, rows, C)
            for piece, rows in zip(torch.split(flat, received), self._rows, strict=True)
        ]
        return torch.cat(pieces, dim=1)

    def scatter(self, matrices: Tensor) -> list[Tensor]:
        """Return this rank's rows of all matrices, in their order, from the owners' whole ones."""
        mine, _, C = matrices.shape
        here = self._rows[self._rank]
        cut = torch.split(matrices, list(self._rows), dim=1)
        out = torch.cat([piece.reshape(-1) for piece in cut])
        sent = [mine * rows * C for rows in self._rows]
        received = [len(owned) * here * C for owned in self._owned]
        flat = self._send(out, sent, received)
        parts: dict[int, Tensor] = {}
        for owned, piece in zip(self._owned, torch.split(flat, received), strict=True):
            for i, rows in zip(owned, piece.view(len(owned), here, C), strict=True):
                parts[i] = rows
        return [parts[i] for i in range(len(parts))]

    def _send(self, out: Tensor, sent: list[int], received: list[int]) -> Tensor:
        flat = out.new_empty(sum(received))
        dist.all_to_all_single(flat, out, received, sent, group=self._group)
        return flat
