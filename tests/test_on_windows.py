"""What differs on Windows, as far as it can be put over another system's rules.

Nothing here shows that the product runs there: each test is of one rule of Windows.
"""

import ast
import errno
import io
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from windows_rules import WindowsFiles, needs_unix, os_named

from chatgot import atomic_file as atomic_file_module
from chatgot import stdout as stdout_module
from chatgot import stopping
from chatgot.atomic_file import atomic_file
from chatgot.errors import StorageError
from chatgot.log_fixer import files as log_files
from chatgot.log_fixer.files import fix_log_file
from chatgot.logs.logging_setup import crash_trace, setup_logging
from chatgot.stdout import write_to_stdout
from chatgot.stopping import StopRequest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is open")


@pytest.fixture
def windows_files(monkeypatch) -> WindowsFiles:
    return WindowsFiles(monkeypatch)


def test_what_is_open_or_mapped_is_refused_here(windows_files, tmp_path):
    """The rules themselves: without them the tests below would show nothing."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb"):
        with pytest.raises(PermissionError):
            path.unlink()
        with pytest.raises(PermissionError):
            (tmp_path / "other").replace(path)
        with pytest.raises(PermissionError):
            path.rename(tmp_path / "new")
    path.rename(tmp_path / "new")
    assert len(windows_files.refused) == 3
    with pytest.raises(OSError, match="privilege"):
        path.symlink_to(tmp_path / "new")


def test_test_modules_that_import_what_windows_lacks_are_left_out_there():
    lacking = {"fcntl", "pty", "pwd", "resource", "termios"}
    left_out = 0
    for path in (harness.ROOT / "tests").rglob("test_*.py"):
        if path.parent.name == "faults":
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = {
            alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
        }
        left_out += needs_unix(path)
        assert needs_unix(path) or not names & lacking, path
    assert 5 < left_out < 20
    assert needs_unix(harness.ROOT / "tests" / "faults")
    assert not needs_unix(harness.ROOT / "tests" / "data")


# --------------------------------------------------------------------------------------------------
# Files that are open


def test_whole_run_and_its_resume_rename_and_remove_no_open_file(windows_files, tmp_path):
    config = harness.write_config(tmp_path, training={"report": True, "max_checkpoints_to_keep": 1})
    assert harness.train_here(tmp_path, "--config", str(config)) == 0
    more = ("--set", "training.max_steps=20", "--resume_from", "latest")
    assert harness.train_here(tmp_path, "--config", str(config), *more) == 0
    oldest = min(harness.checkpoints(tmp_path).items())[1]
    more = ("--set", "training.max_steps=24", "--resume_from", str(oldest))
    assert harness.train_here(tmp_path, "--config", str(config), *more) == 0
    assert windows_files.refused == []
    run_dir = harness.run_dir(tmp_path)
    assert (run_dir / "report.html").exists()
    assert not (run_dir / "crash.txt").exists()
    assert "lost" not in harness.warnings(tmp_path)


def test_log_beside_the_curves_is_a_copy_where_links_need_a_right(windows_files, tmp_path):
    config = harness.write_config(tmp_path)
    assert harness.train_here(tmp_path, "--config", str(config)) == 0
    log = harness.run_dir(tmp_path) / "training.log"
    assert not log.is_symlink()
    assert log.read_text(encoding="utf-8") == harness.log_of(tmp_path)


def test_log_is_rotated_while_it_is_written(windows_files, tmp_path):
    path = setup_logging("tiny", "20260101-000000", tmp_path, max_bytes=300, backups=2)
    for number in range(20):
        logging.getLogger("chatgot").info("line %d of a log that is rotated", number)
    assert windows_files.refused == []
    assert {file.name for file in tmp_path.iterdir()} == {
        path.name,
        f"{path.name}.1",
        f"{path.name}.2",
    }


@pytest.mark.parametrize("in_place", [False, True])
def test_log_is_mended_and_closed_before_it_is_replaced(windows_files, tmp_path, in_place):
    log = tmp_path / "a.log"
    log.write_bytes(b"caf\xe9\n")
    report = fix_log_file(log, in_place=in_place)
    assert Path(report.output).read_bytes() == "café\n".encode()
    assert windows_files.refused == []
    if in_place:
        assert Path(report.backup).read_bytes() == b"caf\xe9\n"


def test_mended_copy_of_a_read_only_log_can_be_replaced_on_windows(monkeypatch, tmp_path):
    """A file's mode is "read only" there, and a rename replaces no such file."""
    log = tmp_path / "a.log"
    log.write_bytes(b"caf\xe9\n")
    log.chmod(0o444)
    monkeypatch.setattr(log_files, "os", os_named("nt"))
    mended = Path(fix_log_file(log).output)
    assert mended.stat().st_mode & stat.S_IWUSR


