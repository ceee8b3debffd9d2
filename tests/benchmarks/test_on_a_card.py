"""The prepared command for a machine with a card: what is missing, limits, and its verdict."""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import on_a_card
from benchmarks.on_a_card import Part, command_of, requirements, run_part, what_is_missing


def arguments(tmp_path, **changes) -> argparse.Namespace:
    values = {"device": "cpu", "checkout": None, "text": None, **changes}
    return argparse.Namespace(output=tmp_path, **values)


def has_ended(pid: int) -> bool:
    """Return whether a process that another process started is gone, or will be soon."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_missing_packages_are_named_with_commands_that_spare_torch(monkeypatch):
    wanted = {"pytest": "pytest==1", "no-such-package": "no-such-package==2"}
    monkeypatch.setattr(on_a_card, "pinned", lambda: wanted)
    lines = what_is_missing(dict(os.environ)).splitlines()
    assert lines[0] == "missing here: no-such-package"
    assert all("no-such-package==2" in line and "pytest" not in line for line in lines[1:3])


def test_nothing_is_missing_where_the_tests_run():
    assert what_is_missing(dict(os.environ)) == ""
    assert "torch" in requirements("requirements.txt")
    assert "torch" not in on_a_card.pinned()


def test_part_at_its_limit_is_cut_off_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(on_a_card, "LEAST_S", 0)
    code = "import subprocess, time\nchild = subprocess.Popen(['sleep', '60'])\n"
    code += "print(child.pid, flush=True)\ntime.sleep(60)"
    part = run_part(Part("suite", 0.5), [sys.executable, "-c", code], tmp_path, dict(os.environ))
    assert part.cut_off
    assert part.seconds < on_a_card.GRACE_S
    started = int((tmp_path / "suite.log").read_text().split()[0])
    assert has_ended(started)


@pytest.mark.parametrize(
    ("part", "fine"),
    [
        (Part("gpu_tests", 1, exit_code=0), True),
        (Part("gpu_tests", 1, exit_code=1), False),
        (Part("gpu_tests", 1, exit_code=2, cut_off=True, last_line="3 passed"), False),
        (Part("suite", 1, exit_code=2, cut_off=True, last_line="900 passed in 90 s"), True),
        (Part("suite", 1, exit_code=2, cut_off=True, last_line="1 failed, 900 passed"), False),
        (Part("suite", 1, exit_code=2, cut_off=True, last_line="900 passed, 1 error"), False),
        (Part("benchmark", 1), False),
    ],
)
def test_verdict_forgives_only_a_suite_that_is_cut_off(part, fine):
    assert part.is_fine is fine


def test_benchmark_ends_by_itself_before_its_limit(tmp_path):
    command = command_of("benchmark", arguments(tmp_path), tmp_path, 250)
    assert 60 * float(command[command.index("--minutes") + 1]) < 250


def test_suite_runs_on_the_device_that_is_asked_for(tmp_path):
    command = command_of("suite", arguments(tmp_path, device="cuda"), tmp_path, 100)
    assert command[command.index("--device") + 1] == "cuda"
    command = command_of("gpu_tests", arguments(tmp_path), tmp_path, 100)
    assert command[-3:] == ["-m", "gpu", "tests/gpu"]
