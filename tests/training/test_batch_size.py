"""The micro-batch follows the memory: halved and the same step again, raised only after a trial that proves it.

The limit is made up: a forward or backward over more sequences than it raises what the allocator raises. Whatever the
size, a step trains on the same sequences with the same weighting; that is held against runs that were set to that size.
"""

import contextlib
import inspect
import logging
import math
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import harness
import parts
import pytest
import torch
from torch import nn

from chatgot.config import TrainingConfig
from chatgot.errors import CheckpointRejected, OutOfMemory
from chatgot.machine import memory
from chatgot.numerics import accumulation, optim
from chatgot.run.assembly import Run
from chatgot.run.fits import odd_counters
from chatgot.run.resuming import check_state
from chatgot.training import batch_size, evaluation, recovery
from chatgot.training.batch_size import adapt, difference, ladder
from chatgot.training.estimate import estimate
from chatgot.training.recovery import recover, rewind
from chatgot.training.step import accumulate_gradients, apply_gradients

NEVER = lambda: False  # noqa: E731 nobody asks to stop
CALM = {"growth_interval_steps": 10, "memory_headroom": 0.0, "minimum_gain": -1.0, "initial": 8}
STEADY = {"learning_rate": 1e-3, "min_learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 10_000}


class Memory:
    """Raises what the allocator raises where more than `limit` sequences go through `place`, and counts that."""

    def __init__(
        self, limit: Callable[[], float] | float = math.inf, place: str = "forward"
    ) -> None:
        self.limit, self.place, self.fired = limit, place, []

    def full(self, sequences: int) -> bool:
        return sequences > (self.limit() if callable(self.limit) else self.limit)

    def fail(self, sequences: int) -> None:
        self.fired.append(sequences)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def watch(self, model: nn.Module) -> None:
        def before(module: nn.Module, args: tuple) -> None:
            recomputing = torch._C._current_graph_task_id() != -1  # inside a backward
            here = self.place == "forward" or (self.place == "recompute" and recomputing)
            if here and self.full(len(args[0])):
                self.fail(len(args[0]))

        def backward(module: nn.Module, inputs: tuple, outputs: tuple) -> None:
            if self.place == "backward" and self.full(len(outputs[0])):
                self.fail(len(outputs[0]))

        model.layers[1].register_forward_pre_hook(before)
        model.layers[0].register_full_backward_hook(backward)


def dynamic_run(memory: Memory | None = None, size: int = 8, dropout: float = 0.0, **run) -> Run:
    """Return a run of 8 sequences a step whose micro-batch is `size` at the start, under a limit."""
    dynamic = {**CALM, "enabled": True, "initial": size, **run.pop("dynamic_batch_size", {})}
    keys = {
        **STEADY,
        "batch_size": 8,
        "accumulate_grad_batches": 1,
        "dynamic_batch_size": dynamic,
        **run,
    }
    result = parts.run(training=keys, model={"dropout": dropout, "attention_dropout": dropout})
    result.state.micro_batch.size = size
    if memory:
        memory.watch(result.model)
    return result


def gradient(run: Run) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in run.model.parameters()])


def step(run: Run, gradients: list[torch.Tensor] | None = None) -> float:
    """Do what the script does for one step, once more where it has to; return its loss, and add its gradient."""
    while True:
        assert adapt(run, NEVER)
        loss = accumulate_gradients(run.model, run.train_windows, run.state, run.config, run.scaler)
        if loss is not None:
            break
        assert all(p.grad is None for p in run.model.parameters())
    if gradients is not None:
        gradients.append(gradient(run))
    apply_gradients(loss, run.model, run.optimizer, run.state, run.config, run.scaler)
    assert recover(run) == "done"
    return run.state.progress.train_loss


def weights(run: Run) -> dict:
    """Return copies of weights, optimizer state and generators."""
    state = {
        key: run.checkpoint()[key] for key in ("model_state_dict", "optimizer_state_dict", "rng")
    }
    return parts.copied(state)


# Memory runs out: half of it, the same step

PLACES = ["forward", "backward", "recompute"]


@pytest.mark.parametrize("place", PLACES)
def test_out_of_memory_in_step_7_changes_neither_its_gradient_nor_the_losses_that_follow(
    place, caplog
):
    recompute = {"gradient_checkpointing": place == "recompute"}
    full = Memory(place=place)
    disturbed, undisturbed = dynamic_run(full, **recompute), dynamic_run(**recompute)
    assert bool(disturbed.model.recompute_every) is (place == "recompute")
    for number in range(1, 21):
        full.limit = 4 if number >= 7 else math.inf
        gradients = []
        losses = [step(state, gradients) for state in (disturbed, undisturbed)]
        assert abs(losses[0] - losses[1]) <= (0 if number < 7 else 1e-5)
        if number == 7:
            assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()
    assert full.fired
    assert disturbed.state.micro_batch.size == 4
    (line,) = (r.getMessage() for r in caplog.records if "out of memory: " in r.getMessage())
    assert "step 7: out of memory: micro_batch_size 8 -> 4" in line


def test_out_of_memory_in_micro_batch_3_of_4_begins_the_step_anew():
    full = Memory()
    once = {"growth_interval_steps": 1000}
    disturbed, undisturbed = (
        dynamic_run(memory, 2, dynamic_batch_size=once) for memory in (full, None)
    )
    for number in range(1, 21):
        seen = []
        if number == 7:

            def third(module: nn.Module, args: tuple, seen: list = seen) -> None:
                seen.append(len(args[0]))
                if seen == [2, 2, 2]:
                    full.fail(2)

            hook = disturbed.model.register_forward_pre_hook(third)
        gradients = []
        losses = [step(state, gradients) for state in (disturbed, undisturbed)]
        assert abs(losses[0] - losses[1]) <= (0 if number < 7 else 1e-5)
        if number == 7:
            hook.remove()
            assert seen == [2, 2, 2] + [1] * 8
            assert (gradients[0] - gradients[1]).norm() <= 1e-6 * gradients[1].norm()
    assert full.fired == [2]
    assert disturbed.state.micro_batch.size == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("place", PLACES)