def test_trace_of_a_run_without_a_crash_is_removed_after_it_is_closed(windows_files, tmp_path):
    with crash_trace(tmp_path / "crash.txt"):
        assert (tmp_path / "crash.txt").exists()
    assert windows_files.refused == []
    assert list(tmp_path.iterdir()) == []


class Scanner:
    """Another program that has a file open for a while: so many renames are refused."""

    def __init__(self, patch: pytest.MonkeyPatch, refusals: int) -> None:
        self.left = refusals
        self.replace = Path.replace
        patch.setattr(Path, "replace", self.refused_replace)
        patch.setattr(atomic_file_module.time, "sleep", lambda seconds: None)

    def refused_replace(self, path: Path, target: Path) -> Path:
        if self.left:
            self.left -= 1
            raise PermissionError(errno.EACCES, "The file is used by another process")
        return self.replace(path, target)


def scanned_on(name: str, patch: pytest.MonkeyPatch, refusals: int) -> Scanner:
    """Let atomic_file believe that it is on this system; return the scanner."""
    patch.setattr(atomic_file_module, "os", os_named(name))
    patch.setattr(atomic_file_module, "fsync_folder", lambda folder: None)
    scanner = Scanner(patch, refusals)
    patch.setattr(Path, "replace", lambda path, target: scanner.refused_replace(path, target))
    return scanner


def test_rename_on_windows_waits_for_a_program_that_looks_at_the_file(monkeypatch, tmp_path):
    scanned_on("nt", monkeypatch, refusals=4)
    with atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(("name", "left"), [("nt", 94), ("posix", 99)])
def test_rename_that_stays_refused_is_an_error_and_leaves_no_file(
    monkeypatch, tmp_path, name, left
):
    scanner = scanned_on(name, monkeypatch, refusals=100)
    with pytest.raises(PermissionError), atomic_file(tmp_path / "file") as file:
        file.write(b"new")
    assert scanner.left == left
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------
# Consoles and pipes

HARD_CHARACTERS = "plain é ☃ 語 🎭 \ufffd \u202e"


def test_console_of_an_old_code_page_shows_all_texts(tmp_path):
    """Prompts, samples and paths with any character neither end a run nor lose a line."""
    folder = tmp_path / "ö ☃"
    folder.mkdir()
    text = (harness.make_text() + HARD_CHARACTERS) * 2
    (folder / "text.txt").write_text(text, encoding="utf-8")
    config = harness.write_config(folder, sampling={"prompts": [HARD_CHARACTERS]})
    done = subprocess.run(
        [sys.executable, str(harness.SCRIPT), "--config", str(config)],
        cwd=folder,
        env=os.environ | {"PYTHONIOENCODING": "cp437", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    shown = done.stderr.decode("cp437")
    assert done.returncode == 0, shown
    assert "\\u2603" in shown
    assert "was lost" not in shown
    assert "☃" in harness.log_of(folder)


class PipeWithoutReader(io.RawIOBase):
    """Refuses each write as Windows does when the reader of a pipe has gone."""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize(("name", "is_error"), [("nt", False), ("posix", True)])
def test_pipe_without_reader_is_no_error_on_windows(monkeypatch, name, is_error):
    pipe = io.TextIOWrapper(io.BufferedWriter(PipeWithoutReader()))
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setattr(stdout_module, "silence_stdout", lambda: None)
    monkeypatch.setattr(stdout_module, "os", os_named(name))
    try:
        write_to_stdout([b"a line\n"])
    except StorageError as error:
        raised = "Invalid argument" in str(error)
    else:
        raised = False
    pipe.buffer.raw.write = len  # so that it can be closed
    assert raised == is_error


# --------------------------------------------------------------------------------------------------
# Signals


def test_ctrl_break_asks_a_run_to_stop_as_sigterm_does(monkeypatch):
    """Windows has no SIGHUP, and SIGBREAK, which another signal plays here."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(stopping, "NOTICES", ())  # it has none of them
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    }
    stop = StopRequest()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # its default would end the tests
    try:
        stop.install()
        stop.training = True
        signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.requested()
    assert stop.exit_code == 143
