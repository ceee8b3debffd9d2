"""Multi-token prediction: the loss on the tokens after the next one, from the model's own head.

In each place a model is to say not only which token comes next, but also which ones come right
after it. It learns more from the same text. The extra losses fade out while the learning rate
decays, so a run that ends its decay leaves a model that predicts the next token alone.

Sources: Gloeckle et al. 2024, arXiv:2404.19737 (several tokens ahead, with a head for each
distance); KellerJordan/modded-nanogpt, its record of 2025-12-22 (one head for all distances, and
weights that fade). How the weights were found: docs/experiments.md.

Letters: B batch, T time (tokens), V vocabulary, K tokens after the next one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chatgot.config import TrainingConfig
from chatgot.data.windows import NOT_LEARNED
from chatgot.numerics.optim import Decay, share_of_decay

GONE_AFTER = 2 / 3  # of the learning rate's decay


def multi_token_weights(
    step: int, settings: TrainingConfig, decay_steps: int | None, decay: Decay | None = None
) -> tuple[float, ...]:
    """Return how much each later token counts in one optimizer step, (K,); empty: not at all.

    It follows from the arguments, those of `lr_at`, alone: a resumed run has the same weights. A
    run whose learning rate never decays has none.
    """
    left = 1 - share_of_decay(step, settings, decay_steps, decay) / GONE_AFTER
    if left <= 0:
        return ()
    return tuple(left * weight for weight in settings.multi_token_weights)


def multi_token_losses(
    model: nn.Module, x: Tensor, y: Tensor, weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the loss to train on and the cross-entropy of the next token, both () in fp32.

    x, y: (B, T). weights: as `multi_token_weights` returns them. Both are means over the targets
    that are learned from, as the loss of the model itself.
    """
    targets = torch.cat((y.unsqueeze(-1), later_targets(y, len(weights))), dim=-1)
    losses = _losses(model(x)[0], y, targets, (1.0, *weights))  # (1 + K,)
    return losses.sum(), losses[0].detach()


def later_loss(logits: Tensor, y: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted loss on the tokens after the next one, ().

    logits: (B, T, V). y: (B, T), the next tokens.
    """
    return _losses(logits, y, later_targets(y, len(weights)), weights).sum()


def _losses(logits: Tensor, y: Tensor, targets: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted loss of each column of the targets, (K,) in fp32.

    A place whose next token is not learned from teaches no later token either. Nor does a later
    token that is not learned from, or lies beyond the window. Any other target counts its weight.
    All are divided by the number of next tokens that are learned from. Does not synchronise with
    the device.

    targets: (B, T, K).
    """
    learned = y != NOT_LEARNED  # (B, T)
    counts = (targets != NOT_LEARNED) & learned.unsqueeze(-1)  # (B, T, K)
    shares = counts / learned.sum()
    for k, weight in enumerate(weights):
        shares[..., k] *= weight
    losses: Tensor = _WeightedLosses.apply(logits, targets.clamp(min=0), shares)  # type: ignore[no-untyped-call] # untyped in torch
    return losses


class _WeightedLosses(torch.autograd.Function):
    """Cross-entropies with several targets in each place; backward passes over V once for all."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        """Return the sum of each column's losses times their shares, (K,) in fp32.

        logits: (B, T, V). targets, shares: (B, T, K).
        """
        log_p = F.log_softmax(logits.float(), dim=-1)  # (B, T, V)
        ctx.save_for_backward(log_p, targets, shares)
        ctx.dtype = logits.dtype
        return -(log_p.gather(-1, targets) * shares).sum((0, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits: in each place probabilities minus targets."""
        log_p, targets, shares = ctx.saved_tensors
        scaled = shares * gradients[0]  # (B, T, K)
        gradient = log_p.exp().mul_(scaled.sum(-1, keepdim=True))  # (B, T, V)
        # one column after the other: two of them may name the same token, and the order of their
        # additions would be left to chance on a card
        for index, share in zip(targets.split(1, -1), scaled.split(1, -1), strict=True):
            gradient.scatter_(-1, index, gradient.gather(-1, index) - share)
        return gradient.to(ctx.dtype), None, None


def later_targets(y: Tensor, K: int) -> Tensor:
    """Return the K tokens that follow each target, (B, T, K); NOT_LEARNED beyond the window.

    y: (B, T), the next tokens; T may be smaller than K.
    """
    later = y.new_full((*y.shape, K), NOT_LEARNED)  # (B, T, K)
    for k in range(1, min(K, y.size(1) - 1) + 1):
        later[:, :-k, k - 1] = y[:, k:]
    return later
