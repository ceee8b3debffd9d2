"""A whole run shows its waits: bars on a terminal, lines of the log in a pipe."""

import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest
import terminal

PROGRAM = harness.ROOT / "tests" / "programs" / "show_waits_at_once.py"
WORDS = (b"encoding text.txt", b"evaluating every validation token", b"saving")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a text and a YAML whose waits take some hundredths of a second each."""
    text = harness.make_text(100_000)
    (tmp_path / "text.txt").write_text(text * 30, encoding="utf-8")
    model = {"d_model": 256, "d_hid": 1024}
    keys = {"max_steps": 1, "sample_interval_steps": None, "report": True}
    harness.write_config(
        tmp_path, model=model, training=keys, data={"path": "text.txt", "test_split": 0.002}
    )
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(PROGRAM), "--config", "tiny.yaml", *arguments]


def run_on_terminal(folder: Path, **variables: str) -> bytes:
    """Run with stderr on a terminal; return what it received. Nothing may go to stdout."""
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("TQDM_")}
    received, stdout = terminal.run_on_terminal(command(), folder, environment | variables)
    assert stdout == b""
    return received.replace(b"\r\n", b"\n")


@pytest.mark.slow
def test_on_a_terminal_a_run_shows_bars_and_leaves_none_in_the_log(folder):
    received = run_on_terminal(folder)
    for words in (*WORDS, b"  0%|"):  # that of training
        assert b"\r" + words in received
    log = harness.log_of(folder)
    assert "\r" not in log
    assert "still " not in log


@pytest.mark.slow
def test_with_tqdm_disable_a_terminal_shows_no_bar_at_all(folder):
    received = run_on_terminal(folder, TQDM_DISABLE="1")
    assert b"\r" not in received
    assert b"step/s" not in received
    for words in WORDS:
        assert received.count(b"still " + words) == 1


@pytest.mark.slow
def test_in_a_pipe_a_run_shows_each_wait_by_one_line(folder):
    done = subprocess.run(command(), cwd=folder, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert b"\r" not in done.stderr
    assert b"\x1b" not in done.stderr
    for words in WORDS:
        assert done.stderr.count(b"still " + words) == 1
