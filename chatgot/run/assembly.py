"""Build a run from text, model, optimizer and state, for a fresh start or a resume.

Letters: S sequences of one optimizer step, T `max_seq_length`, V rows of the embedding.
"""

import copy
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from chatgot import __version__
from chatgot.checkpointing.checkpoint_file import FORMAT_VERSION
from chatgot.checkpointing.stored_vocabulary import rows_of_tokens, vocabulary_keys
from chatgot.config import Config, TrainingConfig, settings_hash
from chatgot.data.bits_per_byte import bits_per_byte, tokens_per_byte
from chatgot.data.held_out_sources import HeldOutSource, held_out_sources
from chatgot.data.learned_lines import LearnedTokens, learned_tokens
from chatgot.data.mixture import training_windows
from chatgot.data.old_text import OldText
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.data.windows import (
    TrainingWindows,
    ValidationWindows,
    line_start,
)
from chatgot.distributed.ranks import Ranks
from chatgot.logs.timing import TimeSplit
from chatgot.logs.waiting import waiting
from chatgot.machine.device import versions
from chatgot.machine.measured import peak_for_mfu
from chatgot.machine.memory import is_out_of_memory, reuse_freed_memory
from chatgot.model.gpt import GPT, build_model
from chatgot.model.lora import add_lora, draw_lora
from chatgot.numerics.compilation import run_eager
from chatgot.numerics.cuda_graphs import GraphedPass
from chatgot.numerics.distillation import Teaching
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.gradient_checkpointing import disable_gradient_checkpointing
from chatgot.numerics.multi_token import multi_token_weights
from chatgot.numerics.muon import Muon
from chatgot.numerics.optim import Decay, allocate_state, build_optimizer, schedule_horizon
from chatgot.run.diagnosis import describe_numbers
from chatgot.run.ending import EndReason, decay_in_force, end_reason, how_to_extend, last_step_of
from chatgot.run.fits import check_loadable
from chatgot.run.modes import choose_modes, choose_muon_precision, prove_precision
from chatgot.run.passes import choose_passes, first_micro_batch
from chatgot.run.room import refuse_for_parts, refuse_without_room, wants_parts
from chatgot.run.run_state import Plateau, RunState, Stored, StoredState, collect_state
from chatgot.run.teachers import Teacher
from chatgot.sampling.remembered_speakers import remembered_speakers
from chatgot.sampling.speakers import Speaker, count_speakers

if TYPE_CHECKING:
    from chatgot.checkpointing.shards import Part

logger = logging.getLogger(__name__)

ANY_ID = "run_20000101-000000"  # stands for the id of a run that has none yet
SMALLEST_STEP_FLOPS = 1e9  # for smaller steps, measuring the peak is not worth 0.1 s


