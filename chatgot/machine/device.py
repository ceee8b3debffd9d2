"""Which device, dtype and threads."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from chatgot.errors import ConfigError
from chatgot.machine.measured import cpu_name

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device that the configuration names; `auto` takes cuda, then mps, then cpu. Raises: ConfigError."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if not available[name]:
        found = ", ".join(kind for kind in available if available[kind])
        raise ConfigError(
            f"device: {name} is not available here; found {found}; set device to one of them or to auto"
        )
    return torch.device(name)


def set_threads(threads: int | None) -> int:
    """Use `threads` CPU threads, or torch's own choice (OMP_NUM_THREADS, else one per core); return the number."""
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def seed_generators(device: torch.device, *key: int) -> None:
    """Set torch's global generators by a pure function of `key`, here (seed, position, first sequence)."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserved_generators(device: torch.device) -> Iterator[None]:
    """Put torch's global generators back as they were, whatever happens inside."""
    kinds = {"cuda": torch.cuda, "mps": torch.mps}
    own = kinds.get(device.type)
    before, own_before = torch.get_rng_state(), own.get_rng_state() if own else None
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if own:
            own.set_rng_state(own_before)


def describe(device: torch.device) -> str:
    """Return one line on the machine for the log's header."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    cores = os.cpu_count()
    return f"{device.type} ({name}), {cores} cores, {torch.get_num_threads()} threads, {platform.platform()}"


def versions() -> dict[str, str]:
    """Return what a checkpoint and the log's header name: versions, and the settings that decide how torch computes."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),  # which instructions; others add in another order
        "onednn": str(torch.backends.mkldnn.enabled),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }
