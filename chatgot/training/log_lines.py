"""The log's lines about a run: header, warnings, steps, end; and TensorBoard's other curves.

Letters: S sequences of one optimizer step, T tokens of a window.
"""

import math
import os
import shutil
import subprocess
from pathlib import Path

from chatgot import __version__
from chatgot.checkpointing.run_files import open_to_others
from chatgot.command_line import command_line
from chatgot.config import remarks
from chatgot.data.mixture import BLOCK, MixedWindows, own_parts
from chatgot.data.unseen_characters import unseen
from chatgot.logs.timing import human_time
from chatgot.machine.device import describe, versions
from chatgot.machine.launched_copies import launched_copies
from chatgot.machine.memory import used_memory
from chatgot.plain_yaml import escaped
from chatgot.run.assembly import Run
from chatgot.shipped import PACKAGE

PRECISION_CURVE = ("fp32", "bf16", "fp16")  # amp/precision: the index
CHECKPOINT_BYTES_PER_PARAMETER = 12  # weights and two moments, 4 bytes each
MOST_UNSEEN_NAMED = 12  # characters in one warning


def model_line(run: Run) -> str:
    """Return the model's architecture, size and cost in one line."""
    millions = run.model.parameter_count() / 1e6
    mflop = run.model.flops_per_token() / 1e6
    architecture = run.config.model.architecture
    return f"{architecture}, {millions:.1f} M parameters, {mflop:.1f} MFLOP per token"


def lora_line(run: Run) -> str:
    """Return in one line which weights LoRA trains."""
    lora = run.config.training.lora
    layers = ", ".join(lora.targets_in(run.config.model.architecture))
    base = run.base.get("path", "fresh weights")
    return (
        f"rank {lora.rank} on {layers}: {run.model.trained_count():,} of "
        f"{run.model.parameter_count():,} weights train, on top of {base}"
    )


def teacher_lines(run: Run) -> list[str]:
    """Return how a run learns from its teachers, and which they are; nothing: it has none."""
    if not run.teachers:
        return []
    settings = run.config.training.distillation
    models = [teacher.model for teacher in run.teachers]
    millions = sum(model.parameter_count() for model in models) / 1e6
    mflop = sum(model.flops_of_forward(run.train_windows.T) for model in models) / 1e6
    lines = [
        f"teachers: {len(models)}, {settings.weight:.0%} of the loss, temperature "
        f"{settings.temperature:g}; {millions:.1f} M parameters, {mflop:.1f} MFLOP per token; "
        "the loss in the log is that of the text alone"
    ]
    lines += [
        f"teacher {number}: {teacher.name}, {teacher.path}"
        for number, teacher in enumerate(run.teachers, start=1)
    ]
    return lines


def taught_facts(run: Run) -> dict[str, float | None]:
    """Return the last step's loss against the teachers, by column of the metrics; maybe none."""
    if run.teaching is None:
        return {}
    return {"distillation_loss": run.state.progress.distillation_loss}


def _taught_parts(run: Run) -> list[str]:
    loss = run.state.progress.distillation_loss
    return [] if loss is None else [f"distillation_loss {loss:.4f}"]


def text_line(run: Run) -> str:
    """Return the size of the text and its encoding in one line."""
    return (
        f"{run.train_windows.n_tokens:,} training and {len(run.val_windows.ids):,} validation "
        f"tokens ({run.vocabulary.kind}), a vocabulary of {len(run.vocabulary)}, "
        f"read as {run.tokens.encoding}"
    )


def learned_line(run: Run) -> list[str]:
    """Return how much of the text is learned from, in one line; nothing: all of it."""
    names = run.config.data.learn_from
    learned = run.train_windows.learned
    evaluated = run.val_windows.learned
    if names is None or learned is None or evaluated is None:
        return []
    share = len(learned) / len(run.train_windows.ids)
    return [
        f"learned from: the lines of {', '.join(names)}, {len(learned):,} training tokens "
        f"({share:.1%}); val_loss is that of {len(evaluated):,} validation tokens"
    ]


def sources_line(run: Run) -> list[str]:
    """Return which share of the training windows each source gives, in one line; nothing: one."""
    windows = run.train_windows
    if not isinstance(windows, MixedWindows):
        return []
    shares = [
        f"{seats / BLOCK:.1%} {source.name}"
        for source, seats in zip(windows.sources, windows.seats.tolist(), strict=True)
    ]
    return [f"training windows: {', '.join(shares)}"]


