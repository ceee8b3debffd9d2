"""Control groups: a quota of CPU time limits the threads, as a container's `--cpus` means it."""

from pathlib import Path

import parts
import pytest
import torch

from chatgot.machine.control_groups import cpu_quota
from chatgot.machine.measured import ThreadChoice
from chatgot.run import modes


def quota(folder: Path, own: str, files: dict[str, str]) -> float | None:
    """Return the quota that made-up control groups leave."""
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "own").write_text(own, encoding="utf-8")
    return cpu_quota(folder / "cgroup", folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "300000 100000\n", "cpu.max": "150000 100000\n"}, 1.5),
        ("0::/not/mounted\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "4:cpu,cpuacct:/docker/1\n2:memory:/x\n",
            {"cpu/cpu.cfs_quota_us": "765000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            7.65,
        ),
        (
            "4:cpu:/a\n0::/\n",
            {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("0::/\n", {"cpu.max": "rubbish"}, None),
        ("rubbish", {}, None),
    ],
)
def test_the_tightest_group_gives_the_quota(own, files, expected, tmp_path):
    assert quota(tmp_path, own, files) == expected


def test_a_machine_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.cpu("a quota limits its measured threads")
@pytest.mark.parametrize(
    ("quota", "threads"), [(2.9, 2), (0.5, 1), (3.0, 3), (4.0, 4), (64.0, 4), (None, 4)]
)
def test_a_quota_of_cpu_time_limits_the_threads(quota, threads, monkeypatch):
    """More threads than the quota pays for make a container many times slower."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(modes, "cpu_quota", lambda: quota)
    monkeypatch.setattr(
        modes, "fast_threads", lambda d_model: ThreadChoice(torch.get_num_threads(), {})
    )
    try:
        assert parts.run(training={"threads": None}).state.modes.threads == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("key", "variable"), [(3, None), (None, "3")])
def test_threads_that_the_user_asks_for_are_taken_despite_a_quota(key, variable, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(modes, "cpu_quota", lambda: 1.0)
    try:
        assert parts.run(training={"threads": key}).state.modes.threads == 3
    finally:
        torch.set_num_threads(before)
