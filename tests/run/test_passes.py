"""What is chosen of a run's passes: recomputation, sequences at once, compiled blocks.

There is no card here. The choice for one is rehearsed on the CPU, which `as_on_a_card` declares to
choose its micro-batch; tests/gpu has the same on a real one.
"""

import logging
import math
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from memory_limit import MemoryLimit
from torch import Tensor

from chatgot.errors import CheckpointRejected, OutOfMemory
from chatgot.machine import memory
from chatgot.model.gpt import Block
from chatgot.numerics import compilation
from chatgot.numerics.compilation import Work
from chatgot.numerics.gradient_checkpointing import bytes_for_backward
from chatgot.run import modes, passes, trials
from chatgot.run.assembly import Run
from chatgot.run.passes import (
    chooses_size,
    fair_size,
    first_micro_batch,
    sizes_to_try,
    where_growth_ends,
)
from chatgot.run.resuming import check_settings, find_checkpoint, resume
from chatgot.run.run_state import Modes
from chatgot.training import batch_size
from chatgot.training.step import compute_gradients, update_weights

CUDA = torch.device("cuda")
MIB = 1 << 20


def events(caplog: pytest.LogCaptureFixture, **like: Any) -> list[dict[str, Any]]:
    """Return the events so far whose fields have these values."""
    found = [record.event for record in caplog.records if hasattr(record, "event")]
    return [event for event in found if like.items() <= event.items()]


def run_of(stored: dict[str, Any] | None = None, **keys: Any) -> Run:
    """Return a run of 2 x 4 sequences a step."""
    return parts.run(stored, training=keys)


def resumed(path: Path, *named_by_set: str, **keys: Any) -> Run:
    config = parts.config(training=keys)
    point = find_checkpoint(str(path), config, Path("tiny.yaml"), set(named_by_set))
    check_settings(point.content, path, config, "tiny", set(named_by_set))
    run = run_of(point.content, **keys)
    resume(run, point)
    return run


def free_memory(monkeypatch: pytest.MonkeyPatch, free_mib: float) -> None:
    def limits(device: torch.device) -> list[tuple[int, int]]:
        return [(int(free_mib * MIB), 1000 * MIB)]

    monkeypatch.setattr(memory, "memory_limits", limits)
    monkeypatch.setattr(passes, "memory_limits", limits)


@pytest.fixture
def as_on_a_card(monkeypatch) -> None:
    """Let the CPU choose its micro-batch and shrink it, as a card does."""

    def on_any_device(settings, device: torch.device) -> bool:
        return chooses_size(settings, CUDA)

    monkeypatch.setattr(passes, "chooses_size", on_any_device)
    monkeypatch.setattr(batch_size, "chooses_size", on_any_device)


def measured(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> list[list[int]]:
    """Give these seconds a sequence instead of measuring; return a list of the sizes asked for."""
    asked = []

    def time_sizes(run, sizes: list[int], *rest) -> tuple[dict[int, float], dict[int, str]]:
        asked.append(sizes)
        return {size: seconds[size] for size in sizes if size in seconds}, {}

    monkeypatch.setattr(passes, "time_sizes", time_sizes)
    return asked


# Gradient checkpointing by memory


@pytest.mark.parametrize(("free_mib", "on"), [(1000, False), (100.02, True)])
def test_auto_recomputes_only_where_a_micro_batch_does_not_fit(free_mib, on, monkeypatch, caplog):
    """100 MiB must stay free, and a micro-batch needs about 0.1 MiB."""
    free_memory(monkeypatch, free_mib)
    caplog.set_level(logging.INFO)
    run = run_of(gradient_checkpointing="auto")
    assert run.model.recompute_every == (1 if on else None)
    assert run.state.modes.gradient_checkpointing_chosen is on
    (choice,) = events(caplog, kind="choice", what="gradient_checkpointing")
    assert choice["chosen"] is on
    assert choice["measured"]["micro_batch"] == 4
    assert 0.05 <= choice["measured"]["needed_mib"] <= 0.2
    assert choice["measured"]["free_mib"] == [pytest.approx(free_mib, abs=0.05)]


def test_the_headroom_decides_what_auto_leaves_free(monkeypatch):
    free_memory(monkeypatch, 500)
    for headroom, on in ((0.4, 0), (0.6, 1)):
        dynamic = {"memory_headroom": headroom}
        run = run_of(gradient_checkpointing="auto", dynamic_batch_size=dynamic)
        assert run.state.modes.gradient_checkpointing_chosen == on


@pytest.mark.parametrize("on", [True, False])
def test_resumed_run_keeps_what_auto_chose(on, monkeypatch, tmp_path):
    free_memory(monkeypatch, 1 if on else 1000)
    path = parts.checkpoint_file(tmp_path, run_of(gradient_checkpointing="auto"))
    free_memory(monkeypatch, 1000 if on else 1)
    run = resumed(path, gradient_checkpointing="auto")
    assert (run.model.recompute_every == 1) is on
    assert run.state.modes.gradient_checkpointing_chosen is on


def test_auto_with_room_computes_the_bits_of_false():
    runs = [run_of(gradient_checkpointing=asked) for asked in ("auto", False)]
    for run in runs:
        update_weights(run, compute_gradients(run))
    auto, plain = (run.checkpoint() for run in runs)
    names = ("model_state_dict", "optimizer_state_dict", "rng")
    assert parts.same({n: auto[n] for n in names}, {n: plain[n] for n in names})


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_for_backward_are_those_that_a_forward_keeps(architecture, precision):
    """Counted over the whole model; what it keeps outside of the blocks is small here."""
    shape = {"architecture": architecture, "d_model": 64, "d_hid": 160, "n_layers": 4}
    run = parts.run(precision=precision, model={**shape, "max_seq_length": 64, "dropout": 0.1})
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x, y = run.train_windows.batch(run.train_windows.starts(0, 6))
    weights = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        _, loss = run.model(x, y)
        counted = bytes_for_backward(run.model, 6)
    real = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights)
    assert loss.requires_grad
    assert counted == pytest.approx(real, rel=0.15)