def by_source(run: Run) -> dict[str, float] | None:
    """Return the loss of each source at the last evaluation; None: they are not measured."""
    return run.state.marks.loss_by_source if run.held_out else None


def losses_line(run: Run) -> str:
    """Return the part of an evaluation's line that gives the loss of each source."""
    losses = run.state.marks.loss_by_source
    if not run.held_out:
        return ""
    return f" ({', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())})"


def change_lines(run: Run) -> list[str]:
    """Return how the loss of each source has changed since the run began, in lines."""
    marks = run.state.marks
    if not run.held_out:
        return []
    return [
        f"val_loss of {name}: {marks.first_loss_by_source[name]:.4f} at the start, "
        f"{loss:.4f} at step {marks.last_eval_step} "
        f"({loss - marks.first_loss_by_source[name]:+.4f})"
        for name, loss in marks.loss_by_source.items()
        if name in marks.first_loss_by_source
    ]


def header(run: Run, log_path: Path, run_dir: Path) -> list[str]:
    """Return the first lines of each part of a log: what runs, where, on which device, and how."""
    config = run.config
    modes = run.state.modes
    every = run.model.recompute_every
    blocks = "compiled" if modes.compiled else "eager"
    if modes.graphed:
        blocks += " in a CUDA graph"
    gradient_checkpointing = f"every {every}" if every else "off"
    return [
        f"run {run.state.run_id}",
        f"command: {command_line()}",
        f"commit: {git_commit() or 'unknown'}",
        f"checkpoints in {run.checkpoint_dir.resolve()}",
        f"log in {log_path.resolve()}, curves and report in {run_dir.resolve()}",
        "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()),
        f"device: {describe(run.device)}",
        *_ranks_line(run),
        f"configuration: {config.model_dump_json()}",
        f"model: {model_line(run)}",
        *([f"LoRA: {lora_line(run)}"] if config.training.lora.enabled else []),
        *teacher_lines(run),
        f"precision: {modes.precision}; attention: {modes.attention}, blocks {blocks}; "
        f"gradient checkpointing: {gradient_checkpointing}; "
        f"micro-batch: {run.state.micro_batch.size}",
        f"text: {text_line(run)}",
        *learned_line(run),
        *sources_line(run),
        f"one epoch: {run.train_windows.per_epoch:,} windows of {run.train_windows.T} tokens",
    ]


def _ranks_line(run: Run) -> list[str]:
    ranks = run.ranks
    if ranks.is_alone:
        return []
    S = run.config.training.sequences_per_step
    strategy = (
        "fsdp, each has a part of the weights" if ranks.is_sharded else "ddp, each has all weights"
    )
    shares = f"{S} sequences of a step in micro-batches of {run.state.micro_batch.size}"
    return [f"ranks: {ranks.size}, {strategy}; they share the {shares}; this is rank {ranks.rank}"]


def cautions(run: Run) -> list[str]:
    """Return warnings: settings without effect, a warmup that is too long, a small disk.

    Also: several copies of this program, and held-out characters that no model can know.
    """
    config = run.config
    lines = remarks(config)
    warmup = config.training.warmup_steps
    last = run.last_step
    horizon = run.decay_steps
    if horizon is not None and warmup >= horizon:
        lines.append(
            f"training.warmup_steps={warmup} is too long: "
            f"the warmup ends with the schedule, after {horizon} steps"
        )
    elif last is not None and warmup >= last:
        lines.append(
            f"training.warmup_steps={warmup}: the run ends after {last} steps, before the warmup"
        )
    lines += _slower_line(run)
    files = config.training.max_checkpoints_to_keep + 1
    needed = files * CHECKPOINT_BYTES_PER_PARAMETER * run.model.trained_count()
    free = shutil.disk_usage(run.checkpoint_dir).free
    if free < needed:
        lines.append(
            f"{files} checkpoints need {needed / 1e9:.1f} GB, "
            f"but only {free / 1e9:.1f} GB are free on their disk"
        )
    lines += _copies_line(run) + _unseen_line(run)
    danger = open_to_others(run.checkpoint_dir)
    if danger:
        lines.append(
            f"{config.paths.checkpoints}: {danger}; "
            "anyone who can write to it can replace your checkpoints"
        )
    return lines


