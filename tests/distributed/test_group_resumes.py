"""A run goes on with any number of ranks: the same losses, and on as many ranks the same bits."""

import shutil
from pathlib import Path

import group_harness
import harness
import pytest
from group_harness import largest_difference, losses, run_group

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # as in test_group_runs.py
STEPS = 12
STOP = 6
CONFIG = ("--config", "tiny.yaml")


def train(folder: Path, ranks: int, *arguments: str) -> None:
    """Train in a folder, by ranks under torchrun or (0) in this process."""
    if ranks == 0:
        assert harness.train_here(folder, *CONFIG, *arguments) == 0
        return
    done = run_group(folder, ranks, *CONFIG, *arguments)
    assert done.exit_code == 0, done.said


def new_folder(parent: Path, name: str, **training: object) -> Path:
    folder = parent / name
    folder.mkdir()
    steps = {"max_steps": STEPS, "save_checkpoint_steps": STOP}
    harness.write_config(folder, training={**steps, **training})
    return folder


def go_on(whole: Path, parent: Path, ranks: int, *arguments: str) -> Path:
    """Copy a run's folder, and train there again from the step where it is to stop."""
    folder = parent / "resumed"
    shutil.copytree(whole, folder)
    start = harness.checkpoints(folder)[STOP].relative_to(folder)
    for step, path in harness.checkpoints(folder).items():
        if step > STOP:
            path.unlink()
    train(folder, ranks, "--resume_from", str(start), *arguments)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[int, Path]:
    """The folders of undisturbed runs: of one process (0) and of two ranks (2)."""
    parent = tmp_path_factory.mktemp("whole")
    folders = {}
    for ranks in (0, 2):
        folders[ranks] = new_folder(parent, f"by{ranks}", micro_batch_size=3)
        train(folders[ranks], ranks)
    return folders


@pytest.mark.parametrize(("before", "after"), [(2, 0), (2, 4), (0, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, whole, before, after):
    folder = go_on(whole[before], tmp_path, after)
    (resumed,) = harness.events(folder, "resume")
    assert resumed["step"] == STOP
    assert resumed["ranks"] == max(1, after)
    assert losses(folder).keys() == set(range(1, STEPS + 1))
    assert largest_difference(losses(whole[before]), losses(folder)) <= TOLERANCE
    if before == after:
        assert losses(folder) == losses(whole[before])
        assert group_harness.same_training([folder, whole[before]], STEPS)


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
    folder = new_folder(tmp_path, "one", **training)
    without = ("--set", "model.dropout=0.0")
    train(folder, 0, *without)
    resumed = go_on(folder, tmp_path, 4, *without)
    assert largest_difference(losses(folder), losses(resumed)) <= TOLERANCE
    state = harness.load(harness.checkpoints(resumed)[STEPS])["state"]
    assert state["micro_batch"]["size"] == 3
