"""One optimizer step: the same gradient however it is split, and no non-finite weights."""

import math

import numpy as np
import parts
import pytest
import torch
from torch import nn

from chatgot.machine.device import seed_generators
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.training.step import compute_gradients, judge_step, update_weights

# fp32: micro-batches change the order of the sums
ROUNDING = 1e-6


def step(run: Run) -> bool:
    """Do one step; return whether the weights were updated."""
    return update_weights(run, compute_gradients(run))


def flat_gradient(run: Run) -> torch.Tensor:
    """Return the gradients of all parameters as one vector in fp64."""
    return torch.cat([p.grad.flatten().double() for p in run.model.parameters()])


def updated_state(run: Run) -> dict:
    """Return copies of what an update changes: weights and optimizer."""
    state = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    return parts.copied(state)


def poison(run: Run, value: float, name: str = "layers.0.mlp.up.weight") -> list[str]:
    """Put `value` into one gradient during backward; return a list of the times it happened."""
    fired = []

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        fired.append(name)
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    dict(run.model.named_parameters())[name].register_hook(hook)
    return fired


# The same step, however it is split


def reference() -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and gradient of 8 sequences in one batch, without the code under test."""
    run = parts.run()
    x, y = run.train_windows.batch(run.train_windows.starts(0, 8))
    logits, _ = run.model(x, y)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    loss.backward()
    return loss.detach(), flat_gradient(run)


def assert_equals_reference(run: Run, loss: torch.Tensor) -> None:
    """Compare a step's loss and gradient with the reference."""
    expected_loss, expected = reference()
    assert (flat_gradient(run) - expected).norm() <= ROUNDING * expected.norm()
    assert abs(loss - expected_loss) <= ROUNDING * expected_loss


@pytest.mark.parametrize(
    ("batch_size", "accumulate_grad_batches"), [(8, 1), (4, 2), (1, 8), (2, 4)]
)
def test_batch_size_times_accumulation_gives_one_gradient_and_one_loss(
    batch_size, accumulate_grad_batches
):
    keys = {"batch_size": batch_size, "accumulate_grad_batches": accumulate_grad_batches}
    run = parts.run(training=keys)
    assert run.state.micro_batch.size == batch_size
    loss = compute_gradients(run)
    assert_equals_reference(run, loss)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 5, 7, 8, 100])
def test_a_size_that_does_not_divide_the_step_gives_the_same_gradient(micro_batch_size):
    run = parts.run()
    run.state.micro_batch.size = micro_batch_size
    sizes = []
    run.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    loss = compute_gradients(run)
    assert sum(sizes) == 8
    assert max(sizes) == min(micro_batch_size, 8)
    assert_equals_reference(run, loss)


def test_a_step_trains_on_its_position_not_its_number():
    """The two differ after a rewind."""
    run = parts.run()
    same_position = parts.run()
    at_the_start = parts.run()
    run.state.progress.position = 6
    same_position.state.progress.position = 6
    same_position.state.progress.global_step = 3
    loss = compute_gradients(run)
    assert torch.equal(loss, compute_gradients(same_position))
    assert torch.equal(flat_gradient(run), flat_gradient(same_position))
    assert not torch.equal(loss, compute_gradients(at_the_start))


def test_a_step_advances_step_position_and_tokens_by_one_group():
    run = parts.run()
    progress = run.state.progress
    progress.global_step = 3
    progress.position = 7
    progress.tokens = 100
    assert step(run)
    assert (progress.global_step, progress.position) == (4, 8)
    assert progress.tokens == 100 + 8 * 8
    assert (run.scaler.nan_counter, progress.skipped_steps) == (0, 0)
    assert math.isfinite(progress.train_loss)
    assert progress.grad_norm > 0


def test_the_loss_of_a_step_is_the_mean_over_all_its_tokens():
    """It is not the loss of the last micro-batch."""
    run = parts.run(training={"batch_size": 1, "accumulate_grad_batches": 8})
    losses = []
    run.model.register_forward_hook(lambda module, args, out: losses.append(out[1].item()))
    step(run)
    assert len(losses) == 8
    assert run.state.progress.train_loss == pytest.approx(np.mean(losses), rel=1e-6)
    # far above the rounding: the two losses really differ
    assert abs(run.state.progress.train_loss - losses[-1]) > 1e-4


