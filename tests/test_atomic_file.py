"""A file is written whole or not at all: if anything fails, only the old file is there."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from child_environment import child_environment

from chatgot.atomic_file import atomic_file, temporary_name

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "tests" / "programs" / "write_up_to_limits.py"
OLD = b"the old content"
NEW = b"the new content, longer than the old one"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def test_a_finished_block_replaces_the_file_and_leaves_no_other(path):
    with atomic_file(path) as file:
        file.write(NEW)
        assert path.read_bytes() == OLD
        assert sorted(tree(path.parent)) == sorted([f".file.{os.getpid()}.tmp", "file"])
    assert tree(path.parent) == {"file": NEW}


def test_a_reader_of_the_old_file_keeps_the_old_content(path):
    with path.open("rb") as reader:
        with atomic_file(path) as file:
            file.write(NEW)
        assert reader.read() == OLD


def write_until(path: Path, at: int, error: BaseException) -> None:
    """Write `at` times, more than a buffer each time, so that bytes reach the disk; then fail."""
    with atomic_file(path) as file:
        for _ in range(at):
            file.write(NEW * 5000)
        raise error


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), SystemExit(143), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_at_any_write_leaves_only_the_old_file(path, error, at, exists):
    if not exists:
        path.unlink()
    before = tree(path.parent)
    with pytest.raises(type(error)) as raised:
        write_until(path, at, error)
    assert raised.value is error
    assert tree(path.parent) == before


@pytest.mark.parametrize("call", ["open", "fchmod", "fsync", "replace"])
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT]
)
def test_an_error_in_any_system_call_leaves_only_the_old_file(path, call, number, monkeypatch):
    before = tree(path.parent)
    fired = []

    def refuse(*args, **keywords):
        fired.append(args)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match=os.strerror(number)) as raised, atomic_file(path) as file:
            file.write(NEW)
    assert fired
    assert raised.value.errno == number
    assert tree(path.parent) == before


def test_an_attempt_after_a_failed_fsync_writes_a_new_file(path, monkeypatch):
    inodes = []

    def refuse(descriptor):
        inodes.append(os.fstat(descriptor).st_ino)
        if len(inodes) == 1:
            raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="lost"), atomic_file(path) as file:
        file.write(NEW)
    spare = path.with_name("spare")
    spare.write_bytes(b"")  # takes the inode of the failed file
    with atomic_file(path) as file:
        file.write(NEW)
    assert len(inodes) == 3  # the first file, the second file, and its folder
    assert path.read_bytes() == NEW


def test_a_file_that_fails_verification_does_not_replace_the_old_one(path):
    verified = []

    def verify(temporary: Path) -> None:
        verified.append(temporary.read_bytes())
        raise OSError(errno.EIO, "read back another")

    with pytest.raises(OSError, match="read back another"), atomic_file(path, verify) as file:
        file.write(NEW)
    assert verified == [NEW]  # the whole file could be verified
    assert tree(path.parent) == {"file": OLD}


def test_the_order_is_file_fsync_rename_folder_fsync(path, monkeypatch):
    order = []
    real_fsync = os.fsync
    real_replace = os.replace

    def fsync(descriptor):
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        assert os.fstat(descriptor).st_size == len(NEW) or order[-1] == "folder"
        real_fsync(descriptor)

    def replace(*args, **keywords):
        order.append("rename")
        real_replace(*args, **keywords)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with atomic_file(path) as file:
        file.write(NEW)
    assert order == ["file", "rename", "folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE is Unix's")
def test_a_full_disk_at_any_byte_is_an_error_and_damages_no_file(path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(path)],
        env=child_environment(ROOT),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]", done.stdout
    assert path.read_bytes() == b"x" * 300_000


# Links and modes


@pytest.mark.parametrize("points_to", ["a file", "nothing"])
def test_a_link_planted_at_the_temporary_name_is_not_followed(path, tmp_path_factory, points_to):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    if points_to == "a file":
        victim.write_bytes(b"precious")
    temporary_name(path).symlink_to(victim)
    with atomic_file(path) as file:
        file.write(NEW)
    assert tree(path.parent) == {"file": NEW}
    assert victim.exists() is (points_to == "a file")
    assert not victim.exists() or victim.read_bytes() == b"precious"


def test_a_link_that_appears_between_unlink_and_open_is_refused(
    path, tmp_path_factory, monkeypatch
):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_bytes(b"precious")
    real_open = os.open

    def plant_and_open(name, flags, *args, **keywords):
        if Path(name) == temporary_name(path):
            temporary_name(path).symlink_to(victim)
        return real_open(name, flags, *args, **keywords)

    monkeypatch.setattr(os, "open", plant_and_open)
    with pytest.raises(FileExistsError), atomic_file(path) as file:
        file.write(NEW)
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == OLD


def test_a_leftover_of_a_dead_process_with_our_id_is_replaced(path):
    temporary_name(path).write_bytes(b"half of a")
    with atomic_file(path) as file:
        file.write(NEW)
    assert tree(path.parent) == {"file": NEW}


def test_a_link_at_the_files_own_path_is_replaced_not_followed(path, tmp_path_factory):
    victim = tmp_path_factory.mktemp("elsewhere") / "victim"
    victim.write_bytes(b"precious")
    path.unlink()
    path.symlink_to(victim)
    with atomic_file(path) as file:
        file.write(NEW)
    assert victim.read_bytes() == b"precious"
    assert not path.is_symlink()
    assert path.read_bytes() == NEW


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)]
)
def test_a_temporary_file_is_private_and_a_finished_one_follows_umask(path, umask, mode):
    path.unlink()
    before = os.umask(umask)
    try:
        with atomic_file(path) as file:
            file.write(NEW)
            file.flush()
            assert stat.S_IMODE(temporary_name(path).stat().st_mode) == 0o600
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_missing_folder_is_an_error_and_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "missing" / "file") as file:
        file.write(NEW)
    assert tree(tmp_path) == {}
