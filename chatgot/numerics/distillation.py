"""What a student learns: the text, and which tokens its teachers expect in each place of it.

The teachers' part of the loss is the cross-entropy against the mean of their probabilities. That is
what several models together predict; the mean of their logits would be another distribution.

Sources: Hinton et al. 2015, arXiv:1503.02531 (one student of several models, the temperature and
its square); Furlanello et al. 2018, arXiv:1805.04770 (students of the teachers' own size).

Letters: B batch, T time (tokens), V vocabulary; N tokens that models of one vocabulary have in
common, for some have more rows than tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatgot.data.windows import NOT_LEARNED
from chatgot.model.gpt import GPT
from chatgot.numerics.multi_token import later_loss

# Bytes for each token and row of the vocabulary, beside the student's own: the teachers'
# probabilities, their product with the student's log-probabilities, and its gradient
TEACHING_BYTES = 12


@dataclass(frozen=True)
class Teaching:
    """Teachers, and how much they count.

    models: in evaluation mode, on the student's device; they are never changed.
    n_tokens: N.
    weight, temperature: as in `training.distillation`; the weight is above 0.
    """

    models: Sequence[GPT]
    n_tokens: int
    weight: float
    temperature: float

    @property
    def loss_scale(self) -> float:
        """How many times larger the loss that is trained on is than a cross-entropy like it."""
        return 1 - self.weight + self.weight * self.temperature**2

    def losses(
        self, model: nn.Module, x: Tensor, y: Tensor, later: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return the loss to train on, () in fp32, and the losses that are told, (3,).

        The first of those is what is trained on, but for the later tokens. The others are its
        parts, in nats per token: the cross-entropy on the text, and that against the teachers. All
        are means over the targets that are learned from.

        x, y: (B, T). The caller enters the autocast context, and has seeded the generators.
        later: how much the tokens after the next one count on the text's side (multi_token.py).
        """
        expected = mean_probabilities(self.models, x, self.n_tokens, self.temperature)  # (B, T, N)
        logits = model(x)[0].float()  # (B, T, V)
        text, taught = losses_of_parts(logits, y, expected, self.temperature)
        both = (1 - self.weight) * text + self.weight * self.temperature**2 * taught
        trained_on = both
        if later and self.weight < 1:
            trained_on = both + (1 - self.weight) * later_loss(logits, y, later)
        return trained_on, torch.stack((both, text, taught))

    def flops_per_token(self, T: int) -> int:
        """Return the floating-point operations of all teachers for one token of windows of T."""
        return sum(model.flops_of_forward(T) for model in self.models)


def mean_probabilities(
    models: Sequence[GPT], x: Tensor, n_tokens: int, temperature: float = 1.0
) -> Tensor:
    """Return the mean of what models in evaluation mode expect after x (B, T): (B, T, N) in fp32.

    They are added in their order, which decides the last bits.
    """
    with torch.no_grad():
        total = torch.zeros((*x.shape, n_tokens), device=x.device)  # (B, T, N)
        for model in models:
            logits = model(x)[0][..., :n_tokens].float()  # (B, T, N)
            total += F.softmax(logits / temperature, dim=-1)
        return total.div_(len(models))


def losses_of_parts(
    logits: Tensor, y: Tensor, expected: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies of fp32 logits (B, T, V): with y (B, T), and with `expected`.

    expected: probabilities, (B, T, N). Each loss is a mean, (), over the targets learned from.
    """
    log_p = F.log_softmax(logits, dim=-1)  # (B, T, V)
    text = F.nll_loss(log_p.flatten(0, 1), y.flatten())  # ()
    if temperature != 1:
        log_p = F.log_softmax(logits / temperature, dim=-1)  # (B, T, V)
    each = -(expected * log_p[..., : expected.size(-1)]).sum(-1)  # (B, T)
    learned = y != NOT_LEARNED  # (B, T)
    return text, (each * learned).sum() / learned.sum()
