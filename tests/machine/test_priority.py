"""A program with `training.niceness` leaves the cores to others."""

import os
import sys
import threading

import harness
import pytest

from chatgot.machine import priority
from chatgot.machine.priority import lower_priority

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has priority classes instead")


@pytest.fixture
def nice(monkeypatch) -> list[int]:
    """The nice values that were asked for; this process keeps its own."""
    asked: list[int] = []

    def nice(niceness: int) -> int:
        asked.append(niceness)
        return niceness

    monkeypatch.setattr(os, "nice", nice)
    monkeypatch.setattr(os, "setpriority", lambda which, thread, niceness: None)
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
    groups = tmp_path / "cgroup"
    groups.write_text("1:cpu,cpuacct:/\n0::/\n")
    monkeypatch.setattr(priority, "OWN_GROUPS", groups)
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
    assert "of the same terminal" in lower_priority(9)
    assert (nice, autogroup.read_text()) == ([9], "/autogroup-1 nice 0\n")


def test_without_autogroups_the_nice_value_is_all(autogroup, nice):
    priority.AUTOGROUPS_ARE_ON.write_text("0\n")
    assert lower_priority(9) == ""
    assert nice == [9]


@pytest.mark.parametrize("groups", ["0::/user.slice/app\n", "4:cpu:/docker/1\n0::/\n"])
def test_within_a_control_group_sessions_do_not_matter(groups, autogroup, nice):
    priority.OWN_GROUPS.write_text(groups)
    assert lower_priority(9) == ""
    assert autogroup.read_text() == "/autogroup-1 nice 0\n"


def test_a_session_that_cannot_be_lowered_is_said(autogroup, nice, monkeypatch):
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())
    autogroup.unlink()
    autogroup.mkdir()
    assert "cannot be written" in lower_priority(9)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a nice value for each thread")
def test_threads_that_run_already_become_nice_too():
    """In a child: a nice value cannot be taken back."""
    child = os.fork()
    if child == 0:
        end = threading.Event()
        thread = threading.Thread(target=end.wait, daemon=True)
        thread.start()
        lower_priority(3)
        values = {os.getpriority(os.PRIO_PROCESS, i) for i in (thread.native_id, os.getpid())}
        os._exit(0 if len(values) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
