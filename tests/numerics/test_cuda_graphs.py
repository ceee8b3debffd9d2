"""Replayed micro-batches train to the same bits, or are refused; without a card, by a stand-in.

The stand-in runs what it recorded again, on the same tensors, as a graph does. The real recording
is tested in tests/gpu.
"""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import parts
import pytest
import torch
from torch import Tensor, nn

from chatgot.machine.cuda_graph import WARM_UPS, Launch
from chatgot.machine.device import preserved_generators, seed_generators
from chatgot.model.gpt import GPT, Block, evaluating
from chatgot.numerics import cuda_graphs
from chatgot.numerics.cuda_graphs import GraphedPass, NoGraph, NoRoom, choose_graph, difference
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.run.modes import change_precision, choose_cuda_graph
from chatgot.run.resuming import find_checkpoint, resume
from chatgot.run.run_state import restore_state
from chatgot.training.step import compute_gradients, update_weights

STEPS = 3


class StandIn:
    """Records by keeping the function; counts recordings and replays."""

    def __init__(self, mutate: Callable[[Launch], Launch] | None = None) -> None:
        self.recorded = 0
        self.replayed = 0
        self.mutate = mutate

    def __call__(self, launch: Launch, device: torch.device) -> Launch:
        self.recorded += 1
        for _ in range(WARM_UPS):
            launch()
        again = launch if self.mutate is None else self.mutate(launch)

        def replay() -> None:
            self.replayed += 1
            again()

        return replay


def fresh_run(record: StandIn | None = None, precision: str = "fp32", **sections) -> Run:
    model = {"dropout": 0.2, "attention_dropout": 0.1, **sections.pop("model", {})}
    run = parts.run(precision=precision, model=model, **sections)
    if record is not None:
        use(run, record)
    return run


def use(run: Run, record: StandIn) -> None:
    run.graphed = GraphedPass(run.model, parts.CPU, record)
    run.state.modes.graphed = True


def step(run: Run) -> bool:
    loss = compute_gradients(run)
    return update_weights(run, loss)


def trained(run: Run) -> dict:
    return parts.copied({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})


# The same bits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["gpt", "modern"])
@pytest.mark.parametrize("size", [4, 3])  # of 8 sequences: two micro-batches, or two and a rest
def test_replayed_steps_end_in_the_bits_of_plain_ones(precision, architecture, size):
    record = StandIn()
    ended = []
    losses: list[list[float | None]] = []
    for way in (None, record):
        run = fresh_run(way, precision, model={"architecture": architecture})
        run.state.micro_batch.size = size
        losses.append([])
        for _ in range(STEPS):
            step(run)
            losses[-1].append(run.state.progress.train_loss)
        ended.append(trained(run))
    assert losses[0] == losses[1]
    assert parts.same(*ended)
    assert record.recorded == (1 if size == 4 else 2)
    assert record.replayed == record.recorded + STEPS * (2 if size == 4 else 3)  # and one proof


def test_steps_are_replayed_once_later_tokens_are_gone():
    ended = []
    training = {"max_steps": 4, "warmup_steps": 0, "multi_token_weights": [0.5]}
    record = StandIn()
    replays = []
    for way in (None, record):
        run = fresh_run(way, training=training)
        for _ in range(4):
            step(run)
            replays.append(record.replayed)
        ended.append(trained(run))
    assert replays[:-1] == [0] * 7  # two thirds of the decay are over in the last of four steps
    assert replays[-1] > 0
    assert parts.same(*ended)


def test_evaluations_between_replayed_steps_change_no_bit():
    ended = []
    for observed in (False, True):
        run = fresh_run(StandIn())
        for _ in range(STEPS):
            step(run)
            if observed:
                x, y = run.val_windows.batch(run.val_windows.ids[:2].astype(int))
                with evaluating(run.model), preserved_generators(parts.CPU):
                    run.model(x, y)
        ended.append(trained(run))
    assert parts.same(*ended)


