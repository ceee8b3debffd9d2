"""A program that leaves at once has done all that Python does at a program's end for others."""

import subprocess
import sys
import textwrap
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

DEFINITIONS = """
import atexit, os, sys, threading, time
from chatgot.leaving import leave_at_once_in_the_end

class Seen:
    def __del__(self, write=os.write):
        write(2, b"taken apart")

seen = Seen()
"""


def run(program: str, **streams: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DEFINITIONS + textwrap.dedent(program)],
        env=child_environment(harness.ROOT, without="PYTHONUNBUFFERED"),
        text=True,
        timeout=20,
        check=False,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )


def test_a_program_leaves_without_being_taken_apart():
    done = run("sys.exit(leave_at_once_in_the_end(3))")
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    twin = run("sys.exit(3)")
    assert (twin.returncode, twin.stdout, twin.stderr) == (3, "", "taken apart")


def test_all_that_python_does_at_the_end_is_done():
    """A block around it, a thread, an earlier hook, and what was not flushed yet."""
    done = run(
        """
        atexit.register(print, "hook")
        threading.Thread(target=lambda: (time.sleep(0.1), print("thread", end="; "))).start()
        try:
            sys.exit(leave_at_once_in_the_end(0))
        finally:
            print("block", end="; ")
            sys.stderr.write("not flushed")
        """
    )
    assert (done.returncode, done.stderr) == (0, "not flushed")
    assert done.stdout == "block; thread; hook\n"


def test_a_later_hook_runs_once_and_python_ends_the_program():
    done = run(
        """
        atexit.register(print, "earlier hook")
        code = leave_at_once_in_the_end(0)
        atexit.register(print, "later hook", end="; ")
        sys.exit(code)
        """
    )
    assert (done.returncode, done.stderr) == (0, "taken apart")
    assert done.stdout == "later hook; earlier hook\n"


def test_a_hook_that_fails_is_shown_and_the_others_run():
    done = run(
        """
        atexit.register(print, "earlier hook")
        atexit.register(lambda: 1 / 0)
        sys.exit(leave_at_once_in_the_end(4))
        """
    )
    assert (done.returncode, done.stdout) == (4, "earlier hook\n")
    assert "ZeroDivisionError" in done.stderr
    assert "taken apart" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_last_flush_that_fails_ends_as_python_lets_it_end():
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = run("print('lost'); sys.exit(leave_at_once_in_the_end(0))", stdout=full.fileno())
        twin = run("print('lost'); sys.exit(0)", stdout=full.fileno())
    assert "No space left on device" in done.stderr
    assert (done.returncode, done.stderr) == (twin.returncode, twin.stderr)
    assert done.returncode == 120


def test_a_stream_that_is_closed_does_not_matter():
    done = run("sys.stdout.close(); sys.stderr = None; sys.exit(leave_at_once_in_the_end(5))")
    assert (done.returncode, done.stderr) == (5, "")


def test_a_training_leaves_at_once():
    """Freed piece by piece, torch and a run's tensors take about a second."""
    assert harness.SCRIPT.read_text(encoding="utf-8").endswith(
        "\n    sys.exit(leave_at_once_in_the_end(main()))\n"
    )