def test_after_a_shrink_all_bits_are_those_of_a_run_set_to_that_size_from_that_step_on(
    place, precision
):
    keys = {"gradient_checkpointing": place == "recompute", "dropout": 0.2}
    if precision == "bf16":
        keys |= {"mixed_precision": True, "precision_dtype": "bf16"}
    full = Memory(place=place)
    disturbed, told = (
        dynamic_run(full, **keys),
        dynamic_run(dynamic_batch_size={"enabled": False}, **keys),
    )
    for number in range(1, 13):
        if number == 7:
            full.limit, told.state.micro_batch.size = 4, 4
        assert step(disturbed) == step(told)
    assert full.fired
    assert parts.same(weights(disturbed), weights(told))


def test_a_size_that_does_not_halve_evenly_is_rounded_down_to_the_minimum():
    full = Memory(0)
    run = dynamic_run(full, size=7, dynamic_batch_size={"minimum": 2})
    with pytest.raises(OutOfMemory):
        step(run)
    assert [row[1:3] for row in run.state.micro_batch.history] == [[7, 3], [3, 2]]


@pytest.mark.parametrize("enabled", [True, False])
def test_at_the_smallest_size_it_ends_with_advice_and_the_weights_untouched(enabled):
    full = Memory()
    run = dynamic_run(full, dynamic_batch_size={"enabled": enabled})
    step(run)
    before, full.limit = weights(run)["model_state_dict"], 0
    with pytest.raises(OutOfMemory) as raised:
        step(run)
    assert raised.value.exit_code == 6
    assert raised.value.unchanged
    assert full.fired == ([8, 4, 2, 1] if enabled else [8])
    said = str(raised.value).splitlines()
    assert f"step 2: out of memory at micro_batch_size {1 if enabled else 8}" in said[0]
    assert ("dynamic_batch_size.enabled=true" in said[1]) is not enabled
    assert "gradient_checkpointing=true" in said[1]
    assert "MiB" in said[0]
    assert parts.same(weights(run)["model_state_dict"], before)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("the text says: out of memory"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_an_error_that_merely_speaks_of_memory_is_raised_and_shrinks_nothing(error):
    run = dynamic_run()

    def fail(*args: object) -> None:
        raise error

    run.model.register_forward_pre_hook(fail)
    with pytest.raises(type(error), match="memory"):
        step(run)
    assert run.state.micro_batch.size == 8


def test_what_a_failed_attempt_held_is_given_back_before_the_next_one():
    alive, seen = [], []
    run = dynamic_run()

    def hook(module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        seen.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output))
        if len(alive) == 1:
            raise MemoryError

    run.model.layers[0].register_forward_hook(hook)
    step(run)
    assert run.state.micro_batch.size == 4
    assert seen[:2] == [0, 0]


# The optimizer


def test_the_optimizers_state_is_there_before_the_first_step_and_changes_no_bit():
    run, late = parts.run(), parts.run()
    assert all(len(run.optimizer.state[p]) == 3 for p in run.model.parameters())
    late.optimizer.state.clear()
    sizes = {id(t) for state in run.optimizer.state.values() for t in state.values()}
    for state in (run, late):
        for _ in range(3):
            step(state)
    assert parts.same(weights(run), weights(late))
    assert {id(t) for state in run.optimizer.state.values() for t in state.values()} == sizes


@pytest.mark.parametrize("begun", [False, True])
def test_out_of_memory_in_the_update_is_fatal_and_says_whether_the_weights_are_whole(
    begun, monkeypatch
):
    run = dynamic_run()
    step(run)
    real = run.optimizer.step

    def fail() -> None:
        if begun:
            real()
        raise MemoryError

    monkeypatch.setattr(run.optimizer, "step", fail)
    with pytest.raises(OutOfMemory, match="step 2: out of memory in the update") as raised:
        step(run)
    assert raised.value.unchanged is not begun
    assert ("half updated" in str(raised.value)) is begun
    assert (run.state.micro_batch.size, run.state.progress.global_step) == (8, 1)


# Evaluation


def test_out_of_memory_in_an_evaluation_halves_its_own_batches_and_gives_the_same_loss():
    full = Memory()
    run = dynamic_run(full)
    expected = evaluation.validation_losses(run, NEVER)
    full.limit = 2
    found = evaluation.validation_losses(run, NEVER)
    assert full.fired == [8, 4]
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert (run.state.micro_batch.eval_size, run.state.micro_batch.size) == (2, 8)
    full.limit = 0
    assert math.isnan(evaluation.validation_losses(run, NEVER)[0])
    assert run.state.micro_batch.size == 8


# It grows back


