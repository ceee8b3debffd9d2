"""The loss on tokens after the next one: multi-token prediction by the model's own head.

In each place a model is to say not only which token comes next, but also which ones may come right
after it. It cannot know by heart what it has to foresee, so a text that is read often teaches it
more. The extra losses fade out while the learning rate decays: the model that is kept predicts the
next token alone, and is an ordinary one.

Source: Gloeckle et al. 2024, arXiv:2404.19737, who give each distance a head of its own.

Letters: B batch, T time (tokens), V vocabulary, K distances beyond the next token.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatgot.config import TrainingConfig
from chatgot.data.windows import NOT_LEARNED
from chatgot.numerics.optim import Decay, share_of_decay

GONE_AFTER = 2 / 3  # of the learning rate's decay


def later_weights(
    step: int, settings: TrainingConfig, decay_steps: int | None, decay: Decay | None = None
) -> tuple[float, ...]:
    """Return how much each later token counts in one optimizer step, (K,); empty: not at all.

    The arguments are those of `lr_at`, and alone decide: a resumed run has the same weights.
    """
    left = 1 - share_of_decay(step, settings, decay_steps, decay) / GONE_AFTER
    if left <= 0:
        return ()
    return tuple(left * weight for weight in settings.later_token_weights)


def losses_with_later_tokens(
    model: nn.Module, x: Tensor, y: Tensor, weights: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the loss to train on and the cross-entropy of the next token, both () in fp32.

    x, y: (B, T). weights: as `later_weights` returns them. Each is the mean over the targets that
    are learned from, as the loss of the model itself.
    """
    log_p = F.log_softmax(model(x)[0].float(), dim=-1)  # (B, T, V)
    extra = later_loss(log_p, y, weights)
    text = F.nll_loss(log_p.flatten(0, 1), y.flatten(), ignore_index=NOT_LEARNED)
    return text + extra, text


def later_loss(log_p: Tensor, y: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted loss on the tokens after the next one, ().

    A target that lies beyond its window or is not learned from counts nothing; every other one as
    much as a next token, times its weight. Does not synchronise with the device.

    log_p: log-probabilities, (B, T, V). y: (B, T).
    """
    targets = later_targets(y, len(weights))  # (B, T, K)
    learned = targets != NOT_LEARNED  # (B, T, K)
    each = -log_p.gather(-1, targets.clamp(min=0)) * learned  # (B, T, K)
    sums = each.sum((0, 1)).unbind()  # K x ()
    total = torch.stack([weight * found for weight, found in zip(weights, sums, strict=True)])
    return total.sum() / (y != NOT_LEARNED).sum()


def later_targets(y: Tensor, distances: int) -> Tensor:
    """Return the tokens that follow each target, (B, T, K); NOT_LEARNED beyond the window.

    y: (B, T), the next tokens. distances: K; a window may be shorter.
    """
    later = y.new_full((*y.shape, distances), NOT_LEARNED)  # (B, T, K)
    for k in range(1, min(distances, y.size(1) - 1) + 1):
        later[:, :-k, k - 1] = y[:, k:]
    return later
