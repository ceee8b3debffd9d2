"""The parts of benchmark.py that measure training: steps, start, memory, micro-batches, checks."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.script_runs import run_script
from chatgot.config_file import load_config
from chatgot.data.corpus import fetch_default_text
from chatgot.data.token_cache import load_tokens
from chatgot.machine.device import seed_generators
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import assemble
from chatgot.training.batch_size import adapt, ladder
from chatgot.training.recovery import recover
from chatgot.training.step import accumulate_gradients, apply_gradients

ROOT = Path(__file__).resolve().parent.parent


def bare_loop(config_path: Path, text: Path, cache: Path, steps: int) -> float:
    """Return the tokens/s of a plain forward, backward, step loop on the same model and text, first step left out."""
    config, _ = load_config(config_path)
    tokens = load_tokens(text, cache)
    T, B = config.model.max_seq_length, config.training.batch_size
    ids = torch.from_numpy(tokens.ids[: 1 << 20].astype("int64"))
    run = assemble(
        config, tokens, torch.device("cpu"), None
    )  # for its threads, precision and kernels
    model, optimizer = run.model, run.optimizer
    model.train()
    for step in range(steps):
        if step == 1:
            begun = time.perf_counter()
        starts = torch.randint(len(ids) - T, (B,)).tolist()
        x = torch.stack([ids[s : s + T] for s in starts])
        y = torch.stack([ids[s + 1 : s + T + 1] for s in starts])
        with autocast(run.device, run.state.modes.precision):
            _, loss = model(x, y)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (steps - 1) * B * T / (time.perf_counter() - begun)


def overhead(args: argparse.Namespace, folder: Path) -> dict:
    """Script and bare loop in alternation; the ratio is taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    pairs = []
    for _ in range(args.rounds):
        bare = bare_loop(args.config, text, folder / "data" / "cache", args.steps)
        pairs.append((run_script(folder, args.config, args.steps).tokens_per_s, bare))
        print(
            f"script {pairs[-1][0]:,.0f} tokens/s, bare loop {pairs[-1][1]:,.0f}", file=sys.stderr
        )
    return {
        "script_tokens_per_s": statistics.median(script for script, _ in pairs),
        "bare_tokens_per_s": statistics.median(bare for _, bare in pairs),
        "ratio": statistics.median(script / bare for script, bare in pairs),
        "ratios": [script / bare for script, bare in pairs],
    }


def startup(args: argparse.Namespace, folder: Path) -> dict:
    """The default text's download and conversion, then the clean config's start with a cold and a warm token cache."""
    begun = time.perf_counter()
    fetch_default_text(folder / "data" / "shakespeare.txt")
    text_s = time.perf_counter() - begun
    cold, warm = (run_script(folder, args.config, 2) for _ in range(2))
    reference = subprocess.Popen([sys.executable, "-c", "import torch, torch.utils.tensorboard"])
    begun = time.perf_counter()
    reference.wait()
    return {
        "text_download_and_conversion_s": text_s,
        "start_cold_cache_s": cold.start_s,
        "start_warm_cache_s": warm.start_s,
        "import_torch_and_tensorboard_s": time.perf_counter() - begun,
        "peak_resident_mib": warm.peak_mib,
    }


def large_text(args: argparse.Namespace, folder: Path) -> dict:
    """The default text and the same text tiled to `--gigabytes`, each started twice."""
    small = folder / "data" / "shakespeare.txt"
    fetch_default_text(small)
    content, large = small.read_bytes(), folder / "large.txt"
    with large.open("wb") as file:
        for _ in range(int(args.gigabytes * 1e9 / len(content)) + 1):
            file.write(content)
    _, reference = (run_script(folder, args.config, args.steps) for _ in range(2))
    first, second = (
        run_script(folder, args.config, args.steps, f"data.path={large}") for _ in range(2)
    )
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


