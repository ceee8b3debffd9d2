"""The part `speed` of benchmark.py: how fast one or two configurations train, and where the time goes.

Steps of both take turns in one process, so that what else this machine does meets both alike.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from benchmarks.script_runs import run_script
from chatgot.config_file import load_config
from chatgot.data.corpus import fetch_default_text
from chatgot.data.token_cache import load_tokens
from chatgot.machine.measured import bf16_gain, product_peak
from chatgot.numerics.optim import lr_at, set_lr
from chatgot.run.assembly import Run, assemble
from chatgot.training.step import accumulate_gradients, apply_gradients

SMALL = (
    256  # size of the products of a dtype that this CPU is slow at: large ones would take minutes
)
PARTS = {  # of a step's time: what the profiler's names of the operations of each begin with
    "matrix_products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot_product"),
    "dropout": ("aten::random_", "aten::ge_", "aten::bernoulli", "aten::native_dropout"),
    "fused_by_compile": ("CompiledFunction", "Torch-Compiled", "## Call CompiledFxGraph"),
    "copies_and_casts": ("aten::copy_", "aten::cat", "aten::stack"),
}


def peaks() -> dict[str, float]:
    """Return the GFLOP/s of matrix products by dtype: of 2048^3, smaller ones where this CPU is slow at a dtype."""
    cpu, slow_bf16 = torch.device("cpu"), bf16_gain(512, 512) < 1
    return {
        "fp32_peak_gflop_per_s": product_peak(cpu, torch.float32) / 1e9,
        "bf16_peak_gflop_per_s": product_peak(
            cpu, torch.bfloat16, **({"size": SMALL} if slow_bf16 else {})
        )
        / 1e9,
        "fp16_peak_gflop_per_s": product_peak(cpu, torch.float16, repeats=1, size=SMALL // 2) / 1e9,
    }


def one_step(run: Run) -> float:
    """Do one optimizer step as the script does; return its seconds."""
    state, config = run.state, run.config
    torch.set_num_threads(state.modes.threads)
    begun = time.perf_counter()
    set_lr(
        run.optimizer,
        lr_at(state.progress.global_step, config.training, run.decay_steps),
        config.training,
    )
    loss = accumulate_gradients(run.model, run.train_windows, state, config, run.scaler)
    apply_gradients(loss, run.model, run.optimizer, state, config, run.scaler)
    return time.perf_counter() - begun


def shares(run: Run) -> dict[str, float]:
    """Return the share of a step's time that each kind of operation takes, by the profiler."""

    def part_of(event: FunctionEvent) -> str:
        above: FunctionEvent | None = event
        while above is not None:
            if above.name.startswith("Optimizer.step"):
                return "optimizer"
            above = above.cpu_parent
        return next(
            (part for part, names in PARTS.items() if event.name.startswith(names)), "other"
        )

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        one_step(run)
    totals = dict.fromkeys((*PARTS, "optimizer", "other"), 0.0)
    for event in seen.events():
        totals[part_of(event)] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {part: total / whole for part, total in totals.items()}


def speed(args: argparse.Namespace, folder: Path) -> dict:
    """Peaks, then tokens/s, share of the bf16 peak (MFU), share of time per part of --config and --compare in turn."""
    text = folder / "data" / "shakespeare.txt"
    fetch_default_text(text)
    tokens, threads = load_tokens(text, folder / "data" / "cache"), torch.get_num_threads()
    runs: dict[str, Run] = {}
    asked = [(args.config, args.set), *([(args.compare, args.compare_set)] if args.compare else [])]
    memory = [
        run_script(folder, path, 2, *overrides).peak_mib for path, overrides in asked
    ]  # while this one is small
    for path, overrides in asked:
        config, _ = load_config(path, overrides)
        name = f"{path.stem}_compared" if path.stem in runs else path.stem
        torch.set_num_threads(threads)  # torch's own number, from which a run's is chosen
        runs[name] = assemble(config, tokens, torch.device("cpu"), None)
    figures = peaks()
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(args.rounds):
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for step in range(args.steps + 1):
            for name in list(runs)[:: 1 if step % 2 else -1]:
                runs[name].model.train()
                took = one_step(runs[name])
                seconds[name] += [took] if step else []  # the first ones warm up
        for name, run in runs.items():
            tokens_per_step = run.config.training.tokens_per_step(run.config.model)
            rates[name].append(tokens_per_step / statistics.median(seconds[name]))
            print(
                f"round {round_number + 1}: {name} {rates[name][-1]:,.0f} tokens/s", file=sys.stderr
            )
    for (name, run), peak_mib in zip(runs.items(), memory, strict=True):
        per_token, state = run.model.flops_per_token(), run.state
        peak = (
            1e9
            * figures[
                "bf16_peak_gflop_per_s" if bf16_gain(512, 512) >= 1 else "fp32_peak_gflop_per_s"
            ]
        )
        figures |= {
            f"{name}.parameters": run.model.parameter_count(),
            f"{name}.mode": f"{run.precision}, {run.attention}, {'compiled' if run.compiled else 'eager'}",
            f"{name}.threads": state.modes.threads,
            f"{name}.peak_mib_of_two_steps": peak_mib,
            f"{name}.tokens_per_s": statistics.median(rates[name]),
            f"{name}.mfu": statistics.median(rates[name]) * per_token / peak,
            **{f"{name}.share.{part}": share for part, share in shares(run).items()},
        }
    if len(runs) == 2:
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        figures |= {
            "ratio": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
        }
    return figures
