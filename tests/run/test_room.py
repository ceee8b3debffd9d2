"""What can never fit into this machine's memory is refused before anything is allocated."""

import time
from typing import Any

import harness
import parts
import pytest

from chatgot.config import MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_SEQUENCES, MAX_WIDTH
from chatgot.errors import ConfigError
from chatgot.run.room import bytes_of_weights, most_memory, parameters_of, refuse_without_room

LARGE: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"model": {"d_model": MAX_WIDTH, "n_head": 1}}, "model.d_model"),
    "hidden layer": ({"model": {"d_model": 16384, "d_hid": MAX_HIDDEN}}, "model.d_hid"),
    "heads": ({"model": {"d_model": MAX_HEADS, "n_head": MAX_HEADS, "n_layers": 999}}, "model"),
    "layers": ({"model": {"d_model": 4096, "n_layers": MAX_LAYERS}}, "model.n_layers"),
    "batch": (
        {"training": {"batch_size": MAX_SEQUENCES, "accumulate_grad_batches": 1}},
        "training.batch_size",
    ),
    "gradient checkpointing": (
        {
            "training": {"batch_size": 2**22, "gradient_checkpointing": True},
            "model": {"d_model": 512},
        },
        "training.batch_size",
    ),
}


@pytest.mark.parametrize("kind", LARGE)
def test_what_can_never_fit_is_refused_without_allocating_it(kind, monkeypatch):
    sections, named = LARGE[kind]
    monkeypatch.setattr("chatgot.run.room.memory_limits", lambda device: [(2**33, 2**34)])
    monkeypatch.setattr("chatgot.run.room.psutil.swap_memory", _no_swap)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="need at least") as refused:
        refuse_without_room(parts.config(**sections), len(parts.ALPHABET) + 1, parts.CPU)
    assert refused.value.exit_code == 2
    assert named in str(refused.value)
    assert "this machine has 16.0 GiB" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert time.monotonic() - started < 2


def test_ranks_need_room_for_the_whole_weights_at_their_start(monkeypatch):
    config = parts.config(model={"d_model": 8192, "n_head": 8, "d_hid": 32768, "n_layers": 8})
    weights = 4 * parameters_of(config, 100)
    monkeypatch.setattr("chatgot.run.room.most_memory", lambda device: weights)
    refuse_without_room(config, 100, parts.CPU, parts=64)
    monkeypatch.setattr("chatgot.run.room.most_memory", lambda device: weights - 1)
    with pytest.raises(ConfigError, match="at its start each rank has all"):
        refuse_without_room(config, 100, parts.CPU, parts=64)


class _Swap:
    free = 0


def _no_swap() -> _Swap:
    return _Swap()


def test_the_counted_parameters_are_those_of_the_model():
    for sections in ({}, {"architecture": "modern", "n_layers": 3}, {"tie_embeddings": False}):
        run = parts.run(model=sections)
        assert parameters_of(run.config, len(run.vocabulary)) == run.model.parameter_count()


def test_what_is_counted_is_less_than_what_training_takes():
    """So nothing is refused that fits."""
    for optimizer in ("adamw", "muon"):
        run = parts.run(training={"optimizer": optimizer})
        states = run.optimizer.state.values()
        kept = sum(value.nbytes for state in states for value in state.values())
        weights = 4 * run.model.parameter_count()
        assert bytes_of_weights(run.config, len(run.vocabulary)) <= 2 * weights + kept


def test_a_system_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr("chatgot.run.room.memory_limits", lambda device: [])
    assert most_memory(parts.CPU) is None
    config = parts.config(model={"d_model": MAX_WIDTH, "n_head": 1})
    refuse_without_room(config, 100, parts.CPU)


def test_a_dynamic_batch_needs_room_for_its_minimum_only():
    training = {"batch_size": 2**22, "dynamic_batch_size": {"enabled": True}}
    refuse_without_room(parts.config(training=training), 100, parts.CPU)


def test_a_run_too_large_for_this_machine_exits_with_2_and_no_files(tmp_path):
    harness.write_config(tmp_path)
    # torch cannot allocate that either, so this test is safe where the refusal is missing
    override = ["--set", "model.d_model=1048576", "--set", "model.n_head=1"]
    assert harness.train_here(tmp_path, "--config", "tiny.yaml", *override) == 2
    assert not list(tmp_path.glob("checkpoints/*.pt"))
    assert not list(tmp_path.glob("logs/*"))


@pytest.mark.parametrize("digits", [5, 300, 5000])
def test_a_huge_number_of_threads_is_refused_with_few_digits(monkeypatch, digits):
    monkeypatch.setenv("OMP_NUM_THREADS", "9" * digits)
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS") as refused:
        parts.run(training={"threads": None})
    assert "at most 4096" in str(refused.value)
    assert len(str(refused.value)) < 100