def mixed(args: argparse.Namespace, folder: Path) -> dict:
    """The clean and the mixed_precision config in alternation; the ratio is taken pair by pair."""
    fetch_default_text(folder / "data" / "shakespeare.txt")
    debug, pairs = ROOT / "configs/models/debug", []
    for _ in range(args.rounds):
        configs = (
            debug / f"chatgot_small_14M_{kind}.yaml" for kind in ("mixed_precision", "clean")
        )
        pairs.append([run_script(folder, config, args.steps).tokens_per_s for config in configs])
        print(f"mixed {pairs[-1][0]:,.0f} tokens/s, clean {pairs[-1][1]:,.0f}", file=sys.stderr)
    log = (folder / "output.txt").read_text()
    return {
        "mixed_tokens_per_s": statistics.median(mixed for mixed, _ in pairs),
        "clean_tokens_per_s": statistics.median(clean for _, clean in pairs),
        "ratio": statistics.median(mixed / clean for mixed, clean in pairs),
        "ratios": [round(mixed / clean, 3) for mixed, clean in pairs],
        "clean_precision": "fp32" if "precision: fp32" in log else "unexpected",
    }


def batch_sizes(args: argparse.Namespace, folder: Path) -> dict:
    """Steps of the mixed_precision config with each fixed micro-batch and with the one that the search finds, in turn.

    A round begins with a search of its own; its ratio is taken of the medians over its steps.
    """
    fetch_default_text(folder / "data" / "shakespeare.txt")
    config, _ = load_config(
        ROOT / "configs/models/debug/chatgot_small_14M_mixed_precision.yaml",
        [
            "training.dynamic_batch_size.enabled=true",
            "training.dynamic_batch_size.growth_interval_steps=1000000",
        ],
    )
    tokens, sizes = (
        load_tokens(folder / "data" / "shakespeare.txt", folder / "data" / "cache"),
        ladder(config.training),
    )
    speeds: dict[int | str, list[float]] = {kind: [] for kind in (*sizes, "auto")}
    found, search_s, ratios = [], [], []
    for _ in range(args.rounds):
        run = assemble(config, tokens, torch.device("cpu"), None)
        run.model.train()
        begun = time.perf_counter()
        adapt(run, lambda: False)
        search_s.append(round(time.perf_counter() - begun, 1))
        found.append(run.state.micro_batch.size)
        seconds: dict[int | str, list[float]] = {kind: [] for kind in speeds}
        for step in range(args.steps + 1):
            for kind in list(seconds)[:: 1 if step % 2 else -1]:
                run.state.micro_batch.size = found[-1] if kind == "auto" else kind
                begun = time.perf_counter()
                loss = accumulate_gradients(
                    run.model, run.train_windows, run.state, config, run.scaler
                )
                apply_gradients(loss, run.model, run.optimizer, run.state, config, run.scaler)
                seconds[kind] += (
                    [time.perf_counter() - begun] if step else []
                )  # the first ones warm up
        of_round = {
            kind: config.training.tokens_per_step(config.model) / statistics.median(seconds[kind])
            for kind in seconds
        }
        for kind, speed in of_round.items():
            speeds[kind].append(speed)
        ratios.append(of_round["auto"] / max(of_round[size] for size in sizes))
        print(
            {kind: round(speed) for kind, speed in of_round.items()},
            found[-1],
            search_s[-1],
            file=sys.stderr,
        )
    return {
        **{
            f"micro_batch_{kind}_tokens_per_s": statistics.median(of_kind)
            for kind, of_kind in speeds.items()
        },
        "auto_over_best": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "found": found,
        "search_s": search_s,
    }


