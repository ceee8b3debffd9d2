"""Where a group goes on that torchrun has started again: at its own newest good checkpoint."""

import logging
import os
import time
from pathlib import Path

import parts
import psutil
import pytest

from chatgot.checkpointing.names import TIMESTAMP
from chatgot.errors import CheckpointRejected
from chatgot.run import restarting
from chatgot.run.restarting import agent_began_s, last_good_point

BEGAN_S = 1_800_000_000.0  # when the agent began
YAML = Path("tiny.yaml")


def stamp(seconds_later: float) -> str:
    return time.strftime(TIMESTAMP, time.localtime(BEGAN_S + seconds_later))


def saved(
    folder: Path, later_s: float, step: int, written_s: float = 60, name: str = "tiny"
) -> Path:
    """Make a file named as a checkpoint of a run that began so many seconds after the agent."""
    path = folder / f"{name}_{stamp(later_s)}_step_{step}.pt"
    path.write_bytes(b"")
    os.utime(path, (BEGAN_S + written_s, BEGAN_S + written_s))
    return path


def found(
    folder: Path,
    asked: str | None = None,
    damaged: tuple[Path, ...] = (),
    *,
    is_known: bool = True,
) -> object:
    """Return what the group goes on from: a path, "latest", or None."""

    def find(resume_from: str) -> str:
        if Path(resume_from) in damaged:
            raise CheckpointRejected(f"{resume_from}: damaged")
        return resume_from

    config = parts.config(paths={"checkpoints": str(folder)})
    point = last_good_point(config, YAML, asked, BEGAN_S, find, is_known=is_known)
    return Path(point) if point not in (None, "latest") else point


def test_a_new_group_goes_on_from_its_newest_file(tmp_path):
    saved(tmp_path, 10, 2)
    newest = saved(tmp_path, 10, 10)
    saved(tmp_path, 10, 4)
    assert found(tmp_path) == newest


def test_a_group_that_has_saved_nothing_begins_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, "chatgot")
    assert found(tmp_path) is None
    assert "no checkpoint was saved before" in caplog.text
    assert found(tmp_path / "missing") is None


def test_runs_from_before_the_group_are_not_its_own(tmp_path):
    saved(tmp_path, -10, 8)
    saved(tmp_path, 10, 8, name="other")
    assert found(tmp_path) is None


def test_of_several_starts_the_newest_run_counts(tmp_path):
    saved(tmp_path, 10, 8)
    newest = saved(tmp_path, 20, 2)
    assert found(tmp_path) == newest


def test_damaged_files_are_passed_over(tmp_path, caplog):
    older = saved(tmp_path, 10, 2)
    newest = saved(tmp_path, 10, 4)
    assert found(tmp_path, damaged=(newest,)) == older
    assert f"{newest}: damaged; passed over" in caplog.text
    assert found(tmp_path, damaged=(newest, older)) is None


def test_a_resumed_group_goes_on_after_the_file_that_it_was_told(tmp_path):
    """Whenever that run began; files up to that step are not the group's."""
    told = saved(tmp_path, -5000, 4)
    assert found(tmp_path, str(told)) == told
    saved(tmp_path, -5000, 2)
    saved(tmp_path, 10, 20)  # another run
    assert found(tmp_path, str(told)) == told
    later = saved(tmp_path, -5000, 6)
    assert found(tmp_path, str(told)) == later
    assert found(tmp_path, str(told), damaged=(later,)) == told


@pytest.mark.parametrize("name", ["best.pt", "before the exam.pt"])
def test_a_renamed_file_says_itself_of_which_run_it_is(tmp_path, name):
    """The group goes on from its newest file, not again from the one that it was told."""
    run = parts.run()
    run.state.run_id = f"tiny_{stamp(-5000)}"
    run.state.progress.global_step = run.state.progress.position = 4
    told = parts.checkpoint_file(tmp_path, run).rename(tmp_path / name)
    assert found(tmp_path, str(told)) == told
    saved(tmp_path, -5000, 2)
    saved(tmp_path, 10, 20)  # another run
    saved(tmp_path, -5000, 8, written_s=-3000)  # was to be set aside
    assert found(tmp_path, str(told)) == told
    later = saved(tmp_path, -5000, 6)
    assert found(tmp_path, str(told)) == later


def test_a_renamed_file_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(CheckpointRejected, match=r"best\.pt"):
        found(tmp_path, str(tmp_path / "best.pt"))


def test_newer_files_that_a_group_was_to_set_aside_are_not_its_own(tmp_path):
    """A rank may be lost before they are set aside."""
    told = saved(tmp_path, -5000, 4, written_s=-4000)
    saved(tmp_path, -5000, 8, written_s=-3000)
    assert found(tmp_path, str(told)) == told
    own = saved(tmp_path, -5000, 6, written_s=3)
    assert found(tmp_path, str(told)) == own


def test_nothing_that_can_be_resumed_is_an_error(tmp_path):
    told = saved(tmp_path, -5000, 4)
    saved(tmp_path, -5000, 2)
    with pytest.raises(CheckpointRejected, match="damaged"):
        found(tmp_path, str(told), damaged=(told,))


def test_a_group_that_was_told_latest_takes_the_latest_again(tmp_path):
    saved(tmp_path, 10, 2)
    assert found(tmp_path, "latest") == "latest"


def test_a_job_that_slurm_starts_again_knows_its_run(tmp_path, monkeypatch):
    """Its agents are new, and younger than the run."""
    older = saved(tmp_path, -5000, 4)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert found(tmp_path) == older


def test_an_agent_began_when_its_process_did(monkeypatch):
    assert agent_began_s() == psutil.Process(os.getppid()).create_time()

    def gone(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(restarting.psutil, "Process", gone)
    assert abs(agent_began_s() - time.time()) < 60


# A machine has joined: torchrun starts all ranks again, and counts nothing


def test_a_group_that_a_machine_joins_goes_on_from_its_newest_file(tmp_path):
    newest = saved(tmp_path, 10, 10)
    assert found(tmp_path, is_known=False) == newest


def test_a_run_that_others_train_now_is_not_gone_on_with(tmp_path, monkeypatch):
    saved(tmp_path, 10, 10)
    monkeypatch.setattr(restarting, "is_being_trained", lambda folder, run_id: True)
    assert found(tmp_path, is_known=False) is None


def test_a_first_start_does_as_it_is_told_and_says_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "chatgot")
    saved(tmp_path, -100, 10)
    asked = saved(tmp_path, -200, 4)
    assert found(tmp_path, is_known=False) is None
    assert found(tmp_path, "latest", is_known=False) == "latest"
    assert found(tmp_path, str(asked), is_known=False) == asked
    assert not caplog.text