def test_gradients_are_gone_after_a_step():
    run = parts.run()
    step(run)
    assert all(p.grad is None for p in run.model.parameters())


# Clipping


@pytest.mark.parametrize("grad_clip", [1e-3, 0.5])
def test_gradients_are_clipped_and_the_norm_before_clipping_is_reported(grad_clip):
    plain = parts.run(training={"grad_clip": None})
    clipped = parts.run(training={"grad_clip": grad_clip})
    gradients = []
    for run in (plain, clipped):
        run.optimizer.register_step_pre_hook(
            lambda *args, run=run: gradients.append(flat_gradient(run))
        )
        assert step(run)
    plain_gradient, clipped_gradient = gradients
    norm = plain_gradient.norm().item()
    assert norm > 0.5  # otherwise nothing would be clipped
    # torch adds 1e-6 to the norm
    assert clipped_gradient.norm().item() == pytest.approx(grad_clip, rel=1e-4)
    direction = plain_gradient / norm
    assert torch.allclose(clipped_gradient / grad_clip, direction, rtol=1e-3, atol=1e-9)
    assert plain.state.progress.grad_norm == clipped.state.progress.grad_norm
    assert plain.state.progress.grad_norm == pytest.approx(norm, rel=1e-5)


def test_a_gradient_below_the_limit_is_not_changed_by_any_bit():
    unlimited = parts.run(training={"grad_clip": None})
    limited = parts.run(training={"grad_clip": 1e9})
    assert step(unlimited)
    assert step(limited)
    assert parts.same(unlimited.model.state_dict(), limited.model.state_dict())


# Non-finite values never enter the weights


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_bad_gradient_changes_no_weight_or_moment_and_is_counted(value, steps_before, caplog):
    """3e38 is finite, but its norm is not."""
    run = parts.run()
    for _ in range(steps_before):
        assert step(run)
    before = updated_state(run)
    fired = poison(run, value)
    assert not step(run)
    assert fired
    assert parts.same(updated_state(run), before)
    progress = run.state.progress
    assert (run.scaler.nan_counter, progress.skipped_steps) == (1, 1)
    assert progress.global_step == steps_before + 1  # a skipped step counts
    assert progress.position == steps_before + 1
    assert all(p.grad is None for p in run.model.parameters())
    (record,) = (record for record in caplog.records if hasattr(record, "event"))
    assert record.event["kind"] == "skip"
    assert record.event["step"] == steps_before + 1
    assert record.event["position"] == steps_before


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_loss_with_finite_gradients_changes_nothing_and_is_counted(value):
    run = parts.run()
    assert step(run)
    before = updated_state(run)
    loss = compute_gradients(run) + value
    assert not update_weights(run, loss)
    assert parts.same(updated_state(run), before)
    assert (run.scaler.nan_counter, run.state.progress.skipped_steps) == (1, 1)


def test_one_bad_micro_batch_out_of_eight_is_noticed():
    run = parts.run(training={"batch_size": 1, "accumulate_grad_batches": 8})
    calls = []

    def ruin_the_third(module, args, out):
        calls.append(1)
        return (out[0], out[1] * math.nan) if len(calls) == 3 else out

    run.model.register_forward_hook(ruin_the_third)
    before = updated_state(run)
    assert not step(run)
    assert len(calls) == 8
    assert parts.same(updated_state(run), before)


def test_bad_steps_in_a_row_are_counted_until_a_good_one():
    run = parts.run()
    bad_loss = torch.tensor(math.nan, device=parts.DEVICE)
    for expected in (1, 2):
        compute_gradients(run)
        update_weights(run, bad_loss)
        assert run.scaler.nan_counter == expected
    assert step(run)
    assert (run.scaler.nan_counter, run.state.progress.skipped_steps) == (0, 2)
    compute_gradients(run)
    update_weights(run, bad_loss)
    assert (run.scaler.nan_counter, run.state.progress.skipped_steps) == (1, 3)