def test_the_ladder_is_the_maximum_halved_down_to_the_minimum():
    def sizes(batch: int, accumulate: int = 1, **dynamic: int) -> list[int]:
        settings = TrainingConfig(
            max_steps=1,
            batch_size=batch,
            accumulate_grad_batches=accumulate,
            dynamic_batch_size=dynamic,
        )
        return ladder(settings)

    assert sizes(12) == [1, 3, 6, 12]
    assert sizes(4, 4) == [1, 2, 4, 8, 16]
    assert sizes(12, minimum=4) == [4, 6, 12]
    assert sizes(12, maximum=5, minimum=5) == [5]
    assert sizes(1) == [1]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_when_the_limit_rises_it_is_back_within_the_interval_and_each_trial_leaves_no_trace(
    dropout,
):
    full = Memory()
    full.limit = 2
    run = dynamic_run(full, dropout=dropout)
    told = dynamic_run(dropout=dropout, dynamic_batch_size={"enabled": False})
    sizes = []
    for number in range(60):
        full.limit = 2 if number < 30 else 8
        loss = step(run)
        told.state.micro_batch.size = run.state.micro_batch.size  # set to that size at that step
        assert loss == step(told), number
        sizes.append(run.state.micro_batch.size)
    assert parts.same(weights(run), weights(told))
    assert full.fired[:2] == [8, 4]
    assert len(full.fired) > 2  # rejected trials there were
    assert sizes[29] == 2
    assert sizes[30 + 10] == 8
    assert sizes == sorted(sizes)
    assert [row[1:3] for row in run.state.micro_batch.history] == [[8, 4], [4, 2], [2, 4], [4, 8]]


def test_no_size_comes_and_goes_while_the_limit_stands_between_two():
    full = Memory(5)
    run = dynamic_run(full)
    sizes = []
    for _ in range(500):
        step(run)
        sizes.append(run.state.micro_batch.size)
    assert set(sizes) == {4}
    assert 3 <= len(full.fired) <= 8  # one real, then trials 10, 20, 40, ... steps apart
    (row,) = run.state.micro_batch.rejected
    assert row[0] == 8
    assert row[1] == len(full.fired)
    assert row[3] == "out of memory"


def test_a_size_that_fails_after_its_trial_waits_twice_as_long_each_time():
    """The trial fits, the step does not: the worst that can happen to a size."""
    run = dynamic_run(size=4)
    failing = []

    def hook(module: nn.Module, args: tuple) -> None:
        inside = any("attempt" in frame.function for frame in inspect.stack(0))
        if len(args[0]) == 8 and not inside:
            failing.append(run.state.progress.global_step)
            raise MemoryError

    run.model.register_forward_pre_hook(hook)
    for _ in range(200):
        step(run)
    assert failing == [10, 20, 40, 80, 160]


# What a trial asks for


def trial(run: Run, caplog: pytest.LogCaptureFixture) -> str:
    """Let one growth trial happen now; return what the log says on it."""
    caplog.set_level(logging.INFO)
    run.state.health.good_steps = 10_000
    before = weights(run)
    assert adapt(run, NEVER)
    assert parts.same(weights(run), before)
    assert all(p.grad is None for p in run.model.parameters())
    return caplog.messages[-1]


def broken_split(name: str) -> Callable:
    """Return a deliberately broken twin of add_gradients."""
    source = inspect.getsource(accumulation.add_gradients)
    broken = {
        "last micro-batch at half weight": (
            "(len(x) / S)",
            "(len(x) / S) * (0.5 if first + len(x) >= S else 1)",
        ),
        "all micro-batches alike": ("(len(x) / S)", "(1 / math.ceil(S / micro_batch_size))"),
        "last micro-batch left out": (
            "range(0, S, micro",
            "range(0, max(1, S - micro_batch_size), micro",
        ),
        "a mean of micro-batches that is a sum": ("loss * (len(x) / S)", "loss"),
    }[name]
    assert broken[0] in source
    namespace = {**vars(accumulation), "math": math}
    exec(source.replace(*broken), namespace)
    return namespace["add_gradients"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "name",
    ["last micro-batch at half weight", "all micro-batches alike", "last micro-batch left out",
     "a mean of micro-batches that is a sum"],
)  # fmt: skip
def test_a_broken_split_is_rejected_with_its_reason(name, precision, monkeypatch, caplog):
    keys = {} if precision == "fp32" else {"mixed_precision": True, "precision_dtype": precision}
    keys |= {"batch_size": 10}  # 3 does not divide it: the last micro-batch is smaller
    run = dynamic_run(size=3, **keys, dynamic_batch_size={"initial": 3, "maximum": 7})
    assert "micro_batch_size 3 -> 7" in trial(run, caplog)
    run.state.micro_batch.size, run.state.micro_batch.history = 3, []
    monkeypatch.setattr(batch_size, "add_gradients", broken_split(name))
    assert (
        "micro_batch_size stays at 3: 7 was tried before step 1 and rejected: its gradient differs by"
        in trial(run, caplog)
    )
    assert run.state.micro_batch.size == 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_tolerances_stand_well_above_the_rounding_of_each_precision(precision):
    keys = {} if precision == "fp32" else {"mixed_precision": True, "precision_dtype": precision}
    run = dynamic_run(dropout=0.2, **keys)
    for _ in range(3):
        step(run)
    apart = []
    real, batch_size.GRADIENT_TOLERANCE = batch_size.GRADIENT_TOLERANCE, {precision: -1.0}
    try:
        apart = [
            float(difference(run, 8, 1, size).split(" by ")[1].split()[0]) for size in (2, 3, 4, 8)
        ]
    finally:
        batch_size.GRADIENT_TOLERANCE = real
    assert max(apart) < real[precision] / 2
    assert difference(run, 8, 3, 3) == ""


