"""How large, how fast and how long: what a run would take, and where it stands."""

import math
import time

from chatgot.logs.timing import human_time
from chatgot.machine.memory import peak_memory_mib, used_memory
from chatgot.run.assembly import Training
from chatgot.training.step import accumulate_gradients


def estimate(training: Training, repeats: int = 2) -> list[str]:
    """Return lines on parameters, operations, memory and time, measured on a step whose gradients are thrown away."""
    config, model, run = training.config, training.model, training.run
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        while accumulate_gradients(model, training.train_windows, run, config, training.scaler) is None:
            start = time.perf_counter()  # memory ran out: once more with what fits
        times.append(time.perf_counter() - start)
        training.optimizer.zero_grad(set_to_none=True)
    tokens, seconds = config.training.tokens_per_step(config.model), min(times)
    lines = [
        f"parameters: {model.parameter_count():,}",
        f"FLOPs per token: {model.flops_per_token():,}",
        f"memory: {peak_memory_mib():,.0f} MiB, half of it or more is Python and torch in small models",
        f"speed: {tokens / seconds:,.0f} tokens/s, {seconds:.2f} s for one step of {tokens:,} tokens",
    ]
    minutes, last = config.training.max_minutes, training.last_step
    limits = [] if minutes is None else [60 * minutes - run.time_s]
    if last is not None:
        limits.append((last - run.global_step) * seconds)
    lines.append(f"time: about {human_time(max(0.0, min(limits)))} until the end, without evaluations")
    return lines


def end_line(training: Training) -> str:
    """Return the log's last word on the run's health."""
    run = training.run
    lowered = run.precision != run.asked_precision
    precision = f"{run.asked_precision}, then {run.precision}" if lowered else f"{run.precision} throughout"
    return f"{run.global_step:,} steps, {run.skips:,} skipped, {run.rewinds} rewinds, {precision}"


def share_of_peak(training: Training) -> float | None:
    """Return MFU: the FLOPs of the steps since the row before over what this machine's products could have done.

    Source: model FLOPs utilisation, Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    run = training.run
    if not training.peak_flops or not run.tokens_per_s:
        return None
    return run.tokens_per_s * training.model.flops_per_token() / training.peak_flops


def curves(training: Training) -> dict[str, float]:
    """Return what TensorBoard draws beside the row of metrics, by its tags; amp/precision: 0 fp32, 1 bf16, 2 fp16."""
    run = training.run
    return {
        "amp/scale": training.scaler.get_scale(),
        "amp/skipped_steps": run.skips,
        "amp/precision": ("fp32", "bf16", "fp16").index(run.precision),
        "health/rewinds": run.rewinds,
        **({"perf/mfu": mfu} if (mfu := share_of_peak(training)) else {}),
        "batch/micro_batch_size": run.micro_batch_size,
        "perf/memory_mib": used_memory(training.device) / 2**20,
        **{f"time/{part}_s": seconds for part, seconds in training.times.take(training.train_windows.take_s()).items()},
    }


def postfix(training: Training) -> str:
    """Return what the progress bar shows: loss, speed, and micro-batch size x micro-batches of a step."""
    run, S = training.run, training.config.training.sequences_per_step
    cut = f"{min(run.micro_batch_size, S)}x{math.ceil(S / run.micro_batch_size)}"
    return f"loss {run.train_loss:.3f}, {run.tokens_per_s or 0:,.0f} tokens/s, {cut}"


def step_line(training: Training) -> str:
    """Return the log's line on the step just done."""
    run, config, last = training.run, training.config, training.last_step
    epoch = run.position * config.training.sequences_per_step / training.train_windows.per_epoch
    parts = [
        f"step {run.global_step}" + (f"/{last}" if last else ""),
        f"epoch {epoch:.2f}",
        f"loss {run.train_loss:.4f}",
        f"lr {run.lr:.2e}",
        f"grad_norm {run.grad_norm:.3f}",
    ]
    if run.tokens_per_s:
        parts.append(f"{run.tokens_per_s:,.0f} tokens/s")
        if mfu := share_of_peak(training):
            parts.append(f"MFU {mfu:.0%}")
        if last:
            seconds = (last - run.global_step) * config.training.tokens_per_step(config.model) / run.tokens_per_s
            parts.append(f"ETA {human_time(seconds)}")
    return " | ".join(parts)