def test_a_run_that_skips_a_group_equals_one_that_never_had_it():
    skipping = parts.run()
    jumping = parts.run()
    compute_gradients(skipping)
    update_weights(skipping, torch.tensor(math.nan, device=parts.DEVICE))
    jumping.state.progress.position = 1
    for run in (skipping, jumping):
        assert step(run)
    assert parts.same(updated_state(skipping), updated_state(jumping))


# Mixed precision, on shapes small enough for a CPU without fast half precision


def test_a_step_in_fp16_with_loss_scaling_is_close_to_fp32():
    half = parts.run(precision="fp16")
    full = parts.run()
    half.scaler = SafeGradScaler(parts.DEVICE.type, init_scale=64.0)
    gradients = []
    for run in (half, full):
        run.optimizer.register_step_pre_hook(
            lambda *args, run=run: gradients.append(flat_gradient(run))
        )
        before = updated_state(run)
        assert step(run)
        assert not parts.same(updated_state(run)["model"], before["model"])
    half_gradient, full_gradient = gradients
    # fp16 has 11 bits; a gradient that is still scaled fails
    assert (half_gradient - full_gradient).norm() < 0.02 * full_gradient.norm()
    half_progress = half.state.progress
    full_progress = full.state.progress
    assert half_progress.grad_norm == pytest.approx(full_progress.grad_norm, rel=0.02)
    assert half_progress.train_loss == pytest.approx(full_progress.train_loss, rel=0.01)
    assert half.scaler.nan_counter == 0


def test_an_fp16_overflow_lowers_the_scale_but_does_not_count_as_bad():
    run = parts.run(precision="fp16")
    assert run.scaler.get_scale() == 65536
    before = updated_state(run)
    fired = poison(run, math.inf)
    assert not step(run)
    assert fired
    assert run.scaler.get_scale() == 32768
    assert (run.scaler.nan_counter, run.state.progress.skipped_steps) == (0, 1)
    assert parts.same(updated_state(run), before)


def test_an_overflow_counts_as_bad_at_the_floor_of_the_scale():
    run = parts.run(precision="fp16")
    run.scaler = SafeGradScaler(parts.DEVICE.type, init_scale=1.0)
    fired = poison(run, math.inf)
    assert not step(run)
    assert fired
    assert run.scaler.nan_counter == 1


def test_a_bad_loss_in_fp16_counts_as_bad_at_any_scale():
    run = parts.run(precision="fp16")
    compute_gradients(run)
    assert not update_weights(run, torch.tensor(math.nan, device=parts.DEVICE))
    assert run.scaler.nan_counter == 1


def test_fp16_steps_with_an_overflowing_norm_are_counted_in_the_end():
    """The gradients themselves are finite."""
    run = parts.run(precision="fp16")
    run.scaler = SafeGradScaler(parts.DEVICE.type, init_scale=4.0)
    for _ in range(12):
        loss = compute_gradients(run)
        for p in run.model.parameters():
            p.grad.fill_(1e30)
        assert not update_weights(run, loss)
    assert run.scaler.nan_counter > 0


@pytest.mark.parametrize(
    ("loss", "words"), [(100.0, "loss 100 is far too high"), (4.0, "loss 4 is a spike")]
)
def test_a_warning_distinguishes_a_spike_from_a_loss_far_too_high(loss, words, caplog):
    """A loss of 4 is below 3 ln V, but far above the recent losses."""
    run = parts.run(training={"safety": {"spike": {"enabled": True, "window": 8}}})
    for _ in range(8):
        judge_step(run, 2.0, 1.0, healthy=True)
    assert not caplog.messages
    judge_step(run, loss, 1.0, healthy=True)
    (warning,) = caplog.messages
    assert words in warning
    assert [bad.loss for bad in run.state.health.bad_steps] == [loss]


