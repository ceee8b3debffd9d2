"""One process per run: the kernel holds the lock and releases it with the process, however that ends."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import parts
import pytest

from chatgot.checkpointing.run_lock import RUN_ID, RunLock, lock_new_run, lock_old_run
from chatgot.errors import StorageError

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from chatgot.checkpointing.run_lock import lock_new_run
lock = lock_new_run(Path(sys.argv[1]), "tiny")
print(lock.run_id, flush=True)
time.sleep(60)
"""
TRY = """
import sys
from pathlib import Path
from chatgot.errors import StorageError
from chatgot.checkpointing.run_lock import lock_old_run
try:
    lock_old_run(Path(sys.argv[1]), sys.argv[2])
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def python(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture
def holder(tmp_path):
    """A living process that holds the lock of a run: (process, run id)."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_that_another_process_trains_is_refused_until_kill_9_releases_it(tmp_path, holder):
    process, run_id = holder
    with pytest.raises(StorageError, match=run_id) as refused:
        lock_old_run(tmp_path, run_id)
    assert refused.value.exit_code == 5
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / f".{run_id}.lock").exists()  # the file alone is no lock
    lock_old_run(tmp_path, run_id).release()


def test_a_second_process_is_refused_while_this_one_holds_the_lock_and_not_afterwards(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    refused = python(TRY, tmp_path, lock.run_id)
    assert (refused.returncode, refused.stderr) == (5, "")
    assert "still being trained" in refused.stdout
    lock.release()
    assert python(TRY, tmp_path, lock.run_id).returncode == 0


def test_the_same_process_does_not_get_the_lock_twice(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    with pytest.raises(StorageError):
        lock_old_run(tmp_path, lock.run_id)
    lock.release()
    lock_old_run(tmp_path, lock.run_id).release()


def test_runs_started_in_the_same_second_have_different_ids_a_second_apart(tmp_path, monkeypatch):
    clock, strftime = [1_700_000_000.0], time.strftime
    monkeypatch.setattr(time, "strftime", lambda pattern: strftime(pattern, time.gmtime(clock[0])))
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with parts.at_once():
        locks = [lock_new_run(tmp_path, "tiny") for _ in range(3)]
    other = lock_new_run(tmp_path, "other")
    assert [lock.timestamp[-2:] for lock in locks] == ["20", "21", "22"]
    assert other.timestamp == locks[2].timestamp
    assert len({lock.run_id for lock in [*locks, other]}) == 4
    for lock in [*locks, other]:
        lock.release()


def test_two_processes_started_together_get_different_ids(tmp_path):
    script = HOLD.replace("time.sleep(60)", "sys.stdin.read()")
    command = [sys.executable, "-c", script, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(3)]
    ids = [process.stdout.readline().strip() for process in processes]
    assert len(set(ids)) == 3
    assert all(RUN_ID.fullmatch(run_id) for run_id in ids)
    for process in processes:
        process.communicate()
        assert process.returncode == 0


def test_an_id_that_was_taken_once_is_never_given_again(tmp_path):
    first = lock_new_run(tmp_path, "tiny")
    first.release()
    second = lock_new_run(tmp_path, "tiny")
    second.release()
    assert first.run_id != second.run_id


def test_the_id_is_the_configurations_name_and_the_local_time(tmp_path):
    before = time.strftime("%Y%m%d-%H%M%S")
    lock = lock_new_run(tmp_path, "my config_v2")
    assert re.fullmatch(r"my config_v2_\d{8}-\d{6}", lock.run_id)
    assert before <= lock.timestamp <= time.strftime("%Y%m%d-%H%M%S")
    assert lock.run_id == f"my config_v2_{lock.timestamp}"
    assert [path.name for path in tmp_path.iterdir()] == [f".{lock.run_id}.lock"]
    lock.release()


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    command = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, close_fds=False, **pipes)  # whatever may be inherited, is
    try:
        assert child.stdout.readline() == "ready\n"
        lock.release()
        lock_old_run(tmp_path, lock.run_id).release()  # would be refused if the child had it
    finally:
        child.communicate()


def test_a_link_planted_in_the_locks_place_is_not_followed(tmp_path, tmp_path_factory):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    (tmp_path / ".tiny_20250102-030405.lock").symlink_to(victim)
    with pytest.raises(StorageError):
        lock_old_run(tmp_path, "tiny_20250102-030405")
    assert not victim.exists()


@pytest.mark.parametrize(
    "take", [lambda folder: lock_new_run(folder, "tiny"), lambda f: lock_old_run(f, "tiny_1")]
)
def test_a_folder_that_is_not_there_is_a_storage_error_that_names_it(tmp_path, take):
    with pytest.raises(StorageError, match="missing") as refused:
        take(tmp_path / "missing")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    "take", [lambda folder: lock_new_run(folder, "tiny"), lambda f: lock_old_run(f, "tiny_1")]
)
def test_a_file_system_without_locks_is_a_storage_error_at_once_and_blames_no_process(
    tmp_path, take, monkeypatch
):
    def refuse(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with parts.at_once(), pytest.raises(StorageError, match="no locks") as refused:
        take(tmp_path)
    assert "another process" not in str(refused.value)


def test_a_lock_names_its_run(tmp_path):
    lock = lock_old_run(tmp_path, "tiny_20250102-030405")
    assert isinstance(lock, RunLock)
    assert (lock.run_id, lock.timestamp) == ("tiny_20250102-030405", "20250102-030405")
    assert os.stat(tmp_path / ".tiny_20250102-030405.lock").st_mode & 0o777 == 0o600  # noqa: PTH116
    lock.release()
