"""Trials find and raise the micro-batch size: it must fit, pay and give the same gradient.

A trial leaves no trace: the tests compare with runs that were set to the size without trials. How
the size is halved when memory runs out: test_out_of_memory.py.
"""

import contextlib
import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

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
from torch import Tensor, nn

from chatgot.config import TrainingConfig
from chatgot.distributed.ranks import Ranks
from chatgot.errors import CheckpointRejected, OutOfMemory
from chatgot.machine import memory
from chatgot.numerics.accumulation import add_gradients
from chatgot.run import trials
from chatgot.run.assembly import Run
from chatgot.run.fits import invalid_counters
from chatgot.run.resuming import check_state
from chatgot.run.run_state import RejectedSize, SizeChange
from chatgot.run.trials import compare_gradients, run_trial
from chatgot.training import batch_size
from chatgot.training.batch_size import fit_micro_batch, ladder, reject_size
from chatgot.training.step import compute_gradients

PRECISIONS = ["fp32", "bf16", "fp16"]


def mixed_keys(precision: str) -> dict[str, object]:
    """Return the keys of `training` that ask for a precision."""
    if precision == "fp32":
        return {}
    return {"mixed_precision": True, "precision_dtype": precision}


def rejected_sizes(run: Run) -> dict[int, RejectedSize]:
    return {rejected.size: rejected for rejected in run.state.micro_batch.rejected}


