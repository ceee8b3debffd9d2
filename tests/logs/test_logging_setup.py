"""Log and console on terminals and pipes, with closed streams, full disks and forged records."""

import copy
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import pytest
from child_environment import child_environment
from hypothesis import given
from hypothesis import strategies as st

from chatgot.errors import StorageError
from chatgot.logs.logging_setup import (
    FORMAT,
    OneLine,
    Steady,
    escape_controls,
    link_log,
    setup_console,
    setup_logging,
)

ROOT = Path(__file__).resolve().parents[2]
HEAD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - (DEBUG|INFO|WARNING|ERROR|CRITICAL) - ")
STRANGE = "é → 🐉 \x1b[31m"
SETUP = """
import logging, os, resource, sys
from pathlib import Path
from chatgot.logs.logging_setup import link_log, setup_console, setup_logging
logger = logging.getLogger("chatgot.test")
setup_logging("x", "t", Path("."))
"""
LOG = "train_x_t.log"


def environment(**changes: str) -> dict[str, str]:
    colours = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE")
    foreign = (*colours, "PYTHONIOENCODING", "PYTHONUNBUFFERED")
    ours = child_environment(ROOT)
    kept = {name: value for name, value in ours.items() if name not in foreign}
    return kept | {"TERM": "xterm", "PYTHONUTF8": "1"} | changes


def run(
    code: str, folder: Path, shell: str = '"$0" -c "$1"', **changes: str
) -> subprocess.CompletedProcess:
    """Run SETUP and `code` in a new process, with the redirections of `shell`."""
    command = ["bash", "-c", shell, sys.executable, SETUP + code]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        timeout=60,
        env=environment(**changes),
        check=False,
    )


def run_on_terminal(code: str, folder: Path, **changes: str) -> str:
    """Run SETUP and `code` with stderr on a terminal; return what the terminal received."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))  # rows, columns
    command = [sys.executable, "-c", SETUP + code]
    child = subprocess.Popen(command, cwd=folder, stderr=slave, env=environment(**changes))
    os.close(slave)
    received = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        received += piece
    os.close(master)
    assert child.wait(timeout=60) == 0
    return received.decode().replace("\r\n", "\n")


def screen(received: str) -> list[str]:
    """Return the lines that a terminal shows for a text with carriage returns."""
    lines = []
    for line in received.split("\n"):
        cells: list[str] = []
        for piece in line.split("\r"):
            cells[: len(piece)] = piece
        lines.append("".join(cells).rstrip())
    return lines


def on_terminal(lines: list[str]) -> list[str]:
    """Return lines of the log as a terminal shows them: without the date and without INFO."""
    short = []
    for line in lines:
        head = HEAD.match(line)
        if head is None:
            short.append(line)
            continue
        level = "" if head[1] == "INFO" else f"{head[1]} - "
        short.append(f"{line[11:19]} {level}{line[head.end() :]}")
    return short


def read_log(folder: Path) -> list[str]:
    return (folder / LOG).read_text(encoding="utf-8").splitlines()


@pytest.fixture
def log(clean_log, tmp_path) -> Path:
    """A log that is set up in this process."""
    return setup_logging("x", "t", tmp_path)


# --------------------------------------------------------------------------------------------------
# Format


def test_lines_have_the_promised_format_in_file_and_pipe(tmp_path):
    # the console handler of another library: it must not show the records again
    root = "logging.basicConfig()"
    done = run(
        f"{root}\nlogger.info('five: %d', 5); logger.debug('not shown'); logger.error('bad')",
        tmp_path,
    )
    assert done.returncode == 0
    lines = read_log(tmp_path)
    assert [HEAD.sub("", line) for line in lines] == ["five: 5", "bad"]
    assert all(HEAD.match(line) for line in lines)
    assert done.stderr.decode().splitlines() == lines
    assert done.stdout == b""


def test_the_file_is_named_by_config_and_timestamp_and_its_folder_made(log, tmp_path):
    assert log == tmp_path / "train_x_t.log"
    assert (
        setup_logging(timestamp="t", logs_dir=tmp_path / "a" / "b")
        == tmp_path / "a" / "b" / "train_t.log"
    )
    assert re.fullmatch(r"train_c_\d{8}-\d{6}\.log", setup_logging("c", logs_dir=tmp_path).name)


@given(st.text(alphabet=st.characters(), max_size=60))
def test_a_message_never_leaves_its_line_or_controls_the_terminal(text):
    record = logging.LogRecord("chatgot", logging.INFO, "", 0, "%s", (text,), None)
    line = OneLine(FORMAT).format(record)
    allowed = {"\t"}
    for c in line:
        assert c in allowed or (ord(c) >= 0x20 and not 0x7F <= ord(c) <= 0x9F)
        assert not 0x2028 <= ord(c) <= 0x202E
        assert not 0x2066 <= ord(c) <= 0x2069
        assert not 0xD800 <= ord(c) <= 0xDFFF
    assert line.splitlines() == [line]
    line.encode("utf-8")


def test_control_characters_become_readable_escapes():
    assert (
        escape_controls("a\x1b[31m\u202e\udc80\x85\r\n\tb")
        == r"a\x1b[31m\u202e\udc80\x85\r\n" + "\tb"
    )
    assert escape_controls("é → 🐉 \\n") == "é → 🐉 \\n"


def test_a_forged_record_stays_inside_the_message(tmp_path):
    forged = "x\n2026-01-01 00:00:00 - ERROR - all is lost\x1b]52;c;aGk=\x07\u202e"
    done = run(f"logger.info('%s', {forged!r}); logger.info('end')", tmp_path)
    assert len(read_log(tmp_path)) == 2 == len(done.stderr.splitlines())
    assert (
        r"x\n2026-01-01 00:00:00 - ERROR - all is lost\x1b]52;c;aGk=\x07\u202e"
        in read_log(tmp_path)[0]
    )


def test_only_samples_and_tracebacks_span_several_lines_all_indented(tmp_path):
    code = """
