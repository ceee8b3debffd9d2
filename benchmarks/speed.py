"""How fast one or two configurations train, and where the time goes.

Their steps take turns in one process, so that other programs slow down both equally.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.script_runs import Figures, run_script
from chatgot.config_file import load_config
from chatgot.data.configured_text import encoded
from chatgot.data.corpus import fetch_default_text
from chatgot.machine.measured import bf16_gain, product_peak
from chatgot.run.assembly import Run, assemble
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

CPU = torch.device("cpu")
SMALL = 256  # size of products in a dtype that this CPU is slow at: large ones would take minutes
# of a step's time: what the profiler's names of the operations of each begin with
PARTS = {
    "matrix_products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product"),
    "dropout": ("aten::random_", "aten::ge_", "aten::bernoulli", "aten::native_dropout"),
    "fused_by_compile": ("CompiledFunction", "Torch-Compiled", "## Call CompiledFxGraph"),
    "copies_and_casts": ("aten::copy_", "aten::cat", "aten::stack"),
}

Asked = tuple[Path, Sequence[str]]  # a YAML, and what is set beside it


def peaks() -> dict[str, float]:
    """Return the GFLOP/s of matrix products by dtype.

    The size is 2048^3, but smaller for a dtype that is slow on this CPU.
    """
    bf16_size = SMALL if bf16_gain(512, 512) < 1 else None
    fp32 = product_peak(CPU, torch.float32)
    bf16 = product_peak(CPU, torch.bfloat16, size=bf16_size)
    fp16 = product_peak(CPU, torch.float16, repeats=1, size=SMALL // 2)
    return {
        "fp32_peak_gflop_per_s": fp32 / 1e9,
        "bf16_peak_gflop_per_s": bf16 / 1e9,
        "fp16_peak_gflop_per_s": fp16 / 1e9,
    }


def one_step(run: Run) -> None:
    """Do one optimizer step as the script does."""
    set_learning_rate(run)
    loss = compute_gradients(run)
    update_weights(run, loss)


def seconds_of_step(run: Run) -> float:
    """Do one optimizer step with the run's own number of threads; return its seconds."""
    torch.set_num_threads(run.state.modes.threads)
    start = time.perf_counter()
    one_step(run)
    return time.perf_counter() - start


def part_of(event: FunctionEvent) -> str:
    """Return the part of a step that an operation belongs to."""
    above: FunctionEvent | None = event
    while above is not None:
        if above.name.startswith("Optimizer.step"):
            return "optimizer"
        above = above.cpu_parent
    for part, names in PARTS.items():
        if event.name.startswith(names):
            return part
    return "other"


def shares(run: Run) -> dict[str, float]:
    """Return the share of a step's time that each kind of operation takes, by the profiler."""
    torch.set_num_threads(run.state.modes.threads)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        one_step(run)
    totals = dict.fromkeys((*PARTS, "optimizer", "other"), 0.0)
    for event in profiler.events():
        totals[part_of(event)] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {part: total / whole for part, total in totals.items()}


def assemble_all(asked: Sequence[Asked], text: Path, cache: Path) -> dict[str, Run]:
    """Build the run of each configuration, by its name, on the tokens that it wants."""
    threads = torch.get_num_threads()
    runs: dict[str, Run] = {}
    for path, overrides in asked:
        config, _ = load_config(path, overrides)
        name = f"{path.stem}_compared" if path.stem in runs else path.stem
        torch.set_num_threads(threads)  # torch's own number, from which a run's is chosen
        runs[name] = assemble(config, encoded(config.data, text, cache), CPU, None)
        runs[name].model.train()
    return runs


def measure_in_turn(runs: dict[str, Run], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return each run's tokens/s, one for each round, of the median of its steps."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(1, rounds + 1):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for step in range(steps + 1):
            names = list(runs)
            if step % 2 == 0:
                names.reverse()
            for name in names:
                step_s = seconds_of_step(runs[name])
                if step > 0:  # the first ones warm up
                    seconds[name].append(step_s)
        for name, run in runs.items():
            tokens_per_step = run.config.training.tokens_per_step(run.config.model)
            rate = tokens_per_step / statistics.median(seconds[name])
            rates[name].append(rate)
            print(f"round {round_number}: {name} {rate:,.0f} tokens/s", file=sys.stderr)
    return rates


def mode(run: Run) -> str:
    """Return how a run's steps are computed."""
    modes = run.state.modes
    return f"{modes.precision}, {modes.attention}, {'compiled' if modes.compiled else 'eager'}"


def speed(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure peaks, then tokens/s, MFU and shares of time of --config and --compare in turn."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    asked: list[Asked] = [(args.config, args.set)]
    if args.compare:
        asked.append((args.compare, args.compare_set))
    # while this process is small: the peak of a child begins with it
    peaks_mib = [run_script(folder, path, 2, *overrides).peak_mib for path, overrides in asked]
    runs = assemble_all(asked, text, folder / "data" / "cache")
    peak_figures = peaks()
    dtype = "bf16" if bf16_gain(512, 512) >= 1 else "fp32"
    peak = 1e9 * peak_figures[f"{dtype}_peak_gflop_per_s"]
    rates = measure_in_turn(runs, args.rounds, args.steps)
    figures: Figures = dict(peak_figures)
    for (name, run), peak_mib in zip(runs.items(), peaks_mib, strict=True):
        rate = statistics.median(rates[name])
        figures |= {
            f"{name}.parameters": run.model.parameter_count(),
            f"{name}.mode": mode(run),
            f"{name}.threads": run.state.modes.threads,
            f"{name}.peak_mib_of_two_steps": peak_mib,
            f"{name}.tokens_per_s": rate,
            f"{name}.mfu": rate * run.model.flops_per_token() / peak,
        }
        figures |= {f"{name}.share.{part}": share for part, share in shares(run).items()}
    if len(runs) == 2:
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        figures["ratio"] = statistics.median(ratios)
        figures["ratios"] = [round(ratio, 3) for ratio in ratios]
    return figures