def test_dropout_is_off_for_the_comparison_and_on_again_after_it():
    run = dynamic_run(dropout=0.4)
    assert difference(run, 8, 1, 8) == ""
    rates = {module.dropout for module in run.model.modules() if hasattr(module, "dropout")}
    assert rates == {0.4}
    with (
        contextlib.ExitStack() as stack
    ):  # the control: with dropout on, other cuts have other masks
        stack.callback(setattr, batch_size, "without_dropout", batch_size.without_dropout)
        batch_size.without_dropout = lambda model: contextlib.nullcontext()
        assert "differs by" in difference(run, 8, 1, 8)


def test_a_size_without_the_gain_is_rejected_and_its_memory_given_back(caplog, monkeypatch):
    run, given = dynamic_run(size=4, dynamic_batch_size={"minimum_gain": 1e6}), []
    monkeypatch.setattr(
        batch_size,
        "release_memory",
        lambda device: given.append(len(run.state.micro_batch.rejected)),
    )
    said = trial(run, caplog)
    assert given == [0, 1]  # before the trial, and after it was rejected
    assert "rejected: tokens/s change by" in said
    assert "not again before step 11" in said
    assert run.state.micro_batch.size == 4


@pytest.mark.parametrize("when", ["foreseen", "after it"])
def test_a_size_that_leaves_too_little_memory_is_rejected_before_it_is_tried_where_that_is_foreseen(
    when, monkeypatch, caplog
):
    run, sizes = dynamic_run(size=4, dynamic_batch_size={"memory_headroom": 0.5}), []
    run.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    used = {4: 1000 << 20, 8: 1400 << 20}
    resident = lambda device: used[max(sizes)] if sizes else 600 << 20  # noqa: E731
    monkeypatch.setattr(
        batch_size, "used_memory", resident if when == "foreseen" else lambda device: 0
    )
    monkeypatch.setattr(
        memory, "memory_limits", lambda device: [((2000 << 20) - resident(device), 2000 << 20)]
    )
    said = trial(run, caplog)
    assert "MiB, memory_headroom is 50%" in said
    assert (8 in sizes) is (when == "after it")
    assert run.state.micro_batch.size == 4


def test_a_trial_under_gradient_checkpointing_recomputes_as_training_does(caplog):
    run, calls = dynamic_run(size=4, gradient_checkpointing=True, dropout=0.2), []
    run.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(1))
    passes = []
    run.model.register_forward_pre_hook(lambda module, args: passes.append(1))
    assert "micro_batch_size 4 -> 8" in trial(run, caplog)
    assert len(calls) == 2 * len(passes)


def test_an_error_in_a_trial_that_is_no_lack_of_memory_is_raised():
    run = dynamic_run(size=4)

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.model.register_forward_pre_hook(fail)
    run.state.health.good_steps = 10
    with pytest.raises(RuntimeError, match="mat1"):
        adapt(run, NEVER)


def test_bad_steps_put_a_trial_off():
    run = dynamic_run(size=4)
    for _ in range(9):
        step(run)
    run.state.health.good_steps = 0  # as after a bad step
    step(run)
    step(run)
    assert run.state.micro_batch.size == 4
    run.state.health.good_steps = 10
    step(run)
    assert run.state.micro_batch.size == 8


def test_a_signal_in_a_trial_decides_nothing():
    run = dynamic_run(size=4)
    run.state.health.good_steps = 10
    asked = iter([False, False, True, True, True])
    before = run.state.micro_batch.history, run.state.micro_batch.rejected
    assert not adapt(run, lambda: next(asked))
    assert (run.state.micro_batch.history, run.state.micro_batch.rejected) == before
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == 8


# The search at the start


def test_the_search_takes_the_fastest_size_that_fits_and_leaves_no_trace(caplog):
    caplog.set_level(logging.INFO)
    full = Memory(5)
    run = dynamic_run(full, dynamic_batch_size={"initial": "auto"})
    before = weights(run)
    assert adapt(run, NEVER)
    assert parts.same(weights(run), before)
    assert run.state.micro_batch.size in (1, 2, 4)
    assert full.fired == [8]
    assert "the fastest valid size" in caplog.messages[-1]
    assert "8: out of memory" in caplog.messages[-1]
    assert [row[0] for row in run.state.micro_batch.rejected][-1] == 8
    (row,) = run.state.micro_batch.history
    assert row[:3] == [0, 8, run.state.micro_batch.size]
    assert adapt(run, NEVER)
    assert len(run.state.micro_batch.history) == 1  # it is made once in a run