logger.info("sample:\\nKING:\\n2026-01-01 00:00:00 - ERROR - no\\x1b[2J\\n", extra={"block": True})
try:
    raise ValueError("a\\n2026-01-01 00:00:00 - ERROR - no\\x1b")
except ValueError:
    logger.exception("it\\nfailed")
logger.info("stack", stack_info=True)
"""
    done = run(code, tmp_path)
    lines = read_log(tmp_path)
    assert done.stderr.decode().splitlines() == lines
    heads = [HEAD.sub("", line) for line in lines if HEAD.match(line)]
    assert heads == ["sample:", r"it\nfailed", "stack"]
    assert all(HEAD.match(line) or line.startswith("    ") for line in lines)
    assert r"    2026-01-01 00:00:00 - ERROR - no\x1b[2J" in lines
    assert r"    2026-01-01 00:00:00 - ERROR - no\x1b" in lines
    assert "    Traceback (most recent call last):" in lines


def test_formatting_leaves_the_record_as_it_was(log):
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.getLogger("chatgot").makeRecord(
            "n", 30, "f", 1, "a\n%s", ("\x1b",), sys.exc_info()
        )
    before = copy.copy(record.__dict__)
    for handler in logging.getLogger("chatgot").handlers:
        if isinstance(handler, Steady):
            assert r"a\n\x1b" in handler.format(record)
            assert record.__dict__ == before


# --------------------------------------------------------------------------------------------------
# The console


@pytest.mark.parametrize(
    ("terminal", "changes", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"NO_COLOR": "1", "FORCE_COLOR": "0"}, False),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
    ],
)
def test_colours_appear_on_terminals_and_never_in_the_file(tmp_path, terminal, changes, coloured):
    code = r"""
