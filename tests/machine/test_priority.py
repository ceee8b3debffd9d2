"""A program with `training.niceness` leaves the cores to others."""

import os

import harness
import pytest

from chatgot.machine import priority
from chatgot.machine.priority import lower_priority

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has priority classes instead")


@pytest.fixture
def nice(monkeypatch) -> list[int]:
    """The nice values that were asked for; this process keeps its own."""
    asked: list[int] = []
    monkeypatch.setattr(os, "nice", asked.append)
    return asked


@pytest.fixture
def autogroup(tmp_path, monkeypatch):
    """The file of this session's nice value, on a system that shares cores between sessions."""
    switch = tmp_path / "enabled"
    switch.write_text("1\n")
    file = tmp_path / "autogroup"
    file.write_text("/autogroup-1 nice 0\n")
    monkeypatch.setattr(priority, "AUTOGROUPS_ARE_ON", switch)
    monkeypatch.setattr(priority, "AUTOGROUP", file)
    return file


@pytest.mark.parametrize(("niceness", "asked"), [(0, []), (7, [7])])
def test_niceness_is_added_once_at_the_start(niceness, asked, nice, tmp_path):
    harness.write_config(tmp_path, training={"niceness": niceness, "max_steps": 1})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    assert nice == asked


def test_a_refused_priority_is_a_warning(tmp_path, monkeypatch):
    def refuse(niceness: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "nice", refuse)
    harness.write_config(tmp_path, training={"niceness": 5, "max_steps": 1})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    warnings = [e["text"] for e in harness.events(tmp_path) if e["kind"] == "warning"]
    assert any("training.niceness: the priority cannot be lowered" in text for text in warnings)


def test_the_leader_of_a_session_lowers_the_session(autogroup, nice, monkeypatch):
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    assert lower_priority(9) == ""
    assert (nice, autogroup.read_text()) == ([9], "9\n")


def test_within_a_session_of_others_it_says_what_it_does_not_reach(autogroup, nice, monkeypatch):
    """The session's nice value would slow the user's shell, and stay when training is killed."""
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() + 1)
    assert "setsid" in lower_priority(9)
    assert (nice, autogroup.read_text()) == ([9], "/autogroup-1 nice 0\n")


def test_without_autogroups_the_nice_value_is_all(autogroup, nice):
    priority.AUTOGROUPS_ARE_ON.write_text("0\n")
    assert lower_priority(9) == ""
    assert nice == [9]
