"""TQDM_* variables change how bars look, and never whether a program works."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from child_environment import child_environment

from chatgot.logs.bars import bars_are_disabled, draw_on_any_terminal, tqdm

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import io, os
from chatgot.logs.bars import tqdm
stream = io.StringIO()
with tqdm(total=4, desc="work", file=stream, disable=False) as bar:
    bar.update(4)
print(ascii(stream.getvalue()[-60:]), os.environ["TQDM_FILE"])
"""


@pytest.mark.parametrize(
    ("value", "disabled"),
    [("1", True), ("true", True), ("yes", True), ("", False), ("0", False), ("False", False)],
)
def test_tqdm_disable_is_read_as_people_mean_it(monkeypatch, value, disabled):
    monkeypatch.setenv("TQDM_DISABLE", value)
    assert bars_are_disabled() is disabled


def test_bars_are_drawn_unless_somebody_says_otherwise(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert not bars_are_disabled()


@pytest.mark.parametrize("looks", [{}, {"TQDM_ASCII": " .oO", "TQDM_NCOLS": "40"}])
def test_variables_for_looks_are_obeyed_and_others_are_not(looks):
    others = {
        "TQDM_FILE": "bar.txt",
        "TQDM_MININTERVAL": "often",
        "TQDM_ITERABLE": "abc",
        "TQDM_BAR_FORMAT": "{nothing}",
        "TQDM_DESC": "theirs",
        "TQDM_GUI": "1",
        "TQDM_LOCK_ARGS": "x",
        "TQDM_INITIAL": "x",
        "TQDM_SMOOTHING": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=child_environment(ROOT) | others | looks,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "work: 100%|" in done.stdout
    assert done.stdout.endswith("bar.txt\n")  # the environment is as it was
    assert ("O|" in done.stdout) is bool(looks)


@pytest.mark.parametrize("size", [(0, 0), (0, 80), (24, 0), (24, 80)])
def test_a_bar_is_drawn_on_a_terminal_that_does_not_tell_its_size(size):
    """A notebook's `!python`, `docker run -t` and CI say 0 rows and 0 columns."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, size)
    with os.fdopen(slave, "w", encoding="utf-8") as stream:
        bar = tqdm(total=8, unit="step", file=stream, dynamic_ncols=True, disable=False)
        draw_on_any_terminal(bar)
        bar.update(8)
        bar.refresh()
        os.write(slave, b"end")  # so that the other side never waits in vain
        drawn = b""
        while not drawn.endswith(b"end"):
            drawn += os.read(master, 4096)
        bar.close()
    os.close(master)
    assert b"8/8" in drawn
    assert b"step/s" in drawn


def test_a_disabled_bar_stays_as_it_is():
    bar = tqdm(total=8, dynamic_ncols=True, disable=True)
    draw_on_any_terminal(bar)
    assert bar.disable
