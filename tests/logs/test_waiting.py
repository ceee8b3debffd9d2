"""A long wait shows a bar on a terminal and one log line elsewhere; a short one shows nothing."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child_environment import child_environment
from tqdm import tqdm

from chatgot.logs import waiting as module
from chatgot.logs.colours import is_terminal
from chatgot.logs.logging_setup import setup_logging
from chatgot.logs.waiting import waiting

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    """What a program wrote to a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return not super().isatty()  # raises where it is closed


class Ascii(Terminal):
    """A terminal that refuses every character above ASCII."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


class Gone(Terminal):
    """A terminal whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Long is what takes more than some hundredths of a second."""
    monkeypatch.setattr(module, "DELAY_S", 0.02)
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "LINE_S", 0.04)


@pytest.fixture
def on(monkeypatch) -> Callable[[io.StringIO], io.StringIO]:
    """Make a stream stderr; return it."""

    def replace(stream: io.StringIO) -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait until something is true, for at most 10 s; then fail."""
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after it received `text`, without empty ones."""
    lines: list[list[str]] = [[]]
    row = 0
    column = 0
    for part in re.split(r"(\r|\n|\x1b\[A)", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            column = 0
            if row == len(lines):
                lines.append([])
        elif part == "\x1b[A":
            row -= 1
        else:
            line = lines[row]
            line += [" "] * (column - len(line))
            line[column : column + len(part)] = part
            column += len(part)
    return [shown for line in lines if (shown := "".join(line).rstrip())]


# --------------------------------------------------------------------------------------------------
# On a terminal


def test_a_long_wait_has_a_bar_that_moves_and_disappears(on, caplog):
    caplog.set_level(logging.INFO)
    stream = on(Terminal())
    with waiting("encoding text.txt", total=200) as advance:
        advance(50)
        wait_until(lambda: "encoding text.txt:  25%" in stream.getvalue())
        advance(100)
        wait_until(lambda: "encoding text.txt:  75%" in stream.getvalue())
        assert "75%" in screen(stream.getvalue())[0]
    assert screen(stream.getvalue()) == []
    assert "\n" not in stream.getvalue()
    assert caplog.messages == []


def test_a_wait_without_a_total_shows_its_words_and_time(on):
    stream = on(Terminal())
    with waiting("compiling the blocks"):
        wait_until(lambda: stream.getvalue().count("compiling the blocks: 00:00") > 1)
    assert "%" not in stream.getvalue()
    assert screen(stream.getvalue()) == []


def test_a_short_wait_shows_nothing(on, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "DELAY_S", 30.0)
    monkeypatch.setattr(module, "LINE_S", 30.0)
    for stream in (Terminal(), io.StringIO()):
        on(stream)
        start_s = time.monotonic()
        with waiting("saving a file", total=2) as advance:
            advance(1)
        assert time.monotonic() - start_s < 10
        assert stream.getvalue() == ""
    assert caplog.messages == []


def test_a_bar_stays_within_its_total_and_within_the_terminal(on):
    """tqdm would drop a bar that is beyond its total."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 60))  # rows, columns
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        on(terminal)
        with waiting("reading", total=10) as advance:
            advance(99)
            time.sleep(0.2)
        with waiting("x" * 300):
            time.sleep(0.2)
        received = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "reading: 100%|" in received
    assert "x" * 50 in received
    assert all(len(line) <= 60 for line in received.split("\r"))


def test_nested_waits_have_a_line_each_and_leave_none(on):
    stream = on(Terminal())
    with waiting("the outer work"):
        wait_until(lambda: "the outer work" in stream.getvalue())
        with waiting("the inner work"):
            wait_until(lambda: "the inner work" in stream.getvalue())
            with tqdm.get_lock():
                shown = [line.split(":")[0] for line in screen(stream.getvalue())]
            assert shown == ["the outer work", "the inner work"]
        with tqdm.get_lock():
            assert len(screen(stream.getvalue())) == 1
    assert screen(stream.getvalue()) == []


def test_a_log_line_does_not_tear_the_bar(on, clean_log, tmp_path):
    stream = on(Terminal())
    setup_logging("x", "t", tmp_path)
    logger = logging.getLogger("chatgot.test")
    with waiting("working"):
        wait_until(lambda: "working" in stream.getvalue())
        for number in range(100):
            logger.info("line %d", number)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    shown = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in screen(plain)]
    assert shown == [f"line {n}" for n in range(100)]
    assert "working" not in (tmp_path / "train_x_t.log").read_text(encoding="utf-8")


def test_names_of_files_cannot_steer_the_terminal(on):
    stream = on(Terminal())
    with waiting("reading \x1b[31m"):
        wait_until(lambda: r"reading \x1b[31m" in stream.getvalue())
    assert "\x1b" not in stream.getvalue()


