"""The plain forward pass against our own model's; test_to_transformers.py: against others'."""

from dataclasses import replace

import pytest
import torch
from plain_models import KINDS, as_plain, random_model

from chatgot.exchange.plain_forward import PlainLinear, PlainModel, plain_logits

V = 30
IDS = torch.randint(0, V, (32,), generator=torch.Generator().manual_seed(0))
TOLERANCE = 2e-5  # fp32 sums in another order; the logits are up to about 10


def difference(plain: PlainModel, kind: str, ids: torch.Tensor = IDS) -> float:
    """Return the largest difference from the logits of our own model of that kind."""
    ours = random_model(kind, V)(ids[None])[0][0]
    return float((plain_logits(plain, ids) - ours).abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_our_own_model(kind):
    plain = as_plain(random_model(kind, V))
    assert difference(plain, kind) < TOLERANCE
    assert difference(plain, kind, IDS[:1]) < TOLERANCE


def test_logits_are_computed_in_fp64_from_weights_of_any_dtype():
    half = random_model("qwen3", V).half()
    logits = plain_logits(as_plain(half), IDS)
    assert logits.dtype == torch.float64
    assert torch.equal(logits, plain_logits(as_plain(half.float()), IDS))


def test_logits_take_no_gradient():
    model = random_model("gpt", V).requires_grad_(True)
    assert not plain_logits(as_plain(model), IDS).requires_grad


ERRORS = {
    "another rope base": lambda plain: replace(plain, rope_base=9000.0),
    "another eps": lambda plain: replace(plain, eps=1e-3),
    "a vocabulary that is shifted by one": lambda plain: replace(
        plain, embedding=plain.embedding.roll(1, 0)
    ),
    "keys instead of queries": lambda plain: replace(
        plain, blocks=[replace(block, q=block.k) for block in plain.blocks]
    ),
    "a transposed weight": lambda plain: replace(
        plain,
        blocks=[replace(block, out=PlainLinear(block.out.weight.T)) for block in plain.blocks],
    ),
    "up and gate swapped": lambda plain: replace(
        plain, blocks=[replace(block, up=block.gate, gate=block.up) for block in plain.blocks]
    ),
    "no norm of queries": lambda plain: replace(
        plain, blocks=[replace(block, q_norm=None) for block in plain.blocks]
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_planted_error_changes_the_logits(error):
    plain = ERRORS[error](as_plain(random_model("qwen3", V)))
    assert difference(plain, "qwen3") > 1e-3


def test_the_other_gelu_changes_the_logits():
    plain = as_plain(random_model("gpt", V))
    assert difference(replace(plain, gelu="tanh"), "gpt") > 1e-4
