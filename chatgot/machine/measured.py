"""Measure once what is fast on this machine; machine.json in the user's cache keeps it."""

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from platformdirs import user_cache_path

from chatgot.atomic_file import atomic_file
from chatgot.machine import contention
from chatgot.machine.usable_cores import usable_cores

logger = logging.getLogger(__name__)

# Rows and columns of the matrices for measuring the peak; only large ones keep a GPU busy
PEAK_SIZE = {"cpu": 2048, "cuda": 8192, "mps": 8192}
# Products in one timing: the clock and the wait for a GPU take as long as a hundredth of a product
PEAK_PRODUCTS = {"cpu": 1, "cuda": 10, "mps": 10}
# A GPU raises its clock only under load, and the first products choose their kernel
PEAK_WARM_UP_S = {"cpu": 0.0, "cuda": 0.5, "mps": 0.5}
THREAD_ROUNDS = 30  # takes some tenths of a second, longer than a short burst of another program
BUSY = "beside other programs: "  # begins the name of what was not measured in quiet
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # where torch.compile keeps its code
MOST_COMPILERS = 8  # at once; each takes up to 300 MiB, and a block has about 20 kernels
FEWER_THREADS_GAIN = 1.1  # half the threads must be this much faster, because timings are noisy


def cache_folder() -> Path | None:
    """Return this program's folder in the user's cache; None, with one warning: there is none.

    In a container the user may have no home: HOME is not set, and /etc/passwd lacks the user.
    """
    try:
        return user_cache_path("chatgot")
    except (OSError, RuntimeError) as error:
        _warn_once(
            f"no cache folder for the measurements of this machine ({error}): "
            "each run measures again"
        )
        return None


def keep_compiled_code() -> None:
    """Let torch.compile keep its code in the user's cache folder.

    For a CPU, as many compilers run at once as there are cores: threads start them, so that none
    outlives its work. To be called before something is compiled; what the user has set stays, if it
    can be used.
    """
    folder = cache_folder()
    if folder is not None:  # /tmp, the default, is emptied
        os.environ.setdefault(COMPILED, str(folder / "compiled"))
    problem = _why_unusable(os.environ.get(COMPILED))
    if problem:
        # torch would fail on it; it makes a folder of its own in /tmp
        _warn_once(f"{problem}: the next run compiles again")
        del os.environ[COMPILED]
    # for a GPU, torch would start a pool of processes that stay until the run ends
    compilers = 1 if torch.cuda.is_available() else min(usable_cores(), MOST_COMPILERS)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compilers))


def _why_unusable(folder: str | None) -> str:
    """Return why nothing can be kept in a folder; empty: it can, or none is set. Makes it."""
    if folder is None:
        return ""
    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103 an empty path is an error here
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"{folder!r} cannot be written ({error.strerror})"


def machine_file() -> Path | None:
    """Return the path of the file with the measurements; it may be deleted at any time.

    None: this user has no cache folder.
    """
    folder = cache_folder()
    return None if folder is None else folder / "machine.json"


def remembered(
    what: str, measure: Callable[[], list[float]], *, again_when_quiet: bool = True
) -> list[float]:
    """Return the stored result of `measure` for this CPU and torch; measure if there is none.

    So every fresh run makes the same choice from these numbers. Those that were measured while
    other programs took the cores count until they have been measured in quiet.

    what: names the quantity, shape and dtype.
    again_when_quiet: false for what takes too long to measure again.
    """
    known = recalled(what)
    if known is not None:
        return known
    before = contention.delays()
    start_s = time.perf_counter()
    numbers = [float(number) for number in measure()]
    waited_s = contention.most_waited_s(before, contention.delays())
    is_busy = waited_s > contention.BUSY * (time.perf_counter() - start_s)
    if is_busy and again_when_quiet:
        what = f"{BUSY}{what}"
        numbers = recalled(what) or numbers
    remember(what, numbers)
    return numbers


def recalled(what: str) -> list[float] | None:
    """Return what is remembered of a quantity; None: nothing."""
    known = _read(machine_file()).get(_key(what))
    if isinstance(known, list) and known and all(type(number) is float for number in known):
        return known
    return None


def remember(what: str, numbers: Sequence[float]) -> None:
    """Store the numbers of a quantity for this CPU and torch, in place of older ones."""
    path = machine_file()
    if path is not None:
        _write(path, _read(path) | {_key(what): list(numbers)})


def _key(what: str) -> str:
    return f"{what} | {cpu_name()} | torch {torch.__version__}"


