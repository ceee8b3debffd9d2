"""The device, the number of threads, and torch's random generators."""

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
    """Return the device that the configuration names; `auto`: cuda, else mps, else cpu.

    Raises: ConfigError if this machine has no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        kinds = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigError(
            f"device: {name} is not available on this machine, found {kinds}: "
            "set device to one of them or to auto"
        )
    return torch.device(name)


def set_threads(threads: int | None) -> int:
    """Set the number of CPU threads (None: torch's own choice) and return it.

    torch's own choice is OMP_NUM_THREADS, or else one thread per core.
    """
    if threads is not None and threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def seed_generators(device: torch.device, *key: int) -> None:
    """Seed torch's global generators with a pure function of `key`.

    A micro-batch's key is (seed, position, index of its first sequence).
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserved_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators after the block, even after an error."""
    cpu_state = torch.get_rng_state()
    device_state = _device_rng_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if device_state is not None:
            _set_device_rng_state(device, device_state)


def _device_rng_state(device: torch.device) -> torch.Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state()
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return None


def _set_device_rng_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)


def card_name(device: torch.device) -> str:
    """Return the name of an NVIDIA card; empty: the device is none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def describe(device: torch.device) -> str:
    """Describe the machine in one line for the log's header."""
    name = card_name(device) or cpu_name()
    cores = os.cpu_count()
    threads = torch.get_num_threads()
    return f"{device.type} ({name}), {cores} cores, {threads} threads, {platform.platform()}"


def versions() -> dict[str, str]:
    """Return the versions and settings that can change the results, as plain strings.

    They are stored in checkpoints and shown in the log's header.
    """
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        # the CPU instructions in use: with others, sums are added in another order
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "onednn": str(torch.backends.mkldnn.enabled),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }
