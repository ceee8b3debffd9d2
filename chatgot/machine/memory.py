"""How much memory is used and free, which errors mean out of memory, and what helps."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from chatgot.machine.control_groups import OWN, ROOT, VERSION_1, VERSION_2, control_groups

MIB = 1 << 20

# texts inside out-of-memory errors that torch raises as plain RuntimeError
ALLOCATOR_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# whole messages: the one of C++, and those that oneDNN raises instead
BARE_MESSAGES = (
    "std::bad_alloc",
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
)
# files of a control group with its memory limit and memory use
GROUP_FILES = {
    VERSION_1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    VERSION_2: ("memory.max", "memory.current"),
}
# parameters of mallopt(3), and their largest value
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGEST_VALUE = 2**31 - 1


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, rather than only mentioning memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    is_known = text in BARE_MESSAGES or any(words in text for words in ALLOCATOR_WORDS)
    return type(error) in (RuntimeError, torch.AcceleratorError) and is_known


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / MIB
    import resource  # exists on Unix alone; psutil knows no peak there

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, all others KiB
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def used_memory(device: torch.device) -> int:
    """Return the bytes that this process uses on the device, its caches included.

    On a CPU it is the resident memory, or its peak if the system does not tell the present value.
    """
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(psutil.Error, OSError):
        return psutil.Process().memory_info().rss
    return int(peak_memory_mib() * MIB)


def memory_limits(device: torch.device) -> list[tuple[int, int]]:
    """Return (free bytes, most bytes that this process could use) for each limit, tightest first.

    On a CPU there is one pair for the memory that is available without swapping, one for each
    control group with a limit, and one for RLIMIT_AS. Empty: the system does not tell.
    """
    if device.type == "cuda":
        return [torch.cuda.mem_get_info(device)]
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return [(total - torch.mps.driver_allocated_memory(), total)]
    return sorted(_cpu_limits())


def too_full(device: torch.device, headroom: float, more: float) -> str:
    """Return why `more` bytes would leave too little memory; empty: there is room or it is unknown.

    headroom: the share of each limit that must stay free.
    """
    for free, total in memory_limits(device):
        if free - more < headroom * total:
            left = max(0.0, free - more) / MIB
            return (
                f"it would leave {left:,.0f} of {total / MIB:,.0f} MiB, "
                f"memory_headroom is {headroom:.0%}"
            )
    return ""


def _cpu_limits() -> Iterator[tuple[int, int]]:
    """Yield (free, total) in bytes for each limit on this process."""
    used = used_memory(torch.device("cpu"))
    with suppress(psutil.Error, OSError):
        free = psutil.virtual_memory().available
        yield free, free + used
    for held, limit in _control_groups():
        yield max(0, limit - held), limit
    address_space = _address_space()
    if address_space is not None:
        with suppress(psutil.Error, OSError):
            mapped = psutil.Process().memory_info().vms
            yield max(0, address_space - mapped), address_space


def _address_space() -> int | None:
    """Return RLIMIT_AS in bytes; None: there is no such limit. Only Linux obeys it."""
    if sys.platform != "linux":
        return None
    import resource  # exists on Unix alone

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _control_groups(root: Path = ROOT, own: Path = OWN) -> Iterator[tuple[int, int]]:
    """Yield (used, limit) in bytes of each control group that limits this process's memory.

    A group counts cached file pages as used, although the kernel frees them when memory is needed;
    they are subtracted.
    """
    for version, group in control_groups("memory", root, own):
        limit_file, held_file = GROUP_FILES[version]
        # without a limit the file says "max", which is not a number
        with suppress(OSError, ValueError):
            limit = int((group / limit_file).read_text())
            held = int((group / held_file).read_text())
            yield max(0, held - _cached_files(group)), limit


def _cached_files(group: Path) -> int:
    """Return the bytes of cached file pages in a control group that are not in use."""
    lines = (group / "memory.stat").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("inactive_file "))
    return int(line.split()[1])


def release_memory(device: torch.device) -> None:
    """Give freed memory back to the system, after a failed attempt or one that needed more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def reuse_freed_memory() -> bool:
    """Let glibc reuse freed memory for the next tensors; return whether that is possible.

    By default glibc returns large blocks to the kernel and asks for them again in the same step.
    The memory becomes fragmented: with gradient checkpointing a run takes a fifth more.

    Under RLIMIT_AS glibc must not keep freed memory: it would stay lost for oneDNN, which needs
    room for its code after out of memory. There, large blocks are mapped one by one instead.

    Source: mallopt(3), M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    if _address_space() is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 16)
        mallopt(M_ARENA_MAX, 1)  # an arena for each thread would reserve 64 MiB
        return False
    parameters = (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)
    return all(mallopt(parameter, LARGEST_VALUE) for parameter in parameters)
