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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatgot.config import TrainingConfig
from chatgot.data.windows import NOT_LEARNED
from chatgot.numerics.optim import Decay, share_of_decay

GONE_AFTER = 2 / 3  # of the learning rate's decay
# Bytes for each token and row of the vocabulary: one more gradient of the log-probabilities
MULTI_TOKEN_BYTES = 4


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
    log_p = F.log_softmax(model(x)[0].float(), dim=-1)  # (B, T, V)
    text = F.nll_loss(log_p.flatten(0, 1), y.flatten(), ignore_index=NOT_LEARNED)
    return text + later_loss(log_p, y, weights), text


def later_loss(log_p: Tensor, y: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted loss on the tokens after the next one, ().

    A place whose next token is not learned from teaches no later token either. Nor does a later
    token that is not learned from, or lies beyond the window. Any other one counts its weight,
    where the next one counts 1. Does not synchronise with the device.

    log_p: log-probabilities, (B, T, V). y: (B, T).
    """
    targets = later_targets(y, len(weights))  # (B, T, K)
    learned = (targets != NOT_LEARNED) & (y != NOT_LEARNED).unsqueeze(-1)  # (B, T, K)
    each = -log_p.gather(-1, targets.clamp(min=0)) * learned  # (B, T, K)
    sums = each.sum((0, 1)).unbind()  # K x ()
    weighted = torch.stack([weight * loss for weight, loss in zip(weights, sums, strict=True)])
    return weighted.sum() / (y != NOT_LEARNED).sum()


def later_targets(y: Tensor, K: int) -> Tensor:
    """Return the K tokens that follow each target, (B, T, K); NOT_LEARNED beyond the window.

    y: (B, T), the next tokens; T may be smaller than K.
    """
    later = y.new_full((*y.shape, K), NOT_LEARNED)  # (B, T, K)
    for k in range(1, min(K, y.size(1) - 1) + 1):
        later[:, :-k, k - 1] = y[:, k:]
    return later
