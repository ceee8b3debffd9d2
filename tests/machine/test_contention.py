"""Beside other programs, waiting threads sleep; when those are gone, they spin again."""

import itertools
import logging
import os
import sys
import threading
import time
from pathlib import Path

import harness
import parts
import pytest
import torch

from chatgot.machine import contention, idle_teams
from chatgot.machine.contention import BUSY, LONGEST_S, QUIET_S, Contention, delays
from chatgot.machine.idle_teams import IdleTeams, has_libgomp, teams_needed
from chatgot.machine.shared_core import SharedCore, idle_seconds
from chatgot.spinning import POLICY, ROUNDS, VARIABLE, spin_briefly, was_decided_by_user
from chatgot.training import neighbours


class Sleepers:
    """Counts what is asked for instead of starting threads."""

    def __init__(self, *, possible: bool = True) -> None:
        self.possible = possible
        self.asked: list[str] = []

    def start(self) -> None:
        self.asked.append("sleep")

    def stop(self) -> None:
        self.asked.append("spin")


class Place:
    """Counts what is asked for instead of moving threads; `idle` is told of another core."""

    def __init__(self, *, possible: bool) -> None:
        self.possible = possible
        self.idle = 0.0
        self.asked: list[str] = []

    def start(self) -> None:
        self.asked.append("one core")

    def stop(self) -> None:
        self.asked.append("all cores")

    def look(self) -> float:
        return self.idle


class Machine:
    """A clock, and two threads that wait for a core for a share of the time."""

    def __init__(self, *, possible: bool = True, shares_core: bool = False) -> None:
        self.now_s = 100.0
        self.core = Place(possible=shares_core)
        self.waited_s = {"1": 3.0, "2": 7.0}
        self.teams = Sleepers(possible=possible)
        self.contention = Contention(
            teams=self.teams,
            core=self.core,
            read=lambda: dict(self.waited_s),
            clock=lambda: self.now_s,
        )

    def run(self, seconds: float, share: float) -> None:
        """Let time pass in steps of a second; the second thread waits for this share of it."""
        for _ in range(round(seconds)):
            self.now_s += 1.0
            self.waited_s["2"] += share
            self.contention.look()


def test_threads_sleep_beside_a_busy_program_and_spin_when_it_is_gone():
    machine = Machine()
    machine.run(10, 0.02)
    assert machine.teams.asked == []
    machine.run(10, 0.4)
    assert machine.teams.asked == ["sleep"]
    machine.run(QUIET_S - 1, 0.02)
    assert machine.teams.asked == ["sleep"]
    machine.run(1, 0.02)
    assert machine.teams.asked == ["sleep", "spin"]
    assert machine.contention.seconds == 9
    assert machine.contention.share == 9 / (20 + QUIET_S)


def test_time_in_which_the_process_was_stopped_does_not_count():
    machine = Machine()
    machine.run(1, 0.5)
    machine.now_s += 8 * 3600
    machine.waited_s["2"] += 4 * 3600
    machine.contention.look()
    assert machine.contention.seconds == LONGEST_S


def test_the_seconds_since_the_last_look_count_at_the_end():
    machine = Machine()
    machine.run(2, 0.5)
    machine.now_s += 0.4
    machine.contention.close()
    assert machine.contention.seconds == pytest.approx(1.4)


def test_two_threads_share_a_core_until_another_one_is_free():
    """On one core, each thread waits for the other one: that says nothing of other programs."""
    machine = Machine(shares_core=True)
    machine.run(1, 0.4)
    assert machine.core.asked == ["one core"]
    machine.core.idle = 0.5
    machine.run(20, 0.0)
    assert machine.core.asked == ["one core"]
    machine.core.idle = 0.9
    machine.run(QUIET_S, 0.4)
    assert machine.core.asked == ["one core", "all cores"]
    assert machine.teams.asked == ["sleep", "spin"]


def test_a_short_wait_of_one_thread_changes_nothing():
    machine = Machine()
    machine.run(20, 0.1)
    assert machine.teams.asked == []


