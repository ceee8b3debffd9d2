"""Micro-batches as CUDA graphs train as those that are launched kernel by kernel do.

Written for GPUs, not run on one yet.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parts
import pytest
import torch
from torch import nn

from chatgot.machine.device import seed_generators
from chatgot.model.gpt import GPT, Block, evaluating
from chatgot.numerics import compilation, cuda_graphs
from chatgot.numerics.cuda_graphs import GraphedPass
from chatgot.numerics.muon import Muon
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run, assemble
from chatgot.run.resuming import find_checkpoint, resume
from chatgot.training.step import compute_gradients, update_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

DEVICE = torch.device("cuda")
STEPS = 4
# cuBLAS and atomic additions may sum in another order from one launch to the next
LOSS_TOLERANCE = 1e-3


def fresh_run(stored: Any = None, *, graph: bool = True, compiled: bool = False, **model) -> Run:
    """Return a bf16 run on the device, whose micro-batches are graphs if `graph` is true."""
    training = {
        "mixed_precision": True,
        "precision_dtype": "bf16",
        "compile": compiled,
        "dynamic_batch_size": model.pop("dynamic_batch_size", {}),
        "optimizer": "muon",
    }
    shape = {"architecture": "modern", "dropout": 0.2, "d_model": 64, "n_head": 2, **model}
    config = parts.config(device="cuda", model=shape, training=training)
    run = assemble(config, parts.tokens(), DEVICE, stored)
    run.state.run_id = parts.RUN_ID
    run.model.train()
    # whatever is faster for so small a model: both ways are compared
    run.graphed = GraphedPass(run.model, DEVICE) if graph else None
    run.state.modes.graphed = graph
    return run


def train(run: Run, steps: int = STEPS) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = compute_gradients(run)
        update_weights(run, loss)
        losses.append(float(loss))
    if run.graphed is not None:
        assert run.graphed.given_up == ""
        assert run.graphed.recordings
    return losses


def trained(run: Run) -> dict:
    return parts.copied({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()})


@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
@pytest.mark.parametrize("compiled", [False, True])
def test_replayed_steps_lose_as_much_as_plain_ones(compiled, attention_dropout):
    """Dropout is on: a graph that drew other masks would have other losses."""
    keys = {"compiled": compiled, "attention_dropout": attention_dropout}
    replayed = train(fresh_run(**keys))
    plain = train(fresh_run(graph=False, **keys))
    assert replayed == pytest.approx(plain, rel=LOSS_TOLERANCE)


def test_a_replay_draws_the_masks_of_the_seed_and_of_no_other():
    run = fresh_run(dropout=0.5)
    x, y = run.train_windows.batch(run.train_windows.starts(0, 4))
    losses = []
    with autocast(DEVICE, "bf16"):
        for seed in (1, 2, 1):
            seed_generators(DEVICE, seed)
            loss = run.graphed.add_gradient(x, y, 1.0, lambda scaled: scaled)
            losses.append(float(loss))
            torch.rand(1000, device=DEVICE)  # between two replays the generator is used
        seed_generators(DEVICE, 2)
        _, plain = run.model(x, y)
    assert losses[0] == losses[2] != losses[1]
    assert float(plain) == pytest.approx(losses[1], rel=LOSS_TOLERANCE)


def test_replays_read_the_weights_of_their_step():
    """Casts to bf16 belong to the graph: kept ones would be those of the first step."""
    run = fresh_run(dropout=0.0)
    x, y = run.train_windows.batch(run.train_windows.starts(0, 4))
    found = []
    with autocast(DEVICE, "bf16"):
        for _ in range(2):
            found.append(float(run.graphed.add_gradient(x, y, 1.0, lambda scaled: scaled)))
            _, plain = run.model(x, y)
            assert float(plain) == pytest.approx(found[-1], rel=LOSS_TOLERANCE)
            torch.clear_autocast_cache()
            with torch.no_grad():
                for p in run.model.parameters():
                    p.mul_(1.5)
    assert found[0] != found[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_resumed_run_with_graphs_equals_an_uninterrupted_one(compiled, tmp_path):
    straight = fresh_run(compiled=compiled)
    train(straight, 2)
    path = parts.checkpoint_file(tmp_path, straight)
    train(straight, 2)
    point = find_checkpoint(str(path), straight.config, Path("tiny.yaml"), set())
    resumed = fresh_run(point.content, compiled=compiled)
    resume(resumed, point)
    resumed.model.train()
    train(resumed, 2)
    assert parts.same(trained(resumed), trained(straight))


def test_evaluation_between_replays_changes_no_bit():
    ended = []
    for observed in (False, True):
        run = fresh_run()
        for _ in range(STEPS):
            train(run, 1)
            if observed:
                x, y = run.val_windows.batch(run.val_windows.ids[:2].astype(int))
                with evaluating(run.model), autocast(DEVICE, "bf16"):
                    run.model(x, y)
        ended.append(trained(run))
    assert parts.same(*ended)


def test_out_of_memory_releases_the_graph_and_records_a_smaller_one():
    run = fresh_run(dynamic_batch_size={"enabled": True, "initial": 4})
    train(run, 1)
    (first,) = run.graphed.recordings

    def fail(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, GPT) and len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    run.graphed.release()  # the next step records, which calls the model
    handle = run.model.register_forward_pre_hook(fail)
    train(run, 1)
    handle.remove()
    assert run.state.micro_batch.size == 2
    train(run, 1)
    (second,) = run.graphed.recordings
    assert first != second


def failing(what: Callable[[torch.Tensor], object]) -> Callable[..., None]:
    def hook(module: nn.Module, given: tuple[Any, ...], y: torch.Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            what(y)

    return hook


@pytest.mark.parametrize("what", [lambda y: y.sum().item(), lambda y: 1 // 0], ids=["sync", "bug"])
def test_a_recording_that_fails_leaves_a_run_that_goes_on(what, caplog):
    """Dropout draws again, memory can be released, and another graph can be recorded."""
    run = fresh_run()
    handle = run.model.norm.register_forward_hook(failing(what))
    loss = compute_gradients(run)
    assert update_weights(run, loss)
    handle.remove()
    assert run.graphed.given_up
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 1
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.rand(8, device=DEVICE)
    torch.cuda.empty_cache()
    run.graphed = GraphedPass(run.model, DEVICE)
    train(run)


def test_a_card_chooses_the_faster_way_and_says_so(caplog, machine):
    caplog.set_level(logging.INFO)
    config = parts.config(device="cuda", training={"mixed_precision": True, "compile": "auto"})
    run = assemble(config, parts.tokens(), DEVICE, None)
    events = [r.event for r in caplog.records if hasattr(r, "event") and "graph" in r.event]
    assert len(events) == 1
    assert events[0]["graph"] == (run.graphed is not None) == run.state.modes.graphed
    plain_s, graph_s = events[0]["measured"].values()
    assert run.state.modes.graphed == (plain_s > cuda_graphs.LEAST_GAIN * graph_s)


def test_compiled_blocks_are_close_to_eager_ones_on_the_card(caplog):
    run = fresh_run(compiled=True)
    assert run.state.modes.compiled == (run.model.training_block is not Block.__call__)
    if not run.state.modes.compiled:
        assert "it does not work here" in caplog.text
    assert compilation.COMPILED_TOLERANCE["bf16"] >= cuda_graphs.TOLERANCE["bf16"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_muons_update_of_all_weights_together_is_that_of_each(pieces):
    found = []
    for together in (False, True):
        generator = torch.Generator().manual_seed(0)
        shapes = [(32, 64), (64, 32), (32, 64)]
        weights = [nn.Parameter(torch.randn(s, generator=generator).to(DEVICE)) for s in shapes]
        optimizer = Muon(
            [{"params": weights, "pieces": pieces}],
            torch.bfloat16,
            lr=0.05,
            weight_decay=0.1,
            momentum=0.9,
        )
        assert optimizer.together
        optimizer.together = together
        for p in weights:
            p.grad = torch.randn(p.shape, generator=generator).to(DEVICE)
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        optimizer.step()
        found.append([p.detach().clone() for p in weights])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-7)
