"""Muon where each rank has all matrices: each orthogonalises its share of them for all."""

from typing import Any

import torch
from torch import Tensor

from chatgot.distributed.ranks import Ranks
from chatgot.numerics.muon import Muon


class SharedMuon(Muon):
    """Muon on whole weights: iterate over a share, then gather.

    Every rank has the same gradients and updates the same momenta. Of the matrices of one shape,
    each rank orthogonalises its share; then all have the updates of all. So a product is computed
    once in the group, and the weights stay the same bits on every rank.

    ranks: of the run. The other arguments are Muon's.
    """

    def __init__(self, params: Any, dtype: torch.dtype, *, ranks: Ranks, **settings: Any) -> None:
        super().__init__(params, dtype, **settings)
        self._ranks = ranks

    def orthogonal_rows(
        self, rows: Tensor, means: list[Tensor], R: int, group: dict[str, Any]
    ) -> Tensor:
        """Return the updates of rows of all parameters, as Muon's own; all ranks call it."""
        count = len(rows)
        own = self._ranks.shares(count)[self._ranks.rank]
        if own.start < own.stop:
            updates = super().orthogonal_rows(rows[own], means[own], R, group)
        else:
            # NorMuon scales in fp32
            updates = rows[own].to(torch.float32 if "beta2" in group else self.dtype)
        if means:
            of_all = self._ranks.gather(torch.stack(means)[own], count)
            for mean, gathered in zip(means, of_all, strict=True):
                mean.copy_(gathered)
        return self._ranks.gather(updates, count)