logger.info('calm')
logger.warning('careful \x1b[31m')
try: 1 / 0
except ZeroDivisionError: logger.exception('oh')
"""
    console = (
        run_on_terminal(code, tmp_path, **changes)
        if terminal
        else run(code, tmp_path, **changes).stderr.decode()
    )
    assert ("\x1b[33mWARNING\x1b[0m" in console) is coloured
    assert ("\x1b" in console) is coloured
    assert r"careful \x1b[31m" in console
    plain = re.sub(r"\x1b\[\d+m", "", console).splitlines()
    lines = read_log(tmp_path)
    assert plain == (on_terminal(lines) if terminal else lines)
    assert b"\x1b" not in (tmp_path / LOG).read_bytes()


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "é → 🐉 " + r"\x1b[31m"),
        ("cp1252", r"é \u2192 \U0001f409 \x1b[31m"),
        ("ascii", r"\xe9 \u2192 \U0001f409 \x1b[31m"),
        ("ascii:strict", r"\xe9 \u2192 \U0001f409 \x1b[31m"),
    ],
)
@pytest.mark.parametrize("own_stream", [False, True], ids=["stderr", "strict"])
def test_a_console_that_lacks_a_character_shows_its_escape(tmp_path, encoding, shown, own_stream):
    name = encoding.partition(":")[0]
    code = (
        f"import io; sys.stderr = io.TextIOWrapper(sys.stderr.buffer, {name!r}, 'strict')\n"
        if own_stream
        else ""
    )
    done = run(
        code + f"logger.info({STRANGE!r})", tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0"
    )
    assert done.returncode == 0
    assert done.stderr.decode(name).rstrip().endswith(f"INFO - {shown}")
    assert read_log(tmp_path)[0].endswith("INFO - é → 🐉 " + r"\x1b[31m")
    assert len(read_log(tmp_path)) == 1


def test_terminal_line_has_the_time_and_the_level_where_it_matters(tmp_path):
    code = "logger.info('calm'); logger.warning('careful')"
    received = run_on_terminal(code, tmp_path, NO_COLOR="1")
    calm, careful = received.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d calm", calm)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING - careful", careful)


def test_a_record_appears_above_the_progress_bar_never_in_it(tmp_path):
    code = """
from tqdm import tqdm
with tqdm(total=3, mininterval=0, ascii=True, desc="bar") as bar:
    for i in range(3):
        logger.info("record %d", i)
        bar.update()
"""
    received = run_on_terminal(code, tmp_path, NO_COLOR="1")
    assert received.count("bar:") >= 3  # it was drawn between the records
    lines = [line for line in screen(received) if line]
    assert lines[:3] == on_terminal(read_log(tmp_path))
    assert len(lines) == 4
    assert lines[3].startswith("bar: 100%")


def test_python_warnings_are_logged(log, capsys):
    with warnings.catch_warnings():
        logging.captureWarnings(False)
        setup_console()
        setup_logging("x", "t", log.parent)
        warnings.simplefilter("always")
        warnings.warn("careful\x1b", UserWarning, stacklevel=1)
    lines = log.read_text().splitlines()
    assert len(lines) == 1
    assert "WARNING - " in lines[0]
    assert r"UserWarning: careful\x1b" in lines[0]
    assert r"UserWarning: careful\x1b" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# A console that fails


LINES = (
    "for i in range(3000): logger.info('line %d', i)\nlogging.getLogger('chatgot').info('the end')"
)


def records(folder: Path) -> tuple[list[str], list[str]]:
    """Return the lines of LINES in the log, and its warnings of a failing console."""
    lines = read_log(folder)
    reports = [line for line in lines if "WARNING" in line]
    return [HEAD.sub("", line) for line in lines if line not in reports], reports


EXPECTED = [*(f"line {i}" for i in range(3000)), "the end"]


def test_a_closed_pipe_on_stderr_stops_nothing(tmp_path):
    done = run(LINES, tmp_path, '"$0" -c "$1" 2>&1 >/dev/null | head -1; echo ${PIPESTATUS[0]}')
    assert len(done.stdout.splitlines()) == 2
    lines, reports = records(tmp_path)
    assert len(reports) == 1  # the fault fired, with one warning
    assert "console: BrokenPipeError" in reports[0]
    assert lines == EXPECTED
    assert done.stdout.splitlines()[1] == b"0"


def test_a_full_disk_under_stderr_stops_nothing(tmp_path):
    done = run(LINES, tmp_path, '"$0" -c "$1" 2>/dev/full')
    lines, reports = records(tmp_path)
    assert len(reports) == 1
    assert "No space left" in reports[0]
    assert lines == EXPECTED
    assert done.returncode == 0


@pytest.mark.parametrize(
    "close",
    ["os.close(2)", "sys.stderr.close()", "sys.stderr = None"],
    ids=["descriptor", "stream", "none"],
)
def test_stderr_closed_midway_stops_nothing(tmp_path, close):
    done = run(f"logger.info('heard')\n{close}\n{LINES}", tmp_path)
    assert len(done.stderr.splitlines()) == 1  # the fault fired
    lines, reports = records(tmp_path)
    assert lines == ["heard", *EXPECTED]
    assert len(reports) == (0 if "None" in close else 1)
    assert done.returncode == 0


def test_stderr_closed_before_the_start_stops_nothing(tmp_path):
    done = run(f"assert sys.stderr is None\n{LINES}", tmp_path, '"$0" -c "$1" 2>&-')
    assert records(tmp_path) == (EXPECTED, [])
    assert done.returncode == 0


def test_no_file_gets_the_descriptor_of_a_stream_closed_at_start(tmp_path):
    code = """
