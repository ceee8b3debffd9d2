"""How fast one NVIDIA card trains, samples and saves, with the program's own choices.

Needs no network. `--device cpu` rehearses all of it in two minutes, with shapes cut down to what a
CPU can do; those figures say nothing. The most important case comes first. A case begins only if
it should end before the deadline, is ended at it, and its figures are in --output right after it.
"""

import argparse
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.limited_runs import CaseFailedError, FinishedRun, chosen, figures_of, read_finished
from benchmarks.limited_runs import run_limited_script as run_script
from benchmarks.nanogpt_shape import beside_nanogpt
from benchmarks.one_device import CHARACTERS, SHIPPED, OneDevice, text_to_train_on, tokens_of
from benchmarks.resume_bits import resume_bits
from benchmarks.script_runs import Figures, with_machine, write_json
from chatgot.checkpointing.checkpoint_file import load_checkpoint, save_checkpoint
from chatgot.machine.device import describe
from chatgot.machine.measured import product_peak, synchronise
from chatgot.machine.memory import release_memory
from chatgot.sampling.generation import continue_texts
from chatgot.sampling.loading import LoadedModel, load_model

NO_DEVICE = 2  # exit code
PEAK_SIZE = {"cuda": 8192, "cpu": 256}  # of the products: smaller ones do not fill a large card
REHEARSED_CHARACTERS = 20_000
SAMPLE_CHARACTERS = 200
MOST_SAMPLES = 20  # a text may end early by itself; then more are made
SAVES = 3
# the columns of the table: (heading, figure)
COLUMNS = (
    ("tokens/s", "tokens_per_s"),
    ("MFU", "mfu"),
    ("MiB", "peak_memory_mib"),
    ("at once", "micro_batch"),
    ("blocks compiled", "mode.compiled"),
    ("steps", "steps"),
    ("bits per byte", "val_bits_per_byte_full"),
    ("wall s", "wall_s"),
    ("a save, training waits s", "waits_for_a_save_s"),
    ("a save, whole s", "save_s"),
    ("200 characters s", "sample_of_200_s"),
    ("x nanoGPT", "over_nanogpt"),
    ("equal bits", "equal_bits"),
)


@dataclass(frozen=True)
class Case:
    """One row of the table; `card_s` is about how long it takes on an H100."""

    name: str
    card_s: float
    measure: Callable[[OneDevice, Path], Figures]