def _slower_line(run: Run) -> list[str]:
    """Return a warning where the time may end before the learning rate's decay does."""
    minutes = run.config.training.max_minutes
    if run.teaching is None or minutes is None:
        return []
    return [
        f"training.max_minutes={minutes:g}: with teachers each step takes longer; where the time "
        "ends before the learning rate's decay, the student is worse than it could be: "
        "raise it, or set it to null"
    ]


def multi_token_line(run: Run) -> str:
    """Return a warning where a run ends while later tokens still count; empty: none do."""
    if run.end_reason() is None or not run.multi_token_weights:
        return ""
    return (
        "training.multi_token_weights: the run ends while the tokens after the next one still "
        "count, so the model predicts the next one less well than after a whole decay: let it run "
        "longer, or set fewer max_steps next time"
    )


def _copies_line(run: Run) -> list[str]:
    launched = launched_copies(os.environ)
    if launched is None or not run.ranks.is_alone:
        return []
    variable, copies = launched
    return [
        f"{variable}={copies}: a launcher has started {copies} copies of this program, and each "
        "trains a model of its own on one device; start it once without the launcher, or with "
        "torchrun, whose copies train one model together"
    ]


def _unseen_line(run: Run) -> list[str]:
    if run.vocabulary.kind != "characters":  # subwords may be learnt from their neighbours
        return []
    if run.tokens.shards is not None:  # nobody reads all of it to look
        return []
    held_out = run.val_windows.ids
    if run.config.data.replay == 0:  # the old text is only looked at
        end = own_parts(run.tokens, run.config.data)[-1].held_out[1]
        held_out = held_out[: len(held_out) - (len(run.tokens.ids) - end)]
    missing = unseen(run.train_windows.ids, held_out)
    if not missing:
        return []
    names = [run.vocabulary.decode([number]) for number in missing]
    shown = escaped(" ".join(names[:MOST_UNSEEN_NAMED]))
    more = " ..." if len(names) > MOST_UNSEEN_NAMED else ""
    share = sum(missing.values()) / len(held_out)
    return [
        f"the held-out part (the last {run.config.data.test_split:.3g} of the text) has characters "
        f"that the training part lacks: {shown}{more}; they are {share:.1%} of it, and no training "
        "lowers val_loss on them: mix the order of the text, or change data.test_split"
    ]


