"""What a run is made of: text, model, optimizer and state, put together fresh or from a checkpoint."""

import copy
import logging
import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from chatgot.checkpointing.checkpoint_file import FORMAT_VERSION
from chatgot.config import Config, TrainingConfig
from chatgot.data.corpus import fetch_default_text
from chatgot.data.text_file import check_text_file
from chatgot.data.token_cache import Tokens, load_tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.data.windows import (
    TrainingWindows,
    ValidationWindows,
    check_length,
    line_start,
    split_index,
)
from chatgot.logs.timing import TimeSplit
from chatgot.machine.device import DTYPES, set_threads, versions
from chatgot.machine.measured import fast_threads, peak_for_mfu
from chatgot.machine.memory import reuse_freed_memory
from chatgot.model.attention import pick_attention
from chatgot.model.gpt import GPT, build_model
from chatgot.numerics.compilation import Work, choose_compile
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.gradient_checkpointing import enable_gradient_checkpointing
from chatgot.numerics.muon import pick_muon_precision
from chatgot.numerics.optim import allocate_state, build_optimizer, last_step, schedule_horizon
from chatgot.numerics.precision import autocast, pick_precision, prove_mixed_precision
from chatgot.run.diagnosis import describe_numbers
from chatgot.run.run_state import RunState, collect_state

logger = logging.getLogger(__name__)

SMALLEST_STEP_FLOPS = (
    1e9  # of a step for which the peak is measured, which takes some tenths of a second
)
DEFAULT_TEXT = Path("data/shakespeare.txt")


@dataclass
class Training:
    """The parts of one run; `run` and what hangs on it change, the rest stays."""

    config: Config
    device: torch.device
    tokens: Tokens
    train_windows: TrainingWindows
    val_windows: ValidationWindows
    model: GPT
    optimizer: Optimizer
    scaler: SafeGradScaler
    run: RunState
    peak_flops: float  # per second, of this machine's matrix products; 0: not measured
    start: dict[str, Any] = field(
        default_factory=dict
    )  # the state that a rewind before the first checkpoint goes to
    abandoned: list[Path] = field(
        default_factory=list
    )  # checkpoints that a rewind left behind, still in place
    failed_samples: int = 0  # of this process
    times: TimeSplit = field(default_factory=TimeSplit)  # of this process

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokens.vocabulary

    @property
    def decay_steps(self) -> int:
        return schedule_horizon(self.config.training, self.train_windows.per_epoch)

    @property
    def last_step(self) -> int | None:
        return last_step(self.config.training, self.train_windows.per_epoch)

    def ended(self) -> bool:
        """Return whether `epochs`, `max_steps` or `max_minutes` has been reached."""
        last, minutes = self.last_step, self.config.training.max_minutes
        by_step = last is not None and self.run.global_step >= last
        return by_step or (minutes is not None and self.run.time_s >= 60 * minutes)

    def how_to_extend(self) -> str:
        """Return the settings that let an ended run go on."""
        settings, more = self.config.training, []
        if settings.max_steps is not None and self.run.global_step >= settings.max_steps:
            more.append(f"--set training.max_steps={2 * settings.max_steps}")
        if (
            settings.epochs is not None
            and self.last_step is not None
            and self.run.global_step >= self.last_step
        ):
            more.append(f"--set training.epochs={settings.epochs + 1}")
        if settings.max_minutes is not None and self.run.time_s >= 60 * settings.max_minutes:
            more.append(f"--set training.max_minutes={2 * settings.max_minutes:g}")
        return " ".join(more)

    def checkpoint(self) -> dict[str, Any]:
        """Return all that a checkpoint holds: the state and what is needed to use it without any other file."""
        S = self.config.training.sequences_per_step
        return {
            "format_version": FORMAT_VERSION,
            "run_id": self.run.run_id,
            "epoch": self.train_windows.epoch(self.run.position, S),
            "global_step": self.run.global_step,
            "loss": self.run.train_loss,
            "config": self.config.model_dump(mode="json"),
            "vocabulary": self.vocabulary.characters,
            "data_sha256": self.tokens.text_sha256,
            "versions": versions() | {"device": self.device.type},
            **collect_state(self.run, self.model, self.optimizer, self.scaler),
        }