@dataclass
class Run:
    """The parts of one run, and counters of this process."""

    config: Config
    device: torch.device
    tokens: Tokens
    train_windows: TrainingWindows
    val_windows: ValidationWindows
    held_out: list[HeldOutSource]  # of each source; empty: the text is measured as one whole
    model: GPT
    optimizer: Optimizer
    scaler: SafeGradScaler
    state: RunState
    speakers: list[Speaker]  # in the training part, for whoever talks to the model
    tokens_per_byte: float  # of the held-out part, of that which is learned from
    ranks: Ranks = field(default_factory=Ranks)  # that compute this run together
    # FLOP/s of this machine's matrix products; 0: not worth measuring; None: not measured yet
    peak_flops: float | None = None
    config_path: str = ""  # absolute path of the YAML
    working_dir: str = field(default_factory=lambda: str(Path.cwd()))
    # of a model from elsewhere that the run started from: `kind`, `keys` of its shape, `context`
    imported: dict[str, Any] = field(default_factory=dict)
    # of LoRA: the `path` and `sha256` of the weights below; empty: none, or not loaded yet
    base: dict[str, str] = field(default_factory=dict)
    old_texts: list[OldText] = field(default_factory=list)  # replayed, the newest first
    teachers: Sequence[Teacher] = ()
    teaching: Teaching | None = None  # what steps learn from the teachers; None: the text alone
    graphed: GraphedPass | None = None  # replays micro-batches as CUDA graphs
    start: StoredState | None = None  # the state to rewind to before the first checkpoint
    abandoned: list[Path] = field(default_factory=list)  # checkpoints after the last rewind's step
    failed_samples: int = 0  # in this process
    steps_here: int = 0  # optimizer steps started in this process
    times: TimeSplit = field(default_factory=TimeSplit)  # in this process
    # returns what this rank keeps of a stored state: all of it, or its part
    own_part: Callable[[Stored], Stored] = field(default=lambda stored: stored)
    # waits until no checkpoint is being written in the background
    finish_saving: Callable[[], None] = field(default=lambda: None)
    # whether this rank is writing its part of a checkpoint beside the steps
    is_saving: Callable[[], bool] = field(default=lambda: False)
    ranks_are_saving: bool = False  # whether any rank was, when all agreed last
    # while new best weights are being written in the background: the best loss before them
    best_before_saving: float | None = None
    # over every validation token, measured in this process: of the last weights, of the best ones
    full_loss: float | None = None
    best_full_loss: float | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokens.vocabulary

    @property
    def checkpoint_dir(self) -> Path:
        return Path(self.config.paths.checkpoints)

    @property
    def decay_steps(self) -> int | None:
        """The step at which the learning rate's decay is to end; None: nobody knows yet."""
        return schedule_horizon(self.config.training, self.train_windows.per_epoch)

    @property
    def decay(self) -> Decay | None:
        """The decay of `lr_schedule: wsd`, begun or planned; None: nobody knows when it begins."""
        return decay_in_force(self.config.training, self.state, self.train_windows.per_epoch)

    @property
    def multi_token_weights(self) -> tuple[float, ...]:
        """How much each token after the next one counts in the next step; empty: none does."""
        step = self.state.progress.global_step
        return multi_token_weights(step, self.config.training, self.decay_steps, self.decay)

    @property
    def last_step(self) -> int | None:
        """The step at which the run ends at the latest; None: no number of steps ends it."""
        return last_step_of(self.config.training, self.state, self.train_windows.per_epoch)

    def end_reason(self, plateau: Plateau | None = None) -> EndReason | None:
        """Return what has ended the run; None: it goes on.

        plateau: the one after an evaluation that is not counted yet; None: that of the state.
        """
        return end_reason(self.config.training, self.state, self.train_windows.per_epoch, plateau)

    def ended(self) -> bool:
        """Return whether the run has reached its end."""
        return self.end_reason() is not None

    def bits_per_byte(self, loss: float) -> float:
        """Return a loss on held-out text, in nats per token, as bits per byte.

        That is exact for all of the held-out text. For a part of it, the bytes of a token are those
        of the mean.
        """
        return bits_per_byte(loss, self.tokens_per_byte)

    def how_to_extend(self) -> str:
        """Return the `--set` options that let a finished run go on for at least one step."""
        return how_to_extend(self.config.training, self.state, self.train_windows.per_epoch)

    def measure_peak(self) -> None:
        """Measure and log what MFU is relative to, unless it is known: some tenths of a second.

        To be called before the first line with MFU, on a CPU after the first step, so that it does
        not delay it. If memory runs out there is no MFU.
        """
        if not self.ranks.is_main:
            self.peak_flops = 0
        if self.peak_flops is None:
            self.peak_flops = _peak_flops(self.config, self.model, self.device)

    def collect_state(self) -> StoredState:
        """Return everything that changes while training; tensors are shared, not copied."""
        return collect_state(self.state, self.model, self.optimizer, self.scaler)

    def checkpoint(self) -> dict[str, Any]:
        """Return a checkpoint's content: the state, and all that is needed to use it alone.

        It has been checked as when it is loaded.
        Raises: ValueError for a content that could not be loaded again.
        """
        content = self._content()
        check_loadable(content)
        return content

    def parts(self) -> tuple[dict[str, Any], list["Part"]]:
        """Return a checkpoint's content without its large tensors, and this rank's rows of these.

        The content has been checked as when it is loaded. Nothing is gathered, and no other rank is
        asked. The tensors are shared, not copied.
        Raises: ValueError for a content that could not be loaded again.
        """
        from chatgot.distributed.own_rows import own_rows  # one process alone needs none of it

        content = self._content(self.collect_state())
        check_loadable(content)
        return own_rows(content, self.ranks.rank, self.ranks.size)

    def check_loadable(self) -> None:
        """Check before the first step that what this run will save can be loaded.

        The run may have no id yet. Raises: ValueError.
        """
        content = self._content()
        state = {**content["state"], "run_id": ANY_ID}
        check_loadable({**content, "state": state, "run_id": ANY_ID})

    def choices(self) -> dict[str, Any]:
        """Return what other ranks need to compute as this one does; no tensors."""
        content = self._content()
        names = ("state", "config", "versions", "data_sha256", "speakers")
        return {"imported": self.imported} | {name: content[name] for name in names}

    def _content(self, state: StoredState | None = None) -> dict[str, Any]:
        """Return a checkpoint's content; state: as collected, None: with whole tensors."""
        progress = self.state.progress
        S = self.config.training.sequences_per_step
        return {
            "format_version": FORMAT_VERSION,
            "run_id": self.state.run_id,
            "epoch": self.train_windows.epoch(progress.position, S),
            "global_step": progress.global_step,
            "loss": progress.train_loss,
            "config": self.config.model_dump(mode="json"),
            "config_path": self.config_path,
            "config_sha256": settings_hash(self.config),
            "working_dir": self.working_dir,
            **vocabulary_keys(self.vocabulary),
            "speakers": [asdict(speaker) for speaker in self.speakers],
            "data_sha256": self.tokens.text_sha256,
            "data_tokens": self.tokens.n_tokens,
            "tokens_per_byte": self.tokens_per_byte,
            "versions": versions() | {"device": self.device.type},
            "project_version": __version__,
            **({"imported": self.imported} if self.imported else {}),
            **({"base": self.base} if self.base else {}),
            **_stored_old_texts(self.old_texts),
            **_stored_teachers(self.teachers),
            **(self._whole_state() if state is None else state),
        }

    def whole_model(self) -> GPT | None:
        """Return the model with whole weights; None: this is another rank than the first.

        All ranks have to call it. Where each keeps a part of the weights, it is a copy.
        """
        if not self.ranks.is_sharded:
            return self.model if self.ranks.is_main else None
        from chatgot.distributed.strategies import whole  # one process alone needs none of it

        weights = whole(self.model.state_dict())
        if not self.ranks.is_main:
            return None
        model = build_model(self.config.model, self.model.vocab_size, self.device, self.config.seed)
        if self.config.training.lora.enabled:
            add_lora(model, self.config.training.lora)
        model.load_state_dict(weights)
        model.use_attention(self.state.modes.attention)
        return model

    def _whole_state(self) -> StoredState:
        """Return the state with whole tensors, whatever part of them this rank keeps."""
        state = self.collect_state()
        if not self.ranks.is_sharded:
            return state
        from chatgot.distributed.strategies import whole  # one process alone needs none of it

        return cast("StoredState", whole(state))


