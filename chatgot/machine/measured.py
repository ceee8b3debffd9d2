"""What is fast on this machine: measured once, remembered in machine.json in the user's cache folder."""

import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from platformdirs import user_cache_path

from chatgot.atomic_file import atomic_file

logger = logging.getLogger(__name__)

PEAK_SIZE = 2048  # rows and columns of the products that the peak is measured with
THREAD_ROUNDS = 30  # some tenths of a second: longer than another program's short work
FEWER_THREADS_GAIN = 1.1  # half the threads must be so much faster to be taken: timings are noisy


def machine_file() -> Path:
    """Return where what is measured is remembered; it may be deleted at any time."""
    return user_cache_path("chatgot") / "machine.json"


def remembered(what: str, measure: Callable[[], list[float]]) -> list[float]:
    """Return what `measure` has found for `what` on this CPU with this torch, now or in an earlier run.

    what: names quantity, shape and dtype. A choice made from these numbers is the same in each fresh run.
    """
    key = f"{what} | {cpu_name()} | torch {torch.__version__}"
    path = machine_file()
    known = _read(path).get(key)
    if isinstance(known, list) and known and all(type(number) is float for number in known):
        return known
    numbers = [float(number) for number in measure()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(_read(path) | {key: numbers}, indent=1).encode())
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): this machine's measurements are made again next time",
            path,
            error.strerror,
        )
    return numbers


def _read(path: Path) -> dict:
    with suppress(OSError, ValueError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def cpu_name() -> str:
    """Return the CPU's model and the instructions that torch uses of it."""
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip() + " " + torch.backends.cpu.get_cpu_capability()
    return f"{platform.processor() or platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        {"cuda": torch.cuda, "mps": torch.mps}[device.type].synchronize()


def best_times(ways: Sequence[Callable[[], object]], rounds: int = 3) -> list[float]:
    """Return the seconds of the fastest of `rounds` calls of each way, after one that warms up.

    They take turns: what else this machine does in between meets all of them.
    """
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, of_way in zip(ways, times, strict=True):
            begun = time.perf_counter()
            way()
            of_way.append(time.perf_counter() - begun)
    return [min(of_way[1:]) for of_way in times]


def best_time(do: Callable[[], object], repeats: int = 3) -> float:
    """Return the seconds of the fastest of `repeats` calls, after one that warms up."""
    return best_times([do], repeats)[0]


def bf16_gain(d_model: int, d_hid: int, rows: int = 128) -> float:
    """Return the speed of a bf16 product (rows, d_model) x (d_model, d_hid) relative to fp32, once per machine."""

    def measure() -> list[float]:
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(rows, d_model, generator=generator)
        b = torch.randn(d_model, d_hid, generator=generator)
        in_bf16 = a.bfloat16(), b.bfloat16()
        return [best_time(lambda: torch.mm(a, b)) / best_time(lambda: torch.mm(*in_bf16))]

    return remembered(f"bf16_gain {rows}x{d_model}x{d_hid}", measure)[0]


def fast_threads(d_model: int, rows: int = 512) -> int:
    """Return torch's own number of threads, or half of it where products are clearly faster so, once per machine.

    Cores with two hardware threads each share their arithmetic between them; a second one may be in the way.
    """
    most = torch.get_num_threads()
    if most < 2:
        return most

    def measure() -> list[float]:
        a = torch.ones(rows, d_model)
        b = torch.ones(d_model, 4 * d_model)

        def products(threads: int) -> None:
            torch.set_num_threads(threads)
            for _ in range(4):
                torch.mm(a, b)

        try:
            return best_times(
                [partial(products, most), partial(products, most // 2)], THREAD_ROUNDS
            )
        finally:
            torch.set_num_threads(most)

    all_s, half_s = remembered(f"threads {most} {rows}x{d_model}x{4 * d_model}", measure)
    if all_s <= FEWER_THREADS_GAIN * half_s:
        return most
    logger.info(
        "threads: %d, half of %d, with which products take %.2g x the time",
        most // 2,
        most,
        all_s / half_s,
    )
    return most // 2


def product_peak(
    device: torch.device, dtype: torch.dtype, repeats: int = 5, size: int = PEAK_SIZE
) -> float:
    """Return the FLOP/s of the fastest of `repeats` matrix products of size^3. Not remembered: machines are shared."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        synchronise(device)

    return 2 * size**3 / best_time(product, repeats)


def peak_for_mfu(device: torch.device) -> tuple[float, str]:
    """Return the measured peak that MFU is taken against, in FLOP/s, and its dtype.

    bf16, but fp32 where bf16 products are slower than those: there the large ones would take minutes.
    """
    slow = device.type == "cpu" and bf16_gain(512, 512) < 1
    return (
        (product_peak(device, torch.float32), "fp32")
        if slow
        else (product_peak(device, torch.bfloat16), "bf16")
    )