def trial(run: Run, caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    """Run one growth trial now, assert that it leaves no trace, and return its event."""
    caplog.set_level(logging.INFO)
    run.state.health.good_steps = 10_000
    before = trained_state(run)
    assert fit_micro_batch(run, never)
    assert parts.same(trained_state(run), before)
    assert all(p.grad is None for p in run.model.parameters())
    event = caplog.records[-1].event
    assert event["kind"] == "micro_batch"
    return event


# The size grows back


def test_the_ladder_of_sizes_is_the_maximum_halved_down_to_the_minimum():
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
def test_the_size_is_back_within_the_interval_when_the_limit_rises(dropout):
    """Trials leave no trace: all bits equal those of a run set to that size at that step."""
    limit = MemoryLimit(2)
    run = dynamic_run(limit, dropout=dropout)
    told = dynamic_run(dropout=dropout, dynamic_batch_size={"enabled": False})
    sizes = []
    for number in range(60):
        limit.limit = 2 if number < 30 else 8
        loss = train_step(run)
        told.state.micro_batch.size = run.state.micro_batch.size
        assert loss == train_step(told), number
        sizes.append(run.state.micro_batch.size)
    assert parts.same(trained_state(run), trained_state(told))
    assert limit.fired[:2] == [8, 4]
    assert len(limit.fired) > 2  # there were rejected trials
    assert sizes[29] == 2
    assert sizes[30 + 10] == 8
    assert sizes == sorted(sizes)
    assert size_changes(run) == [(8, 4), (4, 2), (2, 4), (4, 8)]


def test_the_size_stays_the_same_while_the_limit_is_between_two_sizes():
    limit = MemoryLimit(5)
    run = dynamic_run(limit, dynamic_batch_size={"growth_interval_steps": 2})
    sizes = []
    for _ in range(100):
        train_step(run)
        sizes.append(run.state.micro_batch.size)
    assert set(sizes) == {4}
    assert 3 <= len(limit.fired) <= 8  # one real, then trials 2, 4, 8, ... steps apart
    (rejected,) = run.state.micro_batch.rejected
    assert rejected.size == 8
    assert rejected.times == len(limit.fired)
    assert rejected.reason == "out of memory"


def test_a_size_that_fails_after_its_trial_waits_twice_as_long_each_time():
    """The trial fits, but the step does not: the worst case for a size."""
    run = dynamic_run(size=4, dynamic_batch_size={"growth_interval_steps": 3})
    failed_at = []

    def hook(module: nn.Module, args: tuple) -> None:
        if len(args[0]) == 8 and not in_a_trial():
            failed_at.append(run.state.progress.global_step)
            raise MemoryError

    run.model.register_forward_pre_hook(hook)
    for _ in range(60):
        train_step(run)
    assert failed_at == [3, 6, 12, 24, 48]


def in_a_trial() -> bool:
    """Return whether this is called inside `run_trial`; inspect.stack is slow."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not run_trial.__code__:
        frame = frame.f_back
    return frame is not None


def test_bad_steps_postpone_a_trial():
    run = dynamic_run(size=4)
    for _ in range(9):
        train_step(run)
    run.state.health.good_steps = 0  # as after a bad step
    train_step(run)
    train_step(run)
    assert run.state.micro_batch.size == 4
    run.state.health.good_steps = 10
    train_step(run)
    assert run.state.micro_batch.size == 8


# A trial demands the same gradient

# the factor on a micro-batch's share of the loss: a function of (first, sequences, S, size)
Factor = Callable[[int, int, int, int], float]


def as_it_should(first: int, sequences: int, S: int, size: int) -> float:
    return 1


def last_at_half_weight(first: int, sequences: int, S: int, size: int) -> float:
    return 0.5 if first + sequences >= S else 1


def all_alike(first: int, sequences: int, S: int, size: int) -> float:
    return S / sequences / math.ceil(S / size)


def last_left_out(first: int, sequences: int, S: int, size: int) -> float:
    return 0 if first > 0 and first + sequences >= S else 1


def sum_instead_of_mean(first: int, sequences: int, S: int, size: int) -> float:
    return S / sequences


def split_with(factor: Factor) -> Callable:
    """Return a twin of add_gradients that multiplies each micro-batch's loss by `factor`."""

    def twin(model, windows, starts, size, *rest, **named) -> Tensor:
        *others, scale = rest
        S = len(starts)
        firsts = iter(range(0, S, size))

        def scale_wrongly(loss: Tensor) -> Tensor:
            first = next(firsts)
            return scale(loss * factor(first, min(size, S - first), S, size))

        return add_gradients(model, windows, starts, size, *others, scale_wrongly, **named)

    return twin


def trial_of_uneven_cut(
    factor: Factor,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> tuple[Run, dict[str, object]]:
    """Run a trial of 7 instead of 3 of 10 sequences at once: the last micro-batch is smaller."""
    dynamic = {"initial": 3, "maximum": 7}
    run = dynamic_run(size=3, batch_size=10, dynamic_batch_size=dynamic, **mixed_keys(precision))
    monkeypatch.setattr(trials, "add_gradients", split_with(factor))
    return run, trial(run, caplog)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "factor", [last_at_half_weight, all_alike, last_left_out, sum_instead_of_mean]
)
def test_a_broken_split_is_rejected_with_its_reason(factor, precision, monkeypatch, caplog):
    run, event = trial_of_uneven_cut(factor, precision, monkeypatch, caplog)
    assert (event["reason"], event["tried"]) == ("rejected", 7)
    assert (event["old"], event["new"]) == (3, 3)
    assert run.state.micro_batch.size == 3
    assert rejected_sizes(run)[7].reason.startswith("its gradient differs by")
    assert "stays at 3: 7 was tried before step 1 and rejected" in caplog.messages[-1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_right_split_is_accepted(precision, monkeypatch, caplog):
    """The control for the broken splits."""
    run, event = trial_of_uneven_cut(as_it_should, precision, monkeypatch, caplog)
    assert (event["reason"], event["old"], event["new"]) == ("trial", 3, 7)
    assert run.state.micro_batch.size == 7


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_tolerances_are_far_above_the_rounding_of_each_precision(precision, monkeypatch):
    run = dynamic_run(dropout=0.2, **mixed_keys(precision))
    for _ in range(3):
        train_step(run)
    tolerance = trials.GRADIENT_TOLERANCE[precision]
    with monkeypatch.context() as patch:
        patch.setattr(trials, "GRADIENT_TOLERANCE", {precision: -1.0})
        said = [compare_gradients(run, 8, 1, size) for size in (2, 3, 4, 8)]
    differences = [float(text.split(" by ")[1].split()[0]) for text in said]
    assert max(differences) < tolerance / 2
    assert compare_gradients(run, 8, 3, 3) == ""


def test_dropout_is_off_during_the_comparison_and_on_after_it(monkeypatch):
    run = dynamic_run(dropout=0.4)
    assert compare_gradients(run, 8, 1, 8) == ""
    rates = {module.dropout for module in run.model.modules() if hasattr(module, "dropout")}
    assert rates == {0.4}
    # the control: with dropout on, another split has other masks
    monkeypatch.setattr(trials, "without_dropout", lambda model: contextlib.nullcontext())
    assert "differs by" in compare_gradients(run, 8, 1, 8)


def test_a_nan_gradient_proves_nothing(caplog):
    run = dynamic_run(size=4)
    with torch.no_grad():
        run.model.norm.weight[0] = math.nan
    caplog.set_level(logging.INFO)
    assert "differs by nan" in compare_gradients(run, 8, 4, 8)
    run.state.health.good_steps = 10
    assert fit_micro_batch(run, never)
    assert run.state.micro_batch.size == 4


def test_a_loss_scale_that_is_still_falling_does_not_spoil_a_trial():
    run = dynamic_run(**mixed_keys("fp16"), dynamic_batch_size={"initial": "auto"})
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**24})
    assert compare_gradients(run, 8, 1, 8) == ""
    high = run_trial(run, 8, 8).gradients[0].norm().item()
    assert 1 < high < math.inf  # the loss is still scaled: small gradients would vanish
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 16.0})
    low = run_trial(run, 8, 8).gradients[0].norm().item()
    assert low == pytest.approx(high / 64, rel=0.05)


