"""The cost of training: steps, start, memory, micro-batches, checks.

Letters: B sequences of a micro-batch, T tokens of a sequence, S sequences of one optimizer step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.script_runs import ROOT, Figures, precision_of, python_path, run_script
from chatgot.config_file import load_config
from chatgot.data.configured_text import encoded
from chatgot.data.corpus import fetch_default_text
from chatgot.machine.device import seed_generators
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run, assemble
from chatgot.training.batch_size import fit_micro_batch, ladder
from chatgot.training.recovery import recover
from chatgot.training.step import compute_gradients, update_weights

CPU = torch.device("cpu")
DEBUG_CONFIGS = ROOT / "configs/models/debug"
RECOMPUTE_BATCH = 32  # sequences that `recompute` sends through at once


def seconds_of(do: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def bare_loop(config_path: Path, text: Path, cache: Path, steps: int) -> float:
    """Return the tokens/s of a plain loop on the same model and text, without the first step."""
    config, _ = load_config(config_path)
    tokens = encoded(config.data, text, cache)
    T = config.model.max_seq_length
    B = config.training.batch_size
    ids = torch.from_numpy(tokens.ids[: 1 << 20].astype("int64"))
    run = assemble(config, tokens, CPU, None)  # for its threads, precision and kernels
    model = run.model
    optimizer = run.optimizer
    model.train()

    def step() -> None:
        starts = torch.randint(len(ids) - T, (B,)).tolist()
        x = torch.stack([ids[s : s + T] for s in starts])  # (B, T)
        y = torch.stack([ids[s + 1 : s + T + 1] for s in starts])  # (B, T)
        with autocast(run.device, run.state.modes.precision):
            _, loss = model(x, y)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    start = time.perf_counter()
    for _ in range(steps - 1):
        step()
    return (steps - 1) * B * T / (time.perf_counter() - start)


def overhead(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the script and a bare loop in turn; ratios are taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    pairs = []
    for _ in range(args.rounds):
        bare = bare_loop(args.config, text, folder / "data" / "cache", args.steps)
        script = run_script(folder, args.config, args.steps).tokens_per_s
        pairs.append((script, bare))
        print(f"script {script:,.0f} tokens/s, bare loop {bare:,.0f}", file=sys.stderr)
    ratios = [script / bare for script, bare in pairs]
    return {
        "script_tokens_per_s": statistics.median(script for script, _ in pairs),
        "bare_tokens_per_s": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def startup(args: argparse.Namespace, folder: Path) -> Figures:
    """Time the default text's conversion, then starts with cold and warm cache.

    Warm starts and `python -c "import torch"` take turns; ratios are taken pair by pair, since the
    speed of a shared machine changes.
    """
    text_s = seconds_of(lambda: fetch_default_text(folder / "data" / "shakespeare.txt"))
    cold = run_script(folder, args.config, 2)
    import_torch = [sys.executable, "-c", "import torch"]
    pairs = []
    for _ in range(args.rounds):
        torch_s = seconds_of(lambda: subprocess.run(import_torch, check=True))
        warm = run_script(folder, args.config, 2)
        pairs.append((warm.start_s, torch_s))
        print(f"start {warm.start_s:.2f} s, import torch {torch_s:.2f} s", file=sys.stderr)
    ratios = [start_s / torch_s for start_s, torch_s in pairs]
    return {
        "text_download_and_conversion_s": text_s,
        "start_cold_cache_s": cold.start_s,
        "start_warm_cache_s": statistics.median(start_s for start_s, _ in pairs),
        "import_torch_s": statistics.median(torch_s for _, torch_s in pairs),
        "start_over_import_torch": statistics.median(ratios),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "peak_resident_mib": warm.peak_mib,
    }


def large_text(args: argparse.Namespace, folder: Path) -> Figures:
    """Start twice with the default text, and twice with it repeated to `--gigabytes`."""
    small = folder / "data" / "shakespeare.txt"
    fetch_default_text(small)
    content = small.read_bytes()
    large = folder / "large.txt"
    with large.open("wb") as file:
        for _ in range(int(args.gigabytes * 1e9 / len(content)) + 1):
            file.write(content)
    run_script(folder, args.config, args.steps)
    reference = run_script(folder, args.config, args.steps)
    first = run_script(folder, args.config, args.steps, f"data.path={large}")
    second = run_script(folder, args.config, args.steps, f"data.path={large}")
    return {
        "large_text_bytes": large.stat().st_size,
        "start_small_s": reference.start_s,
        "start_large_first_s": first.start_s,
        "start_large_second_s": second.start_s,
        "peak_small_mib": reference.peak_mib,
        "peak_large_first_mib": first.peak_mib,
        "peak_large_second_mib": second.peak_mib,
        "memory_growth_mib": max(first.peak_mib, second.peak_mib) - reference.peak_mib,
    }


def mixed(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the mixed_precision and the clean config in turn; ratios are taken pair by pair."""
    fetch_default_text(folder / "data" / "shakespeare.txt")
    pairs = []
    for _ in range(args.rounds):
        config = DEBUG_CONFIGS / "chatgot_small_14M_mixed_precision.yaml"
        mixed_rate = run_script(folder, config, args.steps).tokens_per_s
        mixed_precision = precision_of(folder)
        config = DEBUG_CONFIGS / "chatgot_small_14M_clean.yaml"
        clean_rate = run_script(folder, config, args.steps).tokens_per_s
        pairs.append((mixed_rate, clean_rate))
        print(f"mixed {mixed_rate:,.0f} tokens/s, clean {clean_rate:,.0f}", file=sys.stderr)
    ratios = [mixed_rate / clean_rate for mixed_rate, clean_rate in pairs]
    return {
        "mixed_tokens_per_s": statistics.median(mixed_rate for mixed_rate, _ in pairs),
        "clean_tokens_per_s": statistics.median(clean_rate for _, clean_rate in pairs),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "mixed_precision": mixed_precision,
        "clean_precision": precision_of(folder),
    }


