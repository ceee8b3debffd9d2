"""How much memory is used and left on the device, what an out-of-memory error is, and what then can be done."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

MIB = 1 << 20

ALLOCATOR_WORDS = (  # of errors that torch raises as plain RuntimeError
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
BARE_MESSAGES = (  # whole messages: C++'s own, and what oneDNN makes of it
    "std::bad_alloc",
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is the allocator's, not one whose text merely speaks of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    known = text in BARE_MESSAGES or any(word in text for word in ALLOCATOR_WORDS)
    return type(error) in (RuntimeError, torch.AcceleratorError) and known


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource  # exists on Unix alone

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def used_memory(device: torch.device) -> int:
    """Return the bytes that this process holds on the device, freed ones that it keeps for reuse included.

    On a CPU its resident set; 0 where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(peak_memory_mib() * MIB)


def memory_limits(device: torch.device) -> list[tuple[int, int]]:
    """Return (bytes this process may still take, bytes it could have in all) for each limit, the tightest first.

    On a CPU what the machine can give without swapping, its control groups and RLIMIT_AS. Empty: the system tells none.
    """
    if device.type == "cuda":
        return [torch.cuda.mem_get_info(device)]
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return [(total - torch.mps.driver_allocated_memory(), total)]
    return sorted(_cpu_limits())


def too_full(device: torch.device, headroom: float, more: float) -> str:
    """Return why `more` bytes would leave too little memory free; empty: they would not, or nobody tells."""
    for free, total in memory_limits(device):
        if free - more < headroom * total:
            left, limit = max(0.0, free - more) / MIB, total / MIB
            return (
                f"it would leave {left:,.0f} of {limit:,.0f} MiB, memory_headroom is {headroom:.0%}"
            )
    return ""


def _cpu_limits() -> Iterator[tuple[int, int]]:
    """Yield (free, total) for each limit that this process stands under."""
    used = used_memory(torch.device("cpu"))
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = (
            next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
        )
        yield free, free + used
    for held, limit in _control_groups():
        yield max(0, limit - held), limit
    with suppress(OSError, ValueError):
        if limit := _address_space():
            held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            yield max(0, limit - held), limit


def _address_space() -> int | None:
    """Return RLIMIT_AS in bytes; None: there is no such limit."""
    if sys.platform == "win32":
        return None
    import resource  # exists on Unix alone

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple]:
    """Yield (held, limit) in bytes of each control group above this process that limits memory, version 1 and 2.

    Pages of files count as held there though they are given up when memory is needed: they are taken off.
    """
    with suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number != "0" and "memory" not in controllers.split(","):
                continue
            version_2 = number == "0"
            top = root if version_2 else root / "memory"
            names = ("memory.max", "memory.current") if version_2 else (
                "memory.limit_in_bytes", "memory.usage_in_bytes"
            )  # fmt: skip
            folder = top / path.lstrip("/")
            folder = folder if folder.is_dir() else top  # in a container its own group is the top
            for group in (folder, *folder.parents):
                if not group.is_relative_to(top):
                    break
                with suppress(OSError, ValueError, StopIteration):
                    limit, held = (
                        int((group / name).read_text()) for name in names
                    )  # "max" is no number: no limit
                    lines = (group / "memory.stat").read_text().splitlines()
                    files = next(
                        int(line.split()[1]) for line in lines if line.startswith("inactive_file ")
                    )
                    yield max(0, held - files), limit


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the system: what a failed or larger attempt held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux" and (
        trim := getattr(ctypes.CDLL(None), "malloc_trim", None)
    ):  # glibc has it
        trim(0)


def reuse_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors of that size; return whether that is possible here.

    Else it hands large blocks back to the kernel and asks for them again in the same step, in pieces that fit less and
    less well: with gradient checkpointing a fifth more memory. Not under RLIMIT_AS: what is kept cannot be given back
    there, and after a lack of memory oneDNN finds no room for its code; large blocks are mapped one by one instead.
    Source: mallopt(3), M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    if _address_space() is not None:
        for parameter, value in (
            (-3, 1 << 16),
            (-8, 1),
        ):  # an arena for each thread would reserve 64 MiB
            mallopt(parameter, value)
        return False
    largest = 2**31 - 1
    return all(mallopt(parameter, largest) for parameter in (-1, -3))