def test_a_new_thread_and_one_that_ended_count_for_nothing():
    machine = Machine()
    machine.waited_s["3"] = 50.0
    del machine.waited_s["1"]
    machine.run(2, 0.0)
    assert machine.teams.asked == []


def test_closing_lets_threads_spin_again_once():
    machine = Machine()
    machine.run(2, 0.5)
    machine.contention.close()
    machine.contention.close()
    assert machine.teams.asked == ["sleep", "spin"]


def test_without_libgomp_nothing_is_watched():
    machine = Machine(possible=False)
    machine.run(10, 0.9)
    assert machine.teams.asked == []


@pytest.mark.parametrize(
    ("threads", "cores", "teams"),
    [(2, 2, 1), (4, 4, 1), (4, 8, 2), (8, 16, 2), (2, 16, 0), (1, 2, 0), (64, 64, 1), (3, 2, 0)],
)
def test_idle_teams_outnumber_the_cores_where_they_can(threads, cores, teams):
    assert teams_needed(threads, cores) == teams
    if teams:
        assert threads + teams * (threads - 1) > cores


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of threads")
def test_delays_are_read_for_each_thread():
    found = delays()
    assert str(os.getpid()) in found
    assert all(seconds >= 0 for seconds in found.values())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux tells of threads")
def test_threads_that_write_files_do_not_count():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    found = delays()
    assert str(threading.get_native_id()) in found
    assert str(thread.native_id) not in found
    end.set()
    thread.join()


def test_delays_are_empty_where_nobody_tells(tmp_path):
    assert delays(tmp_path / "missing") == {}
    (tmp_path / "12").mkdir()
    assert delays(tmp_path) == {}
    (tmp_path / "12" / "schedstat").write_text("5000 2000000000 7\n")
    assert delays(tmp_path) == {"12": 2.0}


def threads_of_this_process() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux" or not has_libgomp(), reason="needs libgomp")
def test_idle_teams_live_between_start_and_stop(two_threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    torch.zeros(1 << 20).add_(1)  # the team that computes
    before = threads_of_this_process()
    teams = IdleTeams()
    assert teams.possible
    teams.start()
    idle = threads_of_this_process() - before
    assert len(idle) == 2  # the one that idles, and its team's other one
    teams.stop()
    deadline = time.monotonic() + 5  # a thread ends a moment after Python has left it
    while threads_of_this_process() & idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads_of_this_process() & idle


def affinities() -> set[frozenset[int]]:
    return {
        frozenset(os.sched_getaffinity(int(task.name)))
        for task in Path("/proc/self/task").iterdir()
    }


needs_cores = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two cores of Linux"
)


@needs_cores
def test_threads_share_one_core_between_start_and_stop(two_threads):
    before = affinities()
    core = SharedCore({})
    assert core.possible
    core.start()
    (shared,) = affinities()
    assert len(shared) == 1
    late = threading.Event()
    thread = threading.Thread(target=late.wait)  # inherits the main thread's place
    thread.start()
    core.stop()
    assert affinities() == before
    late.set()
    thread.join()


@needs_cores
def test_a_crowded_core_is_left_to_others(two_threads, monkeypatch):
    core = SharedCore({})
    core.start()
    monkeypatch.setattr(core._own_choice, "choice", max)
    try:
        time.sleep(0.05)  # this process needs nothing, so it gets less than most of a core
        core.look()
        assert affinities() == {frozenset({max(core._masks[os.getpid()])})}
    finally:
        core.stop()


@needs_cores
@pytest.mark.parametrize("variable", ["OMP_PROC_BIND", "GOMP_CPU_AFFINITY"])
def test_threads_stay_where_the_user_puts_them(variable, two_threads):
    assert not SharedCore({variable: "0"}).possible


