"""Memory: how much is used and left, which errors mean out of memory, and what is given back."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from chatgot.machine import memory
from chatgot.machine.memory import _control_groups, is_out_of_memory, peak_memory_mib

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def real_failure() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    return raised.value


@pytest.mark.parametrize(
    "make",
    [
        MemoryError,
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried"),
        real_failure,
        lambda: RuntimeError("std::bad_alloc"),
        lambda: RuntimeError("could not create a primitive"),
        lambda: torch.AcceleratorError("CUDA error: out of memory", 2),
        lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    ],
)
def test_errors_of_the_allocator_are_out_of_memory(make):
    assert is_out_of_memory(make())


def test_a_failed_allocation_in_numpy_is_out_of_memory():
    with pytest.raises(MemoryError) as raised:
        np.empty(1 << 60, dtype=np.uint8)
    assert is_out_of_memory(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("the prompt says: out of memory"),
        OSError(12, "out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        SystemExit(6),
        RecursionError("out of memory"),
        RuntimeError("the text says std::bad_alloc"),
        RuntimeError("it could not create a primitive"),
        ValueError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=repr,
)
def test_an_error_that_only_mentions_memory_is_not_out_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells it twice")
def test_the_memory_peak_is_the_kernels_number_in_mebibytes():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kernels,) = (int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    assert peak_memory_mib() == pytest.approx(kernels, rel=0.02)


FREED = """
import sys, torch
from pathlib import Path
from chatgot.machine.memory import reuse_freed_memory
assert reuse_freed_memory() or sys.argv[1] == "plain"
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before = resident()
tensor = torch.ones(16 << 20)  # 64 MiB
del tensor
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has mallopt")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_reused_for_the_next_tensors(kept):
    script = FREED if kept else FREED.replace("assert reuse_freed_memory() or ", "assert ")
    command = [sys.executable, "-c", script, "kept" if kept else "plain"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 60) is kept


# What is left


def groups(folder: Path, own: str, files: dict[str, str]) -> list[tuple[int, int]]:
    """Return the limits that `_control_groups` finds in made-up control groups."""
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "own").write_text(own, encoding="utf-8")
    return list(_control_groups(folder / "cgroup", folder / "own"))


def test_each_parent_group_limits_the_process_cached_files_not_counted(tmp_path):
    stat = "anon 5\ninactive_file 100\nactive_file 7\n"
    files = {
        "a/b/memory.max": "2000\n",
        "a/b/memory.current": "500\n",
        "a/b/memory.stat": stat,
        "a/memory.max": "1000\n",
        "a/memory.current": "900\n",
        "a/memory.stat": stat,
        "memory.max": "max\n",
        "memory.current": "9\n",
        "memory.stat": stat,
    }
    assert groups(tmp_path, "0::/a/b\n", files) == [(400, 2000), (800, 1000)]


def test_groups_of_version_1_are_read_up_to_a_containers_own_group(
    tmp_path,
):
    files = {
        "memory/memory.limit_in_bytes": "3000\n",
        "memory/memory.usage_in_bytes": "50\n",
        "memory/memory.stat": "cache 1\ninactive_file 60\n",
    }
    assert groups(tmp_path, "4:memory:/docker/123\n3:cpu:/x\n0::/\n", files) == [(0, 3000)]