def test_the_search_passes_over_a_size_whose_gradient_is_another(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    real = accumulation.add_gradients

    def broken(model, windows, starts, size, *rest):
        total = real(model, windows, starts, size, *rest)
        if size == 8:
            model.head.weight.grad *= 1.1
        return total

    monkeypatch.setattr(batch_size, "add_gradients", broken)
    monkeypatch.setattr(
        batch_size, "measure", lambda run, sizes, *rest: ({1: 4.0, 2: 3.0, 4: 2.0, 8: 1.0}, {})
    )
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == 4
    assert "8: its gradient differs by" in caplog.messages[-1]


def test_the_search_counts_the_remainder_of_a_size_that_does_not_divide_the_step(monkeypatch):
    keys = {"batch_size": 10, "dynamic_batch_size": {"initial": "auto", "maximum": 9, "minimum": 1}}
    seconds = {1: 3.0, 2: 1.1, 4: 1.0, 9: 0.95}  # 9 + 1: the one costs three
    monkeypatch.setattr(batch_size, "measure", lambda run, sizes, *rest: (seconds, {}))
    run = dynamic_run(**keys)
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == 4


def test_where_not_even_the_smallest_size_fits_the_search_ends_the_run():
    run = dynamic_run(Memory(0), dynamic_batch_size={"initial": "auto"})
    with pytest.raises(OutOfMemory, match="micro_batch_size 1"):
        adapt(run, NEVER)


def test_no_pass_of_the_search_begins_that_would_end_after_its_time(monkeypatch):
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    clock = {"now": 0.0}
    run.model.register_forward_pre_hook(
        lambda module, args: clock.update(now=clock["now"] + len(args[0]))
    )
    monkeypatch.setattr(batch_size.time, "perf_counter", lambda: clock["now"])
    seconds, rejected = batch_size.measure(run, [1, 2, 4, 8], 6.0, NEVER)
    assert clock["now"] <= 6
    assert list(seconds) == [1, 2]
    assert rejected == {4: "no time to try it", 8: "no time to try it"}
    seconds, rejected = batch_size.measure(run, [1, 2, 4, 8], math.inf, NEVER)
    assert (list(seconds), rejected) == ([1, 2, 4, 8], {})


@pytest.mark.parametrize(
    ("batch", "accumulate", "dynamic", "first"),
    [
        (8, 1, {"enabled": True, "initial": 3}, 3), (8, 1, {"enabled": False, "initial": 3}, 8),
        (4, 4, {"enabled": True, "initial": 16}, 16), (8, 1, {"enabled": True, "maximum": 5}, 5), (8, 2, {}, 8),
    ],
)  # fmt: skip
def test_a_run_begins_with_the_size_that_the_configuration_names(batch, accumulate, dynamic, first):
    keys = {
        "batch_size": batch,
        "accumulate_grad_batches": accumulate,
        "dynamic_batch_size": dynamic,
    }
    assert parts.run(training=keys).state.micro_batch.size == first


@pytest.mark.parametrize("dynamic", [{"minimum": 9}, {"initial": 9}, {"maximum": 9}, {"minimum": 4, "initial": 3},
                                     {"minimum": 5, "maximum": 4}, {"initial": 0}])  # fmt: skip
def test_sizes_that_cannot_be_are_refused(dynamic):
    with pytest.raises(ValueError, match="minimum <= initial <= maximum <= 8"):
        dynamic_run(dynamic_batch_size={"initial": "auto", **dynamic})


# The whole job: stop and resume, exit codes, what is shown

STEPS = 40
JOB = {
    "max_steps": STEPS, "batch_size": 8, "accumulate_grad_batches": 1, "save_checkpoint_steps": 100,
    "checkpoint_interval_minutes": None, "eval_interval": 20, "sample_interval_steps": None,
    "dynamic_batch_size": {**CALM, "enabled": True, "growth_interval_steps": 8},
}  # fmt: skip


def job(
    folder: Path, *arguments: str, limit: Callable[[int], float], stop_at: int | None = None
) -> tuple[int, Memory]:
    """Train in this process under a limit that depends on the step; a SIGTERM comes in the step after `stop_at`."""
    script = harness.load_script()
    real, full, threads = script.assemble, Memory(), torch.get_num_threads()

    def assemble(*args: object) -> Run:
        run = real(*args)
        full.limit = lambda: limit(run.state.progress.global_step)
        full.watch(run.model)

        def stop(module: nn.Module, args: tuple) -> None:
            if run.state.progress.global_step == stop_at and module.training:
                script.STOP.exit_code, script.STOP.signal_name = 143, "SIGTERM"

        run.model.register_forward_pre_hook(stop)
        return run

    script.assemble = assemble
    try:
        with contextlib.chdir(folder):
            return script.main(["--config", "tiny.yaml", *arguments]), full
    finally:
        torch.set_num_threads(threads)


def new(folder: Path, **run) -> Path:
    folder.mkdir()
    harness.write_config(folder, training=harness.merged(JOB, run))
    return folder


def log_of(folder: Path) -> str:
    (path,) = (folder / "logs").glob("train_*.log")
    return path.read_text(encoding="utf-8")


def ending(folder: Path, at: int = STEPS) -> dict:
    content = harness.load(harness.checkpoints(folder)[at])
    clock = ("time_s", "run_id", "tokens_per_s")
    state = {key: value for key, value in content["state"].items() if key not in clock}
    state["size_history"] = [row[:3] for row in state["size_history"]]  # the reason names a speed
    keys = ("model_state_dict", "optimizer_state_dict", "scaler_state_dict", "rng")
    return {key: content[key] for key in keys} | {"run": state}


def falling_and_rising(step: int) -> float:
    """A limit of 2 from step 7 on, and of 8 again from step 20 on."""
    return 2 if 6 <= step < 20 else 8


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = new(tmp_path_factory.mktemp("straight") / "run")
    code, full = job(folder, limit=falling_and_rising)
    assert (code, full.fired[:2]) == (0, [8, 4])
    history = [
        row[1:3]
        for row in harness.load(harness.checkpoints(folder)[STEPS])["state"]["micro_batch"][
            "history"
        ]
    ]
    assert history == [[8, 4], [4, 2], [2, 4], [4, 8]]
    return folder


@pytest.mark.parametrize("at", [5, 6, 7, 14, 22, 30, 31])
def test_a_run_stopped_around_a_shrink_or_a_growth_ends_in_the_same_bits_and_meets_no_lack_of_memory_twice(
    straight, tmp_path, at
):
    stopped = new(tmp_path / "stopped")
    code, first = job(stopped, limit=falling_and_rising, stop_at=at)
    assert code == 143
    code, second = job(stopped, "--resume_from", "latest", limit=falling_and_rising)
    assert code == 0
    assert parts.same(ending(stopped), ending(straight))
    assert log_of(stopped).count("out of memory: micro_batch_size") == 2
    rejected = log_of(stopped).count("and rejected: out of memory")
    assert len(first.fired) + len(second.fired) == 2 + rejected
    assert rejected == log_of(straight).count("and rejected: out of memory")


def test_the_log_has_one_line_for_each_change_and_the_curves_show_the_size_and_the_memory(straight):
    log = log_of(straight)
    assert log.count("micro_batch_size 8 -> 4") == 1
    assert log.count("step 7: out of memory: micro_batch_size 8 -> 4") == 1
    assert log.count("micro_batch_size 2 -> 4 from step") == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (straight / "logs" / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    sizes = {event.step: event.value for event in events.Scalars("batch/micro_batch_size")}
    assert (sizes[6], sizes[7], sizes[STEPS]) == (8, 2, 8)
    assert all(50 < event.value < 50_000 for event in events.Scalars("perf/memory_mib"))


def test_the_progress_bar_shows_how_a_step_is_cut():
    run = parts.run(training={"batch_size": 32, "accumulate_grad_batches": 1})
    run.state.progress.train_loss, run.state.micro_batch.size = 1.0, 16
    assert estimate.postfix(run).endswith(", 16x2")
    run.state.micro_batch.size = 12
    assert estimate.postfix(run).endswith(", 12x3")


def test_out_of_memory_down_to_one_sequence_is_exit_6_and_the_last_good_step_is_saved(
    tmp_path, capsys
):
    folder = new(tmp_path / "run")
    code, full = job(folder, limit=lambda step: 0 if step == 9 else 8)
    assert (code, full.fired) == (6, [8, 4, 2, 1])
    said = capsys.readouterr().err
    assert "step 10: out of memory at micro_batch_size 1" in said
    assert "Traceback" not in said
    assert list(harness.checkpoints(folder)) == [9]
    assert "_step_9.pt" in said.split("resume with: ")[1]
    code, full = job(folder, "--resume_from", "latest", limit=lambda step: 8)
    assert (code, full.fired) == (0, [])


def test_out_of_memory_in_the_update_is_exit_6_and_nothing_half_updated_is_saved(
    tmp_path, capsys, monkeypatch
):
    folder = new(tmp_path / "run", save_checkpoint_steps=4)
    real, count = optim.AdamW.step, iter(range(1, 100))

    def fails(self, *args):
        real(self, *args)
        if next(count) == 7:
            raise MemoryError

    monkeypatch.setattr(optim.AdamW, "step", fails)
    code, _ = job(folder, limit=lambda step: 8)
    assert code == 6
    assert (
        "step 7: out of memory in the update of the weights, and the weights are half"
        in capsys.readouterr().err
    )
    assert max(harness.checkpoints(folder)) == 4
    monkeypatch.setattr(optim.AdamW, "step", real)
    undisturbed = new(tmp_path / "undisturbed", save_checkpoint_steps=4)
    assert job(folder, "--resume_from", "latest", limit=lambda step: 8)[0] == 0
    assert job(undisturbed, limit=lambda step: 8)[0] == 0
    assert parts.same(ending(folder), ending(undisturbed))


def test_out_of_memory_in_samples_and_evaluations_leaves_the_training_as_it_is(tmp_path):
    quiet, loud = (
        new(tmp_path / name, sample_interval_steps=10, eval_interval=8)
        for name in ("quiet", "loud")
    )
    assert job(quiet, limit=lambda step: 8)[0] == 0
    script = harness.load_script()
    real, fired = evaluation.evaluate, []

    def fails(model, *args):
        if len(fired) % 3 == 0:
            fired.append("evaluation")
            raise torch.OutOfMemoryError("CUDA out of memory")
        fired.append("fine")
        return real(model, *args)

    def no_sample(*args):
        fired.append("sample")
        raise MemoryError

    script.continue_text = no_sample
    evaluation.evaluate = fails
    try:
        with contextlib.chdir(loud):
            assert script.main(["--config", "tiny.yaml"]) == 0
    finally:
        evaluation.evaluate = real
    assert {"evaluation", "sample"} <= set(fired)
    a, b = ending(quiet), ending(loud)
    assert b["state"]["micro_batch"]["size"] == 8
    assert parts.same(a["model_state_dict"], b["model_state_dict"])
    assert parts.same(a["optimizer_state_dict"], b["optimizer_state_dict"])


# A real lack of memory

VM = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, torch.utils.tensorboard, chatgot.run.assembly
from pathlib import Path
print(next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmSize")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits what Linux gives")
@pytest.mark.parametrize(
    ("initial", "precision", "left_mib"),
    [("128", "fp32", 150), ("auto", "bf16", 260)]
    + [
        pytest.param(initial, precision, left, marks=pytest.mark.slow)
        for initial in ("128", "auto")
        for precision, left in (("fp32", 130), ("fp32", 200), ("fp32", 300), ("bf16", 300))
    ],
)  # fmt: skip
def test_a_real_lack_of_memory_takes_the_same_road(tmp_path, initial, precision, left_mib):
    """A user's `ulimit -v`: 128 sequences need about 600 MiB, so many are left."""
    harness.write_config(
        tmp_path,
        model={"d_model": 64, "n_layers": 4, "n_head": 4, "d_hid": 256, "max_seq_length": 64},
        training={"batch_size": 128, "accumulate_grad_batches": 1, "max_steps": 3, "eval_interval": 3,
                  "mixed_precision": precision == "bf16", "precision_dtype": "bf16",
                  "sample_interval_steps": None, "gradient_checkpointing": False,
                  "dynamic_batch_size": {"enabled": True, "memory_headroom": 0.0}},
    )  # fmt: skip
    (tmp_path / "text.txt").write_text(harness.make_text(30_000), encoding="utf-8")
    environment = os.environ | {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    probe = [sys.executable, "-c", VM, str(harness.ROOT)]
    base_kib = int(
        subprocess.run(probe, capture_output=True, text=True, check=True, env=environment).stdout
    )
    limit = (base_kib + left_mib * 1024) * 1024
    done = subprocess.run(
        [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml",
         "--set", f"training.dynamic_batch_size.initial={initial}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = harness.load(harness.checkpoints(tmp_path)[3])["state"]
    assert state["size_history"] or initial == "128"
    if left_mib < 200:
        assert state["micro_batch_size"] < 128
        if initial == "128":
            assert "step 1: out of memory: micro_batch_size 128 -> 64" in done.stderr


# What a trial computes is what a step computes


def test_a_trial_computes_the_next_steps_real_sequences_as_the_step_will():
    run = dynamic_run(dropout=0.3, size=4)
    run.state.progress.global_step = run.state.progress.position = 5
    tried, _ = batch_size.attempt(run, 8, 4)
    assert accumulate_gradients(
        run.model, run.train_windows, run.state, run.config, run.scaler
    ).isfinite()
    assert all(torch.equal(p.grad, g) for p, g in zip(run.model.parameters(), tried, strict=True))


def test_a_gradient_that_is_not_a_number_proves_nothing(caplog):
    run = dynamic_run(size=4)
    with torch.no_grad():
        run.model.norm.weight[0] = math.nan
    caplog.set_level(logging.INFO)
    assert "differs by nan" in difference(run, 8, 4, 8)
    run.state.health.good_steps = 10
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == 4


def test_a_loss_scale_that_is_still_finding_its_height_does_not_spoil_a_trial():
    keys = {
        "mixed_precision": True,
        "precision_dtype": "fp16",
        "dynamic_batch_size": {"initial": "auto"},
    }
    run = dynamic_run(**keys)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**24})
    assert difference(run, 8, 1, 8) == ""
    scaled, _ = batch_size.attempt(run, 8, 8)
    assert 1 < scaled[0].norm() < math.inf  # scaled all the same: small gradients would vanish
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 16.0})
    low, _ = batch_size.attempt(run, 8, 8)
    assert low[0].norm().item() == pytest.approx(scaled[0].norm().item() / 64, rel=0.05)


def test_a_large_step_is_compared_in_part_but_never_with_less_than_the_size(monkeypatch):
    compared = []
    monkeypatch.setattr(
        batch_size, "measure", lambda run, sizes, *rest: ({1: 0.5, 2: 0.5, 4: 0.25}, {})
    )
    monkeypatch.setattr(
        batch_size, "difference", lambda run, n, size, other: compared.append(n) or ""
    )
    assert adapt(dynamic_run(size=4, dynamic_batch_size={"initial": "auto", "maximum": 4}), NEVER)
    monkeypatch.setattr(
        batch_size, "measure", lambda run, sizes, *rest: ({1: 9.0, 2: 9.0, 4: 8.0}, {})
    )
    assert adapt(dynamic_run(size=4, dynamic_batch_size={"initial": "auto", "maximum": 4}), NEVER)
    assert compared == [6, 4]


@pytest.mark.parametrize("initial", ["auto", 4])
def test_a_recomputation_that_differs_in_a_trial_switches_gradient_checkpointing_off_as_in_a_step(
    initial, caplog
):
    caplog.set_level(logging.INFO)
    run = dynamic_run(size=4, gradient_checkpointing=True, dynamic_batch_size={"initial": initial})
    layer, real = run.model.layers[0], run.model.layers[0].forward

    def unsteady(x, keep, rotated, cache=None):
        recomputing = torch._C._current_graph_task_id() != -1
        return real(
            x[:, :4] if recomputing else x, keep, rotated, cache
        )  # other shapes than the first time

    layer.forward = unsteady
    run.state.health.good_steps = 10
    assert adapt(run, NEVER)
    assert run.state.modes.gradient_checkpointing_failed
    assert run.model.recompute_every is None
    assert (
        len([m for m in caplog.messages if "without gradient checkpointing, which stays off" in m])
        == 1
    )
    assert run.state.micro_batch.history


def test_a_failed_attempt_leaves_no_verdict_on_the_step():
    run, calls = dynamic_run(size=4), []

    def spoil(module: nn.Module, args: tuple, output: tuple) -> tuple:
        calls.append(len(args[0]))
        if len(calls) == 1:
            return output[0], output[1] * math.nan
        if len(calls) == 2:
            raise MemoryError
        return output

    run.model.register_forward_hook(spoil)
    step(run)
    assert calls == [4, 4, 2, 2, 2, 2]
    assert (run.state.health.skips, run.state.micro_batch.size) == (0, 2)


@pytest.mark.parametrize("where", ["step", "batch_size", "evaluation"])
def test_memory_is_given_back_after_each_failure(where, monkeypatch):
    import chatgot.training.step

    module = {"step": chatgot.training.step, "batch_size": batch_size, "evaluation": evaluation}[
        where
    ]
    given = []
    monkeypatch.setattr(
        module, "release_memory", lambda device: given.append(full.fired[-1] if full.fired else 0)
    )
    full = Memory(4)
    if where == "step":
        step(dynamic_run(full))
        assert given == [8]
    elif where == "evaluation":
        evaluation.validation_losses(dynamic_run(full), NEVER)
        assert given == [8]
    else:
        run = dynamic_run(full, size=4)
        run.state.health.good_steps = 10
        adapt(run, NEVER)
        assert given[0] == 0
        assert 8 in given


# What is remembered, and for how long


def test_after_a_shrink_and_after_the_search_the_interval_passes_before_a_trial():
    full = Memory(4)
    run = dynamic_run(full)
    run.state.progress.global_step = run.state.progress.position = 7
    step(run)
    assert run.state.micro_batch.next_growth_step == 17
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    run.state.progress.global_step = run.state.progress.position = 3
    assert adapt(run, NEVER)
    assert run.state.micro_batch.next_growth_step == 13


def test_the_waiting_time_has_an_end():
    run = dynamic_run()
    run.state.micro_batch.rejected = [[8, 10_000, 3, "x"]]
    assert batch_size.reject(run.state, run.config, 8, "again") <= 10**12
    assert run.state.micro_batch.rejected == [[8, 10_001, 10**12, "again"]]


def test_a_rewind_keeps_the_size_and_what_was_learnt_and_the_waiting_goes_on_from_there(tmp_path):
    full = Memory()
    run = dynamic_run(full)
    for _ in range(20):
        step(run)
    full.limit = 2
    step(run)
    state = run.state
    before = state.micro_batch.history
    assert [row[2] for row in state.micro_batch.rejected] == [30, 30]
    state.micro_batch.eval_size = 2
    rewind(run)
    assert (state.progress.global_step, state.health.rewinds) == (0, 1)
    assert (state.micro_batch.size, state.micro_batch.eval_size, state.micro_batch.history) == (
        2,
        2,
        before,
    )
    assert [row[:3] for row in state.micro_batch.rejected] == [[4, 1, 9], [8, 1, 9]]
    assert state.micro_batch.next_growth_step == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_history", [[0, 8, 4]]), ("size_history", [[0, 8, 4, 1]]), ("size_history", [[0, 8, -4, "x"]]),
        ("size_history", ["x"]), ("size_history", [[0, 8, 4, "x" * 2000]]), ("sizes_rejected", [[8, -1, 0, "x"]]),
        ("sizes_rejected", [[8, 10**400, 0, "x"]]), ("sizes_rejected", [[8, True, 0, "x"]]),
        ("next_growth_step", -1), ("next_growth_step", 10**30), ("eval_batch_size", 0), ("eval_batch_size", 2.0),
    ],
)  # fmt: skip
def test_what_no_run_has_saved_is_refused(name, value):
    run = dynamic_run()
    assert odd_counters(run.checkpoint()) == []
    setattr(run.state, name, value)
    assert name in odd_counters(run.checkpoint())


