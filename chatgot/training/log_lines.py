"""What a log begins with: which run, on what, with which settings, and what to beware of."""

import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from chatgot.checkpointing.run_files import open_to_others
from chatgot.config import remarks
from chatgot.logs.timing import human_time
from chatgot.machine.device import describe, versions
from chatgot.machine.memory import used_memory
from chatgot.run.assembly import Training


def header(training: Training, log_path: Path, run_dir: Path) -> list[str]:
    """Return the lines that each part of a run's log begins with: what runs, where, on what, with which settings."""
    config, model, run, tokens = training.config, training.model, training.run, training.tokens
    train, val = training.train_windows, training.val_windows
    modes = f"attention: {run.attention}, blocks {'compiled' if run.compiled else 'eager'}"
    recompute = f"every {model.recompute_every}" if model.recompute_every else "off"
    millions = f"{model.parameter_count() / 1e6:.1f} M parameters, {model.flops_per_token() / 1e6:.1f} MFLOP per token"
    return [
        f"run {run.run_id}",
        f"command: {shlex.join([sys.executable, *sys.argv])}",
        f"commit: {git_commit() or 'unknown'}",
        f"checkpoints in {Path(config.paths.checkpoints).resolve()}",
        f"log in {log_path.resolve()}, curves and report in {run_dir.resolve()}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"device: {describe(training.device)}",
        f"configuration: {config.model_dump_json()}",
        f"model: {config.model.architecture}, {millions}",
        f"precision: {run.precision}; {modes}; gradient checkpointing: {recompute}; "
        f"micro-batch: {run.micro_batch_size}",
        f"text: {len(train.ids):,} training and {len(val.ids):,} validation tokens, "
        f"{len(tokens.vocabulary)} characters, read as {tokens.encoding}",
        f"one epoch: {train.per_epoch:,} windows of {train.T} tokens",
    ]


def cautions(training: Training) -> list[str]:
    """Return the lines that warn of settings without effect, of a warmup that is cut, and of a disk that is small."""
    config, last = training.config, training.last_step
    lines = remarks(config)
    warmup, horizon = config.training.warmup_steps, training.decay_steps
    if warmup >= horizon:
        lines.append(f"training.warmup_steps={warmup} is cut to the schedule's {horizon} steps")
    elif last is not None and warmup >= last:
        lines.append(
            f"training.warmup_steps={warmup}: the run's {last} steps end within the warmup"
        )
    files = config.training.max_checkpoints_to_keep + 1
    needed = files * 12 * training.model.parameter_count()  # weights and two moments, 4 bytes each
    free = shutil.disk_usage(config.paths.checkpoints).free
    if free < needed:
        lines.append(
            f"{files} checkpoints need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on their disk"
        )
    if why := open_to_others(Path(config.paths.checkpoints)):
        lines.append(
            f"{config.paths.checkpoints}: {why}; who can write there can replace your checkpoints"
        )
    return lines


def git_commit() -> str | None:
    """Return the commit of the checkout that this package is in, with + when files differ; None: there is none."""
    folder = Path(__file__).resolve().parent
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty=+",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def end_line(training: Training) -> str:
    """Return the log's last word on the run's health."""
    run = training.run
    lowered = run.precision != run.asked_precision
    precision = (
        f"{run.asked_precision}, then {run.precision}" if lowered else f"{run.precision} throughout"
    )
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
        **{
            f"time/{part}_s": seconds
            for part, seconds in training.times.take(training.train_windows.take_s()).items()
        },
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
            seconds = (
                (last - run.global_step)
                * config.training.tokens_per_step(config.model)
                / run.tokens_per_s
            )
            parts.append(f"ETA {human_time(seconds)}")
    return " | ".join(parts)
