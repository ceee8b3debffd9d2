"""One process per run: the kernel holds the lock and releases it with the process."""

import calendar
import errno
import fcntl
import os
import pwd
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import parts
import pytest

from chatgot.checkpointing.names import RUN_ID
from chatgot.checkpointing.run_lock import RunLock, lock_new_run, lock_old_run
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
    """A live process that holds the lock of a run: (process, run id)."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_run_in_training_is_locked_until_kill_9_ends_its_process(tmp_path, holder):
    process, run_id = holder
    with pytest.raises(StorageError, match=run_id) as refused:
        lock_old_run(tmp_path, run_id)
    assert refused.value.exit_code == 5
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / f".{run_id}.lock").exists()  # the file alone is no lock
    lock_old_run(tmp_path, run_id).release()


def test_a_second_process_is_refused_while_this_one_holds_the_lock(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    refused = python(TRY, tmp_path, lock.run_id)
    assert (refused.returncode, refused.stderr) == (5, "")
    assert "still being trained" in refused.stdout
    lock.release()
    assert python(TRY, tmp_path, lock.run_id).returncode == 0


def test_one_process_cannot_take_the_lock_twice(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    with pytest.raises(StorageError):
        lock_old_run(tmp_path, lock.run_id)
    lock.release()
    lock_old_run(tmp_path, lock.run_id).release()


def test_runs_started_in_the_same_second_have_ids_a_second_apart(tmp_path, monkeypatch):
    clock = [1_700_000_000.0]
    strftime = time.strftime
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


def test_a_run_id_is_never_given_twice(tmp_path):
    first = lock_new_run(tmp_path, "tiny")
    first.release()
    second = lock_new_run(tmp_path, "tiny")
    second.release()
    assert first.run_id != second.run_id


def test_a_run_id_is_the_configurations_name_and_the_local_time(tmp_path):
    before = time.strftime("%Y%m%d-%H%M%S")
    lock = lock_new_run(tmp_path, "my config_v2")
    assert re.fullmatch(r"my config_v2_\d{8}-\d{6}", lock.run_id)
    assert before <= lock.timestamp <= time.strftime("%Y%m%d-%H%M%S")
    assert lock.run_id == f"my config_v2_{lock.timestamp}"
    assert [path.name for path in tmp_path.iterdir()] == [f".{lock.run_id}.lock"]
    lock.release()


def test_a_child_process_does_not_hold_the_lock(tmp_path):
    lock = lock_new_run(tmp_path, "tiny")
    command = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, close_fds=False, **pipes)  # inherits all that it can
    try:
        assert child.stdout.readline() == "ready\n"
        lock.release()
        lock_old_run(tmp_path, lock.run_id).release()  # refused if the child held the lock
    finally:
        child.communicate()


def test_a_link_planted_at_the_locks_path_is_not_followed(tmp_path, tmp_path_factory):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    (tmp_path / ".tiny_20250102-030405.lock").symlink_to(victim)
    with pytest.raises(StorageError):
        lock_old_run(tmp_path, "tiny_20250102-030405")
    assert not victim.exists()


@pytest.mark.parametrize(
    "take", [lambda folder: lock_new_run(folder, "tiny"), lambda f: lock_old_run(f, "tiny_1")]
)
def test_a_missing_folder_is_a_storage_error_that_names_it(tmp_path, take):
    with pytest.raises(StorageError, match="missing") as refused:
        take(tmp_path / "missing")
    assert refused.value.exit_code == 5


@pytest.mark.parametrize(
    "take", [lambda folder: lock_new_run(folder, "tiny"), lambda f: lock_old_run(f, "tiny_1")]
)
def test_a_file_system_without_locks_is_refused_without_blaming_a_process(
    tmp_path, take, monkeypatch
):
    def refuse(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with parts.at_once(), pytest.raises(StorageError, match="no file locks") as refused:
        take(tmp_path)
    assert "another process" not in str(refused.value)


def test_a_lock_names_its_run(tmp_path):
    lock = lock_old_run(tmp_path, "tiny_20250102-030405")
    assert isinstance(lock, RunLock)
    assert (lock.run_id, lock.timestamp) == ("tiny_20250102-030405", "20250102-030405")
    lock.release()


def test_the_lock_file_stays_in_place_after_release(tmp_path):
    new = lock_new_run(tmp_path, "tiny")
    new.release()
    lock_old_run(tmp_path, new.run_id).release()
    assert [path.name for path in tmp_path.iterdir()] == [f".{new.run_id}.lock"]


def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    """The child inherits the descriptor, as after every fork without exec."""
    lock = lock_new_run(tmp_path, "tiny")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    try:
        lock.release()
        lock_old_run(tmp_path, lock.run_id).release()
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


# Several users


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
@pytest.mark.parametrize(
    "take", [lambda folder: lock_new_run(folder, "tiny"), lambda f: lock_old_run(f, "tiny_1")]
)
def test_the_lock_files_mode_follows_the_umask(tmp_path, umask, mode, take):
    before = os.umask(umask)
    try:
        take(tmp_path).release()
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == mode


AS_ANOTHER_USER = """
import os, pwd, sys
from pathlib import Path
from chatgot.errors import StorageError
from chatgot.checkpointing.run_lock import lock_old_run
if os.getuid() == 0:
    os.chdir(sys.argv[1])
    os.setgroups([])
    os.setgid(54400)
    os.setuid(54322)