def assemble(  # noqa: PLR0913 what a run is made of
    config: Config,
    tokens: Tokens,
    device: torch.device,
    stored: Stored | None,
    start: Mapping[str, Tensor] | None = None,
    teachers: Sequence[Teacher] = (),
    ranks: Ranks | None = None,
) -> Run:
    """Build a run with fresh weights, in the modes of `stored` if there is a stored state.

    With LoRA the frozen weights are fresh, too: `resume` and `start_from` put others there.
    `resume` loads the rest of the stored state. The new run has no id yet. Measuring, proving and
    compiling may take seconds. Side effects: sets torch's number of threads, and seeds the
    generators of Python and numpy (training does not use them, but two fresh runs must save the
    same bytes).

    start: the weights that a new run begins with; their embedding may have more rows than tokens.
    teachers: that the run learns from; they get its kernel of attention.
    ranks: that compute the run together; None: this process alone.
    Raises: ConfigError.
    """
    settings = config.training
    ranks = ranks or Ranks()
    parts = ranks.size if ranks.is_sharded else 1
    refuse_without_room(config, len(tokens.vocabulary), device, parts)
    n_train = tokens.training_length(config.data.test_split)
    learned = evaluated = None
    if config.data.learn_from is not None:
        learned, evaluated = learned_tokens(
            tokens.ids, n_train, tokens.vocabulary, config.data.learn_from
        )
    modes = choose_modes(config, device, stored)
    reuse_freed_memory()
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)

    weights = start if stored is None else stored["model_state_dict"]
    V = rows_of_tokens(weights or {}, tokens.vocabulary)
    if settings.lora.enabled:
        V = len(tokens.vocabulary)  # frozen rows without a token would be of no use
    windows = _windows_to_train_on(config, tokens, n_train, V, device, learned)
    T = config.model.max_seq_length
    val_windows = ValidationWindows(tokens.ids[n_train:], T, V, device, evaluated)
    model = _fresh_model(config, V, device)

    prove_precision(modes, config, model, windows, stored)
    modes.asked_precision = modes.precision
    for teacher in teachers:
        teacher.model.use_attention(modes.attention)
    state = RunState()
    state.modes = modes
    state.micro_batch.size = first_micro_batch(settings, ranks.size)
    state.micro_batch.eval_size = settings.batch_size

    scaler = _scaler_for(settings, modes.precision, device)
    scaler.describe = lambda: describe_numbers(model, windows, state, config)
    choose_muon_precision(modes, config, model, device, stored)
    optimizer = build_optimizer(model, settings, modes.muon_precision, _muon_class(ranks))
    run = Run(
        config=config,
        device=device,
        tokens=tokens,
        train_windows=windows,
        val_windows=val_windows,
        held_out=held_out_sources(tokens, config.data, val_windows, n_train),
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        state=state,
        speakers=_speakers(tokens, n_train, stored),
        tokens_per_byte=tokens_per_byte(val_windows.ids, tokens.vocabulary, evaluated),
        imported={} if stored is None else stored.get("imported", {}),
        teachers=teachers,
        teaching=_teaching(config, teachers, tokens),
        ranks=ranks,
    )
    _make_ready(run, stored)
    return run