def batch_sizes(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure each fixed micro-batch size, and the size that the search finds, in turn.

    It uses the mixed_precision config. Each round begins with its own search, and its ratio is one
    of medians over its steps.
    """
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(
        DEBUG_CONFIGS / "chatgot_small_14M_mixed_precision.yaml",
        [
            "training.dynamic_batch_size.enabled=true",
            "training.dynamic_batch_size.growth_interval_steps=1000000",
        ],
    )
    tokens = encoded(config.data, text, folder / "data" / "cache")
    sizes = ladder(config.training)
    rates: dict[str, list[float]] = {name: [] for name in (*map(str, sizes), "auto")}
    chosen_sizes = []
    search_s = []
    ratios = []
    for _ in range(args.rounds):
        run = assemble(config, tokens, CPU, None)
        run.model.train()
        searched_s = seconds_of(partial(fit_micro_batch, run, lambda: False))
        chosen = run.state.micro_batch.size
        candidates = {f"{size}": size for size in sizes} | {"auto": chosen}
        seconds = seconds_of_sizes(run, candidates, args.steps)
        tokens_per_step = config.training.tokens_per_step(config.model)
        of_round = {name: tokens_per_step / s for name, s in seconds.items()}
        for name, rate in of_round.items():
            rates[name].append(rate)
        ratios.append(of_round["auto"] / max(of_round[f"{size}"] for size in sizes))
        chosen_sizes.append(chosen)
        search_s.append(round(searched_s, 1))
        rounded = {name: round(rate) for name, rate in of_round.items()}
        print(rounded, f"found {chosen} in {searched_s:.1f} s", file=sys.stderr)
    medians = {
        f"micro_batch_{name}_tokens_per_s": statistics.median(of_size)
        for name, of_size in rates.items()
    }
    return {
        **medians,
        "auto_over_best": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "found": chosen_sizes,
        "search_s": search_s,
    }


def seconds_of_sizes(run: Run, candidates: dict[str, int], steps: int) -> dict[str, float]:
    """Return the median seconds of a step with each micro-batch; the sizes take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}

    def one_step() -> None:
        update_weights(run, compute_gradients(run))

    for step in range(steps + 1):
        names = list(candidates)
        if step % 2 == 0:
            names.reverse()
        for name in names:
            run.state.micro_batch.size = candidates[name]
            step_s = seconds_of(one_step)
            if step > 0:  # the first ones warm up
                seconds[name].append(step_s)
    return {name: statistics.median(of_size) for name, of_size in seconds.items()}


def checks(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure steps with and without the checks in turn; ratios are taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(args.config)
    tokens = encoded(config.data, text, folder / "data" / "cache")
    checked = assemble(config, tokens, CPU, None)
    bare = assemble(config, tokens, CPU, None)
    checked.model.train()
    bare.model.train()
    ratios = []
    for step in range(args.steps * args.rounds + 1):
        if step % 2:
            checked_s = seconds_of(lambda: checked_step(checked))
            bare_s = seconds_of(lambda: bare_step(bare))
        else:
            bare_s = seconds_of(lambda: bare_step(bare))
            checked_s = seconds_of(lambda: checked_step(checked))
        if step > 0:  # the first ones warm up
            ratios.append(checked_s / bare_s)
    return {
        "precision": checked.state.modes.precision,
        "pairs": len(ratios),
        "checked_over_bare": statistics.median(ratios),
        "quartiles": [round(q, 4) for q in statistics.quantiles(ratios)],
    }


def checked_step(run: Run) -> None:
    """Do one optimizer step as the script does."""
    update_weights(run, compute_gradients(run))
    recover(run)


def bare_step(run: Run) -> None:
    """Do the same step with the same data, seeds and clipping, but without any check."""
    settings = run.config.training
    progress = run.state.progress
    windows = run.train_windows
    S = settings.sequences_per_step
    size = run.state.micro_batch.size
    starts = windows.starts(progress.position, S)
    with autocast(run.device, run.state.modes.precision):
        for first in range(0, S, size):
            x, y = windows.batch(starts[first : first + size])
            seed_generators(run.device, run.config.seed, progress.position, first)
            _, loss = run.model(x, y)
            (loss * (len(x) / S)).backward()
    if settings.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), settings.grad_clip)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    progress.position += 1


def recompute(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure the memory for activations, and the time, with and without gradient checkpointing."""
    program = str(ROOT / "benchmarks" / "recompute_pass.py")
    kinds = {"plain": "plain", "every_layer": "1", "every_2nd_layer": "2"}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, every in kinds.items():
            command = [sys.executable, program, str(args.config), every, str(RECOMPUTE_BATCH)]
            done = subprocess.run(
                command,
                cwd=folder,
                env=python_path(ROOT),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            results[name].append(json.loads(done.stdout))
    figures: Figures = {}
    for name, of_kind in results.items():
        for what in ("activations_mib", "seconds"):
            figures[f"{name}_{what}"] = statistics.median(result[what] for result in of_kind)
            if name == "plain":
                continue
            pairs = zip(of_kind, results["plain"], strict=True)
            ratios = [result[what] / plain[what] for result, plain in pairs]
            figures[f"{name}_{what}_over_plain"] = statistics.median(ratios)
    return figures