try:
    lock_old_run(Path(sys.argv[1]), sys.argv[2]).release()
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def shared_folder():
    """A folder that every user can reach; pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o2775)
        if os.getuid() == 0:
            os.chown(folder, 54321, 54400)
        yield folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")
@pytest.mark.parametrize("mode", [0o664, 0o644])
def test_a_second_user_of_a_group_folder_resumes_the_run(shared_folder, mode):
    lock = lock_new_run(shared_folder, "tiny")
    path = shared_folder / f".{lock.run_id}.lock"
    os.chown(path, 54321, 54400)
    path.chmod(mode)
    refused = python(AS_ANOTHER_USER, shared_folder, lock.run_id)
    assert refused.returncode == 5
    assert "still being trained" in refused.stdout
    lock.release()
    done = python(AS_ANOTHER_USER, shared_folder, lock.run_id)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_lock_that_cannot_be_opened_is_refused_with_its_owner(shared_folder):
    lock = lock_new_run(shared_folder, "tiny")
    lock.release()
    path = shared_folder / f".{lock.run_id}.lock"
    path.chmod(0)
    owner = path.owner()
    refused = python(AS_ANOTHER_USER, shared_folder, lock.run_id)
    assert refused.returncode == 5, refused.stderr
    assert f"belongs to {owner}" in refused.stdout
    assert "writable folder" not in refused.stdout
    assert len(refused.stdout.splitlines()) == 1


AS_THE_SECOND_USER = """
import os, sys
from pathlib import Path
from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.errors import UserError
from chatgot.logs.logging_setup import setup_logging
if os.getuid() == 0:
    os.chdir(sys.argv[1])
    os.setgroups([])
    os.setgid(54400)
    os.setuid(54322)
for try_it in (
    lambda: load_checkpoint(Path("tiny_20250102-030405_step_5.pt")),
    lambda: setup_logging("tiny", "20250102-030405", Path(".")),
):
    try:
        try_it()
    except UserError as error:
        print(error.exit_code, error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")
def test_a_closed_checkpoint_or_log_is_refused_with_its_owner(shared_folder):
    """The folder is writable for both users, the files are closed to the second one."""
    for name in ("tiny_20250102-030405_step_5.pt", "train_tiny_20250102-030405.log"):
        path = shared_folder / name
        path.touch()
        path.chmod(0o600)
    done = python(AS_THE_SECOND_USER, shared_folder)
    checkpoint, log = done.stdout.splitlines()
    assert checkpoint.startswith("3 ")
    assert log.startswith("5 ")
    for line in (checkpoint, log):
        assert "Permission denied (it belongs to root)" in line
    assert "its owner can share it" in log


def test_an_owner_without_a_name_is_shown_by_number(tmp_path, monkeypatch):
    path = tmp_path / ".tiny_20250102-030405.lock"
    path.touch()

    def refuse(*args, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied")

    def no_name(uid):
        raise KeyError(uid)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(pwd, "getpwuid", no_name)
    with pytest.raises(StorageError, match=f"belongs to user {os.getuid()} and"):
        lock_old_run(tmp_path, "tiny_20250102-030405")


def test_a_lock_that_nfs_refuses_to_take_read_only_names_its_owner(tmp_path, monkeypatch):
    """NFS locks only files that are open for writing; else it answers EBADF."""

    def refuse(*args):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="the lock file belongs to"):
        lock_old_run(tmp_path, "tiny_20250102-030405")


# A clock that runs behind


def at_the_time(monkeypatch, timestamp: str) -> None:
    """Set the clock; each sleep moves it forward."""
    clock = [calendar.timegm(time.strptime(timestamp, "%Y%m%d-%H%M%S"))]
    strftime = time.strftime
    monkeypatch.setattr(time, "strftime", lambda pattern: strftime(pattern, time.gmtime(clock[0])))
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))


