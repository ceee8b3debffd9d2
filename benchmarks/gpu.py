"""How fast one NVIDIA card trains, samples and saves; needs no network.

Tokens do not depend on what the text says, so a made-up text of as many characters as the default
one has takes its place.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.script_runs import ROOT, Figures, with_machine, write_json
from benchmarks.speed import mode, one_step
from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config_file import load_config
from chatgot.data.token_cache import Tokens, load_tokens
from chatgot.machine.device import describe
from chatgot.machine.measured import product_peak, synchronise
from chatgot.machine.memory import release_memory
from chatgot.run.assembly import Run, assemble
from chatgot.sampling.generation import continue_texts

NO_CUDA = 2  # exit code
ALPHABET = "\n !&'(),-.:;?0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CHARACTERS = 2_000_000  # of the made-up text
PEAK_SIZE = 8192  # of the products: smaller ones do not fill a large card
WARMUP = 3  # steps before the clock starts
SAMPLE_CHARACTERS = 200
SAVES = 3
SEED = 7


@dataclass(frozen=True)
class Case:
    """One configuration, with its overrides."""

    name: str
    config: str  # below configs/models
    overrides: tuple[str, ...] = ()


CASES = (
    Case("quick", "chatgot_quick.yaml"),
    Case("small_14M", "chatgot_small_14M.yaml"),
    Case("small_85M", "chatgot_small_85M.yaml"),
    Case(
        "small_85M_micro_batch_32",
        "chatgot_small_85M.yaml",
        (
            "training.batch_size=32",
            "training.accumulate_grad_batches=2",  # 65,536 tokens a step, as shipped
            "training.gradient_checkpointing=false",
            "training.compile=true",
        ),
    ),
)


def gpu(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure tokens/s, MFU, a sample and a save of each configuration, and the card's peak.

    Stops before the case that would begin after `--minutes`; what has been measured so far is in
    `--output` after each case.
    """
    if not torch.cuda.is_available():
        print("the part gpu needs a CUDA device, but torch found none", file=sys.stderr)
        sys.exit(NO_CUDA)
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cuda")
    tokens = made_up_tokens(folder)
    peak = product_peak(device, torch.bfloat16, size=PEAK_SIZE)
    figures: Figures = {
        "device": describe(device),
        "bf16_peak_tflop_per_s": peak / 1e12,
        "steps": args.steps,
    }
    for case in CASES:
        if time.monotonic() > deadline:
            figures[f"{case.name}.skipped"] = f"after --minutes {args.minutes:g}"
            continue
        start = time.perf_counter()
        print(f"{case.name} begins", file=sys.stderr, flush=True)
        for name, value in measure_case(case, tokens, device, peak, args.steps, folder).items():
            figures[f"{case.name}.{name}"] = value
        figures[f"{case.name}.whole_case_s"] = time.perf_counter() - start
        if args.output:
            write_json(with_machine(figures), args.output)
    return figures


def made_up_tokens(folder: Path) -> Tokens:
    """Write a text of random characters to `folder` and load it as training does."""
    path = folder / "made_up.txt"
    path.write_text("".join(random.Random(SEED).choices(ALPHABET, k=CHARACTERS)), encoding="utf-8")
    return load_tokens(path, folder / "cache")


def measure_case(
    case: Case, tokens: Tokens, device: torch.device, peak: float, steps: int, folder: Path
) -> Figures:
    """Build one configuration's run on the card, measure it, and give the memory back."""
    torch.cuda.reset_peak_memory_stats(device)
    path = ROOT / "configs/models" / case.config
    start = time.perf_counter()
    config, _ = load_config(path, ["device=cuda", *case.overrides])
    run = assemble(config, tokens, device, None)  # measures and compiles, too
    run.state.run_id = f"{path.stem}_20260101-000000"
    assemble_s = time.perf_counter() - start
    rate = tokens_per_s(run, steps)
    save_s, checkpoint_mb = time_saves(run, folder)
    every = run.model.recompute_every
    figures: Figures = {
        "parameters": run.model.parameter_count(),
        "mode": mode(run),
        "gradient_checkpointing": f"every {every}" if every else "off",
        "micro_batch": run.state.micro_batch.size,
        "tokens_per_step": config.training.tokens_per_step(config.model),
        "assemble_s": assemble_s,
        "tokens_per_s": rate,
        "mfu": rate * run.model.flops_per_token() / peak,
        "train_loss": run.state.progress.train_loss,
        "skipped_steps": run.state.progress.skipped_steps,
        "peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20,
        "sample_of_200_s": seconds_of_a_sample(run),
        "save_s": save_s,
        "checkpoint_mb": checkpoint_mb,
    }
    del run
    release_memory(device)
    return figures


def tokens_per_s(run: Run, steps: int) -> float:
    """Return the tokens/s of `steps` optimizer steps after the warm-up, without evaluations."""
    run.model.train()
    do_steps(run, WARMUP)
    seconds = timed(run.device, partial(do_steps, run, steps))
    return steps * run.config.training.tokens_per_step(run.config.model) / seconds


def do_steps(run: Run, steps: int) -> None:
    """Do optimizer steps as the script does."""
    for _ in range(steps):
        one_step(run)


def seconds_of_a_sample(run: Run) -> float:
    """Return how long 200 characters take, one at a time.

    A sample may end early by itself; then more are made, and the time is scaled to 200 characters.
    """
    sampling = run.config.sampling.model_copy(update={"max_new_tokens": SAMPLE_CHARACTERS})
    made = 0

    def sample() -> None:
        nonlocal made
        number = 0
        while made < SAMPLE_CHARACTERS:
            number += 1
            texts = continue_texts(run.model, run.vocabulary, ["A"], sampling, number)
            made += len(list(texts)[-1][0])
            if number == 2 * SAMPLE_CHARACTERS:
                break

    sample()  # warms up
    made = 0
    seconds = timed(run.device, sample)
    return seconds * SAMPLE_CHARACTERS / max(made, 1)


def time_saves(run: Run, folder: Path) -> tuple[float, float]:
    """Return the median seconds of a save with its verification, and the file's MB."""
    path = folder / "saved.pt"
    seconds = []
    for _ in range(SAVES):
        seconds.append(timed(run.device, lambda: save_checkpoint(path, run.checkpoint())))
        size_mb = path.stat().st_size / 1e6
        path.unlink()
    return statistics.median(seconds), size_mb


def timed(device: torch.device, do: Callable[[], object]) -> float:
    """Return the seconds of a call, including its work on the device."""
    synchronise(device)
    start = time.perf_counter()
    do()
    synchronise(device)
    return time.perf_counter() - start
