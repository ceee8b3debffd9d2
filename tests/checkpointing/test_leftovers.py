"""Unfinished files of dead processes are removed; what somebody may still write stays."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from chatgot.checkpointing.leftovers import AGE_S, sweep_temporaries
from chatgot.checkpointing.run_lock import lock_new_run, lock_old_run

DEAD = 999_999_999  # above the largest id that a kernel gives
OLD = 2 * AGE_S
OWN = "tiny_20250102-030405"
OTHER = "other_20250101-000000"
SAVE = "checkpoints/.{run}_step_5.pt.{pid}.tmp"
NAMES = (
    SAVE,
    "checkpoints/.probe.{pid}.tmp",
    "checkpoints/..probe.{pid}.tmp.{pid}.tmp",
    "logs/.probe.{pid}.tmp",
    "logs/tensorboard/{run}/.metrics.jsonl.{pid}.tmp",
    "logs/tensorboard/{run}/.run.json.{pid}.tmp",
    "logs/tensorboard/{run}/.report.html.{pid}.tmp",
    "cache/.0123456789abcdef.uint16.{pid}.tmp",
    "cache/.0123456789abcdef.arranged.txt.{pid}.tmp",
    "cache/.0123456789abcdef-utf-8-900.suffixes.{pid}.tmp",
)


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO, "chatgot")


def leave(folder: Path, name: str, pid: int = DEAD, age: float = OLD, run: str = OTHER) -> Path:
    """Write an unfinished file that is `age` seconds old."""
    path = folder / name.format(pid=pid, run=run)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(1_500_000))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def sweep(folder: Path) -> None:
    sweep_temporaries(folder / "checkpoints", folder / "logs", folder / "cache", OWN)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_unfinished_file_of_a_dead_process_is_removed_and_said(tmp_path, caplog, name):
    path = leave(tmp_path, name)
    sweep(tmp_path)
    assert not path.exists()
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "1.5 MB" in record.getMessage()


def test_all_removed_files_are_said_in_one_line(tmp_path, caplog):
    for step in range(5, 10):
        leave(tmp_path, SAVE.replace("_5", f"_{step}"))
    sweep(tmp_path)
    (record,) = caplog.records
    assert "removed 5 unfinished files" in record.getMessage()
    assert "and 2 more" in record.getMessage()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("age", [0, AGE_S - 60, -AGE_S + 60])
def test_a_young_file_stays_since_another_machine_may_write_it(tmp_path, caplog, name, age):
    """Its process is on another machine that shares the folder, and clocks differ."""
    path = leave(tmp_path, name, age=age)
    sweep(tmp_path)
    assert path.exists()
    assert caplog.records == []


def test_a_file_from_the_future_is_old_too(tmp_path):
    """The clock was years ahead when it was written, and was corrected."""
    path = leave(tmp_path, SAVE, age=-30 * 365 * AGE_S)
    sweep(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_live_process_stays(tmp_path, name):
    path = leave(tmp_path, name, pid=os.getppid())
    sweep(tmp_path)
    assert path.exists()


def test_this_processs_own_id_was_another_processs_once(tmp_path):
    """In a container, each start has the same one."""
    path = leave(tmp_path, SAVE, pid=os.getpid())
    sweep(tmp_path)
    assert not path.exists()


def test_a_zombie_writes_nothing_any_more(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    path = leave(tmp_path, SAVE, pid=process.pid)
    sweep(tmp_path)
    process.wait()
    assert not path.exists()


def test_a_file_of_a_run_in_training_stays(tmp_path):
    """Whatever its age and process: the lock is held, perhaps by another machine."""
    (tmp_path / "checkpoints").mkdir()
    lock = lock_new_run(tmp_path / "checkpoints", "other")
    paths = [leave(tmp_path, name, run=lock.run_id) for name in (SAVE, NAMES[4])]
    sweep(tmp_path)
    assert all(path.exists() for path in paths)
    lock.release()
    sweep(tmp_path)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize("name", [SAVE, NAMES[4]])
def test_this_runs_own_unfinished_files_go_whatever_their_age(tmp_path, name):
    """Its lock is held, so nobody else writes them; the id may be another process's by now."""
    path = leave(tmp_path, name, pid=os.getppid(), age=0, run=OWN)
    lock = lock_old_run(tmp_path / path.relative_to(tmp_path).parts[0], OWN)
    sweep(tmp_path)
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/{run}_step_5.pt.{pid}.tmp",
        "checkpoints/.{run}_step_05.pt.{pid}.tmp",
        "checkpoints/.{run}_step_5.pt.tmp",
        "checkpoints/.{run}_step_5.pt.x{pid}.tmp",
        "checkpoints/.{run}_step_5.pt.{pid}.tmp.gz",
        "checkpoints/.notes.txt.{pid}.tmp",
        "checkpoints/{run}_step_5.pt",
        "checkpoints/{run}_step_5.pt.superseded",
        "checkpoints/.{run}.lock",
        "logs/.diary.{pid}.tmp",
        "logs/tensorboard/mine/.metrics.jsonl.{pid}.tmp",
        "logs/tensorboard/{run}/.notes.{pid}.tmp",
        "cache/.notes.txt.{pid}.tmp",
    ],
)
def test_files_of_other_names_stay(tmp_path, caplog, name):
    path = leave(tmp_path, name)
    sweep(tmp_path)
    assert path.exists()
    assert caplog.records == []


def test_a_folder_with_the_name_of_an_unfinished_file_stays(tmp_path):
    path = tmp_path / SAVE.format(run=OWN, pid=DEAD)
    path.mkdir(parents=True)
    sweep(tmp_path)
    assert path.is_dir()


def test_a_link_is_removed_but_not_its_target(tmp_path):
    target = tmp_path / "precious"
    target.touch()
    (tmp_path / "checkpoints").mkdir()
    link = tmp_path / SAVE.format(run=OWN, pid=DEAD)
    link.symlink_to(target)
    sweep(tmp_path)
    assert not link.is_symlink()
    assert target.exists()


def test_a_file_that_cannot_be_removed_is_not_said(tmp_path, caplog, monkeypatch):
    """In a sticky folder it belongs to another user."""
    leave(tmp_path, SAVE)
    kept = Path.unlink

    def refuse(path, *args, **keywords):
        if path.suffix == ".tmp":
            raise PermissionError(1, "Operation not permitted")
        kept(path, *args, **keywords)

    monkeypatch.setattr(Path, "unlink", refuse)
    sweep(tmp_path)
    assert caplog.records == []
