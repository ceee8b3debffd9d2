"""The loss on tokens after the next one: its value, how it fades out, and that a step uses it."""

import parts
import pytest
import torch
import torch.nn.functional as F

from chatgot.config import Config
from chatgot.data.windows import NOT_LEARNED
from chatgot.numerics.multi_token import (
    later_loss,
    later_targets,
    multi_token_losses,
    multi_token_weights,
)
from chatgot.numerics.optim import Decay, lr_at
from chatgot.planning.counting import Way, count_on_cpu
from chatgot.training.log_lines import multi_token_line
from chatgot.training.step import compute_gradients

V = 11
WEIGHTS = [0.5, 0.25]


def settings(**training):
    """Return the settings of a run of 100 steps with two later tokens."""
    keys = {"max_steps": 100, "warmup_steps": 10, "multi_token_weights": WEIGHTS, **training}
    return Config(training=keys).training


def draw(B=2, T=5):
    """Return log-probabilities (B, T, V) and targets (B, T)."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(B, T, V, generator=generator)
    return F.log_softmax(logits, dim=-1), torch.randint(V, (B, T), generator=generator)


def by_hand(log_p, y, weights):
    """Return the loss, token by token."""
    B, T = y.shape
    learned = sum(int(y[b, t]) != NOT_LEARNED for b in range(B) for t in range(T))
    total = 0.0
    for b in range(B):
        for t in range(T):
            for k, weight in enumerate(weights, 1):
                here = t + k < T and int(y[b, t]) != NOT_LEARNED
                if here and int(y[b, t + k]) != NOT_LEARNED:
                    total -= weight * float(log_p[b, t, int(y[b, t + k])])
    return total / learned


def plain_loss(logits, y, weights):
    """Return the loss of the next token and of the later ones, by torch's own cross-entropy."""
    total = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
    for k, weight in enumerate(weights, 1):
        ahead = y[:, k:].masked_fill(y[:, :-k] == NOT_LEARNED, NOT_LEARNED)
        each = logits[:, :-k].flatten(0, 1)
        total = total + weight * F.cross_entropy(each, ahead.flatten(), reduction="sum")
    return total / (y != NOT_LEARNED).sum()


@pytest.mark.parametrize("weights", [[1.0], WEIGHTS, [0.1, 0.0, 3.0, 2.0]])
def test_each_later_token_counts_its_weight(weights):
    log_p, y = draw()
    assert later_loss(log_p, y, weights).item() == pytest.approx(by_hand(log_p, y, weights))


def test_a_target_that_is_not_learned_teaches_nothing_at_any_distance():
    log_p, y = draw()
    y[0, 2:4] = NOT_LEARNED
    y[1, 0] = NOT_LEARNED
    assert later_loss(log_p, y, WEIGHTS).item() == pytest.approx(by_hand(log_p, y, WEIGHTS))


def test_a_window_ends_before_its_last_later_tokens():
    y = torch.tensor([[1, 2, 3]])
    none = NOT_LEARNED
    assert later_targets(y, 2).tolist() == [[[2, 3], [3, none], [none, none]]]
    assert later_targets(y, 4)[0, 0].tolist() == [2, 3, none, none]
    assert later_targets(y[:, :1], 2).tolist() == [[[none, none]]]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_weights_fade_out_in_two_thirds_of_the_decay(schedule):
    chosen = settings(lr_schedule=schedule)
    assert multi_token_weights(0, chosen, 100) == (0.5, 0.25)
    assert multi_token_weights(10, chosen, 100) == (0.5, 0.25)
    assert multi_token_weights(40, chosen, 100) == pytest.approx((0.25, 0.125))
    assert multi_token_weights(69, chosen, 100)[0] > 0
    assert multi_token_weights(70, chosen, 100) == multi_token_weights(100, chosen, 100) == ()


def test_with_a_linear_decay_they_are_gone_at_a_third_of_the_rate():
    chosen = settings(lr_schedule="linear", min_learning_rate=0.0)
    assert lr_at(70, chosen, 100) == pytest.approx(chosen.learning_rate / 3)


