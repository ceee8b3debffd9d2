"""Which device, dtype and threads, and what is measured fast on this machine."""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path

from chatgot.atomic_file import atomic_file
from chatgot.config import Config
from chatgot.errors import ConfigError

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


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        {"cuda": torch.cuda, "mps": torch.mps}[device.type].synchronize()


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


def bf16_gain(d_model: int, d_hid: int, rows: int = 128) -> float:
    """Return the speed of a bf16 product (rows, d_model) x (d_model, d_hid) relative to fp32, once per machine."""
    key = f"bf16_gain | {cpu_name()} | torch {torch.__version__} | {rows}x{d_model}x{d_hid}"
    path = machine_file()
    remembered = _read_machine_file(path)
    if isinstance(remembered.get(key), float):
        return remembered[key]
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows, d_model, generator=generator)
    b = torch.randn(d_model, d_hid, generator=generator)
    gain = _best_time(a, b) / _best_time(a.bfloat16(), b.bfloat16())
    remembered = _read_machine_file(path) | {key: gain}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(remembered, indent=1).encode())
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): this machine's measurements are made again next time", path, error.strerror
        )
    return gain


def machine_file() -> Path:
    return user_cache_path("chatgot") / "machine.json"


def _read_machine_file(path: Path) -> dict:
    with suppress(OSError, ValueError):
        remembered = json.loads(path.read_bytes())
        if isinstance(remembered, dict):
            return remembered
    return {}


def _best_time(a: torch.Tensor, b: torch.Tensor, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip() + " " + torch.backends.cpu.get_cpu_capability()
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


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