# A trial demands a gain and free memory


def test_a_size_without_a_gain_is_rejected_and_its_memory_given_back(caplog, monkeypatch):
    run = dynamic_run(size=4, dynamic_batch_size={"minimum_gain": 1e6})
    rejected_at_release = []

    def release(device: torch.device) -> None:
        rejected_at_release.append(len(run.state.micro_batch.rejected))

    monkeypatch.setattr(trials, "release_memory", release)
    monkeypatch.setattr(batch_size, "release_memory", release)
    event = trial(run, caplog)
    assert rejected_at_release == [0, 1]  # before the trial, and after the rejection
    assert event["reason"] == "rejected"
    rejected = rejected_sizes(run)[8]
    assert rejected.reason.startswith("it gains")
    assert rejected.until == 10
    assert "not again before step 11" in caplog.messages[-1]
    assert run.state.micro_batch.size == 4


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_size_that_leaves_too_little_memory_is_rejected(is_foreseen, monkeypatch, caplog):
    """The size is not even tried where that is foreseen."""
    run = dynamic_run(size=4, dynamic_batch_size={"memory_headroom": 0.5})
    sizes = []
    run.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    used_by_size = {4: 1000 << 20, 8: 1400 << 20}
    total = 2000 << 20

    def resident(device: torch.device) -> int:
        return used_by_size[max(sizes)] if sizes else 600 << 20

    def unknown(device: torch.device) -> int:
        return 0

    monkeypatch.setattr(trials, "used_memory", resident if is_foreseen else unknown)
    monkeypatch.setattr(memory, "memory_limits", lambda device: [(total - resident(device), total)])
    event = trial(run, caplog)
    assert event["reason"] == "rejected"
    assert "MiB, memory_headroom is 50%" in rejected_sizes(run)[8].reason
    assert (8 in sizes) is not is_foreseen
    assert run.state.micro_batch.size == 4


# A trial computes what a step computes


def test_a_trial_computes_the_sequences_of_the_next_step():
    run = dynamic_run(dropout=0.3, size=4)
    run.state.progress.global_step = 5
    run.state.progress.position = 5
    tried = run_trial(run, 8, 4).gradients
    assert compute_gradients(run).isfinite()
    gradients = [p.grad for p in run.model.parameters()]
    assert all(map(torch.equal, gradients, tried))