def test_a_step_of_nan_is_skipped_and_the_next_one_is_healthy():
    ended = []
    for way in (None, StandIn()):
        run = fresh_run(way)
        assert step(run)
        handle = run.model.norm.register_forward_hook(lambda module, given, y: y * math.nan)
        assert not step(run)
        handle.remove()
        assert run.scaler.nan_counter == 1
        assert step(run)
        ended.append(trained(run))
    assert parts.same(*ended)


def test_a_rewind_goes_on_with_the_weights_it_has_restored():
    ended = []
    for way in (None, StandIn()):
        run = fresh_run(way)
        step(run)
        stored = parts.copied(run.collect_state())
        first = trained(run)
        step(run)
        restore_state(stored, run.state, run.model, run.optimizer, run.scaler)
        assert parts.same(trained(run), first)
        step(run)
        ended.append(trained(run))
    assert parts.same(*ended)


def test_a_fallback_to_fp32_is_recorded_anew():
    record = StandIn()
    ended = []
    for way in (None, record):
        run = fresh_run(way, "bf16")
        step(run)
        change_precision(run.state, run.scaler, "fp32")
        step(run)
        ended.append(trained(run))
    assert parts.same(*ended)
    assert record.recorded == 2


def out_of_memory_above(sequences: int) -> Callable[[nn.Module, tuple], None]:
    def fail(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, GPT) and module.training and len(inputs[0]) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return fail


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_smaller_micro_batch_after_out_of_memory_is_recorded_anew(steps_before):
    dynamic = {"dynamic_batch_size": {"enabled": True, "initial": 4}}
    record = StandIn()
    ended = []
    for way in (None, record):
        run = fresh_run(way, training=dynamic)
        for _ in range(steps_before):
            step(run)
        assert run.graphed is None or len(run.graphed.recordings) == steps_before
        handle = run.model.register_forward_pre_hook(out_of_memory_above(2))
        step(run)
        handle.remove()
        assert run.state.micro_batch.size == 2
        step(run)
        ended.append(trained(run))
    assert parts.same(*ended)
    assert record.recorded == 1 + steps_before
    assert len(run.graphed.recordings) == 1  # that of the larger size has been released


def test_gradients_from_elsewhere_are_added_to():
    """As after a plain micro-batch in the same step."""
    found = []
    for way in (None, StandIn()):
        run = fresh_run(way)
        for p in run.model.parameters():
            p.grad = torch.ones_like(p)
        compute_gradients(run)
        found.append([p.grad.clone() for p in run.model.parameters()])
    assert parts.same(*found)


def test_recording_leaves_gradients_and_generators_as_they_were():
    run = fresh_run()
    graphed = GraphedPass(run.model, parts.CPU, StandIn())
    for p in run.model.parameters():
        p.grad = torch.ones_like(p)
    gradients = [p.grad for p in run.model.parameters()]
    x, y = run.train_windows.batch(run.train_windows.starts(0, 4))
    seed_generators(parts.CPU, 3)
    before = torch.get_rng_state()
    graphed.recording_of(x, y)
    assert torch.equal(torch.get_rng_state(), before)
    for p, gradient in zip(run.model.parameters(), gradients, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, torch.ones_like(p))


def test_gradient_checkpointing_runs_without_a_graph():
    record = StandIn()
    run = fresh_run(record, training={"gradient_checkpointing": True})
    assert run.model.recompute_every == 1
    assert step(run)
    assert record.recorded == 0


# Refused


def fixed_seed(launch: Launch) -> Launch:
    """A graph that knows only the seed of its recording."""

    def replay() -> None:
        torch.manual_seed(11)
        launch()

    return replay


def nothing(launch: Launch) -> Launch:
    """A graph that is empty."""
    return lambda: None


