"""A folder is there whole or not at all, whatever fails on the way."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

from chatgot.atomic_file import temporary_name
from chatgot.errors import ConfigError
from chatgot.exchange.new_folder import check_folder, new_folder

KILLED = str(harness.ROOT / "tests" / "programs" / "die_in_a_new_folder.py")


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_two(folder: Path) -> None:
    (folder / "a").write_text("1")
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_text("2")


def test_folder_appears_whole_with_its_parents(tmp_path):
    target = tmp_path / "one" / "two" / "out"
    with new_folder(target) as temporary:
        write_two(temporary)
        assert temporary.name == "out"
        assert temporary.parent.parent == target.parent  # so that it can be renamed
        assert not target.exists()
    assert contents(target) == {"a": "1", "deep/b": "2"}
    assert list(target.parent.iterdir()) == [target]


def test_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as temporary:
        write_two(temporary)
    assert contents(tmp_path / "out") == {"a": "1", "deep/b": "2"}


def make(folder: Path, then: Callable[[], object]) -> None:
    """Write a folder, with something that happens when its files are there."""
    with new_folder(folder) as temporary:
        write_two(temporary)
        then()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failing_block_leaves_nothing_not_even_new_parents(tmp_path, error):
    def fail() -> None:
        raise error

    (tmp_path / "one").mkdir()
    with pytest.raises(error):
        make(tmp_path / "one" / "two" / "out", fail)
    assert list(tmp_path.rglob("*")) == [tmp_path / "one"]


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (os, "fchmod"), (Path, "rename")])
def test_failing_system_call_leaves_nothing(tmp_path, monkeypatch, owner, call):
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        make(tmp_path / "out", lambda: monkeypatch.setattr(owner, call, fail))
    assert list(tmp_path.iterdir()) == []


def test_every_file_and_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    flushed: list[str] = []
    fsync = os.fsync
    rename = Path.rename

    def noted(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(path: Path, target: Path) -> None:
        flushed.append("renamed")
        rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", note_rename)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system has no /proc")
    with new_folder(tmp_path / "out") as temporary:
        write_two(temporary)
    assert set(flushed[: flushed.index("renamed")]) == {"a", "b", "deep", "out"}
    assert flushed[-1] == tmp_path.name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_files_and_folders_have_the_modes_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out") as temporary:
            write_two(temporary)
            (temporary / "a").chmod(0o600)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"out": 0o750, "deep": 0o750, "a": 0o640, "b": 0o640}


def test_folder_that_a_killed_process_left_is_not_in_the_way(tmp_path):
    left = temporary_name(tmp_path / "out")
    write_two_into_new(left)
    other = tmp_path / ".out.1.tmp"
    write_two_into_new(other)
    with new_folder(tmp_path / "out") as temporary:
        (temporary / "c").write_text("3")
    assert contents(tmp_path / "out") == {"c": "3"}
    assert not left.exists()


def write_two_into_new(folder: Path) -> None:
    folder.mkdir()
    write_two(folder)


def test_link_under_the_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    write_two_into_new(victim)
    temporary_name(tmp_path / "out").symlink_to(victim)
    with new_folder(tmp_path / "out") as temporary:
        (temporary / "c").write_text("3")
    assert contents(victim) == {"a": "1", "deep/b": "2"}
    assert contents(tmp_path / "out") == {"c": "3"}


def test_what_was_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(ConfigError, match="in the meantime"):
        make(tmp_path / "out", lambda: write_two_into_new(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path / "out") == {"a": "1", "deep/b": "2"}


def test_killed_process_leaves_no_folder_of_that_name(tmp_path):
    done = subprocess.run(
        [sys.executable, KILLED, str(tmp_path / "out")],
        env=child_environment(harness.ROOT),
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    with new_folder(tmp_path / "out") as temporary:
        write_two(temporary)
    assert contents(tmp_path / "out") == {"a": "1", "deep/b": "2"}


# --------------------------------------------------------------------------------------------------
# Folders that must not be touched


def test_new_and_empty_folders_are_accepted(tmp_path):
    check_folder(tmp_path / "new")
    check_folder(tmp_path / "no parent" / "new")
    check_folder(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling", "file", "full", "here"])
def test_any_other_place_is_refused(tmp_path, monkeypatch, kind):
    target = tmp_path / "out"
    if kind == "link":
        (tmp_path / "empty").mkdir()
        target.symlink_to(tmp_path / "empty")
    elif kind == "dangling":
        target.symlink_to(tmp_path / "none")
    elif kind == "file":
        target.write_text("1")
    else:
        target.mkdir()
    if kind == "full":
        write_two(target)
    if kind == "here":
        monkeypatch.chdir(target)
    with pytest.raises(ConfigError, match="new folder"):
        check_folder(target)