def test_a_trial_under_gradient_checkpointing_recomputes_like_a_step(caplog):
    run = dynamic_run(size=4, gradient_checkpointing=True, dropout=0.2)
    layer_calls = []
    passes = []
    run.model.layers[0].register_forward_pre_hook(lambda module, args: layer_calls.append(1))
    run.model.register_forward_pre_hook(lambda module, args: passes.append(1))
    event = trial(run, caplog)
    assert (event["reason"], event["old"], event["new"]) == ("trial", 4, 8)
    assert len(layer_calls) == 2 * len(passes)


@pytest.mark.parametrize("initial", ["auto", 4])
def test_a_recomputation_that_differs_in_a_trial_is_switched_off(initial, caplog):
    """Gradient checkpointing is off from then on; the trial goes on without it."""
    caplog.set_level(logging.INFO)
    dynamic = {"initial": initial}
    run = dynamic_run(size=4, gradient_checkpointing=True, dynamic_batch_size=dynamic)
    layer = run.model.layers[0]
    real = layer.forward

    def unsteady(x, keep, rotated, cache=None):
        # returns another shape than the first time
        return real(x[:, :4] if is_recomputing() else x, keep, rotated, cache)

    layer.forward = unsteady
    run.state.health.good_steps = 10
    assert fit_micro_batch(run, never)
    assert run.state.modes.gradient_checkpointing_failed
    assert run.model.recompute_every is None
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    switches = [event["on"] for event in events if event["kind"] == "gradient_checkpointing"]
    assert switches.count(False) == 1
    assert run.state.micro_batch.history


class AnotherGaveUp(Ranks):
    """A group in which another rank has given up gradient checkpointing in a trial."""

    is_alone = False

    def all(self, said: Any) -> list[Any]:
        return [said, True] if isinstance(said, bool) else [said]


def test_what_another_rank_gives_up_in_a_trial_is_off_here_too():
    run = dynamic_run(size=2, gradient_checkpointing=True)
    assert run.model.recompute_every
    run.ranks = AnotherGaveUp()
    run.state.health.good_steps = 10_000
    assert fit_micro_batch(run, never)
    assert run.state.modes.gradient_checkpointing_failed
    assert not run.model.recompute_every


def test_an_error_in_a_trial_other_than_out_of_memory_is_raised():
    run = dynamic_run(size=4)

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.model.register_forward_pre_hook(fail)
    run.state.health.good_steps = 10
    with pytest.raises(RuntimeError, match="mat1"):
        fit_micro_batch(run, never)


def test_a_signal_ends_a_trial_without_a_decision():
    run = dynamic_run(size=4)
    run.state.health.good_steps = 10
    answers = iter([False, False, True, True, True])
    before = run.state.micro_batch.model_copy(deep=True)
    assert not fit_micro_batch(run, lambda: next(answers))
    assert run.state.micro_batch == before
    assert fit_micro_batch(run, never)
    assert run.state.micro_batch.size == 8


# The search at the start


def test_the_search_takes_the_fastest_size_that_fits_and_leaves_no_trace(caplog):
    """The search runs once in a run."""
    caplog.set_level(logging.INFO)
    limit = MemoryLimit(5)
    run = dynamic_run(limit, dynamic_batch_size={"initial": "auto"})
    before = trained_state(run)
    assert fit_micro_batch(run, never)
    assert parts.same(trained_state(run), before)
    micro_batch = run.state.micro_batch
    assert micro_batch.size in (1, 2, 4)
    assert limit.fired == [8]
    event = caplog.records[-1].event
    assert (event["kind"], event["reason"]) == ("micro_batch", "fastest")
    assert list(event["tokens_per_s"]) == [1, 2, 4]
    assert event["tokens_per_s"][micro_batch.size] > 0
    assert "8: out of memory" in caplog.messages[-1]
    assert micro_batch.rejected[-1].size == 8
    assert micro_batch.rejected[-1].reason == "out of memory"
    (change,) = micro_batch.history
    assert (change.step, change.old, change.new) == (0, 8, micro_batch.size)
    assert fit_micro_batch(run, never)
    assert len(micro_batch.history) == 1


def measured(seconds: dict[int, float]) -> Callable:
    """Return a twin of `time_sizes` that gives these seconds per sequence and rejects nothing."""
    return lambda run, sizes, *rest: (seconds, {})