def text_path(config: Config) -> Path:
    """Return where the text is, or, for the default text, will be. Raises: ConfigError for a text that is missing."""
    if config.data.path is None:
        return DEFAULT_TEXT
    check_text_file(Path(config.data.path))
    return Path(config.data.path)


def load_text(config: Config, path: Path) -> Tokens:
    """Return the tokens of a text, fetched and encoded if need be. Raises: ConfigError, StorageError."""
    if config.data.path is None:
        fetch_default_text(path)
    tokens = load_tokens(path, Path(config.paths.cache))
    check_length(len(tokens.ids), config, path)
    return tokens


def assemble(
    config: Config, tokens: Tokens, device: torch.device, stored: dict[str, Any] | None
) -> Training:
    """Build a run: with fresh weights, or, given a checkpoint's content, for `resume` to fill.

    The number of threads is set before anything is computed; a checkpoint's number wins. A new run has no id yet.
    """
    threads = set_threads(_threads(config, device, stored))
    reuse_freed_memory()
    n_train = split_index(len(tokens.ids), config.data.test_split)
    T, V = config.model.max_seq_length, len(tokens.vocabulary)
    random.seed(
        config.seed
    )  # neither generator is used in training; with it two fresh runs save the same bytes
    np.random.seed(config.seed % 2**32)
    model = build_model(config.model, V, device, config.seed)
    windows = TrainingWindows(tokens.ids[:n_train], T, V, device, config.seed)
    settings = config.training
    precision, kernel = _precision_and_attention(config, model, windows, stored)
    scaler = SafeGradScaler(
        device.type, enabled=precision == "fp16",
        max_nan_before_fallback=settings.max_nan_before_fallback, min_loss_scale=settings.min_loss_scale,
    )  # fmt: skip
    run = RunState("", precision, first_size(settings), threads, kernel, asked_precision=precision)
    run.eval_batch_size = settings.batch_size
    run.compiled = _compiled(config, model, windows, run, stored)
    scaler.describe = lambda: describe_numbers(model, windows, run, config)
    if (mode := settings.gradient_checkpointing) and not (
        stored and stored["run"]["recompute_off"]
    ):
        with autocast(device, precision):
            enable_gradient_checkpointing(model, every=2 if mode == "every_2" else 1)
    if settings.optimizer == "muon":
        run.muon_precision = (
            stored["run"]["muon_precision"] if stored else pick_muon_precision(model, device)
        )
    optimizer = build_optimizer(model, settings, run.muon_precision)
    training = Training(
        config=config,
        device=device,
        tokens=tokens,
        train_windows=windows,
        val_windows=ValidationWindows(tokens.ids[n_train:], T, V, device),
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        run=run,
        peak_flops=_peak_flops(config, model, device),
    )
    training.start = copy.deepcopy(collect_state(run, model, optimizer, scaler))
    allocate_state(optimizer)
    return training


def first_size(settings: TrainingConfig) -> int:
    """Return the micro-batch that a run begins with, before any trial."""
    dynamic = settings.dynamic_batch_size
    if not dynamic.enabled:
        return settings.batch_size
    size = settings.batch_size if dynamic.initial == "auto" else dynamic.initial
    return min(size, dynamic.maximum or settings.sequences_per_step)


def _threads(config: Config, device: torch.device, stored: dict[str, Any] | None) -> int | None:
    wanted = config.training.threads
    if wanted is None and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        wanted = int(os.environ["OMP_NUM_THREADS"])
    if stored is None:
        return wanted or (fast_threads(config.model.d_model) if device.type == "cpu" else None)
    threads = stored["run"]["threads"]
    if wanted not in (None, threads):
        logger.warning(
            "%d threads as in the checkpoint, not %d: another number would give other bits",
            threads,
            wanted,
        )
    return threads


