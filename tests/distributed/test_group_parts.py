"""Whole runs under torchrun in which each rank keeps a part of the weights, as FSDP2 has it.

They train the model that one process would train.
"""

import shutil
from typing import Any

import harness
import pytest
from group_harness import largest_difference, losses
from group_training import (
    PARTS,
    STEPS,
    TOLERANCE,
    alone,
    assert_same_training,
    by_ranks,
    go_on,
)

pytestmark = pytest.mark.slow  # each group takes some seconds to start

# three micro-batches for each of two ranks: gradients are added up in the last backward pass
RECOMPUTED = {"gradient_checkpointing": True, "micro_batch_size": 2}
MODELS: dict[str, dict[str, Any]] = {
    "gpt-adamw": {},
    "modern-muon": {"model": {"architecture": "modern"}, "training": {"optimizer": "muon"}},
    "recomputed-adamw": {"training": RECOMPUTED},
    "recomputed-muon": {
        "model": {"architecture": "modern", "n_kv_head": 1},
        "training": {"optimizer": "muon", **RECOMPUTED},
    },
}
HALF = STEPS // 2


@pytest.mark.parametrize("name", MODELS)
def test_ranks_with_parts_train_the_model_of_one_process(tmp_path, name):
    sections = MODELS[name]
    expected = alone(tmp_path, **sections)
    by_two = by_ranks(tmp_path, 2, **sections, **PARTS)
    assert_same_training(expected, by_two)
    before, other = (harness.rows(folder)[0]["val_loss"] for folder in (expected, by_two))
    assert before == other  # of equal weights


def test_four_ranks_with_parts_train_the_model_of_one_process(tmp_path):
    assert_same_training(alone(tmp_path), by_ranks(tmp_path, 4, **PARTS))


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_parts_of_lora_train_and_go_on_as_in_one_process(tmp_path, architecture):
    """Frozen weights are shared out, too; one process goes on from what two ranks have saved."""
    model = {"model": {"architecture": architecture}}
    base = alone(tmp_path, name="base", **model)
    (start,) = base.glob("checkpoints/*_step_30.pt")
    training = {"lora": {"rank": 2, "alpha": 4}, "save_checkpoint_steps": HALF}
    sections = {**model, "training": training}
    for name in ("alone", "ranks2"):
        (tmp_path / name).mkdir()
        shutil.copy(base / "text.txt", tmp_path / name)
    begin = ("--init_from", str(start))
    expected = alone(tmp_path, *begin, **sections)
    by_two = by_ranks(tmp_path, 2, *begin, **sections, **PARTS)
    assert_same_training(expected, by_two)
    resumed = go_on(by_two, tmp_path, HALF, 0)
    assert losses(resumed).keys() == set(range(1, STEPS + 1))
    assert largest_difference(losses(expected), losses(resumed)) <= TOLERANCE