def test_a_run_without_an_end_has_them_until_its_decay_begins():
    chosen = settings(lr_schedule="wsd", max_steps=None, epochs=1000)
    assert multi_token_weights(10**6, chosen, None) == (0.5, 0.25)
    decay = Decay(1000, 300)
    assert multi_token_weights(999, chosen, None, decay) == (0.5, 0.25)
    assert multi_token_weights(1100, chosen, None, decay) == pytest.approx((0.25, 0.125))
    assert multi_token_weights(1200, chosen, None, decay) == ()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_a_run_whose_rate_never_decays_has_none(schedule):
    chosen = settings(lr_schedule=schedule, warmup_steps=100)
    assert {multi_token_weights(step, chosen, 50) for step in (0, 25, 49)} == {()}


def test_without_the_key_there_are_none():
    assert multi_token_weights(0, settings(multi_token_weights=[]), 100) == ()


def test_loss_and_gradient_are_those_of_torchs_cross_entropy():
    """Some tokens come twice in a row, so a place has one token at two distances."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(4, (3, 9), generator=generator)
    y[1, 3:6] = NOT_LEARNED
    logits = 3 * torch.randn(3, 9, V, generator=generator)
    ours, torchs = (logits.clone().requires_grad_(True) for _ in range(2))
    trained_on, text = multi_token_losses(lambda x: (ours, None), y, y, WEIGHTS)
    expected = plain_loss(torchs, y, WEIGHTS)
    (2 * trained_on).backward()
    (2 * expected).backward()
    torch.testing.assert_close(trained_on, expected)
    torch.testing.assert_close(ours.grad, torchs.grad)
    torch.testing.assert_close(text, plain_loss(logits, y, []))
    assert not text.requires_grad


# --------------------------------------------------------------------------------------------------
# In a step


def run(**training):
    return parts.run(training={"multi_token_weights": WEIGHTS, "warmup_steps": 0, **training})


def test_a_step_trains_on_later_tokens_and_says_the_next_ones_loss():
    plain = parts.run(training={"warmup_steps": 0})
    found = run()
    loss = compute_gradients(found)
    assert loss.item() == pytest.approx(compute_gradients(plain).item(), rel=1e-6)
    gradients = [p.grad.clone() for p in found.model.parameters()]

    x, y = found.train_windows.batch(found.train_windows.starts(0, 8))
    found.model.zero_grad()
    plain_loss(found.model(x)[0].float(), y, WEIGHTS).backward()
    for expected, got in zip(found.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(got, expected.grad, atol=1e-7, rtol=1e-4)
    others = [p.grad for p in plain.model.parameters()]
    assert not parts.same(gradients, others)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_a_step_does_not_depend_on_the_micro_batch(micro_batch_size):
    whole = run(batch_size=8)
    split = run(batch_size=8)
    split.state.micro_batch.size = micro_batch_size
    assert compute_gradients(split).item() == pytest.approx(compute_gradients(whole).item())
    for one, other in zip(split.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-7, rtol=1e-4)


def test_once_they_are_gone_a_step_is_bit_for_bit_a_plain_one():
    found = run()
    plain = parts.run(training={"warmup_steps": 0})
    for each in (found, plain):
        each.state.progress.global_step = 7  # of 10
    assert torch.equal(compute_gradients(found), compute_gradients(plain))
    pairs = zip(found.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs)


def test_a_place_that_is_not_learned_gets_no_gradient():
    logits, y = draw(B=1)
    y[0, :2] = NOT_LEARNED
    logits.requires_grad_(True)
    later_loss(logits, y, WEIGHTS).backward()
    assert logits.grad[0].abs().sum(-1).gt(0).tolist() == [False, False, True, True, False]


@pytest.mark.parametrize(("step", "warned"), [(4, True), (9, False)])
def test_a_run_that_ends_before_they_are_gone_says_so(step, warned):
    """It ends by its minutes."""
    ended = run(max_minutes=1.0)
    ended.state.progress.global_step = step
    assert multi_token_line(ended) == ""
    ended.state.progress.time_s = 60.0
    assert ("let it run longer" in multi_token_line(ended)) is warned


def test_they_take_no_more_memory_than_the_next_token_alone():
    way = Way("fp32", "products", 0, False)
    alone, with_later = (
        count_on_cpu(parts.config(training={"multi_token_weights": weights}), 500, way, "fp32", 4)
        for weights in ([], WEIGHTS)
    )
    assert with_later.step <= alone.step
