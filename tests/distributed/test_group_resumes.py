"""A run goes on with any number of ranks: the same losses, and on as many ranks the same bits."""

from pathlib import Path

import group_harness
import harness
import pytest
from group_harness import largest_difference, losses
from group_training import PARTS, TOLERANCE, go_on, train

pytestmark = pytest.mark.slow

STEPS = 12
STOP = 6


def new_folder(parent: Path, name: str, **sections: object) -> Path:
    folder = parent / name
    folder.mkdir()
    steps = {"max_steps": STEPS, "save_checkpoint_steps": STOP}
    harness.write_config(folder, **harness.merged({"training": steps}, sections))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """The folders of undisturbed runs: of one process, of two ranks, of two with parts."""
    parent = tmp_path_factory.mktemp("whole")
    folders = {}
    for name, ranks in (("alone", 0), ("2", 2), ("2 parts", 2)):
        strategy = PARTS if name == "2 parts" else {}
        folders[name] = new_folder(parent, name, training={"micro_batch_size": 3}, **strategy)
        train(folders[name], ranks)
    return folders


@pytest.mark.parametrize(
    ("before", "after", "strategy"),
    [
        ("2", 0, "ddp"),
        ("2", 4, "ddp"),
        ("alone", 2, "ddp"),
        ("2", 2, "ddp"),
        ("2 parts", 0, "fsdp"),
        ("2 parts", 2, "fsdp"),
        ("2 parts", 4, "fsdp"),
        ("2 parts", 4, "ddp"),
        ("alone", 4, "fsdp"),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, whole, before, after, strategy):
    """Whether they have whole weights or parts; the same ranks end in the same bits."""
    undisturbed = whole[before]
    folder = go_on(undisturbed, tmp_path, STOP, after, "--set", f"distributed.strategy={strategy}")
    (resumed,) = harness.events(folder, "resume")
    assert resumed["step"] == STOP
    assert resumed["ranks"] == max(1, after)
    assert losses(folder).keys() == set(range(1, STEPS + 1))
    assert largest_difference(losses(undisturbed), losses(folder)) <= TOLERANCE
    if (before, after) in (("2", 2), ("2 parts", 2)):
        assert losses(folder) == losses(undisturbed)
        assert group_harness.same_training([folder, undisturbed], STEPS)


@pytest.mark.parametrize(
    "training",
    [
        {"micro_batch_size": 4},
        {"micro_batch_size": 12},
        {"dynamic_batch_size": {"enabled": True, "initial": 12, "growth_interval_steps": 1000}},
    ],
)
def test_a_micro_batch_too_large_for_more_ranks_shrinks(tmp_path, training):
    """12 sequences for 4 ranks; without dropout, whose masks depend on the micro-batch's size."""
    folder = new_folder(tmp_path, "one", training=training)
    without = ("--set", "model.dropout=0.0")
    train(folder, 0, *without)
    resumed = go_on(folder, tmp_path, STOP, 4, *without)
    assert largest_difference(losses(folder), losses(resumed)) <= TOLERANCE
    state = harness.load(harness.checkpoints(resumed)[STEPS])["state"]
    assert state["micro_batch"]["size"] == 3
