"""Out of memory: the micro-batch is halved and the step runs again, with the same result.

Whatever the size, a step trains on the same sequences with the same weighting; the tests compare
with runs that were set to that size. Growth and trials: test_batch_size.py.
"""

import math
import weakref
from types import ModuleType

import parts
import pytest
import torch
from memory_limit import (
    MemoryLimit,
    dynamic_run,
    is_recomputing,
    never,
    size_changes,
    train_step,
    trained_state,
)
from torch import nn

from chatgot.errors import OutOfMemory
from chatgot.run import modes, trials
from chatgot.run.assembly import Run
from chatgot.training import evaluation, recovery, step
from chatgot.training.batch_size import fit_micro_batch
from chatgot.training.step import compute_gradients

PLACES = ["forward", "backward", "recompute"]


def assert_same_course(disturbed: Run, undisturbed: Run, number: int) -> None:
    """Do step `number` with both runs; compare their losses, and in step 7 their gradients."""
    gradients = []
    losses = [train_step(run, gradients) for run in (disturbed, undisturbed)]
    assert abs(losses[0] - losses[1]) <= (0 if number < 7 else 1e-5)
    if number == 7:
        assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()


# Half of the size, the same step


@pytest.mark.parametrize("place", PLACES)
def test_out_of_memory_changes_neither_the_gradient_nor_later_losses(place, caplog):
    """It happens in step 7; the log has one line about it."""
    keys = {"gradient_checkpointing": place == "recompute"}
    limit = MemoryLimit(place=place)
    disturbed = dynamic_run(limit, **keys)
    undisturbed = dynamic_run(**keys)
    assert bool(disturbed.model.recompute_every) is (place == "recompute")
    for number in range(1, 21):
        limit.limit = 4 if number >= 7 else math.inf
        assert_same_course(disturbed, undisturbed, number)
    assert limit.fired
    assert disturbed.state.micro_batch.size == 4
    (record,) = (r for r in caplog.records if getattr(r, "event", {}).get("reason") == "oom")
    said = record.getMessage()
    assert "step 7: out of memory: micro_batch_size 8 -> 4" in said
    assert "\n" not in said
    assert record.event["kind"] == "micro_batch"
    assert (record.event["old"], record.event["new"]) == (8, 4)


def test_out_of_memory_in_micro_batch_3_of_4_restarts_the_step():
    """The gradient has nothing left from the first two micro-batches."""
    limit = MemoryLimit()
    keys = {"dynamic_batch_size": {"growth_interval_steps": 1000}}
    disturbed = dynamic_run(limit, size=2, **keys)
    undisturbed = dynamic_run(size=2, **keys)
    sizes = []
    clean_starts = []

    def fail_in_the_third(module: nn.Module, args: tuple) -> None:
        sizes.append(len(args[0]))
        clean_starts.append(all(p.grad is None for p in disturbed.model.parameters()))
        if sizes == [2, 2, 2]:
            limit.fail(2)

    for number in range(1, 21):
        if number == 7:
            hook = disturbed.model.register_forward_pre_hook(fail_in_the_third)
        assert_same_course(disturbed, undisturbed, number)
        if number == 7:
            hook.remove()
    assert sizes == [2, 2, 2] + [1] * 8
    assert clean_starts == [True, False, False, True] + [False] * 7
    assert limit.fired == [2]
    assert disturbed.state.micro_batch.size == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_after_a_shrink_equals_one_set_to_that_size_bit_for_bit(place, precision):
    keys = {"gradient_checkpointing": place == "recompute", "dropout": 0.2}
    if precision == "bf16":
        keys |= {"mixed_precision": True, "precision_dtype": "bf16"}
    limit = MemoryLimit(place=place)
    disturbed = dynamic_run(limit, **keys)
    told = dynamic_run(dynamic_batch_size={"enabled": False}, **keys)
    for number in range(1, 13):
        if number == 7:
            limit.limit = 4
            told.state.micro_batch.size = 4
        assert train_step(disturbed) == train_step(told)
    assert limit.fired
    assert parts.same(trained_state(disturbed), trained_state(told))


def test_a_step_that_runs_twice_is_counted_once():
    run = dynamic_run(MemoryLimit(2))
    train_step(run)
    assert run.state.micro_batch.size == 2
    assert run.steps_here == 1
    progress = run.state.progress
    assert (progress.global_step, progress.position) == (1, 1)