def _precision_and_attention(
    config: Config, model: GPT, windows: TrainingWindows, stored: dict[str, Any] | None
) -> tuple[str, str]:
    """Return the precision and the attention kernel in force, which the model uses from now on.

    A resumed run keeps its own, the precision unless the user asked for another. A lower precision than fp32 is proven,
    with the kernel that it will run with, on the first micro-batch before it is taken.
    """
    settings, device = config.training, windows.device

    def use_attention(precision: str) -> str:
        kernel = stored and stored["run"]["attention"]
        if kernel and settings.attention not in ("auto", kernel):
            logger.warning(
                "attention by %s as in the checkpoint: another kernel would give other bits", kernel
            )
        kernel = kernel or pick_attention(
            settings.attention, config.model, settings.batch_size, device, DTYPES[precision]
        )
        model.use_attention(kernel)
        return kernel

    if stored is not None:
        before = TrainingConfig(**stored["config"]["training"])
        if all(
            getattr(settings, name) == getattr(before, name)
            for name in ("mixed_precision", "precision_dtype")
        ):
            return stored["run"]["precision"], use_attention(stored["run"]["precision"])
    precision = pick_precision(config, device)
    kernel = use_attention(precision)
    if precision == "fp32":
        return precision, kernel
    batch = windows.batch(windows.starts(0, settings.sequences_per_step)[: settings.batch_size])
    exacter = (
        ["sdpa"] if kernel == "products" and settings.attention == "auto" and stored is None else []
    )
    for tried in (kernel, *exacter):  # products round more than sdpa does
        model.use_attention(tried)
        if not (why := prove_mixed_precision(model, batch, precision)):
            return precision, tried
    logger.warning(
        "mixed precision is off: %s with attention by %s differs from fp32 on the first micro-batch (%s)",
        precision, tried, why,
    )  # fmt: skip
    return "fp32", use_attention("fp32")


def _compiled(
    config: Config,
    model: GPT,
    windows: TrainingWindows,
    run: RunState,
    stored: dict[str, Any] | None,
) -> bool:
    """Compile the blocks where it is asked for or pays in what is left of the run; return whether they are now."""
    settings, done = (
        config.training,
        stored["run"] if stored else {"global_step": 0, "time_s": 0.0, "compiled": None},
    )
    if stored and stored["config"]["training"]["compile"] != settings.compile:
        done = done | {"compiled": None}  # the user asks for another mode
    last, minutes = last_step(settings, windows.per_epoch), settings.max_minutes
    work = Work(
        config, model, windows.device, run.precision, run.micro_batch_size,
        steps_left=math.inf if last is None else max(0, last - done["global_step"]),
        seconds_left=math.inf if minutes is None else max(0.0, 60 * minutes - done["time_s"]),
    )  # fmt: skip
    return choose_compile(work, done["compiled"])


def _peak_flops(config: Config, model: GPT, device: torch.device) -> float:
    """Return the measured peak of matrix products in FLOP/s; 0, unmeasured, where a step computes far less than one."""
    if (
        config.training.tokens_per_step(config.model) * model.flops_per_token()
        < SMALLEST_STEP_FLOPS
    ):
        return 0.0
    peak, dtype = peak_for_mfu(device)
    logger.info(
        "peak: %s matrix products run at %.0f GFLOP/s here; MFU is the share of it",
        dtype,
        peak / 1e9,
    )
    return peak


def make_prompts(training: Training) -> list[str]:
    """Return the prompts, with characters outside the vocabulary replaced, and one more from the validation text."""
    vocabulary, seed = training.vocabulary, training.config.seed
    replaced = [vocabulary.replace_unknown(prompt) for prompt in training.config.sampling.prompts]
    if strange := "".join(sorted(set("".join(unknown for _, unknown in replaced)))):
        logger.warning("prompts: %r do not occur in the text; they are shown replaced", strange)
    return [*(text for text, _ in replaced), line_start(training.val_windows.ids, vocabulary, seed)]