def twice(launch: Launch) -> Launch:
    """A graph that adds its gradient twice."""

    def replay() -> None:
        random_numbers = torch.get_rng_state()
        launch()
        torch.set_rng_state(random_numbers)
        launch()

    return replay


def run_out(launch: Launch) -> Launch:
    raise torch.OutOfMemoryError("CUDA out of memory")


def forbidden(launch: Launch) -> Launch:
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with")


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        (fixed_seed, "its replay differs from a plain pass"),
        (nothing, "its replay differs from a plain pass"),
        (twice, "its replay differs from a plain pass: gradient"),
        (run_out, "out of memory while recording"),
        (forbidden, "CUDA error: operation not permitted when stream is capturing"),
    ],
)
def test_a_recording_that_fails_costs_one_warning_and_no_bit(mutate, reason, caplog):
    record = StandIn(mutate)
    run = fresh_run(record)
    assert run.graphed is not None
    run.graphed.on_failure = lambda: setattr(run.state.modes, "graphed", False)
    plain = fresh_run()
    for _ in range(STEPS):
        assert step(run)
        assert step(plain)
    assert parts.same(trained(run), trained(plain))
    assert record.recorded == 1
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert reason in warning.message
    assert "\n" not in warning.message
    assert warning.event["kind"] == "compile"
    assert (warning.event["on"], warning.event["graph"]) == (False, False)
    assert run.state.modes.graphed is False


def test_a_pass_differs_by_its_loss_or_its_gradient():
    def one(loss: float, *gradient: float) -> tuple[Tensor, list[Tensor | None]]:
        return torch.tensor(loss), [torch.tensor(gradient)]

    assert difference(one(2.0, 3.0, 4.0), one(2.0, 3.0, 4.0), 0.0) == ""
    assert difference(one(2.0, 3.0, 4.0), one(2.01, 3.0, 4.04), 0.01) == ""
    assert "loss" in difference(one(2.0, 3.0, 4.0), one(2.03, 3.0, 4.0), 0.01)
    assert "gradient" in difference(one(2.0, 3.0, 4.0), one(2.0, 3.0, 4.06), 0.01)
    assert difference(one(2.0, math.nan), one(2.0, math.nan), 0.01)
    assert difference(one(math.nan, 1.0), one(math.nan, 1.0), 0.01)
    assert difference((torch.ones(()), [None]), one(1.0, 0.0), 0.01) == "a weight has no gradient"


# The choice


def chosen(run: Run, stored: bool | None = None) -> bool:
    assert run.graphed is not None
    batch = run.train_windows.batch(run.train_windows.starts(0, 4))
    with autocast(parts.CPU, run.state.modes.precision):
        return choose_graph(run.graphed, batch, "a micro-batch", stored)


def test_a_graph_that_lacks_room_in_a_timing_may_be_tried_again(machine):
    """Compiled blocks need less memory."""

    def full(launch: Launch, device: torch.device) -> Launch:
        raise NoRoom("it would leave 1 of 100 MiB")

    run = parts.run()
    run.graphed = GraphedPass(run.model, parts.CPU, full)
    assert not chosen(run)
    assert run.graphed.given_up == ""
    batch = run.train_windows.batch(run.train_windows.starts(0, 4))
    assert run.graphed.add_gradient(*batch, 1.0, lambda loss: loss) is None
    assert "1 of 100 MiB" in run.graphed.given_up


def graph_events(caplog) -> list[dict]:
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    return [event for event in events if "graph" in event]