def test_an_odd_size_is_halved_rounding_down_but_not_below_the_minimum():
    run = dynamic_run(MemoryLimit(0), size=7, dynamic_batch_size={"minimum": 2})
    with pytest.raises(OutOfMemory):
        train_step(run)
    assert size_changes(run) == [(7, 3), (3, 2)]


@pytest.mark.parametrize("enabled", [True, False])
def test_out_of_memory_at_the_smallest_size_ends_the_run_with_advice(enabled):
    limit = MemoryLimit()
    run = dynamic_run(limit, dynamic_batch_size={"enabled": enabled})
    train_step(run)
    before = trained_state(run)["model_state_dict"]
    limit.limit = 0
    with pytest.raises(OutOfMemory) as raised:
        train_step(run)
    assert raised.value.exit_code == 6
    assert raised.value.unchanged
    assert limit.fired == ([8, 4, 2, 1] if enabled else [8])
    said = str(raised.value).splitlines()
    assert f"step 2: out of memory at micro_batch_size {1 if enabled else 8}" in said[0]
    assert ("dynamic_batch_size.enabled=true" in said[1]) is not enabled
    assert "gradient_checkpointing=true" in said[1]
    assert "MiB" in said[0]
    assert parts.same(trained_state(run)["model_state_dict"], before)


def test_the_advice_names_a_minimum_above_one():
    run = dynamic_run(MemoryLimit(0), dynamic_batch_size={"minimum": 4})
    with pytest.raises(OutOfMemory, match=r"dynamic_batch_size\.minimum"):
        train_step(run)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the text says: out of memory"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_that_only_mentions_memory_shrinks_nothing(error):
    run = dynamic_run()

    def fail(*args: object) -> None:
        raise error

    run.model.register_forward_pre_hook(fail)
    with pytest.raises(type(error), match="memory"):
        train_step(run)
    assert run.state.micro_batch.size == 8


def test_the_memory_of_a_failed_attempt_is_freed_before_the_next_one():
    outputs = []
    alive_counts = []
    run = dynamic_run()

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        alive_counts.append(sum(output() is not None for output in outputs))
        outputs.append(weakref.ref(output))
        if len(outputs) == 1:
            raise MemoryError

    run.model.layers[0].register_forward_hook(hook)
    train_step(run)
    assert run.state.micro_batch.size == 4
    assert alive_counts[:2] == [0, 0]


def test_a_failed_attempt_does_not_make_the_step_bad():
    """The first micro-batch of that attempt had a non-finite loss."""
    run = dynamic_run(size=4)
    sizes = []

    def spoil(module: nn.Module, args: tuple, output: tuple) -> tuple:
        sizes.append(len(args[0]))
        if len(sizes) == 1:
            return output[0], output[1] * math.nan
        if len(sizes) == 2:
            raise MemoryError
        return output

    run.model.register_forward_hook(spoil)
    train_step(run)
    assert sizes == [4, 4, 2, 2, 2, 2]
    assert run.state.health.skips == 0
    assert run.state.micro_batch.size == 2


def released_after(module: ModuleType, limit: MemoryLimit, monkeypatch) -> list[int]:
    """Return a list; each release of memory adds the size that failed last to it, or 0."""
    released = []

    def release(device: torch.device) -> None:
        released.append(limit.fired[-1] if limit.fired else 0)

    monkeypatch.setattr(module, "release_memory", release)
    return released


def test_memory_is_given_back_after_a_failed_step(monkeypatch):
    limit = MemoryLimit(4)
    released = released_after(step, limit, monkeypatch)
    train_step(dynamic_run(limit))
    assert released == [8]


def test_memory_is_given_back_after_a_failed_evaluation(monkeypatch):
    limit = MemoryLimit(4)
    released = released_after(evaluation, limit, monkeypatch)
    evaluation.measure_held_out(dynamic_run(limit), never)
    assert released == [8]


def test_memory_is_given_back_before_and_after_a_failed_trial(monkeypatch):
    limit = MemoryLimit(4)
    released = released_after(trials, limit, monkeypatch)
    run = dynamic_run(limit, size=4)
    run.state.health.good_steps = 10
    fit_micro_batch(run, never)
    assert released[0] == 0
    assert 8 in released


# The optimizer


def test_the_optimizers_state_is_allocated_before_the_first_step():
    """The early allocation changes no bit."""
    run = parts.run()
    late = parts.run()
    assert all(len(run.optimizer.state[p]) == 3 for p in run.model.parameters())
    late.optimizer.state.clear()

    def tensor_ids() -> set[int]:
        states = run.optimizer.state.values()
        return {id(tensor) for state in states for tensor in state.values()}

    before = tensor_ids()
    for each in (run, late):
        for _ in range(3):
            train_step(each)
    assert parts.same(trained_state(run), trained_state(late))
    assert tensor_ids() == before