def _read(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _write(path: Path, measurements: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(measurements, indent=1).encode())
    except OSError as error:
        _warn_once(
            f"{path} cannot be written ({error.strerror}): the next run measures this machine again"
        )


@cache
def _warn_once(message: str) -> None:
    """Log each warning once per process."""
    logger.warning("%s", message)


def cpu_name() -> str:
    """Return the CPU's model and the instruction set that torch uses."""
    return f"{_cpu_model()} {torch.backends.cpu.get_cpu_capability()}"


def _cpu_model() -> str:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def best_times(ways: Sequence[Callable[[], object]], rounds: int = 3) -> list[float]:
    """Return the seconds of each way's fastest call, out of `rounds` after a warm-up call.

    The ways take turns, so that another program's work slows all of them down.
    """
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, times_of_way in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            times_of_way.append(time.perf_counter() - start)
    return [min(times_of_way[1:]) for times_of_way in times]


def best_time(do: Callable[[], object], repeats: int = 3) -> float:
    """Return the seconds of the fastest of `repeats` calls, after a warm-up call."""
    return best_times([do], repeats)[0]


def bf16_gain(d_model: int, d_hid: int, rows: int = 128) -> float:
    """Return how many times faster bf16 is than fp32 on the CPU, measured once per machine.

    It times the matrix product (rows, d_model) x (d_model, d_hid).
    """

    def measure() -> list[float]:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(rows, d_model, generator=generator)
        b = torch.randn(d_model, d_hid, generator=generator)
        a_bf16 = a.bfloat16()
        b_bf16 = b.bfloat16()
        fp32_s = best_time(lambda: torch.mm(a, b))
        bf16_s = best_time(lambda: torch.mm(a_bf16, b_bf16))
        return [fp32_s / bf16_s]

    return remembered(f"bf16_gain {rows}x{d_model}x{d_hid}", measure)[0]


class ThreadChoice(NamedTuple):
    """The chosen number of threads, and the seconds of a few products with each tried number."""

    threads: int
    seconds: dict[int, float]


def fast_threads(d_model: int, rows: int = 512) -> ThreadChoice:
    """Return torch's own number of threads, or half of it if matrix products are clearly faster.

    Measured once per machine. Two hardware threads of one core share its arithmetic units, so the
    second one can slow the first one down.
    """
    most = torch.get_num_threads()
    half = most // 2
    if most < 2:
        return ThreadChoice(most, {})

    def measure() -> list[float]:
        a = torch.ones(rows, d_model)
        b = torch.ones(d_model, 4 * d_model)

        def products(threads: int) -> None:
            torch.set_num_threads(threads)
            for _ in range(4):
                torch.mm(a, b)

        try:
            return best_times([partial(products, most), partial(products, half)], THREAD_ROUNDS)
        finally:
            torch.set_num_threads(most)

    all_s, half_s = remembered(f"threads {most} {rows}x{d_model}x{4 * d_model}", measure)
    threads = most if all_s <= FEWER_THREADS_GAIN * half_s else half
    return ThreadChoice(threads, {most: all_s, half: half_s})


def product_peak(
    device: torch.device, dtype: torch.dtype, repeats: int = 5, size: int | None = None
) -> float:
    """Return the FLOP/s of the fastest of `repeats` timings of products of (size, size) matrices.

    A timing has several products on a GPU. Measured in each run, because the speed of a shared
    machine changes.
    """
    if size is None:
        size = PEAK_SIZE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, generator=generator, device=device).to(dtype)
    b = torch.randn(size, size, generator=generator, device=device).to(dtype)

    result = torch.empty_like(a)
    count = PEAK_PRODUCTS[device.type]

    def products() -> None:
        for _ in range(count):
            torch.mm(a, b, out=result)
        synchronise(device)

    warm_at = time.perf_counter() + PEAK_WARM_UP_S[device.type]
    while time.perf_counter() < warm_at:
        products()
    return count * 2 * size**3 / best_time(products, repeats)


def peak_for_mfu(device: torch.device) -> tuple[float, str]:
    """Return the measured peak that MFU is relative to, in FLOP/s, and its dtype.

    It is measured in bf16, whatever the run's precision, so that MFU can be compared. But in fp32
    on CPUs where bf16 is slower (there, large bf16 products would take minutes), and in fp16 on
    cards without bf16: only a device's fastest type is never exceeded.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return product_peak(device, torch.float16), "fp16"
    if device.type == "cpu" and bf16_gain(512, 512) < 1:
        return product_peak(device, torch.float32), "fp32"
    return product_peak(device, torch.bfloat16), "bf16"