def git_commit() -> str | None:
    """Return the commit of the checkout that this package is in; None: there is none.

    With + when files differ.
    """
    checkout = PACKAGE.parent
    # not any repository above: an installed package may lie inside somebody else's
    where = [f"--git-dir={checkout / '.git'}", f"--work-tree={checkout}"]
    # GIT_DIR, GIT_INDEX_FILE and others speak of the repository whose hook has started this process
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    describe_head = ["describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        git = subprocess.run(
            ["git", *where, *describe_head],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env=own,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip() or None


def evaluation_facts(run: Run, full_loss: float | None = None) -> dict[str, float]:
    """Return the last evaluation in nats per token and in bits per byte, by column of the metrics.

    full_loss: over every validation token; None: that was not measured.
    """
    val_loss = run.state.marks.val_loss
    assert val_loss is not None, "an evaluation was made"
    facts = {"val_loss": val_loss, "val_bits_per_byte": run.bits_per_byte(val_loss)}
    if full_loss is not None:
        facts["val_loss_full"] = full_loss
        facts["val_bits_per_byte_full"] = run.bits_per_byte(full_loss)
    return facts


def evaluation_line(run: Run, full_loss: float | None = None) -> str:
    """Return the log's words on the last evaluation."""
    facts = evaluation_facts(run, full_loss)
    line = "val_loss {val_loss:.4f} ({val_bits_per_byte:.4f} bits per byte)".format_map(facts)
    line += losses_line(run)
    if full_loss is not None:
        which = "" if run.config.data.learn_from is None else " that is learned from"
        full = " | val_loss_full {val_loss_full:.4f} over every validation token{which}"
        full += " ({val_bits_per_byte_full:.4f} bits per byte)"
        line += full.format(which=which, **facts)
    return line


def end_line(run: Run) -> str:
    """Return the log's last line about skipped steps, rewinds and precision."""
    health = run.state.health
    modes = run.state.modes
    precision = f"{modes.precision} throughout"
    if modes.precision != modes.asked_precision:
        precision = f"{modes.asked_precision}, then {modes.precision}"
    return (
        f"{run.state.progress.global_step:,} steps, {health.skips:,} skipped, "
        f"{health.rewinds} rewinds, {precision}"
    )


def model_flops_utilisation(run: Run) -> float | None:
    """Return MFU: the FLOP/s since the last row of metrics, relative to the measured peak.

    Of several ranks, relative to rank 0's peak times their number. Teachers' forward passes count.
    Source: model FLOPs utilisation, Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    tokens_per_s = run.state.progress.tokens_per_s
    if not run.peak_flops or not tokens_per_s:
        return None
    flops = run.model.flops_per_token()
    if run.teaching is not None:
        flops += run.teaching.flops_per_token(run.train_windows.T)
    return tokens_per_s * flops / (run.peak_flops * run.ranks.size)


def curves(run: Run) -> dict[str, float]:
    """Return TensorBoard's curves that have no column in metrics.jsonl: {tag: number}."""
    state = run.state
    values: dict[str, float] = {
        "amp/scale": run.scaler.get_scale(),
        "amp/skipped_steps": state.health.skips,
        "amp/precision": PRECISION_CURVE.index(state.modes.precision),
        "health/rewinds": state.health.rewinds,
        "batch/micro_batch_size": state.micro_batch.size,
        "perf/memory_mib": used_memory(run.device) / 2**20,
    }
    mfu = model_flops_utilisation(run)
    if mfu:
        values["perf/mfu"] = mfu
    for part, seconds in run.times.take(run.train_windows.take_s()).items():
        values[f"time/{part}_s"] = seconds
    return values


def postfix(run: Run) -> str:
    """Return the progress bar's text: loss, speed, micro-batch size x number of micro-batches."""
    progress = run.state.progress
    size = run.state.micro_batch.size
    S = run.config.training.sequences_per_step
    cut = f"{min(size, S)}x{math.ceil(S / size)}"
    return f"loss {progress.train_loss:.3f}, {progress.tokens_per_s or 0:,.0f} tokens/s, {cut}"


def step_line(run: Run) -> str:
    """Return the log's line about the last step."""
    progress = run.state.progress
    settings = run.config.training
    last = run.last_step
    epoch = progress.position * settings.sequences_per_step / run.train_windows.per_epoch
    end = f"/{last}" if last else ""
    parts = [
        f"step {progress.global_step}{end}",
        f"epoch {epoch:.2f}",
        f"loss {progress.train_loss:.4f}",
        *_taught_parts(run),
        f"lr {progress.lr:.2e}",
        f"grad_norm {progress.grad_norm:.3f}",
    ]
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
        mfu = model_flops_utilisation(run)
        if mfu:
            parts.append(f"MFU {mfu:.0%}")
        if last:
            tokens = (last - progress.global_step) * settings.tokens_per_step(run.config.model)
            parts.append(f"ETA {human_time(tokens / progress.tokens_per_s)}")
    return " | ".join(parts)


def start_facts(run: Run) -> dict[str, object]:
    """Return the fields of a run's `start` and `resume` events."""
    library_versions = versions()
    return {
        "ranks": run.ranks.size,
        "device": describe(run.device),
        "precision": run.state.modes.precision,
        "torch": library_versions["torch"],
        "version": __version__,
        "run_id": run.state.run_id,
        "model": model_line(run),
        "parameters": run.model.parameter_count(),
        "text": text_line(run),
        "data_sha256": run.tokens.text_sha256,
        "config_path": run.config_path,
        "command": command_line(),
    }


def end_facts(run: Run) -> dict[str, object]:
    """Return the fields of the event that ends a run."""
    state = run.state
    return {
        "global_step": state.progress.global_step,
        "skips": state.health.skips,
        "rewinds": state.health.rewinds,
        "precision": state.modes.precision,
        "best_step": state.marks.best_step,
        "best_val_loss": state.marks.best_val_loss,
        "val_loss_full": run.full_loss,
        "best_val_loss_full": run.best_full_loss,
        "best_val_bits_per_byte": run.bits_per_byte(state.marks.best_val_loss),
        "val_loss_by_source": by_source(run),
        "first_val_loss_by_source": state.marks.first_loss_by_source if run.held_out else None,
    }