def test_bf16_runs_the_linears_in_bf16_and_keeps_all_else_in_fp32():
    """All else means weights, gradients, moments and loss."""
    run = parts.run(precision="bf16")
    dtypes = set()
    gradient_dtypes = set()
    for module in run.model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    run.optimizer.register_step_pre_hook(
        lambda *args: gradient_dtypes.update(p.grad.dtype for p in run.model.parameters())
    )
    loss = compute_gradients(run)
    assert loss.dtype == torch.float32
    assert update_weights(run, loss)
    assert dtypes == {torch.bfloat16}
    assert gradient_dtypes == {torch.float32}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    moments = [value.dtype for values in run.optimizer.state.values() for value in values.values()]
    assert len(moments) == 3 * len(list(run.model.parameters()))
    assert set(moments) == {torch.float32}


def test_bf16_is_close_to_fp32_and_sums_micro_batches_in_fp32():
    run = parts.run(precision="bf16", training={"batch_size": 1, "accumulate_grad_batches": 8})
    loss = compute_gradients(run)
    expected_loss, expected = reference()
    assert abs(loss - expected_loss) < 0.01 * expected_loss
    gradient = flat_gradient(run)
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.99
    assert not torch.equal(gradient, gradient.bfloat16().double())


def test_fp32_uses_no_autocast():
    with autocast(parts.CPU, "fp32"):
        assert not torch.is_autocast_enabled("cpu")
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(parts.CPU, precision):
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == dtype
    assert not torch.is_autocast_enabled("cpu")


# Randomness


def dropout_run(**keys) -> Run:
    return parts.run(model={"dropout": 0.4, "attention_dropout": 0.4}, **keys)


def test_a_step_with_dropout_does_not_depend_on_earlier_generators():
    a = dropout_run()
    b = dropout_run()
    torch.manual_seed(1)
    loss = compute_gradients(a)
    torch.manual_seed(2)
    torch.rand(7)
    assert torch.equal(loss, compute_gradients(b))
    assert torch.equal(flat_gradient(a), flat_gradient(b))


def masks(run: Run) -> list[torch.Tensor]:
    """Return the first dropout mask of each micro-batch: the zeros in the first block's input."""
    dropped = []
    hook = run.model.layers[0].register_forward_pre_hook(
        lambda module, args: dropped.append(args[0] == 0)
    )
    compute_gradients(run)
    hook.remove()
    return dropped


def test_each_micro_batch_position_and_seed_has_its_own_masks():
    base = masks(dropout_run())
    assert len(base) == 2
    later = dropout_run()
    later.state.progress.position = 1
    assert not torch.equal(base[0], base[1])
    for other in (masks(later), masks(dropout_run(seed=6))):
        assert not torch.equal(base[0], other[0])
        assert not torch.equal(base[1], other[1])
    assert all(map(torch.equal, base, masks(dropout_run())))


def test_masks_depend_only_on_the_first_sequence_of_a_micro_batch():
    """They do not depend on the split of the other sequences."""
    one_batch = {"batch_size": 8, "accumulate_grad_batches": 1}
    a = dropout_run()
    b = dropout_run(training=one_batch)
    a.state.micro_batch.size = 2
    b.state.micro_batch.size = 2
    assert all(map(torch.equal, masks(a), masks(b)))
    uneven = dropout_run(training=one_batch)
    uneven.state.micro_batch.size = 6
    # both micro-batches begin at sequence 6 and have two sequences
    assert torch.equal(masks(uneven)[1], masks(a)[3])


def test_seeding_is_a_pure_function_of_the_key_and_its_order():
    largest = (2**63 - 1, 10**9, 4096)
    draws = {}
    for key in [(5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0), (0, 5, 0), (5, 0), largest]:
        seed_generators(parts.CPU, *key)
        draw = torch.rand(8)
        seed_generators(parts.CPU, *key)
        assert torch.equal(draw, torch.rand(8))
        draws[key] = tuple(draw.tolist())
    # in numpy, trailing zeros of a key may not count
    assert len(set(draws.values())) >= len(draws) - 1


def test_two_runs_of_ten_steps_are_equal_bit_for_bit():
    finals = []
    for _ in range(2):
        run = dropout_run()
        assert all(step(run) for _ in range(10))
        progress = run.state.progress
        finals.append((progress.train_loss, progress.grad_norm, updated_state(run)))
    assert finals[0][:2] == finals[1][:2]
    assert parts.same(finals[0][2], finals[1][2])