def test_an_evaluation_larger_than_a_batch_is_refused(tmp_path):
    run = dynamic_run()
    content = run.checkpoint()
    check_state(run, content, tmp_path, data_may_change=False)
    content["state"]["micro_batch"]["eval_size"] = 9
    with pytest.raises(CheckpointRejected, match="evaluations of 9 sequences"):
        check_state(run, content, tmp_path, data_may_change=False)


@pytest.mark.parametrize(
    ("size", "dynamic", "then"),
    [
        (2, {"minimum": 4, "initial": "auto"}, 4), (8, {"maximum": 4, "initial": 4}, 4), (8, {"initial": 2}, 2),
        (4, {"minimum": 2, "maximum": 8, "initial": 4}, 4),
    ],
)  # fmt: skip
def test_a_resumed_run_takes_up_the_sizes_that_are_asked_for_now(size, dynamic, then):
    run = dynamic_run(size=size, dynamic_batch_size=dynamic)
    if dynamic.get("initial") == "auto":
        run.state.micro_batch.history = [[0, 8, size, "found"]]  # the search was made
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == then
    run.state.micro_batch.size = (
        1 if dynamic.get("minimum", 1) == 1 else then
    )  # it has moved on since
    run.state.micro_batch.history = [[0, 8, 1, "x"]]
    before = run.state.micro_batch.size
    assert adapt(run, NEVER)
    assert run.state.micro_batch.size == before