@pytest.mark.parametrize(("replayed_s", "on"), [(0.002, True), (0.0099, False), (0.02, False)])
def test_a_graph_is_used_where_a_micro_batch_is_clearly_faster(
    replayed_s, on, machine, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(
        cuda_graphs,
        "best_times",
        lambda ways, rounds: [way() for way in ways] and [0.01, replayed_s],
    )
    record = StandIn()
    assert chosen(fresh_run(record)) is on
    assert record.recorded == 1
    (event,) = graph_events(caplog)
    assert (event["on"], event["graph"]) == (False, on)
    assert event["measured"] == {"plain_s": 0.01, "graph_s": replayed_s}
    known = json.loads(machine.read_bytes())
    assert [v for k, v in known.items() if k.startswith("graph of eager a")] == [[0.01, replayed_s]]
    assert chosen(fresh_run(record)) is on  # remembered: nothing is recorded before the first step
    assert record.recorded == 1


def test_the_measurement_leaves_no_gradient_and_draws_nothing(machine):
    run = fresh_run(StandIn())
    before = torch.get_rng_state()
    chosen(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in run.model.parameters())
    plain = fresh_run()
    for either in (run, plain):
        assert step(either)
    assert parts.same(trained(run), trained(plain))


def test_a_failure_while_measuring_is_one_warning_and_not_remembered(machine, caplog):
    assert not chosen(fresh_run(StandIn(forbidden)))
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert not machine.exists() or "graph of" not in machine.read_text()


@pytest.mark.parametrize("stored", [True, False])
def test_a_stored_way_is_kept_without_a_measurement(stored, caplog, machine):
    caplog.set_level(logging.INFO)
    record = StandIn(forbidden)
    assert chosen(fresh_run(record), stored) is stored
    assert record.recorded == 0
    assert [e["reason"] for e in graph_events(caplog)] == ["as in the checkpoint"] * stored


@pytest.mark.parametrize(
    ("keys", "stored_as", "expected"),
    [
        ({"compile": "auto"}, True, True),
        ({"compile": "auto"}, False, False),
        ({"compile": False}, None, False),
    ],
)
def test_the_way_of_a_checkpoint_is_taken_up_again(keys, stored_as, expected, machine):
    before = fresh_run(training=keys)
    before.state.modes.graphed = bool(stored_as)
    stored = None if stored_as is None else before.checkpoint()
    run = fresh_run(training=keys)
    graphed = GraphedPass(run.model, parts.CPU, StandIn())
    found = choose_cuda_graph(run.state, run.config, run.train_windows, stored, graphed)
    assert found is (graphed if expected else None)
    assert run.state.modes.graphed is expected


def test_a_checkpoint_of_a_card_is_resumed_without_graphs_on_a_cpu(tmp_path):
    run = fresh_run()
    run.state.modes.graphed = True
    path = parts.checkpoint_file(tmp_path, run)
    point = find_checkpoint(str(path), run.config, Path("tiny.yaml"), set())
    again = parts.run(point.content, model={"dropout": 0.2, "attention_dropout": 0.1})
    resume(again, point)
    assert again.graphed is None
    assert again.state.modes.graphed is False


def test_times_of_eager_and_of_compiled_blocks_are_kept_apart(machine, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "best_times", lambda ways, rounds: [0.01, 0.001])
    run = fresh_run(StandIn())
    chosen(run)
    run.model.training_block = lambda *given: Block.forward(*given)
    chosen(run)
    names = [name for name in json.loads(machine.read_bytes()) if name.startswith("graph of")]
    assert len(names) == 2


def test_out_of_memory_while_measuring_leaves_the_choice_to_the_first_step(machine, caplog):
    caplog.set_level(logging.INFO)
    run = fresh_run(StandIn())
    handle = run.model.register_forward_pre_hook(out_of_memory_above(2))
    assert not chosen(run)
    handle.remove()
    assert [e["reason"] for e in graph_events(caplog)] == ["out of memory"]


def test_a_pass_without_a_graph_is_timed_plainly(machine):
    run = fresh_run(StandIn(forbidden))
    assert run.graphed is not None
    batch = run.train_windows.batch(run.train_windows.starts(0, 4))
    assert cuda_graphs.fastest_pass(run.graphed, batch, "a micro-batch") > 0
    with pytest.raises(NoGraph):
        cuda_graphs.pass_times(run.graphed, batch, "a micro-batch")