def test_the_search_skips_a_size_with_another_gradient(monkeypatch):
    def broken(model, windows, starts, size, *rest, **named):
        total = add_gradients(model, windows, starts, size, *rest, **named)
        if size == 8:
            model.head.weight.grad *= 1.1
        return total

    monkeypatch.setattr(trials, "add_gradients", broken)
    monkeypatch.setattr(batch_size, "time_sizes", measured({1: 4.0, 2: 3.0, 4: 2.0, 8: 1.0}))
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    assert fit_micro_batch(run, never)
    assert run.state.micro_batch.size == 4
    assert rejected_sizes(run)[8].reason.startswith("its gradient differs by")


def test_the_search_counts_the_remainder_of_an_uneven_size(monkeypatch):
    """10 = 9 + 1, and the last sequence alone costs as much as three."""
    monkeypatch.setattr(batch_size, "time_sizes", measured({1: 3.0, 2: 1.1, 4: 1.0, 9: 0.95}))
    dynamic = {"initial": "auto", "maximum": 9, "minimum": 1}
    run = dynamic_run(batch_size=10, dynamic_batch_size=dynamic)
    assert fit_micro_batch(run, never)
    assert run.state.micro_batch.size == 4


def test_the_search_ends_the_run_where_not_even_the_smallest_size_fits():
    run = dynamic_run(MemoryLimit(0), dynamic_batch_size={"initial": "auto"})
    with pytest.raises(OutOfMemory, match="micro_batch_size 1"):
        fit_micro_batch(run, never)


def test_the_search_starts_no_pass_that_would_exceed_its_time(monkeypatch):
    """Each sequence takes a second here."""
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    now = [0.0]

    def pass_time(module: nn.Module, args: tuple) -> None:
        now[0] += len(args[0])

    run.model.register_forward_pre_hook(pass_time)
    monkeypatch.setattr(trials.time, "perf_counter", lambda: now[0])
    seconds, rejected = trials.time_sizes(run, [1, 2, 4, 8], 6.0, never)
    assert now[0] <= 6
    assert list(seconds) == [1, 2]
    assert rejected == {4: "no time to try it", 8: "no time to try it"}
    seconds, rejected = trials.time_sizes(run, [1, 2, 4, 8], math.inf, never)
    assert list(seconds) == [1, 2, 4, 8]
    assert rejected == {}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({1: 0.5, 2: 0.5, 4: 0.25}, 6), ({1: 9.0, 2: 9.0, 4: 8.0}, 4)],
)
def test_a_large_step_is_compared_only_in_part(seconds, expected, monkeypatch):
    """It is never compared with fewer sequences than the size."""
    compared = []

    def equal(run: Run, sequences: int, size: int, other: int) -> str:
        compared.append(sequences)
        return ""

    monkeypatch.setattr(batch_size, "time_sizes", measured(seconds))
    monkeypatch.setattr(batch_size, "compare_gradients", equal)
    run = dynamic_run(size=4, dynamic_batch_size={"initial": "auto", "maximum": 4})
    assert fit_micro_batch(run, never)
    assert compared == [expected]


def test_a_signal_before_the_first_pass_ends_the_search_undecided():
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    assert not fit_micro_batch(run, lambda: True)
    assert run.state.micro_batch.history == []
    assert run.state.micro_batch.size == 8


def test_a_trial_waits_for_the_whole_interval_after_the_search():
    run = dynamic_run(dynamic_batch_size={"initial": "auto"})
    run.state.progress.global_step = 3
    run.state.progress.position = 3
    assert fit_micro_batch(run, never)
    assert run.state.micro_batch.next_growth_step == 13


# What the configuration asks for


@pytest.mark.parametrize(
    ("batch", "accumulate", "dynamic", "expected"),
    [
        (8, 1, {"enabled": True, "initial": 3}, 3),
        (8, 1, {"enabled": False, "initial": 3}, 8),
        (4, 4, {"enabled": True, "initial": 16}, 16),
        (8, 1, {"enabled": True, "maximum": 5}, 5),
        (8, 2, {}, 8),
    ],
)
def test_a_run_begins_with_the_size_in_its_configuration(batch, accumulate, dynamic, expected):
    run = parts.run(
        training={
            "batch_size": batch,
            "accumulate_grad_batches": accumulate,
            "dynamic_batch_size": dynamic,
        }
    )
    assert run.state.micro_batch.size == expected