@pytest.mark.parametrize("has_begun", [False, True])
def test_out_of_memory_in_the_update_says_whether_the_weights_are_whole(has_begun, monkeypatch):
    """The error ends the run either way."""
    run = dynamic_run()
    train_step(run)
    real = run.optimizer.step

    def fail() -> None:
        if has_begun:
            real()
        raise MemoryError

    monkeypatch.setattr(run.optimizer, "step", fail)
    with pytest.raises(OutOfMemory, match="step 2: out of memory while updating") as raised:
        train_step(run)
    assert raised.value.unchanged is not has_begun
    assert ("half updated" in str(raised.value)) is has_begun
    assert run.state.micro_batch.size == 8
    assert run.state.progress.global_step == 1


# Evaluation and proofs


def test_out_of_memory_in_an_evaluation_halves_only_its_own_batches():
    """The loss is the same, or NaN where not even one sequence fits."""
    limit = MemoryLimit()
    run = dynamic_run(limit)
    expected, *_ = evaluation.measure_held_out(run, never)
    limit.limit = 2
    loss, *_ = evaluation.measure_held_out(run, never)
    assert limit.fired == [8, 4]
    assert loss == pytest.approx(expected, rel=1e-6)
    micro_batch = run.state.micro_batch
    assert (micro_batch.eval_size, micro_batch.size) == (2, 8)
    limit.limit = 0
    loss, *_ = evaluation.measure_held_out(run, never)
    assert math.isnan(loss)
    assert micro_batch.size == 8


def fail_for_memory(*args: object) -> None:
    raise MemoryError


def test_out_of_memory_in_the_proof_of_a_precision_changes_nothing(monkeypatch, caplog):
    run = dynamic_run(gradient_checkpointing=True)
    run.state.modes.asked_precision = "bf16"
    monkeypatch.setattr(recovery, "prove_mixed_precision", fail_for_memory)
    recovery.raise_precision(run)
    assert "out of memory" in caplog.text
    assert run.state.modes.precision == "fp32"
    assert run.model.recompute_every == 1


def test_out_of_memory_in_the_recomputation_proof_leaves_it_on(monkeypatch, caplog):
    run = dynamic_run(gradient_checkpointing=True)
    monkeypatch.setattr(modes, "recomputation_differs", fail_for_memory)
    modes.prove_gradient_checkpointing_again(run.model, run.state, run.device, run.ranks)
    assert "out of memory" in caplog.text
    assert run.state.modes.precision == "fp32"
    assert run.model.recompute_every == 1
    assert not run.state.modes.gradient_checkpointing_failed


# What the run remembers


def test_a_trial_waits_for_the_whole_interval_after_a_shrink():
    run = dynamic_run(MemoryLimit(4))
    run.state.progress.global_step = 7
    run.state.progress.position = 7
    train_step(run)
    assert run.state.micro_batch.next_growth_step == 17


def test_a_rewind_keeps_the_size_and_the_knowledge_about_sizes():
    """Waiting times are as long as before."""
    limit = MemoryLimit()
    run = dynamic_run(limit)
    for _ in range(20):
        train_step(run)
    limit.limit = 2
    train_step(run)
    micro_batch = run.state.micro_batch
    before = micro_batch.history
    assert [rejected.until for rejected in micro_batch.rejected] == [30, 30]
    micro_batch.eval_size = 2
    recovery.rewind(run)
    assert (run.state.progress.global_step, run.state.health.rewinds) == (0, 1)
    assert (micro_batch.size, micro_batch.eval_size) == (2, 2)
    assert micro_batch.history == before
    rejected = [(entry.size, entry.times, entry.until) for entry in micro_batch.rejected]
    assert rejected == [(4, 1, 9), (8, 1, 9)]
    assert micro_batch.next_growth_step == 9


def test_a_recomputation_that_differs_is_not_taken_for_out_of_memory():
    """The step runs again without gradient checkpointing, at the same size."""
    run = dynamic_run(gradient_checkpointing=True)
    layer = run.model.layers[0]
    real = layer.forward

    def unsteady(x, keep, rotated, cache=None):
        return real(x[:, :4] if is_recomputing() else x, keep, rotated, cache)

    layer.forward = unsteady
    loss = compute_gradients(run)
    assert loss.isfinite()
    assert run.model.recompute_every is None
    assert run.state.micro_batch.size == 8