@pytest.mark.parametrize(
    ("newest", "timestamp"),
    [
        ("20250102-030405", "20250102-030406"),
        ("20250102-235959", "20250103-000000"),
        ("20241231-235959", None),
        ("91231231-235959", "91240101-000000"),
    ],
)
@pytest.mark.parametrize("name", ["tiny_{}_step_7.pt", ".tiny_{}.lock"])
def test_a_new_run_id_is_later_than_the_newest_of_its_name(
    tmp_path, monkeypatch, caplog, newest, timestamp, name
):
    (tmp_path / name.format(newest)).touch()
    at_the_time(monkeypatch, "20250101-000000")
    lock = lock_new_run(tmp_path, "tiny")
    lock.release()
    assert lock.timestamp == (timestamp or "20250101-000000")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (timestamp is not None)
    assert timestamp is None or (newest in messages[0] and timestamp in messages[0])


@pytest.mark.parametrize(
    "name",
    [
        "other_20260101-000000_step_1.pt",
        ".other_20260101-000000.lock",
        "tiny_20260101-000000.pt",
        "tiny_x_20260101-000000_step_1.pt",
        "tiny_20269999-000000_step_1.pt",
        "notes.txt",
        "tiny_20260101-000000.lock",
        ".tiny_20260101-000000.lock.bak",
    ],
)
def test_other_file_names_do_not_change_a_new_run_id(tmp_path, monkeypatch, caplog, name):
    (tmp_path / name).touch()
    at_the_time(monkeypatch, "20250101-000000")
    lock = lock_new_run(tmp_path, "tiny")
    lock.release()
    assert lock.timestamp == "20250101-000000"
    assert caplog.records == []


def test_runs_started_while_the_clock_is_behind_have_ids_seconds_apart(tmp_path, monkeypatch):
    (tmp_path / ".tiny_20250102-030405.lock").touch()
    at_the_time(monkeypatch, "20250101-000000")
    locks = [lock_new_run(tmp_path, "tiny") for _ in range(3)]
    assert [lock.timestamp[-2:] for lock in locks] == ["06", "07", "08"]
    for lock in locks:
        lock.release()


def test_a_new_run_after_the_last_possible_second_is_a_storage_error(tmp_path):
    (tmp_path / ".tiny_99991231-235959.lock").touch()
    with pytest.raises(StorageError, match="99991231-235959"):
        lock_new_run(tmp_path, "tiny")


ZONES = ("Pacific/Kiritimati", "Asia/Tokyo", "UTC", "America/New_York", "Etc/GMT+12")


@pytest.mark.parametrize("zones", [ZONES, ZONES[::-1], ("UTC", "Asia/Kolkata", "UTC")])
def test_run_ids_follow_each_other_whatever_the_time_zone(tmp_path, monkeypatch, zones):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    ids = []
    try:
        for zone in zones:
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            lock = lock_new_run(tmp_path, "tiny")
            lock.release()
            ids.append(lock.run_id)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ids == sorted(set(ids))


def test_a_run_in_the_hour_that_comes_twice_follows_the_one_before(tmp_path, monkeypatch, caplog):
    """Berlin, 26 October 2025: 02:59:50 in summer time, and 70 seconds later 02:01:00."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    strftime = time.strftime
    summer_time = 1_761_440_390
    winter_time = summer_time + 70
    ids = []
    try:
        for clock in (summer_time, winter_time):
            local = time.localtime(clock)
            monkeypatch.setattr(time, "strftime", lambda form, local=local: strftime(form, local))
            lock = lock_new_run(tmp_path, "tiny")
            lock.release()
            ids.append(lock.run_id)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ids == ["tiny_20251026-025950", "tiny_20251026-025951"]
    assert "20251026-020100" in caplog.text


@pytest.mark.parametrize("name", [".tiny_20250102-030405.lock", "tiny_20250102-030405"])
def test_a_run_whose_checkpoints_are_elsewhere_comes_before_a_new_one(
    tmp_path, monkeypatch, caplog, name
):
    """Several folders of checkpoints may share the folder of logs, which the report searches."""
    logs = tmp_path / "logs"
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (logs / name).mkdir(parents=True)
    at_the_time(monkeypatch, "20250101-000000")
    lock = lock_new_run(checkpoints, "tiny", [logs, tmp_path / "missing"])
    lock.release()
    assert lock.timestamp == "20250102-030406"
    assert len(caplog.records) == 1