def gpu(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure each case that fits into --minutes; a failed case does not stop the others."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print("the part gpu needs a CUDA device, but torch found none", file=sys.stderr)
        sys.exit(NO_DEVICE)
    deadline = time.monotonic() + 60 * args.minutes
    one = prepare(args, folder, deadline)
    figures: Figures = {
        "device": describe(one.device),
        "bf16_peak_tflop_per_s": one.peak / 1e12,
        "text": "made up: losses mean nothing" if one.made_up else one.text.name,
        "rehearsal": one.rehearses,
    }
    for case in cases(args.checkout):
        figures |= measure(case, one)
        if args.output:
            write_json(with_machine(figures), args.output)
    print_table(figures)
    return figures


def prepare(args: argparse.Namespace, folder: Path, deadline: float) -> OneDevice:
    """Find the text and measure the device's peak."""
    device = torch.device(args.device)
    characters = CHARACTERS if device.type == "cuda" else REHEARSED_CHARACTERS
    text, made_up = text_to_train_on(args.text, folder, characters)
    peak = product_peak(device, torch.bfloat16, size=PEAK_SIZE[device.type])
    release_memory(device)
    return OneDevice(
        device=device,
        folder=folder,
        text=text,
        made_up=made_up,
        tokens=tokens_of(text, folder),
        peak=peak,
        deadline=deadline,
    )


def cases(checkout: Path | None) -> list[Case]:
    """Return the rows of the table, the most important one first."""
    quick = partial(train_shipped, config="chatgot_quick")
    small = partial(train_shipped, config="chatgot_small_14M")
    large = partial(train_shipped, config="chatgot_small_85M", until_step=40)
    return [
        Case("quick", 60, quick),
        Case("small_14M", 90, small),
        Case("small_85M", 110, large),
        Case("nanogpt_shape", 90, partial(beside_nanogpt, checkout=checkout)),
        Case("resume", 30, straight_against_resumed),
    ]


def measure(case: Case, one: OneDevice) -> Figures:
    """Measure a case, if it fits; what goes wrong becomes a figure, too."""
    expected_s = 1.0 if one.rehearses else case.card_s
    if expected_s > one.left_s:
        words = f"{expected_s:.0f} s needed, {max(one.left_s, 0):.0f} s left"
        return {f"{case.name}.skipped": words}
    print(f"{case.name} begins, {one.left_s:.0f} s left", file=sys.stderr, flush=True)
    start = time.perf_counter()
    folder = one.folder / case.name
    folder.mkdir()
    try:
        found = case.measure(one, folder)
    except CaseFailedError as error:
        found = {"failed": str(error)}
    except (Exception, SystemExit) as error:  # noqa: BLE001 the other cases must still be measured
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    found["case_s"] = time.perf_counter() - start
    release_memory(one.device)
    return {f"{case.name}.{name}": value for name, value in found.items()}


# --------------------------------------------------------------------------------------------------
# The cases


def train_shipped(
    one: OneDevice, folder: Path, *, config: str, until_step: int | None = None
) -> Figures:
    """Train a shipped configuration as it is; then time a sample and a save of its model.

    until_step: stop it there, though its configuration has more steps. Raises: CaseFailedError.
    """
    path = SHIPPED / f"{config}.yaml"
    overrides = training_overrides(one)
    run = run_script(path, overrides, folder / "run", one.left_s, until_step=until_step)
    loaded = load_model(run.last_checkpoint, one.device)
    figures = figures_of(run, loaded.model.flops_per_token(), one.peak) | chosen(run)
    figures["parameters"] = loaded.model.parameter_count()
    figures["sample_of_200_s"] = seconds_of_a_sample(loaded, one.device)
    return figures | time_saves(run, folder / "saved.pt")


def training_overrides(one: OneDevice) -> list[str]:
    """Return what is set of a shipped configuration: device, text, and rows that come often."""
    if not one.rehearses:
        return one.overrides("training.log_interval=10")
    steps = ("max_steps=4", "warmup_steps=1", "log_interval=1", "save_checkpoint_steps=2")
    return one.overrides(*(f"training.{setting}" for setting in steps))


def straight_against_resumed(one: OneDevice, folder: Path) -> Figures:
    """Resume the run of the case `quick` from its last checkpoint but one; compare the ends.

    Raises: CaseFailedError.
    """
    quick = one.folder / "quick" / "run"
    if not (quick / "checkpoints").is_dir():
        raise CaseFailedError("the case quick left no run to resume")
    config = SHIPPED / "chatgot_quick.yaml"
    overrides = training_overrides(one)
    return resume_bits(read_finished(quick), config, overrides, folder / "resumed", one.left_s)


def seconds_of_a_sample(loaded: LoadedModel, device: torch.device) -> float:
    """Return how long 200 characters take, one at a time."""
    sampling = loaded.config.sampling.model_copy(update={"max_new_tokens": SAMPLE_CHARACTERS})

    def sample(seed: int) -> int:
        texts = continue_texts(loaded.model, loaded.vocabulary, ["A"], sampling, seed)
        return len(list(texts)[-1][0])

    sample(0)  # warms up
    synchronise(device)
    start = time.perf_counter()
    made = 0
    for seed in range(1, MOST_SAMPLES):
        made += sample(seed)
        if made >= SAMPLE_CHARACTERS:
            break
    synchronise(device)
    seconds = time.perf_counter() - start
    return seconds * SAMPLE_CHARACTERS / max(made, 1)


def time_saves(run: FinishedRun, path: Path) -> Figures:
    """Return how long training waited for one save, and how long one takes from start to end."""
    content = load_checkpoint(run.last_checkpoint)
    seconds = []
    for _ in range(SAVES):
        start = time.perf_counter()
        save_checkpoint(path, content)
        seconds.append(time.perf_counter() - start)
        megabytes = path.stat().st_size / 1e6
        path.unlink()
    saves = sum(event["kind"] == "save" for event in run.events)
    waited_s = sum(value for _, value in run.board.curves["time/saving_s"])
    return {
        "waits_for_a_save_s": waited_s / max(saves, 1),
        "save_s": statistics.median(seconds),
        "checkpoint_mb": megabytes,
    }


# --------------------------------------------------------------------------------------------------
# The table


def print_table(figures: Mapping[str, object]) -> None:
    """Print one table: a row for each case, `-` where it has no such figure."""
    names = list(dict.fromkeys(name.partition(".")[0] for name in figures if "." in name))
    rows = [["", *(heading for heading, _ in COLUMNS)]]
    notes = []
    for name in names:
        rows.append([name, *(in_cell(figures.get(f"{name}.{figure}")) for _, figure in COLUMNS)])
        for trouble in ("skipped", "failed"):
            if f"{name}.{trouble}" in figures:
                notes.append(f"{name}: {trouble}: {figures[f'{name}.{trouble}']}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")
        if row is rows[0]:
            print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    for note in notes:
        print(note)
    print()


def in_cell(value: object) -> str:
    """Return a figure for a cell of the table."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:,.{decimals}f}"
    return str(value)