def _windows_to_train_on(
    config: Config,
    tokens: Tokens,
    n_train: int,
    vocab_size: int,
    device: torch.device,
    learned: LearnedTokens | None,
) -> TrainingWindows:
    if tokens.shards is not None:
        return tokens.shards.windows(tokens, config, vocab_size, device)
    return training_windows(
        tokens,
        config.data,
        n_train=n_train,
        T=config.model.max_seq_length,
        vocab_size=vocab_size,
        device=device,
        seed=config.seed,
        learned=learned,
    )


def _fresh_model(config: Config, vocab_size: int, device: torch.device) -> GPT:
    lora = config.training.lora
    with waiting("building the model"):
        model = build_model(config.model, vocab_size, device, config.seed)
        if lora.enabled:
            add_lora(model, lora)
            draw_lora(model, config.seed)
    return model


def _scaler_for(settings: TrainingConfig, precision: str, device: torch.device) -> SafeGradScaler:
    return SafeGradScaler(
        device.type,
        enabled=precision == "fp16",
        max_nan_before_fallback=settings.max_nan_before_fallback,
        min_loss_scale=settings.safety.min_loss_scale,
    )


def _muon_class(ranks: Ranks) -> Callable[..., Muon]:
    """Return Muon; of several ranks with whole weights, each computes a share of its updates."""
    if ranks.is_alone or ranks.is_sharded:
        return Muon
    from chatgot.distributed.shared_muon import SharedMuon  # one process alone needs none of it

    return partial(SharedMuon, ranks=ranks)


def _make_ready(run: Run, stored: Stored | None) -> None:
    """Remember what the run begins with, allocate what is missing, and choose how it computes."""
    if run.device.type != "cpu":  # before training fills the card's memory
        run.measure_peak()
    run.start = run.collect_state()
    goes_on = stored is not None and bool(stored["model_state_dict"])
    if not run.ranks.is_sharded:
        run.start = copy.deepcopy(run.start)
        allocate_state(run.optimizer)  # else each rank allocates its part alone, later
    elif goes_on:  # a resume puts other weights into the model
        weights = run.start["model_state_dict"]
        # on the host, since a card has just the room for one copy of the whole weights
        on_host = {name: weight.to("cpu", copy=True) for name, weight in weights.items()}
        run.start["model_state_dict"] = on_host
    run.graphed = choose_passes(run, stored)
    run.start["state"] = run.collect_state()["state"]
    if not run.ranks.is_sharded:
        run.check_loadable()