def test_a_console_that_lacks_characters_shows_escapes(on):
    stream = on(Ascii())
    with waiting("reading é", total=3) as advance:
        advance(1)
        wait_until(lambda: r"reading \xe9:  33%" in stream.getvalue())


# --------------------------------------------------------------------------------------------------
# Elsewhere


def test_in_a_pipe_a_long_wait_is_one_line_of_the_log(on, caplog):
    caplog.set_level(logging.INFO)
    stream = on(io.StringIO())
    with waiting("encoding text.txt", total=200) as advance:
        time.sleep(0.2)
        advance(50)
        advance(50)
    with waiting("compiling the blocks"):
        time.sleep(0.2)
    assert caplog.messages == [
        "still encoding text.txt after 0 s: 25 % done, about 1 s left",
        "compiling the blocks took 0 s",
    ]
    assert stream.getvalue() == ""


PROGRAM = """
import logging, sys, time
from chatgot.logs import waiting
logging.basicConfig(level=logging.INFO, format="%(message)s", filename="lines.txt")
waiting.DELAY_S = waiting.TICK_S = waiting.LINE_S = 0.05
with waiting.waiting("working", 10) as advance:
    advance(5)
    time.sleep(1)
"""


@pytest.mark.parametrize(
    ("variables", "has_bar"),
    [
        pytest.param({}, True, id="bar"),
        pytest.param({"TQDM_DISABLE": "1"}, False, id="disabled"),
        pytest.param({"TQDM_DISABLE": "0"}, True, id="not disabled"),
        pytest.param(
            {
                "TQDM_MININTERVAL": "often",
                "TQDM_NCOLS": "wide",
                "TQDM_FILE": "bar.txt",
                "TQDM_LOCK_ARGS": "x",
                "TQDM_POSTFIX": "x",
                "TQDM_WRITE_BYTES": "1",
            },
            True,
            id="unusable",
        ),
    ],
)
def test_tqdm_disable_on_a_terminal_gives_the_line_instead(tmp_path, variables, has_bar):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))  # rows, columns
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=child_environment(ROOT, without="TQDM_") | variables,
        stdout=subprocess.PIPE,
        stderr=slave,
        timeout=60,
        check=True,
    )
    os.write(slave, b"end")
    received = os.read(master, 1 << 16)
    os.close(slave)
    os.close(master)
    assert (b"working:  50%" in received) == has_bar
    assert done.stdout == b""
    lines = (tmp_path / "lines.txt").read_text().splitlines()
    assert len(lines) == (0 if has_bar else 1)


def closed_stream() -> io.StringIO:
    stream = Terminal()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, closed_stream(), Gone()], ids=["none", "closed", "gone"])
def test_a_console_that_fails_harms_nothing(on, stream, monkeypatch):
    errors = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    on(stream)
    with waiting("working", total=10) as advance:
        advance(1)
        time.sleep(0.2)
    assert errors == []
    # else the next log line would wait for ever
    assert tqdm.get_lock().th_lock.acquire(blocking=False)
    tqdm.get_lock().th_lock.release()
    assert is_terminal(stream) == isinstance(stream, Gone)


def test_a_console_that_takes_nothing_more_does_not_hold_the_work_up(on, monkeypatch):
    """As after Ctrl+S."""
    monkeypatch.setattr(module, "JOIN_S", 0.1)
    blocked = threading.Event()
    goes_on = threading.Event()

    class Stopped(Terminal):
        def write(self, text: str) -> int:
            blocked.set()
            goes_on.wait(20)
            return len(text)

    on(Stopped())
    try:
        with waiting("working"):
            assert blocked.wait(10)
            start_s = time.monotonic()
        assert time.monotonic() - start_s < 10
    finally:
        goes_on.set()
    wait_until(lambda: not waiting_threads())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux obeys ulimit -v")
def test_under_ulimit_v_a_terminal_gets_the_line_and_no_thread(on, caplog, monkeypatch):
    import resource

    caplog.set_level(logging.INFO)
    stream = on(Terminal())
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 30, 1 << 30))
    with waiting("working"):
        assert waiting_threads() == []
        time.sleep(0.2)
    assert caplog.messages == ["working took 0 s"]
    assert stream.getvalue() == ""


def test_a_system_without_room_for_a_thread_does_the_work(on, monkeypatch):
    on(Terminal())

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_room)
    with waiting("working", total=1) as advance:
        advance(1)


# --------------------------------------------------------------------------------------------------
# The end


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("waiting")]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_inside_ends_the_bar_and_passes_through(on, error):
    stream = on(Terminal())

    def work() -> None:
        with waiting("working"):
            wait_until(lambda: "working" in stream.getvalue())
            raise error("inside")

    with pytest.raises(error, match="inside"):
        work()
    assert waiting_threads() == []
    assert screen(stream.getvalue()) == []
