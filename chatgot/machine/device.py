"""Which device, dtype and threads."""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from chatgot.config import Config
from chatgot.errors import ConfigError
from chatgot.machine.measured import bf16_gain, cpu_name

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """Return the device that the configuration names; `auto` takes cuda, then mps, then cpu. Raises: ConfigError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, found in available.items() if found)
    if not available[name]:
        found = ", ".join(kind for kind in available if available[kind])
        raise ConfigError(f"device: {name} is not available here; found {found}; set device to one of them or to auto")
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


def pick_precision(config: Config, device: torch.device) -> str:
    """Return fp32, bf16 or fp16: what `mixed_precision` and `precision_dtype` mean on this machine."""
    training = config.training
    if not training.mixed_precision:
        return "fp32"
    if training.precision_dtype != "auto":
        if training.precision_dtype == "fp16" and device.type == "cpu":
            logger.warning(
                "precision_dtype fp16 on a CPU is about 1000 times slower than fp32; bf16 is the CPU's fast type"
            )
        return training.precision_dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "fp16"
    d_hid = config.model.d_hid or 4 * config.model.d_model
    gain = bf16_gain(config.model.d_model, d_hid)
    if gain < 1:
        logger.warning(
            "mixed precision is off: bf16 runs at %.2g x the speed of fp32 on this CPU, so fp32 is used", gain
        )
        return "fp32"
    logger.info("mixed precision: bf16 matrix products run at %.1f x the speed of fp32 on this CPU", gain)
    return "bf16"


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
