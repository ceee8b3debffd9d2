"""One optimizer step: the same gradient however the sequences are cut, and nothing non-finite in the weights."""

import math

import numpy as np
import parts
import pytest
import torch
from torch import nn

from chatgot.machine.device import seed_generators
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Training
from chatgot.training.step import accumulate_gradients, apply_gradients


def accumulate(training: Training) -> torch.Tensor:
    return accumulate_gradients(
        training.model, training.train_windows, training.run, training.config, training.scaler
    )


def apply(training: Training, loss: torch.Tensor) -> bool:
    return apply_gradients(
        loss, training.model, training.optimizer, training.run, training.config, training.scaler
    )


def step(training: Training) -> bool:
    return apply(training, accumulate(training))


def flat_gradient(training: Training) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in training.model.parameters()])


def state(training: Training) -> dict:
    """Return copies of what an update changes: weights and optimizer."""
    return parts.copied(
        {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    )


def poison(training: Training, value: float, name: str = "layers.0.mlp.up.weight") -> list[str]:
    """Put `value` into one gradient as backward makes it; return a list that tells that it happened."""
    fired = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        fired.append(name)
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    dict(training.model.named_parameters())[name].register_hook(hook)
    return fired


# The same step, however it is cut


def reference() -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and gradient of the mean over 8 sequences as one batch, without the code under test."""
    training = parts.run()
    x, y = training.train_windows.batch(training.train_windows.starts(0, 8))
    logits, _ = training.model(x, y)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    loss.backward()
    return loss.detach(), flat_gradient(training)


@pytest.mark.parametrize(
    ("batch_size", "accumulate_grad_batches"), [(8, 1), (4, 2), (1, 8), (2, 4)]
)
def test_batch_size_times_accumulation_gives_one_gradient_and_one_loss(
    batch_size, accumulate_grad_batches
):
    training = parts.run(
        training={"batch_size": batch_size, "accumulate_grad_batches": accumulate_grad_batches}
    )
    assert training.run.micro_batch_size == batch_size
    loss, (expected_loss, expected) = accumulate(training), reference()
    assert (
        flat_gradient(training) - expected
    ).norm() <= 1e-6 * expected.norm()  # fp32: another order of summation
    assert abs(loss - expected_loss) <= 1e-6 * expected_loss


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 7, 8, 100])
def test_a_micro_batch_size_that_does_not_divide_the_step_gives_the_same_gradient(micro_batch_size):
    training = parts.run()
    training.run.micro_batch_size = micro_batch_size
    sizes = []
    training.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    loss, (expected_loss, expected) = accumulate(training), reference()
    assert sum(sizes) == 8
    assert max(sizes) == min(micro_batch_size, 8)
    assert (flat_gradient(training) - expected).norm() <= 1e-6 * expected.norm()
    assert abs(loss - expected_loss) <= 1e-6 * expected_loss


def test_a_step_trains_on_its_position_not_on_its_number():
    a, b, c = parts.run(), parts.run(), parts.run()
    a.run.position = b.run.position = 6
    b.run.global_step = 3  # after a rewind the two differ
    losses = [accumulate(training) for training in (a, b, c)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(flat_gradient(a), flat_gradient(b))
    assert not torch.equal(losses[0], losses[2])


def test_a_step_counts_step_position_and_tokens_by_one_group():
    training = parts.run()
    training.run.global_step, training.run.position, training.run.tokens = 3, 7, 100
    assert step(training)
    run = training.run
    assert (run.global_step, run.position, run.tokens) == (4, 8, 100 + 8 * 8)
    assert (training.scaler.nan_counter, run.skipped_steps) == (0, 0)
    assert math.isfinite(run.train_loss)
    assert run.grad_norm > 0


def test_the_loss_of_a_step_is_that_of_all_its_tokens_not_of_the_last_micro_batch():
    training = parts.run(training={"batch_size": 1, "accumulate_grad_batches": 8})
    losses = []
    training.model.register_forward_hook(lambda module, args, out: losses.append(out[1].item()))
    step(training)
    assert len(losses) == 8
    assert training.run.train_loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert abs(training.run.train_loss - losses[-1]) > 1e-3


def test_gradients_are_gone_after_a_step():
    training = parts.run()
    step(training)
    assert all(p.grad is None for p in training.model.parameters())


# Clipping


@pytest.mark.parametrize("grad_clip", [1e-3, 0.5])
def test_gradients_are_clipped_to_the_norm_and_the_norm_before_clipping_is_reported(grad_clip):
    plain, clipped = (
        parts.run(training={"grad_clip": None}),
        parts.run(training={"grad_clip": grad_clip}),
    )
    seen = {}
    for name, training in (("plain", plain), ("clipped", clipped)):
        training.optimizer.register_step_pre_hook(
            lambda *args, name=name, training=training: seen.update({name: flat_gradient(training)})
        )
        assert step(training)
    norm = seen["plain"].norm().item()
    assert norm > 0.5  # else nothing would be clipped here
    assert seen["clipped"].norm().item() == pytest.approx(
        grad_clip, rel=1e-4
    )  # torch adds 1e-6 to the norm
    assert torch.allclose(seen["clipped"] / grad_clip, seen["plain"] / norm, rtol=1e-3, atol=1e-9)
    assert plain.run.grad_norm == clipped.run.grad_norm == pytest.approx(norm, rel=1e-5)


def test_a_gradient_below_the_limit_is_left_bit_for_bit():
    a, b = parts.run(training={"grad_clip": None}), parts.run(training={"grad_clip": 1e9})
    assert step(a)
    assert step(b)
    assert parts.same(a.model.state_dict(), b.model.state_dict())


# What is not finite never gets in


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_bad_gradient_changes_neither_weights_nor_optimizer_and_counts(
    value, steps_before, caplog
):
    training = parts.run()
    for _ in range(steps_before):
        assert step(training)
    before = state(training)
    fired = poison(training, value)  # 3e38 is finite; its norm is not
    assert not step(training)
    assert fired
    assert parts.same(state(training), before)
    run = training.run
    assert (training.scaler.nan_counter, run.skipped_steps) == (1, 1)
    assert (run.global_step, run.position) == (
        steps_before + 1,
        steps_before + 1,
    )  # a skipped step counts
    assert all(p.grad is None for p in training.model.parameters())
    assert "skipped" in caplog.text


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_loss_with_finite_gradients_changes_nothing_and_counts(value):
    training = parts.run()
    assert step(training)
    before = state(training)
    loss = accumulate(training) + value
    assert not apply(training, loss)
    assert parts.same(state(training), before)
    assert (training.scaler.nan_counter, training.run.skipped_steps) == (1, 1)


def test_one_bad_micro_batch_out_of_eight_is_noticed():
    training = parts.run(training={"batch_size": 1, "accumulate_grad_batches": 8})
    calls = []

    def ruin_the_third(module, args, out):
        calls.append(1)
        return (out[0], out[1] * math.nan) if len(calls) == 3 else out

    training.model.register_forward_hook(ruin_the_third)
    before = state(training)
    assert not step(training)
    assert len(calls) == 8
    assert parts.same(state(training), before)


def test_bad_steps_are_counted_in_a_row_and_a_good_one_starts_again():
    training = parts.run()
    loss = torch.tensor(math.nan)
    for expected in (1, 2):
        accumulate(training)
        apply(training, loss)
        assert training.scaler.nan_counter == expected
    assert step(training)
    assert (training.scaler.nan_counter, training.run.skipped_steps) == (0, 2)
    accumulate(training)
    apply(training, loss)
    assert (training.scaler.nan_counter, training.run.skipped_steps) == (1, 3)


def test_a_run_that_skips_a_group_equals_one_that_was_never_given_it():
    skipping, jumping = parts.run(), parts.run()
    accumulate(skipping)
    apply(skipping, torch.tensor(math.nan))
    jumping.run.position = 1
    for training in (skipping, jumping):
        assert step(training)
    assert parts.same(state(skipping), state(jumping))


# Mixed precision, on shapes that a CPU without fast half precision bears


def test_fp16_with_loss_scaling_does_a_real_step_close_to_fp32():
    half, full = parts.run(precision="fp16"), parts.run()
    half.scaler = SafeGradScaler("cpu", init_scale=64.0)
    gradients = []
    for training in (half, full):
        training.optimizer.register_step_pre_hook(
            lambda *args, training=training: gradients.append(flat_gradient(training))
        )
        before = state(training)
        assert step(training)
        assert not parts.same(state(training)["model"], before["model"])
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[
        1
    ].norm()  # fp16 has 11 bits; unscaled or it fails
    assert half.run.grad_norm == pytest.approx(full.run.grad_norm, rel=0.02)
    assert half.run.train_loss == pytest.approx(full.run.train_loss, rel=0.01)
    assert half.scaler.nan_counter == 0


def test_an_fp16_overflow_lowers_the_scale_changes_nothing_and_does_not_count_as_bad():
    training = parts.run(precision="fp16")
    assert training.scaler.get_scale() == 65536
    before = state(training)
    fired = poison(training, math.inf)
    assert not step(training)
    assert fired
    assert training.scaler.get_scale() == 32768
    assert (training.scaler.nan_counter, training.run.skipped_steps) == (0, 1)
    assert parts.same(state(training), before)


def test_at_the_floor_of_the_scale_an_overflow_counts():
    training = parts.run(precision="fp16")
    training.scaler = SafeGradScaler("cpu", init_scale=1.0)
    fired = poison(training, math.inf)
    assert not step(training)
    assert fired
    assert training.scaler.nan_counter == 1


def test_a_bad_loss_in_fp16_counts_at_any_scale():
    training = parts.run(precision="fp16")
    accumulate(training)
    assert not apply(training, torch.tensor(math.nan))
    assert training.scaler.nan_counter == 1


def test_finite_fp16_gradients_whose_norm_overflows_are_not_skipped_for_ever_uncounted():
    training = parts.run(precision="fp16")
    training.scaler = SafeGradScaler("cpu", init_scale=4.0)
    for _ in range(12):
        loss = accumulate(training)
        for p in training.model.parameters():
            p.grad.fill_(1e30)
        assert not apply(training, loss)
    assert training.scaler.nan_counter > 0


def test_bf16_runs_the_linears_in_bf16_and_keeps_weights_gradients_moments_and_loss_in_fp32():
    training = parts.run(precision="bf16")
    dtypes, gradients = set(), set()
    for module in training.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    training.optimizer.register_step_pre_hook(
        lambda *args: gradients.update(p.grad.dtype for p in training.model.parameters())
    )
    loss = accumulate(training)
    assert loss.dtype == torch.float32
    assert apply(training, loss)
    assert dtypes == {torch.bfloat16}
    assert gradients == {torch.float32}
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    moments = [
        value.dtype for values in training.optimizer.state.values() for value in values.values()
    ]
    assert len(moments) == 3 * len(list(training.model.parameters()))
    assert set(moments) == {torch.float32}


def test_bf16_is_close_to_fp32_and_micro_batches_are_added_up_in_fp32():
    training = parts.run(precision="bf16", training={"batch_size": 1, "accumulate_grad_batches": 8})
    loss, (expected_loss, expected) = accumulate(training), reference()
    assert abs(loss - expected_loss) < 0.01 * expected_loss
    found = flat_gradient(training)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99
    assert not torch.equal(found, found.bfloat16().double())


def test_fp32_means_no_autocast():
    with autocast(parts.CPU, "fp32"):
        assert not torch.is_autocast_enabled("cpu")
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(parts.CPU, precision):
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == dtype
    assert not torch.is_autocast_enabled("cpu")


# Randomness


def dropout_run(**keys) -> Training:
    return parts.run(model={"dropout": 0.4, "attention_dropout": 0.4}, **keys)


def test_a_step_with_dropout_does_not_depend_on_the_generators_before_it():
    a, b = dropout_run(), dropout_run()
    torch.manual_seed(1)
    first = accumulate(a)
    torch.manual_seed(2)
    torch.rand(7)
    second = accumulate(b)
    assert torch.equal(first, second)
    assert torch.equal(flat_gradient(a), flat_gradient(b))


def masks(training: Training) -> list[torch.Tensor]:
    """Return each micro-batch's first dropout mask, by where the first block's input is zero."""
    found = []
    hook = training.model.layers[0].register_forward_pre_hook(
        lambda module, args: found.append(args[0] == 0)
    )
    accumulate(training)
    hook.remove()
    return found


def test_each_micro_batch_each_position_and_each_seed_has_masks_of_its_own():
    base = masks(dropout_run())
    assert len(base) == 2
    later = dropout_run()
    later.run.position = 1
    assert not torch.equal(base[0], base[1])
    for other in (masks(later), masks(dropout_run(seed=6))):
        assert not torch.equal(base[0], other[0])
        assert not torch.equal(base[1], other[1])
    assert all(map(torch.equal, base, masks(dropout_run())))


def test_a_micro_batchs_masks_depend_on_its_first_sequence_alone_not_on_how_the_others_were_cut():
    a, b = dropout_run(), dropout_run(training={"batch_size": 8, "accumulate_grad_batches": 1})
    a.run.micro_batch_size = b.run.micro_batch_size = 2
    assert all(map(torch.equal, masks(a), masks(b)))
    uneven = dropout_run(training={"batch_size": 8, "accumulate_grad_batches": 1})
    uneven.run.micro_batch_size = 6
    assert torch.equal(masks(uneven)[1], masks(a)[3])  # both begin at sequence 6 and hold two


def test_seeding_is_a_pure_function_of_the_key_and_of_its_order():
    draws = {}
    for key in [
        (5, 0, 0),
        (5, 0, 1),
        (5, 1, 0),
        (6, 0, 0),
        (0, 5, 0),
        (5, 0),
        (2**63 - 1, 10**9, 4096),
    ]:
        seed_generators(parts.CPU, *key)
        first = torch.rand(8)
        seed_generators(parts.CPU, *key)
        assert torch.equal(first, torch.rand(8))
        draws[key] = tuple(first.tolist())
    assert (
        len(set(draws.values())) >= len(draws) - 1
    )  # numpy: trailing zeros of a key may not count


def test_two_runs_of_ten_steps_are_bit_equal():
    finals = []
    for _ in range(2):
        training = dropout_run()
        assert all(step(training) for _ in range(10))
        finals.append((state(training), training.run.train_loss, training.run.grad_norm))
    assert finals[0][1:] == finals[1][1:]
    assert parts.same(finals[0][0], finals[1][0])
