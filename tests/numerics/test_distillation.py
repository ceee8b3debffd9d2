"""The teachers' part of the loss: cross-entropy against the mean of their probabilities."""

import parts
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatgot.config import ModelConfig
from chatgot.data.windows import NOT_LEARNED
from chatgot.model.gpt import GPT, build_model
from chatgot.numerics.distillation import Teaching, losses_of_parts, mean_probabilities
from chatgot.numerics.multi_token import later_loss

V = 11
X = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
Y = torch.tensor([[2, 3, 4, NOT_LEARNED], [6, 7, 8, 9]])


def model(seed: int, dropout: float = 0.0) -> GPT:
    shape = ModelConfig(
        d_model=16, n_layers=1, n_head=2, max_seq_length=8, dropout=dropout, init_range=0.5
    )
    return build_model(shape, V, torch.device("cpu"), seed)


def teachers(dropout: float = 0.0) -> list[GPT]:
    return [model(seed, dropout).eval() for seed in (1, 2, 3)]


def mean_of_logits(models: list[GPT], x: Tensor) -> Tensor:
    """A broken twin: the mean of the logits is another distribution."""
    return F.softmax(torch.stack([m(x)[0] for m in models]).mean(0), dim=-1)


def test_teachers_expect_the_mean_of_their_probabilities():
    models = teachers()
    found = mean_probabilities(models, X, V)
    expected = torch.stack([F.softmax(m(X)[0], dim=-1) for m in models]).mean(0)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, mean_of_logits(models, X), atol=1e-3)


def test_teachers_have_no_dropout_and_no_gradient():
    models = teachers(dropout=0.5)
    once = mean_probabilities(models, X, V)
    assert torch.equal(once, mean_probabilities(models, X, V))
    assert not once.requires_grad
    for m in models:
        m.train()
    assert not torch.equal(once, mean_probabilities(models, X, V))


def test_each_part_is_a_mean_over_the_targets_that_are_learned():
    logits = model(4)(X)[0].float()
    expected = mean_probabilities(teachers(), X, V)
    text, taught = losses_of_parts(logits, Y, expected, 1.0)
    log_p = F.log_softmax(logits, dim=-1)
    places = [(b, t) for b in range(2) for t in range(4) if Y[b, t] != NOT_LEARNED]
    by_hand = torch.stack([-(expected[b, t] * log_p[b, t]).sum() for b, t in places]).mean()
    torch.testing.assert_close(taught, by_hand)
    torch.testing.assert_close(text, torch.stack([-log_p[b, t, Y[b, t]] for b, t in places]).mean())


@pytest.mark.parametrize(("weight", "temperature"), [(0.7, 1.0), (0.5, 2.0), (1.0, 3.0)])
def test_the_trained_loss_is_the_weighted_sum_of_both(weight, temperature):
    teaching = Teaching(teachers(), V, weight, temperature)
    trained_on, (both, text, taught) = teaching.losses(model(4), X, Y)
    expected = (1 - weight) * text + weight * temperature**2 * taught
    torch.testing.assert_close(trained_on, expected)
    assert torch.equal(trained_on, both)


@pytest.mark.parametrize("weight", [0.7, 1.0])
def test_later_tokens_count_on_the_texts_side_and_are_not_told(weight):
    teaching = Teaching(teachers(), V, weight, 1.0)
    trained_on, told = teaching.losses(model(4), X, Y, (0.5, 0.25))
    alone, expected = teaching.losses(model(4), X, Y)
    assert torch.equal(told, expected)
    later = (1 - weight) * later_loss(model(4)(X)[0], Y, (0.5, 0.25))
    torch.testing.assert_close(trained_on, alone + later)


def test_a_student_that_equals_its_teacher_has_no_gradient_from_it():
    teacher = model(1).eval()
    student = model(1).train()
    teaching = Teaching([teacher], V, 1.0, 1.0)
    teaching.losses(student, X, Y)[0].backward()
    norms = [float(p.grad.norm()) for p in student.parameters() if p.grad is not None]
    assert max(norms) < 1e-5


def test_a_run_without_teachers_computes_as_before():
    assert not parts.run().teachers
