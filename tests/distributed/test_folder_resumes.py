"""A run goes on from a folder and from a file, on any number of ranks and with any strategy."""

import shutil
from pathlib import Path

import group_harness
import harness
import pytest
from group_harness import largest_difference, losses, run_group

from chatgot.checkpointing.checkpoints import is_whole

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5  # as in test_group_runs.py
STEPS = 12
STOP = 6
CONFIG = ("--config", "tiny.yaml")
AS_FOLDER = ("--set", "distributed.one_file_gb=0")


def train(folder: Path, ranks: int, *arguments: str) -> None:
    """Train in a folder, by ranks under torchrun or (0) in this process."""
    if ranks == 0:
        assert harness.train_here(folder, *CONFIG, *arguments) == 0
        return
    done = run_group(folder, ranks, *CONFIG, *arguments)
    assert done.exit_code == 0, done.said


def go_on(whole: Path, parent: Path, ranks: int, *arguments: str, name: str = "resumed") -> Path:
    """Copy a run's folder, and train there again from the step where it is to stop."""
    folder = parent / name
    shutil.copytree(whole, folder)
    start = harness.checkpoints(folder)[STOP].relative_to(folder)
    for step, path in harness.checkpoints(folder).items():
        if step > STOP:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(folder, ranks, "--resume_from", str(start), *arguments)
    return folder


def kind(folder: Path, step: int) -> str:
    path = harness.checkpoints(folder)[step]
    assert is_whole(path)
    return path.suffix


def strategy(name: str) -> tuple[str, str]:
    return ("--set", f"distributed.strategy={name}")


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def whole(request, tmp_path_factory) -> Path:
    """The folder of an undisturbed run of two ranks that saves folders."""
    folder = tmp_path_factory.mktemp("whole")
    training = {"max_steps": STEPS, "save_checkpoint_steps": STOP, "micro_batch_size": 3}
    harness.write_config(folder, training=training)
    train(folder, 2, *AS_FOLDER, *strategy(request.param))
    assert kind(folder, STOP) == kind(folder, STEPS) == ".sharded"
    (folder / "strategy.txt").write_text(request.param)
    return folder


@pytest.mark.parametrize(("ranks", "with_"), [(0, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp")])
def test_a_folder_is_resumed_by_any_ranks_with_any_strategy(tmp_path, whole, ranks, with_):
    folder = go_on(whole, tmp_path, ranks, *AS_FOLDER, *strategy(with_))
    (resumed,) = harness.events(folder, "resume")
    assert resumed["step"] == STOP
    assert largest_difference(losses(whole), losses(folder)) <= TOLERANCE
    assert kind(folder, STEPS) == (".sharded" if ranks else ".pt")
    if ranks == 2 and (whole / "strategy.txt").read_text() == with_:
        assert losses(folder) == losses(whole)
        assert group_harness.same_training([folder, whole], STEPS)


def test_folder_to_file_to_folder_is_the_uninterrupted_run(tmp_path, whole):
    """From two ranks to one process, back to two, and to four with the other strategy."""
    alone = go_on(whole, tmp_path, 0, name="alone")
    assert kind(alone, STEPS) == ".pt"
    assert largest_difference(losses(whole), losses(alone)) <= TOLERANCE
    more = ("--set", f"training.max_steps={2 * STEPS}")
    path = str(harness.checkpoints(alone)[STEPS].relative_to(alone))
    train(alone, 4, "--resume_from", path, *AS_FOLDER, *strategy("fsdp"), *more)
    assert kind(alone, 2 * STEPS) == ".sharded"
    uninterrupted = tmp_path / "uninterrupted"
    shutil.copytree(whole, uninterrupted)
    path = str(harness.checkpoints(uninterrupted)[STEPS].relative_to(uninterrupted))
    train(uninterrupted, 2, "--resume_from", path, *more)
    assert largest_difference(losses(uninterrupted), losses(alone)) <= TOLERANCE


def test_a_file_and_a_folder_of_one_run_end_in_the_same_bits(tmp_path, whole):
    """Two ranks each: how it was saved changes nothing of training."""
    ends = []
    for name, options in (("as_folder", AS_FOLDER), ("as_file", ())):
        folder = go_on(whole, tmp_path, 2, *options, *strategy("ddp"), name=name)
        ends.append(folder)
    assert [kind(folder, STEPS) for folder in ends] == [".sharded", ".pt"]
    assert losses(ends[0]) == losses(ends[1])
    assert group_harness.same_training(ends, STEPS)