# Sequences at once


def test_cpu_takes_batch_size_and_a_card_chooses_unless_told():
    assert run_of().state.micro_batch.size == 4
    settings = parts.config().training
    assert chooses_size(settings, CUDA)
    assert not chooses_size(settings, parts.CPU)
    for keys in ({"micro_batch_size": 4}, {"dynamic_batch_size": {"enabled": True}}):
        assert not chooses_size(parts.config(training=keys).training, CUDA)


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({8: 100.0}, 8),
        ({8: 100.0, 16: 190.0, 32: 300.0, 64: 305.0}, 32),
        ({8: 100.0, 16: 102.0, 32: 900.0}, 8),
        ({8: 100.0, 16: 80.0}, 8),
        ({8: 100.0, 16: 103.1}, 16),
    ],
)
def test_growth_ends_where_a_larger_size_is_hardly_faster(rates, chosen):
    assert where_growth_ends(rates) == chosen


@pytest.mark.parametrize(
    ("S", "size", "upwards", "downwards"),
    [
        (64, 8, [8, 16, 32, 64], [4, 2, 1]),
        (12, 12, [12], [6, 4, 2, 1]),
        (36, 12, [12, 18, 36], [6, 4, 2, 1]),
        (7, 7, [7], [1]),
        (1, 1, [1], []),
        (10, 5, [5, 10], [2, 1]),
    ],
)
def test_sizes_to_try_divide_the_step(S, size, upwards, downwards):
    assert sizes_to_try(S, size) == (upwards, downwards)