def test_a_machine_without_control_groups_has_no_group_limit(tmp_path):
    assert list(_control_groups(tmp_path / "none", tmp_path / "nothing")) == []


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux alone has MemAvailable")
def test_the_machines_free_memory_is_the_kernels_memavailable(monkeypatch):
    monkeypatch.setattr(memory, "_control_groups", list)
    monkeypatch.setattr(memory, "_address_space", lambda: None)
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    (kernels,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    ((free, total),) = memory.memory_limits(CPU)
    assert free == pytest.approx(kernels, abs=256 << 20)  # other processes take and free meanwhile
    assert total - free == pytest.approx(memory.used_memory(CPU), abs=64 << 20)


def test_mapped_memory_counts_against_a_limited_address_space(monkeypatch):
    monkeypatch.setattr(memory, "_control_groups", list)
    monkeypatch.setattr(memory, "_address_space", lambda: 1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    monkeypatch.setattr(psutil, "Process", lambda: with_memory(rss=200, vms=900))
    assert memory.memory_limits(CPU) == [(100, 1000), (5000, 5200)]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_macos_and_windows_report_their_free_memory(monkeypatch, platform):
    """Neither has control groups or obeys RLIMIT_AS."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (500, 500))
    monkeypatch.setattr(memory, "_control_groups", list)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=300))
    monkeypatch.setattr(psutil, "Process", lambda: with_memory(rss=200, vms=9999))
    assert memory.memory_limits(CPU) == [(300, 500)]


def test_the_memory_peak_on_windows_is_the_peak_working_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil, "Process", lambda: with_memory(peak_wset=3 << 20))
    assert peak_memory_mib() == 3


def test_a_system_that_reports_nothing_sets_no_limit(monkeypatch):
    def refuse():
        raise FileNotFoundError("/proc")

    def no_process():
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(memory, "_control_groups", list)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "Process", no_process)
    monkeypatch.setattr(memory, "_address_space", lambda: 1 << 40)
    assert memory.memory_limits(CPU) == []
    assert memory.used_memory(CPU) == int(peak_memory_mib() * (1 << 20))


def with_memory(**fields: int) -> SimpleNamespace:
    """Return a process with this memory, as psutil shows it."""
    return SimpleNamespace(memory_info=lambda: SimpleNamespace(**fields))


LIMITED = """
import psutil, resource, torch
from chatgot.machine.memory import memory_limits, used_memory
cpu = torch.device("cpu")
print(used_memory(cpu), *memory_limits(cpu)[0])
limit = psutil.Process().memory_info().vms + (2 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(used_memory(cpu), *memory_limits(cpu)[0])
held = torch.ones(64 << 20)  # 256 MiB
print(used_memory(cpu), *memory_limits(cpu)[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits what Linux gives")
def test_the_smallest_limit_counts_and_shrinks_by_what_is_taken():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = [[int(number) for number in line.split()] for line in done.stdout.splitlines()]
    (used, free, total), (_, limited, limit), (more, less, _) = rows
    assert 100 << 20 < used < 2 << 30
    assert free < total
    assert limited <= min(free + (1 << 28), 2 << 30)  # the machine may have less free than that
    assert limited <= limit
    assert more - used > 250 << 20
    assert limited - less > 200 << 20


def test_too_full_names_the_memory_that_would_be_left(monkeypatch):
    limits = [(300 << 20, 1000 << 20)]
    monkeypatch.setattr(memory, "memory_limits", lambda device: limits)
    assert memory.too_full(CPU, 0.1, 200 << 20) == ""
    assert (
        memory.too_full(CPU, 0.1, 201 << 20)
        == "it would leave 99 of 1,000 MiB, memory_headroom is 10%"
    )
    limits.append((1000 << 20, 20_000 << 20))  # more is left here, but a smaller share
    assert (
        memory.too_full(CPU, 0.1, 0) == "it would leave 1,000 of 20,000 MiB, memory_headroom is 10%"
    )
    limits.clear()
    assert memory.too_full(CPU, 0.1, 1 << 60) == ""


RELEASED = """
import torch
from chatgot.machine.memory import release_memory, reuse_freed_memory, used_memory
cpu = torch.device("cpu")
reuse_freed_memory()
before, tensor = used_memory(cpu), torch.ones(64 << 20)
del tensor
kept = used_memory(cpu) - before
release_memory(cpu)
print(kept, used_memory(cpu) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has malloc_trim")
def test_memory_kept_for_reuse_can_be_given_back():
    done = subprocess.run(
        [sys.executable, "-c", RELEASED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    kept, left = map(int, done.stdout.split())
    assert kept > 250 << 20
    assert left < 16 << 20