def assemble_together(  # noqa: PLR0913 as assemble
    config: Config,
    tokens: Tokens,
    device: torch.device,
    stored: Stored | None,
    start: Mapping[str, Tensor] | None,
    teachers: Sequence[Teacher],
    ranks: Ranks,
) -> Run:
    """Build the run on every rank, in the modes that rank 0 has measured and chosen.

    What cannot be compiled or proven on one rank is off on all of them.
    """
    if not ranks.is_alone:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        wanted = wants_parts(config, len(tokens.vocabulary), device, here)
        ranks.is_sharded = ranks.from_main(wanted)
        if ranks.is_sharded:
            refuse_for_parts(config, ranks.size)
    run = None
    with ranks.main_first():
        if ranks.is_main:
            run = assemble(config, tokens, device, stored, start, teachers, ranks)
    if ranks.is_alone:
        assert run is not None
        return run
    choices = ranks.from_main(None if run is None else run.choices())
    if run is None:
        assert choices is not None
        before = stored or {"model_state_dict": start or {}}
        run = assemble(config, tokens, device, {**before, **choices}, start, teachers, ranks)
    modes = run.state.modes
    everywhere = ranks.all((modes.compiled, modes.gradient_checkpointing_failed))
    if modes.compiled and not all(compiled for compiled, _ in everywhere):
        run_eager(run.model, "another rank cannot compile them", logging.WARNING)
        modes.compiled = False
    if any(failed for _, failed in everywhere):
        disable_gradient_checkpointing(run.model)
        modes.gradient_checkpointing_failed = True
    assert run.start is not None
    run.start["state"] = run.collect_state()["state"]
    return run


def _stored_old_texts(texts: Sequence[OldText]) -> dict[str, Any]:
    """Return what a checkpoint says of the texts that its run replays; nothing: there are none."""
    return {"old_texts": [text.model_dump(mode="json") for text in texts]} if texts else {}


def _stored_teachers(teachers: Sequence[Teacher]) -> dict[str, Any]:
    """Return what a checkpoint says of its run's teachers; nothing: there are none."""
    return {"teachers": [teacher.as_stored for teacher in teachers]} if teachers else {}


def _teaching(config: Config, teachers: Sequence[Teacher], tokens: Tokens) -> Teaching | None:
    """Return what steps learn from the teachers; None: nothing, so they cost nothing."""
    settings = config.training.distillation
    if not teachers or not settings.weight:
        return None
    models = [teacher.model for teacher in teachers]
    return Teaching(models, len(tokens.vocabulary), settings.weight, settings.temperature)


def _speakers(tokens: Tokens, n_train: int, stored: Stored | None) -> list[Speaker]:
    """Return who speaks in the training part: as stored or remembered for this text, or counted."""
    if stored is not None and stored.get("data_sha256") == tokens.text_sha256:
        known = stored.get("speakers")
        if known is not None:
            return [Speaker(**speaker) for speaker in known]
    return remembered_speakers(
        tokens.cache,
        n_train,
        lambda: count_speakers(tokens.ids[:n_train], tokens.vocabulary),
    )


def _peak_flops(config: Config, model: GPT, device: torch.device) -> float:
    """Return the measured peak of matrix products in FLOP/s; for tiny steps 0: not measured."""
    tokens = config.training.tokens_per_step(config.model)
    if tokens * model.flops_per_token() < SMALLEST_STEP_FLOPS:
        return 0.0
    try:
        with waiting("measuring how fast matrix products are"):
            peak, dtype = peak_for_mfu(device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory to measure the peak of matrix products: MFU is not shown")
        return 0.0
    logger.info(
        "peak: %s matrix products reach %.0f GFLOP/s on this machine; MFU is relative to that",
        dtype,
        peak / 1e9,
    )
    return peak


def make_prompts(run: Run) -> list[str]:
    """Return the prompts with unknown characters replaced, and one from the validation text."""
    replaced = [run.vocabulary.replace_unknown(prompt) for prompt in run.config.sampling.prompts]
    unknown = sorted({character for _, characters in replaced for character in characters})
    if unknown:
        logger.warning(
            "prompts: the characters %r do not occur in the training text and are replaced",
            "".join(unknown),
        )
    prompts = [text for text, _ in replaced]
    return [*prompts, line_start(run.val_windows.ids, run.vocabulary, run.config.seed)]