import sys
from pathlib import Path
from chatgot.logs.logging_setup import setup_console, setup_logging
assert sys.stderr is None
setup_console()
setup_logging("x", "t", Path("."))
import os, logging
os.write(2, b"what C code prints")
assert not sys.stderr.isatty()
logging.getLogger("chatgot").info("alone")
"""
    command = ["bash", "-c", '"$0" -c "$1" <&- 2>&-', sys.executable, code]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), timeout=60, check=False)
    assert done.returncode == 0
    assert [HEAD.sub("", line) for line in read_log(tmp_path)] == ["alone"]


def test_a_record_that_cannot_be_formatted_is_reported_without_raising(tmp_path):
    done = run("for n in ('three', 'four', 3): logger.info('%d tokens', n)", tmp_path)
    assert done.returncode == 0
    for lines in (read_log(tmp_path), done.stderr.decode().splitlines()):
        assert len(lines) == 2
        assert (
            "TypeError: %d format: a real number is required, not str; the record '%d tokens' from"
            in lines[0]
        )
        assert lines[1].endswith("INFO - 3 tokens")


# --------------------------------------------------------------------------------------------------
# A file that fails


def console(done: subprocess.CompletedProcess) -> tuple[list[str], list[str]]:
    """Return the lines of LINES on the console, and its warnings of a failing log."""
    lines = done.stderr.decode().splitlines()
    reports = [line for line in lines if "WARNING" in line]
    return [HEAD.sub("", line) for line in lines if line not in reports], reports


def test_a_full_disk_under_the_log_stops_nothing(tmp_path):
    done = run(f"resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n{LINES}", tmp_path)
    lines, reports = console(done)
    assert (tmp_path / LOG).stat().st_size == 20_000
    assert len(reports) == 1
    assert f"{LOG}: OSError: [Errno 27]" in reports[0]
    assert lines == EXPECTED
    assert done.returncode == 0


def test_a_log_on_a_full_device_stops_nothing(tmp_path):
    (tmp_path / LOG).symlink_to("/dev/full")
    done = run(LINES, tmp_path)
    lines, reports = console(done)
    assert len(reports) == 1
    assert "No space left" in reports[0]
    assert lines == EXPECTED
    assert done.returncode == 0


def test_failures_of_log_and_console_together_stop_nothing(tmp_path):
    (tmp_path / LOG).symlink_to("/dev/full")
    done = run(LINES + "\nprint('alive')", tmp_path, '"$0" -c "$1" 2>/dev/full')
    assert done.stdout == b"alive\n"
    assert done.returncode == 0


def test_the_log_goes_on_once_there_is_space_again(tmp_path):
    code = """
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
logger.info("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))
for i in range(500): logger.info("lost or late %d", i)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
logger.info("after")
"""
    done = run(code, tmp_path)
    assert len(console(done)[1]) == 1
    lines = read_log(tmp_path)
    assert HEAD.sub("", lines[-1]) == "after"
    assert all(HEAD.match(line) for line in lines)  # no line is torn


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_a_deleted_or_moved_log_is_started_anew(log, how):
    logger = logging.getLogger("chatgot.test")
    logger.info("before")
    log.unlink() if how == "unlink" else log.rename(log.with_name("old"))
    logger.info("after")
    assert HEAD.sub("", log.read_text()) == "after\n"


def test_a_log_truncated_in_place_goes_on_from_there(log):
    logger = logging.getLogger("chatgot.test")
    logger.info("before")
    os.truncate(log, 0)
    logger.info("after")
    assert HEAD.sub("", log.read_text()) == "after\n"


def test_a_vanished_log_folder_stops_nothing(log, capsys):
    logger = logging.getLogger("chatgot.test")
    log.rename(log.parent.with_name("elsewhere.log"))
    log.parent.rmdir()
    for i in range(3):
        logger.info("line %d", i)
    lines = capsys.readouterr().err.splitlines()
    assert [HEAD.sub("", line) for line in lines if "INFO" in line] == [
        "line 0",
        "line 1",
        "line 2",
    ]
    assert ["FileNotFoundError" in line for line in lines if "WARNING" in line] == [True]
    log.parent.mkdir()
    logger.info("back")
    assert HEAD.sub("", log.read_text()) == "back\n"


def test_a_log_folder_that_cannot_be_created_is_a_storage_error(log, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"file/train_x_t.log: the log file cannot be opened: .*paths.logs"
    ):
        setup_logging("x", "t", tmp_path / "file")
    logging.getLogger("chatgot.test").info("still here")
    assert "still here" in capsys.readouterr().err
    assert "still here" in log.read_text()


def test_a_second_call_replaces_the_first_and_closes_its_file(log, tmp_path, capsys):
    package = logging.getLogger("chatgot")
    old = [handler for handler in package.handlers if isinstance(handler, Steady)]
    other = logging.NullHandler()
    package.addHandler(other)
    setup_logging("y", "t", tmp_path)
    assert other in package.handlers
    package.removeHandler(other)
    assert old[1].stream is None
    package.info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert log.read_text() == ""
    assert (tmp_path / "train_y_t.log").read_text().count("once") == 1


# --------------------------------------------------------------------------------------------------
# Rotation and the link


def test_rotation_keeps_all_lines_of_the_last_parts_and_moves_the_links(log, tmp_path):
    setup_logging("x", "t", tmp_path, max_bytes=1000, backups=3)
    run_dir = tmp_path / "curves"
    run_dir.mkdir()
    link_log(log, run_dir)
    for i in range(200):
        logging.getLogger("chatgot.test").info("line %d", i)
    parts = [log.with_name(f"{LOG}.{i}") for i in (3, 2, 1)] + [log]
    assert sorted(tmp_path.glob("train*")) == sorted(parts)
    assert all(0 < part.stat().st_size <= 1000 for part in parts)
    lines = "".join(part.read_text() for part in parts).splitlines()
    assert [HEAD.sub("", line) for line in lines] == [
        f"line {i}" for i in range(200 - len(lines), 200)
    ]
    links = [run_dir / f"training.log.{i}" for i in (3, 2, 1)] + [run_dir / "training.log"]
    assert sorted(run_dir.iterdir()) == sorted(links)
    assert [link.resolve() for link in links] == [part.resolve() for part in parts]


def test_a_line_longer_than_a_part_is_written_once(log, tmp_path):
    setup_logging("x", "t", tmp_path, max_bytes=100, backups=3)
    logging.getLogger("chatgot.test").info("x" * 500)
    assert [path.name for path in tmp_path.glob("train*")] == [LOG]
    assert log.read_text().count("x" * 500) == 1


def test_a_log_that_cannot_be_rotated_goes_on_and_costs_one_old_part(log, tmp_path, capsys):
    setup_logging("x", "t", tmp_path, max_bytes=1000, backups=3)
    tried = []

    def refuse(source, target):
        tried.append(target)
        raise PermissionError("another process has the file open")

    for handler in logging.getLogger("chatgot").handlers:
        handler.rotator = refuse
    for i in (1, 2, 3):
        log.with_name(f"{LOG}.{i}").write_text(f"old part {i}")
    for i in range(100):
        logging.getLogger("chatgot.test").info("line %d", i)
    assert len(tried) == 1
    reports = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert ["cannot be rotated and keeps growing: another process" in line for line in reports] == [
        True
    ]
    assert [HEAD.sub("", line) for line in log.read_text().splitlines()] == [
        f"line {i}" for i in range(100)
    ]
    assert [log.with_name(f"{LOG}.{i}").read_text() for i in (2, 3)] == ["old part 1", "old part 2"]


def test_the_link_is_relative_and_replaces_an_earlier_one(log, tmp_path):
    run_dir = tmp_path / "curves" / "x_t"
    run_dir.mkdir(parents=True)
    (run_dir / "training.log").write_text("an old copy")
    for _ in range(2):
        link_log(log, run_dir)
        link = run_dir / "training.log"
        assert link.readlink() == Path("..", "..", LOG)
    logging.getLogger("chatgot.test").info("hello")
    assert "hello" in link.read_text()
    assert [path.name for path in run_dir.iterdir()] == ["training.log"]


def test_the_link_works_in_a_folder_that_is_a_symlink(log, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    run_dir = tmp_path / "curves"
    run_dir.symlink_to(tmp_path / "far" / "away")
    link_log(log, run_dir)
    assert (run_dir / "training.log").resolve() == log.resolve()


def test_a_copy_is_made_where_links_are_not_possible(log, tmp_path, monkeypatch):
    asked = []

    def refuse(self, target, target_is_directory=False):
        asked.append(self)
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    logging.getLogger("chatgot.test").info("hello")
    run_dir = tmp_path / "curves"
    run_dir.mkdir()
    link_log(log, run_dir)
    assert asked
    assert not (run_dir / "training.log").is_symlink()
    assert (run_dir / "training.log").read_text() == log.read_text() != ""


def test_a_failed_link_is_one_warning(log, tmp_path, capsys):
    setup_logging("x", "t", tmp_path, max_bytes=300)
    run_dir = tmp_path / "curves"
    run_dir.mkdir()
    link_log(log, run_dir)
    (run_dir / "training.log").unlink()
    run_dir.rmdir()
    for i in range(50):
        logging.getLogger("chatgot.test").info("line %d", i)
    reports = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert ["cannot be linked to the log" in line for line in reports] == [True]


# --------------------------------------------------------------------------------------------------
# The header, and uncaught exceptions


def test_each_part_begins_with_the_header(tmp_path):
    code = """
from chatgot.logs.logging_setup import log_header
setup_logging("x", "t", Path("."), max_bytes=700)
logger.info("before the header")
log_header(["run x_t", "forged\\n2026-01-01 00:00:00 - ERROR - no \\x1b[31m"])
for i in range(120):
    logger.info("record %03d", i)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0
    parts = [tmp_path / f"{LOG}{suffix}" for suffix in (".5", ".4", ".3", ".2", ".1", "")]
    bodies = [
        [HEAD.sub("", line, count=1) for line in part.read_text(encoding="utf-8").splitlines()]
        for part in parts
    ]
    header = ["run x_t", r"forged\n2026-01-01 00:00:00 - ERROR - no \x1b[31m"]
    assert all(body[:2] == header for body in bodies)
    records = [line for body in bodies for line in body if line.startswith("record")]
    assert records == [f"record {i:03d}" for i in range(120 - len(records), 120)]
    assert done.stderr.decode().count("run x_t") == 1  # the console has it once


def test_a_log_that_is_started_anew_has_the_header_too(tmp_path):
    code = """
from chatgot.logs.logging_setup import log_header
log_header(["run x_t"])
logger.info("one")
os.remove("train_x_t.log")
logger.info("two")
"""
    assert run(code, tmp_path).returncode == 0
    assert [HEAD.sub("", line) for line in read_log(tmp_path)] == ["run x_t", "two"]


def test_a_header_longer_than_a_part_loses_no_record(tmp_path):
    code = """
from chatgot.logs.logging_setup import log_header
setup_logging("x", "t", Path("."), max_bytes=100)
log_header(["h" * 300])
for i in range(3):
    logger.info("record %d", i)
"""
    assert run(code, tmp_path).returncode == 0
    assert HEAD.sub("", read_log(tmp_path)[-1]) == "record 2"
    assert HEAD.sub("", (tmp_path / f"{LOG}.1").read_text().splitlines()[-1]) == "record 1"


@pytest.mark.parametrize("where", ["main", "thread"])
def test_an_uncaught_exception_is_in_the_log_with_its_traceback(tmp_path, where):
    code = {
        "main": "raise ValueError('lost \\x1b[31m')",
        "thread": """
import threading
def work(): raise ValueError('lost \\x1b[31m')
thread = threading.Thread(target=work, name="worker")
thread.start(); thread.join()
""",
    }[where]
    done = run(code, tmp_path)
    assert done.returncode == (1 if where == "main" else 0)
    text = "\n".join(read_log(tmp_path))
    assert "CRITICAL - uncaught exception" in text
    assert "    Traceback (most recent call last):" in text
    assert r"    ValueError: lost \x1b[31m" in text
    assert ("worker" in text) is (where == "thread")
    assert done.stderr.decode().count("Traceback") == 1
    assert b"\x1b[31m" not in done.stderr


def test_only_the_parts_of_the_log_are_linked(tmp_path):
    code = """
Path("curves").mkdir()
for name in (".1", ".bak", ".2.gz", "x"):
    Path("train_x_t.log" + name).write_text("another")
link_log(Path("train_x_t.log"), Path("curves"))
"""
    assert run(code, tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "curves").iterdir()) == [
        "training.log",
        "training.log.1",
    ]
