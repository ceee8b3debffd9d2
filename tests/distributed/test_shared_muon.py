"""Ranks that share Muon's work out end with the weights that one process would have."""

import copy
from functools import partial

import pytest
import thread_ranks
import torch
from torch import Tensor, nn

from chatgot.distributed.shared_muon import SharedMuon
from chatgot.numerics.muon import Muon

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
# five matrices of one shape, then one: three ranks have 1, 2 and 2, then 0, 0 and 1
SHAPES = [(6, 4)] * 5 + [(8, 3)]
STEPS = 3


def drawn(seed: int) -> list[Tensor]:
    """Return matrices of the shapes; ranks are threads here, so the generator is an own one."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def trained(muon_class, dtype: torch.dtype, beta2: float | None) -> list[Tensor]:
    """Return weights and running means after some steps."""
    weights = [nn.Parameter(matrix) for matrix in drawn(seed=0)]
    groups = [{"params": weights, "pieces": 2}]
    muon = muon_class(groups, dtype, beta2=beta2, **SETTINGS)
    for p in weights:
        muon.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if beta2 is not None:
            muon.state[p]["second_moment"] = torch.zeros(len(p), 1)
    for step in range(1, STEPS + 1):
        for p, gradient in zip(weights, drawn(seed=step), strict=True):
            p.grad = gradient
        muon.step()
    means = [muon.state[p]["second_moment"] for p in weights if beta2 is not None]
    return copy.deepcopy([*(p.detach() for p in weights), *means])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta2", [None, 0.95])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_share_muon_end_as_one_process(dtype, beta2, size):
    expected = trained(Muon, dtype, beta2)
    of_ranks = thread_ranks.by_ranks(
        size, lambda ranks: trained(partial(SharedMuon, ranks=ranks), dtype, beta2)
    )
    for tensors in of_ranks:
        for found, wanted in zip(tensors, expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for tensors in of_ranks[1:]:  # what differs by a bit drifts apart
        assert all(map(torch.equal, tensors, of_ranks[0]))


def test_each_matrix_is_made_orthogonal_by_one_rank_alone(monkeypatch):
    counts: list[int] = []
    plain = Muon.orthogonal_rows

    def counted(self, rows, *rest):
        counts.append(len(rows))
        return plain(self, rows, *rest)

    monkeypatch.setattr(Muon, "orthogonal_rows", counted)
    thread_ranks.by_ranks(
        3, lambda ranks: trained(partial(SharedMuon, ranks=ranks), torch.float32, None)
    )
    assert sum(counts) == STEPS * len(SHAPES)
    assert 0 not in counts
