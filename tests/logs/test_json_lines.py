"""A file of JSON lines: it has whole lines only, and is cut back to a step atomically."""

import json
import math
import os
import resource
import signal
from pathlib import Path

import pytest

from chatgot.logs.json_lines import JsonLines, as_json, step_of


def steps(path: Path) -> list[int]:
    """Return the step of each line."""
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path) -> Path:
    """A file with the steps 0, 1, 2, 2, 3."""
    lines = JsonLines(tmp_path / "lines.jsonl")
    for step in (0, 1, 2, 2, 3):
        lines.append({"step": step})
    return lines.path


def test_the_first_append_removes_only_later_steps_and_torn_lines(path):
    with path.open("ab") as file:
        file.write(b'{"step": 2, "to')
    before = path.read_bytes()
    lines = JsonLines(path, keep_up_to=2)
    assert path.read_bytes() == before
    lines.append({"step": 3})
    assert steps(path) == [0, 1, 2, 2, 3]
    lines.append({"step": 1})
    assert steps(path) == [0, 1, 2, 2, 3, 1]


def test_a_cut_while_running_is_made_once(path):
    lines = JsonLines(path)
    lines.cut_back(0)
    for step in (1, 7, 5):
        lines.append({"step": step})
    assert steps(path) == [0, 1, 7, 5]
    assert not list(path.parent.glob(".*"))


def test_the_earlier_of_two_cuts_before_a_line_counts(path):
    lines = JsonLines(path, keep_up_to=3)
    lines.cut_back(0)
    lines.cut_back(2)
    lines.append({"step": 4})
    assert steps(path) == [0, 4]


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_part(path):
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            JsonLines(path).append({"step": 4, "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before


def test_a_failed_cut_is_made_with_the_next_line(path):
    blocker = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    blocker.mkdir()  # a folder in the place of the temporary file
    lines = JsonLines(path, keep_up_to=1)
    with pytest.raises(OSError, match="directory"):
        lines.append({"step": 2})
    assert steps(path) == [0, 1, 2, 2, 3]
    blocker.rmdir()
    lines.append({"step": 2})
    assert steps(path) == [0, 1, 2]


def test_values_that_json_lacks_become_null_or_text():
    strange = {"a": [math.nan, (math.inf, 1.5)], 2: Path("x"), "c": {"d": -math.inf}, "e": True}
    expected = {"a": [None, [None, 1.5]], "2": "x", "c": {"d": None}, "e": True}
    assert as_json(strange) == expected


@pytest.mark.parametrize(
    "line", [b"", b"[1]", b'"step"', b'{"step": "3"}', b'{"st', b"\xff", b"[" * 10**5]
)
def test_a_line_without_a_step_counts_as_later_than_all_steps(line):
    assert step_of(line) == math.inf