@pytest.mark.usefixtures("as_on_a_card")
def test_card_takes_the_size_where_growth_ends_and_remembers_it(machine, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    asked = measured(monkeypatch, {4: 1.0, 8: 0.5})
    run = run_of()
    assert run.state.micro_batch.size == 8
    assert run.state.micro_batch.history == []
    (choice,) = events(caplog, kind="choice", what="micro_batch")
    assert choice["chosen"] == 8
    assert choice["measured"] == {4: 8.0, 8: 16.0}
    assert "micro_batch_size: 8 of the 8 sequences of a step at once" in caplog.text
    assert run_of().state.micro_batch.size == 8
    assert asked == [[4, 8]]  # the second run measures nothing
    run_of(gradient_checkpointing=True)
    assert asked == [[4, 8], [4, 8]]  # other passes have another speed


@pytest.mark.usefixtures("as_on_a_card", "machine")
def test_choice_for_a_card_leaves_no_trace_in_the_run(monkeypatch):
    """It is really timed here."""
    chosen = run_of(compile=False)
    fixed = run_of(compile=False, micro_batch_size=chosen.state.micro_batch.size)
    assert all(p.grad is None for p in chosen.model.parameters())
    assert parts.same(chosen.checkpoint()["rng"], fixed.checkpoint()["rng"])
    for run in (chosen, fixed):
        update_weights(run, compute_gradients(run))
    assert parts.same(chosen.model.state_dict(), fixed.model.state_dict())
    assert chosen.start["state"]["micro_batch"]["size"] == chosen.state.micro_batch.size


@pytest.mark.usefixtures("as_on_a_card", "machine")
@pytest.mark.parametrize(("fits", "size"), [({2: 1.0, 1: 2.0}, 2), ({}, 1)])
def test_card_goes_below_batch_size_where_that_does_not_fit(fits, size, monkeypatch):
    asked = measured(monkeypatch, fits)
    assert run_of().state.micro_batch.size == size
    assert asked == ([[4, 8], [2]] if fits else [[4, 8], [2], [1]])


@pytest.mark.usefixtures("as_on_a_card", "machine")
def test_size_with_another_gradient_is_not_taken(monkeypatch, caplog):
    measured(monkeypatch, {4: 1.0, 8: 0.5})
    real = trials.add_gradients

    def broken(model, windows, starts, size, *rest, **named):
        total = real(model, windows, starts, size, *rest, **named)
        if size == 8:
            model.head.weight.grad *= 1.1
        return total

    monkeypatch.setattr(trials, "add_gradients", broken)
    assert run_of().state.micro_batch.size == 4
    assert "micro_batch_size 8 is not taken: its gradient differs by" in caplog.text


@pytest.mark.usefixtures("as_on_a_card", "machine")
def test_resumed_run_keeps_the_size_that_a_card_chose(monkeypatch, tmp_path):
    measured(monkeypatch, {4: 1.0, 8: 0.5})
    path = parts.checkpoint_file(tmp_path, run_of())
    asked = measured(monkeypatch, {4: 1.0, 8: 2.0})
    assert resumed(path).state.micro_batch.size == 8
    assert asked == []


@pytest.mark.parametrize("other", ["versions", "card"])
def test_run_that_goes_on_on_another_device_chooses_anew(other, monkeypatch, tmp_path, caplog):
    """A card's checkpoint on a CPU: batch_size, and what the memory there needs."""
    caplog.set_level(logging.INFO)
    run = run_of(gradient_checkpointing="auto")
    content = run.checkpoint()
    content["state"]["micro_batch"]["size"] = 8
    content["state"]["modes"] |= {"gradient_checkpointing_chosen": True}
    if other == "versions":
        content["versions"] |= {"device": "cuda"}
    else:
        content["state"]["modes"] |= {"card": "another card"}
    path = tmp_path / f"{parts.RUN_ID}_step_0.pt"
    parts.forge(path, content)
    run = resumed(path, gradient_checkpointing="auto")
    assert run.state.micro_batch.size == 4
    assert run.model.recompute_every is None
    assert run.state.modes.card == ""
    (change,) = events(caplog, kind="micro_batch")
    assert (change["old"], change["new"], change["reason"]) == (8, 4, "settings")


def test_size_that_is_asked_for_is_used_and_changes_only_by_set(tmp_path):
    run = run_of(micro_batch_size=2)
    assert run.state.micro_batch.size == 2
    path = parts.checkpoint_file(tmp_path, run)
    assert resumed(path, micro_batch_size=2).state.micro_batch.size == 2
    with pytest.raises(CheckpointRejected, match="micro_batch_size: 2 -> 8"):
        resumed(path, micro_batch_size=8)
    changed = resumed(path, "training.micro_batch_size", micro_batch_size=8)
    assert changed.state.micro_batch.size == 8
    again = resumed(path, "training.micro_batch_size")  # auto
    assert again.state.micro_batch.size == 4


# Out of memory


@pytest.mark.usefixtures("as_on_a_card", "machine")
def test_out_of_memory_on_a_card_shrinks_and_compiles_anew(monkeypatch, caplog):
    """Without dynamic_batch_size; sizes go on dividing the 6 sequences of a step."""
    compiled_for = []

    def choose(work: Work, stored: bool | None, reason: str) -> bool:
        compiled_for.append((work.micro_batch_size, stored, reason))
        return True

    measured(monkeypatch, {6: 1.0})
    limit = MemoryLimit(2)
    run = run_of(batch_size=6, accumulate_grad_batches=1, compile=False)
    limit.watch(run.model)
    run.state.modes.compiled = True
    monkeypatch.setattr(modes, "choose_compile", choose)
    assert compute_gradients(run).isfinite()
    assert limit.fired == [6, 3]
    assert [(c.old, c.new) for c in run.state.micro_batch.history] == [(6, 3), (3, 1)]
    assert run.state.micro_batch.rejected == []
    assert compiled_for == [
        (3, True, "for micro_batch_size 3"),
        (1, True, "for micro_batch_size 1"),
    ]
    assert "micro_batch_size 6 -> 3" in caplog.text
    limit.limit = 0
    run.model.zero_grad()
    with pytest.raises(OutOfMemory, match="at micro_batch_size 1"):
        compute_gradients(run)


def test_out_of_memory_while_compiling_anew_leaves_the_blocks_eager(monkeypatch, caplog):
    def fail(*args: object) -> bool:
        raise torch.OutOfMemoryError("no memory")

    run = run_of()
    run.state.modes.compiled = True
    run.model.training_block = lambda *args: None
    monkeypatch.setattr(modes, "choose_compile", fail)
    modes.compile_for_smaller_size(run.state, run.config, run.model, run.train_windows)
    assert run.state.modes.compiled is False
    assert run.model.training_block is Block.__call__
    assert "compile: off, out of memory while compiling" in caplog.messages


# Compiled blocks that recompute


def test_auto_weighs_compiling_with_recomputation_on_a_card_only(monkeypatch):
    monkeypatch.setattr(compilation, "_compile_if_it_pays", lambda work: True)
    run = run_of()
    for device, compiles in ((parts.CPU, False), (CUDA, True)):
        work = Work(run.config, run.model, device, "fp32", 4, math.inf, math.inf, recomputes=True)
        assert compilation._compile_as_asked(work, None, "") is compiles


@pytest.mark.parametrize(
    ("device", "compiled", "precision", "tolerance"),
    [
        (CUDA, True, "bf16", 2e-2),
        (CUDA, True, "fp32", 1e-5),
        (CUDA, False, "bf16", 0.0),
        (parts.CPU, True, "bf16", 0.0),
    ],
)
def test_recomputation_has_a_tolerance_in_compiled_blocks_of_a_card_only(
    device, compiled, precision, tolerance
):
    state = Modes(compiled=compiled, precision=precision)
    assert modes.recomputation_tolerance(state, device) == tolerance


@pytest.mark.parametrize(("asked", "stays_compiled"), [("auto", False), (True, True)])
def test_compile_auto_gives_way_where_recomputation_cannot_be_proven(
    asked, stays_compiled, monkeypatch, caplog
):
    """`compile: true` keeps the compiled blocks, without gradient checkpointing."""
    run = run_of()
    run.state.modes.compiled = True
    proofs = []

    def enable(model, every: int, tolerance: float = 0.0) -> bool:
        proofs.append(tolerance)
        return not tolerance

    monkeypatch.setattr(modes, "enable_gradient_checkpointing", enable)
    config = parts.config(training={"compile": asked})
    modes.start_gradient_checkpointing(run.state.modes, config, run.model, CUDA, 1)
    assert run.state.modes.compiled is stays_compiled
    assert proofs == ([1e-5] if stays_compiled else [1e-5, 0.0])


# Several ranks


@pytest.mark.parametrize(
    ("size", "S", "ranks", "expected"),
    [
        (4, 12, 1, 4),
        (5, 12, 1, 5),  # one process takes what is asked for
        (4, 12, 2, 3),  # 3 micro-batches of 4 would be one and two
        (6, 12, 2, 6),
        (12, 12, 4, 3),
        (3, 12, 4, 3),
        (4, 12, 3, 4),
        (3, 12, 3, 2),
        (8, 7, 2, 2),  # 4 micro-batches, the last one smaller
        (4, 4, 4, 1),
        (4, 5, 4, 1),  # 5 micro-batches: no size is fair
        (9, 9, 2, 4),  # 3 micro-batches: as above
    ],
)
def test_fair_size_gives_ranks_equally_many_micro_batches(size, S, ranks, expected):
    assert fair_size(size, S, ranks) == expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_no_rank_is_left_without_a_micro_batch(ranks):
    for S in range(ranks, 25):
        for size in range(1, S + 1):
            fair = fair_size(size, S, ranks)
            assert 1 <= fair <= size
            assert -(-S // fair) >= ranks


@pytest.mark.parametrize(
    "keys",
    [
        {"micro_batch_size": 4},
        {"batch_size": 4},
        {"dynamic_batch_size": {"enabled": True, "initial": 4}},
    ],
)
def test_the_first_micro_batch_is_fair(keys):
    settings = parts.config(training={"accumulate_grad_batches": 3, **keys}).training
    assert [first_micro_batch(settings, ranks) for ranks in (1, 2, 4)] == [4, 3, 3]