def test_idle_seconds_are_read_for_each_core(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9\ncpu0 1 2 3 400 50 6\ncpu1 1 2 3 0 0 6\nintr 5\n")
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert idle_seconds(stat) == {0: 450 / ticks_per_s, 1: 0.0}
    assert idle_seconds(tmp_path / "missing") == {}


@pytest.mark.skipif(sys.platform != "linux" or not has_libgomp(), reason="needs libgomp")
def test_threads_that_cannot_be_started_leave_all_as_it_is(two_threads, monkeypatch):
    """libgomp would end the process."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    teams = IdleTeams()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    teams.start()
    assert not teams.possible
    teams.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
@pytest.mark.parametrize(("quota", "possible"), [(1.5, False), (2.0, True), (None, True)])
def test_a_quota_below_the_threads_is_no_contention(quota, possible, two_threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(idle_teams, "cpu_quota", lambda: quota)
    assert IdleTeams({}).possible is (possible and has_libgomp())


def test_a_log_tells_of_a_program_that_comes_and_goes_every_ten_minutes(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    machine = Machine()
    monkeypatch.setattr(neighbours, "Contention", lambda: machine.contention)
    monkeypatch.setattr(neighbours.time, "monotonic", lambda: machine.now_s)
    watch = neighbours.Neighbours(parts.run())
    for _ in range(100):
        for share in (0.5, 0.5, *[0.0] * 10):
            machine.now_s += 1.0
            machine.waited_s["2"] += share
            watch.look()
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    said = [event["on"] for event in events if event["kind"] == "contention"]
    assert machine.teams.asked.count("sleep") == 100
    assert said == [True, False, True, False]
    watch.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not has_libgomp(), reason="needs libgomp")
def test_run_beside_other_programs_ends_in_the_same_bits(two_threads, tmp_path, monkeypatch):
    """Threads switch between sleeping and spinning in each step."""
    looks = itertools.count()

    def two_of_three() -> dict[str, float]:
        """Others take the cores at two looks, and at the next one they do not."""
        look = next(looks)
        return {"1": 1e6 * (look - look // 3)}

    class Core(SharedCore):
        """Moves the threads, and knows as much of others."""

        def look(self) -> float:
            super().look()
            return 0.0 if next(idle) % 2 == 0 else 1.0

    idle = itertools.count()
    monkeypatch.setattr(contention, "SharedCore", Core)
    waiting = {"quiet": dict, "busy": two_of_three}
    monkeypatch.setattr(contention, "LOOK_S", 0.0)
    monkeypatch.setattr(contention, "QUIET_S", 0.0)
    monkeypatch.setattr(neighbours, "LOG_S", 0.0)
    finals = []
    for name, read in waiting.items():
        monkeypatch.setattr(contention, "delays", read)
        folder = tmp_path / name
        folder.mkdir()
        harness.write_config(folder, model={"d_model": 64}, training={"threads": 2})
        assert harness.train_here(folder, "--config", "tiny.yaml") == 0
        finals.append(harness.load(harness.checkpoints(folder)[max(harness.checkpoints(folder))]))
    quiet, busy = finals
    said = [e for e in harness.events(tmp_path / "busy") if e["kind"] == "contention"]
    assert [event["on"] for event in said[:3]] == [True, False, True]
    assert said[0]["waited"] > BUSY
    assert "of the time" in said[-1]["text"]
    assert not [e for e in harness.events(tmp_path / "quiet") if e["kind"] == "contention"]
    for name, tensor in quiet["model_state_dict"].items():
        assert torch.equal(tensor, busy["model_state_dict"][name]), name


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {VARIABLE: ROUNDS}),
        ({VARIABLE: "5"}, {VARIABLE: "5"}),
        ({POLICY: "active"}, {POLICY: "active"}),
    ],
)
def test_spinning_is_short_unless_the_user_decides(before, after):
    environ = dict(before)
    spin_briefly(environ)
    assert environ == after
    assert was_decided_by_user(environ) is bool(before)


@pytest.mark.parametrize("variable", [VARIABLE, POLICY])
def test_threads_wait_as_the_user_says(variable, two_threads):
    assert not IdleTeams({variable: "active"}).possible
