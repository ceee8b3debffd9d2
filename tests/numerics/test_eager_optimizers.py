"""Optimizers without torch's compiler compute and store what torch's own do."""

import pytest
import torch

from chatgot.numerics.eager_optimizers import AdamW


def two_steps(kind: type[torch.optim.AdamW], **options: bool) -> torch.optim.AdamW:
    """Return an optimizer after two steps and a reload of its state between them."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.nn.Parameter(torch.randn(3, 4, generator=generator)) for _ in range(2)]
    groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "lr": 0.01}]
    optimizer = kind(groups, lr=0.1, **options)
    for _ in range(2):
        loss = sum((weight**3).sum() for weight in weights)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(weight.grad is None for weight in weights)
        optimizer.load_state_dict(optimizer.state_dict())
    return optimizer


@pytest.mark.parametrize("fused", [False, True])
def test_eager_adamw_computes_and_stores_the_bits_of_torchs_own(fused):
    found = two_steps(AdamW, fused=fused)
    expected = two_steps(torch.optim.AdamW, fused=fused)
    for ours, theirs in zip(found.param_groups, expected.param_groups, strict=True):
        assert torch.equal(ours["params"][0], theirs["params"][0])
        assert ours.keys() == theirs.keys()
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_an_eager_optimizer_keeps_torchs_hooks_and_checks():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = AdamW([weight])
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    weight.grad = torch.ones(2)
    optimizer.step()
    assert steps == [1]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [weight]})