def checks(args: argparse.Namespace, folder: Path) -> dict:
    """Steps with and without the checks in alternation, on two models alike; the ratio is taken pair by pair."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    config, _ = load_config(args.config)
    tokens = load_tokens(text, folder / "data" / "cache")
    checked, bare = (assemble(config, tokens, torch.device("cpu"), None) for _ in range(2))
    ratios = []

    def checked_step() -> None:
        loss = accumulate_gradients(
            checked.model, checked.train_windows, checked.state, config, checked.scaler
        )
        apply_gradients(
            loss, checked.model, checked.optimizer, checked.state, config, checked.scaler
        )
        recover(checked)

    def bare_step() -> None:  # the same step: same data, seeds, clipping; nothing is looked at
        state, S = bare.state, config.training.sequences_per_step
        starts = bare.train_windows.starts(state.progress.position, S)
        with autocast(bare.device, state.modes.precision):
            for first in range(0, S, state.micro_batch.size):
                x, y = bare.train_windows.batch(starts[first : first + state.micro_batch.size])
                seed_generators(bare.device, config.seed, state.progress.position, first)
                _, loss = bare.model(x, y)
                (loss * (len(x) / S)).backward()
        torch.nn.utils.clip_grad_norm_(bare.model.parameters(), config.training.grad_clip)
        bare.optimizer.step()
        bare.optimizer.zero_grad(set_to_none=True)
        state.progress.position += 1

    for step in range(args.steps * args.rounds + 1):
        seconds = []
        for do in (checked_step, bare_step) if step % 2 else (bare_step, checked_step):
            begun = time.perf_counter()
            do()
            seconds.append(time.perf_counter() - begun)
        if step > 0:  # the first one makes the optimizers' state
            ratios.append(seconds[0] / seconds[1] if step % 2 else seconds[1] / seconds[0])
    return {
        "precision": checked.state.modes.precision,
        "pairs": len(ratios),
        "checked_over_bare": statistics.median(ratios),
        "quartiles": [round(q, 4) for q in statistics.quantiles(ratios)],
    }


RECOMPUTE = """
import gc, json, sys, time
from pathlib import Path
import torch
from chatgot.config_file import load_config
from chatgot.machine.device import set_threads
from chatgot.machine.memory import reuse_freed_memory
from chatgot.numerics.gradient_checkpointing import enable_gradient_checkpointing
from chatgot.model.gpt import build_model
from chatgot.numerics.optim import allocate_state, build_optimizer

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

config, _ = load_config(Path(sys.argv[1]))
set_threads(config.training.threads)
reuse_freed_memory()
model = build_model(config.model, 75, torch.device("cpu"), 0)
optimizer = build_optimizer(model, config.training)
allocate_state(optimizer)
for p in model.parameters():
    p.grad = torch.zeros_like(p)
optimizer.step()
if sys.argv[2] != "plain":
    assert enable_gradient_checkpointing(model, every=int(sys.argv[2]))
model.train()
x = torch.randint(75, (int(sys.argv[3]), config.model.max_seq_length))
gc.collect()
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before, seconds = resident("VmRSS"), []
for _ in range(3):
    begun = time.perf_counter()
    _, loss = model(x, x)
    loss.backward()
    seconds.append(time.perf_counter() - begun)
print(json.dumps({"activations_mib": resident("VmHWM") - before, "seconds": min(seconds)}))
"""


def recompute(args: argparse.Namespace, folder: Path) -> dict:
    """Peak memory above weights, gradients and optimizer state, and time, at batch 32: plain, and recomputing."""
    found: dict[str, list[dict]] = {"plain": [], "1": [], "2": []}
    for _ in range(args.rounds):
        for kind, results in found.items():
            command = [sys.executable, "-c", RECOMPUTE, str(args.config), kind, "32"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout))
    figures = {}
    for kind, name in (("plain", "plain"), ("1", "every_layer"), ("2", "every_2nd_layer")):
        for what in ("activations_mib", "seconds"):
            figures[f"{name}_{what}"] = statistics.median(result[what] for result in found[kind])
            if kind != "plain":
                pairs = zip(found[kind], found["plain"], strict=True)
                figures[f"{name}_{what}_over_plain"] = statistics.median(
                    a[what] / b[what] for a, b in pairs
                )
    return figures