def test_at_a_minimum_above_one_the_advice_names_it():
    with pytest.raises(OutOfMemory, match=r"dynamic_batch_size\.minimum"):
        step(dynamic_run(Memory(0), dynamic_batch_size={"minimum": 4}))


def test_a_signal_before_the_first_pass_of_the_search_decides_nothing():
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    assert not adapt(run, lambda: True)
    assert (run.state.micro_batch.history, run.state.micro_batch.size) == ([], 8)


def test_a_signal_between_a_shrink_and_its_step_lets_the_step_be_done_so_that_memory_is_not_missed_twice(
    tmp_path,
):
    folder = new(tmp_path / "run", save_checkpoint_steps=6)
    code, full = job(folder, limit=lambda step: 4 if step >= 6 else 8, stop_at=6)
    assert (code, full.fired) == (143, [8])
    assert max(harness.checkpoints(folder)) == 7
    code, full = job(folder, "--resume_from", "latest", limit=lambda step: 4)
    assert code == 0
    assert log_of(folder).count("out of memory: micro_batch_size") == 1


@pytest.mark.parametrize("proof", ["climb", "prove_again"])
def test_out_of_memory_in_a_proof_leaves_all_as_it_is(proof, monkeypatch, caplog):
    def fails(*args: object) -> None:
        raise MemoryError

    run = dynamic_run(gradient_checkpointing=True)
    if proof == "climb":
        run.state.modes.asked_precision = "bf16"
        monkeypatch.setattr(recovery, "prove_mixed_precision", fails)
        assert recovery.climb(run) == "done"
    else:
        monkeypatch.setattr(recovery, "recomputation_differs", fails)
        recovery.prove_again(run)
    assert "out of memory" in caplog.text
    assert (run.state.modes.precision, bool(run.model.recompute_every)) == ("fp32", True)