@pytest.mark.parametrize(
    "dynamic",
    [
        {"minimum": 9},
        {"initial": 9},
        {"maximum": 9},
        {"minimum": 4, "initial": 3},
        {"minimum": 5, "maximum": 4},
        {"initial": 0},
    ],
)
def test_impossible_sizes_are_refused(dynamic):
    needed = "minimum <= initial <= maximum <= 8|initial.*\n.*greater than or equal to 1"
    with pytest.raises(ValueError, match=needed):
        dynamic_run(dynamic_batch_size={"initial": "auto", **dynamic})


@pytest.mark.parametrize(
    ("size", "dynamic", "expected"),
    [
        (2, {"minimum": 4, "initial": "auto"}, 4),
        (8, {"maximum": 4, "initial": 4}, 4),
        (8, {"initial": 2}, 2),
        (4, {"minimum": 2, "maximum": 8, "initial": 4}, 4),
    ],
)
def test_a_resumed_run_takes_over_changed_sizes(size, dynamic, expected):
    """It does so once: a size that it has changed since then stays."""
    run = dynamic_run(size=size, dynamic_batch_size=dynamic)
    micro_batch = run.state.micro_batch
    if dynamic["initial"] == "auto":  # the search has run
        micro_batch.history = [SizeChange(step=0, old=8, new=size, reason="fastest")]
    assert fit_micro_batch(run, never)
    assert micro_batch.size == expected
    moved_on = 1 if dynamic.get("minimum", 1) == 1 else expected
    micro_batch.size = moved_on
    micro_batch.history = [SizeChange(step=0, old=8, new=1, reason="x")]
    assert fit_micro_batch(run, never)
    assert micro_batch.size == moved_on


# What the run remembers, and for how long


def test_the_waiting_time_is_limited():
    run = dynamic_run()
    micro_batch = run.state.micro_batch
    micro_batch.rejected = [RejectedSize(size=8, times=10_000, until=3, reason="x")]
    assert reject_size(run, 8, "again") <= 10**12
    expected = RejectedSize(size=8, times=10_001, until=10**12, reason="again")
    assert micro_batch.rejected == [expected]


CHANGE = {"step": 0, "old": 8, "new": 4, "reason": "x"}
REJECTED = {"size": 8, "times": 1, "until": 0, "reason": "x"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history", [{"step": 0, "old": 8, "new": 4}]),
        ("history", [CHANGE | {"reason": 1}]),
        ("history", [CHANGE | {"new": -4}]),
        ("history", [CHANGE | {"more": 1}]),
        ("history", ["x"]),
        ("history", [[0, 8, 4, "x"]]),
        ("history", [CHANGE | {"reason": "x" * 2000}]),
        ("rejected", [REJECTED | {"times": -1}]),
        ("rejected", [REJECTED | {"times": 10**400}]),
        ("rejected", [REJECTED | {"times": True}]),
        ("next_growth_step", -1),
        ("next_growth_step", 10**30),
        ("eval_size", 0),
        ("eval_size", 2.0),
    ],
)
def test_values_that_no_run_saves_are_refused(name, value):
    stored = parts.copied(dynamic_run().checkpoint())
    stored["state"]["micro_batch"] |= {"history": [CHANGE], "rejected": [REJECTED]}
    assert invalid_counters(stored) == []
    stored["state"]["micro_batch"][name] = value
    assert invalid_counters(stored) == [f"micro_batch.{name}"]


def test_an_evaluation_larger_than_a_batch_is_refused(tmp_path):
    run = dynamic_run()
    content = run.checkpoint()
    check_state(run, content, tmp_path, data_may_change=False)
    content["state"]["micro_batch"]["eval_size"] = 9
    with pytest.raises(CheckpointRejected, match="evaluations of 9 sequences"):
        check_state(run, content, tmp_path, data_may_change=False)
