"""On a card, whole micro-batches decide about compiling; compiled blocks are proven first.

Rehearsed on a CPU: the times are made up, and the compiler is a stand-in.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import parts
import pytest
import torch
from torch import Tensor

from chatgot.machine.measured import COMPILED
from chatgot.model.gpt import Block
from chatgot.numerics import compilation
from chatgot.numerics.compilation import OnACard, Work, choose_compile
from chatgot.numerics.cuda_graphs import GraphedPass

EAGER_S = 0.010
STEPS = 10_000  # 200 s of eager micro-batches: two in a step


def compiler(mutate: Callable[[Tensor], Tensor]) -> Callable[..., Callable[..., Tensor]]:
    """Return a stand-in for torch.compile, whose blocks change what they return."""

    def compile_function(function: Callable[..., Tensor], **how: object) -> Callable[..., Tensor]:
        return lambda *given: mutate(function(*given))

    return compile_function


def exact(y: Tensor) -> Tensor:
    return y


def wrong(y: Tensor) -> Tensor:
    return 1.5 * y


@pytest.fixture
def work(machine, monkeypatch, tmp_path) -> Work:
    """A run's work on a card where a compiled micro-batch takes half of the time."""
    monkeypatch.setenv(COMPILED, str(tmp_path / "compiled"))  # no code of other tests
    run = parts.run(model={"dropout": 0.2}, training={"max_steps": STEPS, "compile": "auto"})
    batch = run.train_windows.batch(run.train_windows.starts(0, 4))

    def seconds(graphed: GraphedPass, batch: object, name: str) -> float:
        return EAGER_S if graphed.model.training_block is Block.__call__ else EAGER_S / 2

    monkeypatch.setattr(compilation, "fastest_pass", seconds)
    monkeypatch.setattr(torch, "compile", compiler(exact))
    card = OnACard(GraphedPass(run.model, parts.CPU), batch)
    return Work(run.config, run.model, parts.CPU, "fp32", 4, STEPS, math.inf, card=card)


def test_whole_micro_batches_are_weighed_against_compiling(work, caplog):
    caplog.set_level(logging.INFO)
    assert choose_compile(work, None)
    assert "a micro-batch takes 10.00 ms eager and 5.00 ms compiled" in caplog.text
    assert work.model.training_block is not Block.__call__


@pytest.mark.parametrize(("seconds_left", "on"), [(30.0, False), (40.0, True)])
def test_a_card_compiles_for_shorter_runs_than_a_cpu(work, seconds_left, on):
    """60 % are likely to be saved there: 20 s of compiling pay from 33 s on."""
    assert choose_compile(replace(work, seconds_left=seconds_left), None) is on


def test_out_of_memory_while_compiling_is_weighed_leaves_the_blocks_eager(work, monkeypatch):
    def fail(*given: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compilation, "fastest_pass", fail)
    assert choose_compile(work, None) is False
    assert work.model.training_block is Block.__call__


def test_recordings_of_other_blocks_are_dropped_before_each_timing(work, monkeypatch):
    recordings: list[int] = []
    card = work.card
    assert card is not None

    def seconds(graphed: GraphedPass, batch: object, name: str) -> float:
        recordings.append(len(graphed.recordings))
        graphed.recordings[len(recordings),] = None  # type: ignore[assignment] # stands for one
        return EAGER_S if graphed.model.training_block is Block.__call__ else EAGER_S / 2

    monkeypatch.setattr(compilation, "fastest_pass", seconds)
    assert choose_compile(work, None)
    assert recordings == [0, 0, 0]


def test_measurements_with_recomputation_have_a_name_of_their_own(work):
    assert replace(work, recomputes=True).name_of_pass != work.name_of_pass


def test_compiled_blocks_that_compute_something_else_are_refused(work, monkeypatch, caplog):
    monkeypatch.setattr(torch, "compile", compiler(wrong))
    before = torch.get_rng_state()
    assert not choose_compile(work, None)
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "a micro-batch differs from an eager one" in warning.message
    assert work.model.training_block is Block.__call__
    assert all(p.grad is None for p in work.model.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_attentions_own_masks_do_not_fail_the_proof(work, monkeypatch):
    """They may differ in a compiled block: this one draws a number more than an eager one."""

    def draw_one(y: Tensor) -> Tensor:
        torch.rand(())
        return y

    monkeypatch.setattr(torch, "compile", compiler(draw_one))
    assert not choose_compile(work, None)
    model = work.config.model.model_copy(update={"attention_dropout": 0.3})
    config = work.config.model_copy(update={"model": model})
    assert choose_compile(replace(work, config=config), None)


def test_gradient_checkpointing_does_not_rule_out_compiling_on_a_card(work):
    """Its own proof has a tolerance there."""
    assert choose_compile(replace(work, recomputes=True), None)
    assert not choose_compile(replace(work, recomputes=True, card=None), None)
