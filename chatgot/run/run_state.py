"""Everything in a run that changes while training: counters in named parts, and how to store them.

Weights, optimizer and loss scaler keep their own state. The same pydantic models check the counters
before a save and after loading, so every saved state can be loaded.
"""

import copy
import math
import random
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from chatgot.config import MAX_THREADS
from chatgot.model.attention import Kernel
from chatgot.model.lora import load_trained_state, trained_state
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.optim import allocate_state
from chatgot.numerics.precision import Precision

LARGEST_COUNT = 1 << 62
LARGEST_MICRO_BATCH = 1 << 30  # sequences; too large for any machine
MOST_BLOCKS = 64  # of an evaluation, whose losses are kept

Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Step = Annotated[int, Field(ge=-1, le=LARGEST_COUNT)]  # -1: never yet
Targets = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Sequences = Annotated[int, Field(ge=1, le=LARGEST_MICRO_BATCH)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Loss = Annotated[float, Field(ge=-math.inf)]  # anything but NaN
Reason = Annotated[str, Field(max_length=1000)]


def kept_on_rewind(default: Any, *, may_be_missing: bool = False) -> Any:
    """Declare a counter that a rewind does not change; all others go back with the weights.

    may_be_missing: checkpoints that are older than this counter have its default.
    """
    extra: dict[str, JsonValue] = {"kept_on_rewind": True, "may_be_missing": may_be_missing}
    return Field(default, json_schema_extra=extra)


def newer_counter(default: Any) -> Any:
    """Declare a counter that older checkpoints lack; a rewind takes it back with the weights."""
    return Field(default, json_schema_extra={"may_be_missing": True})


def newer_part(kind: Callable[[], Any]) -> Any:
    """Declare a part that older checkpoints lack as a whole."""
    return Field(default_factory=kind, json_schema_extra={"may_be_missing": True})


class Part(BaseModel):
    """A group of counters: exact types, no unknown names."""

    model_config = ConfigDict(strict=True, extra="forbid", revalidate_instances="always")


class BadStep(Part):
    """A step whose loss or gradient was not finite, or whose loss was too high."""

    step: Count
    position: Count
    loss: float
    grad_norm: float


class SizeChange(Part):
    """A change of the micro-batch size after step `step`."""

    step: Count
    old: Sequences
    new: Sequences
    reason: Reason


class RejectedSize(Part):
    """A micro-batch size that is not tried again before step `until`."""

    size: Sequences
    times: Count
    until: Count
    reason: Reason


class Progress(Part):
    """How far the run is."""

    global_step: Count = 0  # optimizer updates attempted
    position: Count = 0  # index of the group of sequences that the next step trains on
    skipped_ranges: list[tuple[Count, Count]] = []  # [first, end) of positions, in order
    skipped_steps: Count = 0  # skipped updates among the steps up to global_step
    tokens: Count = 0  # tokens trained on
    time_s: float = Field(  # seconds in the training loop, over all resumes
        0.0, ge=0, allow_inf_nan=False, json_schema_extra={"kept_on_rewind": True}
    )
    train_loss: float | None = None  # of the last step: token-weighted mean, nats per token
    # of the last step: the cross-entropy against the teachers, where there are any
    distillation_loss: float | None = newer_counter(None)
    grad_norm: float | None = None  # of the last step, before clipping
    lr: float | None = None  # of the last step
    tokens_per_s: float | None = None  # over the steps between the last two rows of metrics

    def advance(self) -> None:
        """Go to the next group of sequences; jump over skipped ranges."""
        self.position += 1
        self.leave_out()

    def leave_out(self) -> None:
        """If the position is in a skipped range, move it to the end of the range."""
        for first, end in self.skipped_ranges:
            if first <= self.position < end:
                self.position = end

    @model_validator(mode="after")
    def _counts_fit_each_other(self) -> "Progress":
        if self.position < self.global_step:
            raise ValueError("position is below global_step")
        if self.skipped_steps > self.global_step:
            raise ValueError("skipped_steps is above global_step")
        return self


class Modes(Part):
    """How steps are computed. Each choice changes the bits, so a resumed run keeps its choices."""

    precision: Precision = kept_on_rewind("fp32")  # the current one
    # the one at the start; after a fallback `precision` differs
    asked_precision: Precision = kept_on_rewind("fp32")
    precision_raised: bool = kept_on_rewind(False)  # it was tried again after a fallback, once
    attention: Kernel = kept_on_rewind("sdpa")  # the kernel
    compiled: bool = kept_on_rewind(False)  # the blocks run compiled
    # micro-batches are replayed as CUDA graphs
    graphed: bool = kept_on_rewind(False, may_be_missing=True)
    # of the matrix products in Muon's updates
    muon_precision: Literal["fp32", "bf16"] = kept_on_rewind("fp32")
    threads: int = Field(1, ge=1, le=MAX_THREADS, json_schema_extra={"kept_on_rewind": True})
    # it failed in its proof or in a step, so it stays off
    gradient_checkpointing_failed: bool = kept_on_rewind(False)
    # what `gradient_checkpointing: auto` chose; None: there was nothing to choose
    gradient_checkpointing_chosen: bool | None = kept_on_rewind(None, may_be_missing=True)
    # the GPU that all this was chosen for; empty: no NVIDIA card
    card: Annotated[str, Field(max_length=200)] = kept_on_rewind("", may_be_missing=True)


class MicroBatch(Part):
    """How many sequences go through the model at once."""

    size: Sequences = kept_on_rewind(1)  # per forward and backward
    eval_size: Sequences = kept_on_rewind(1)  # per forward of an evaluation
    history: list[SizeChange] = kept_on_rewind([])
    rejected: list[RejectedSize] = kept_on_rewind([])  # in ascending order of size
    next_growth_step: Count = kept_on_rewind(0)  # no larger size is tried before this step


class Health(Part):
    """How well the steps went, and the countermeasures so far."""

    good_steps: Count = 0  # in a row, in the current precision
    bad_steps: list[BadStep] = []  # in a row, up to the last step
    bad_before_rung: Count = 0  # how many of `bad_steps` came before the last fallback
    skips: Count = kept_on_rewind(0)  # skipped updates, including those that a rewind has undone
    rewinds: Count = kept_on_rewind(0)
    rewound_to: Step = kept_on_rewind(-1)  # step that the last rewind went back to, 0: the start
    best_train_loss: Loss = math.inf  # lowest loss of a step so far, teachers' part included
    recent_losses: list[Finite] = []  # of the last good steps, for the spike statistic


class Marks(Part):
    """At which step each thing was done last, so that a resume does nothing twice."""

    val_loss: float | None = None  # of the last evaluation, nats per token
    # the same of each source alone, where it is measured; and at the run's first evaluation
    loss_by_source: dict[str, float] = newer_counter({})
    first_loss_by_source: dict[str, float] = newer_counter({})
    best_val_loss: Loss = math.inf
    best_step: Step = -1
    last_eval_step: Step = -1
    last_sample_step: Count = 0  # 0: untrained weights are not sampled
    last_save_step: Step = 0  # 0: untrained weights are not saved; -1: weights of init_from are
    last_proof_step: Count = 0  # of gradient checkpointing


class Schedule(Part):
    """Where the decay of `lr_schedule: wsd` began before the planned step; see decay_in_force."""

    decay_began: Step = -1  # -1: it did not
    decay_steps: Count = 0  # how many it takes
    decay_cause: Literal["", "max_minutes", "no better"] = ""
    # whether the decay has been seen to begin, also at the planned step
    in_decay: bool = False

    @model_validator(mode="after")
    def _decay_is_whole(self) -> "Schedule":
        began = self.decay_began >= 0
        if began != (self.decay_steps > 0) or began != bool(self.decay_cause):
            raise ValueError("decay_began, decay_steps and decay_cause contradict each other")
        return self


class Plateau(Part):
    """What evaluations are compared with, for `stop_when_no_better`."""

    # of the evaluation to beat: (loss, number of targets) of each block of batches
    reference: list[tuple[Finite, Targets]] = Field([], max_length=MOST_BLOCKS)
    reference_step: Step = -1
    no_better: Count = 0  # evaluations in a row since then that were not better
    # of the last comparison: the standard error of the mean difference; None: one block
    noise: Finite | None = None


class RunState(Part):
    """All counters of a run."""

    run_id: str = kept_on_rewind("")  # {config}_{timestamp}; a new run has none yet
    from_seed: bool = True  # began with fresh weights, not with another run's
    progress: Progress = Field(default_factory=Progress)
    modes: Modes = Field(default_factory=Modes)
    micro_batch: MicroBatch = Field(default_factory=MicroBatch)
    health: Health = Field(default_factory=Health)
    marks: Marks = Field(default_factory=Marks)
    schedule: Schedule = newer_part(Schedule)
    plateau: Plateau = newer_part(Plateau)


def change_size(state: RunState, size: int, reason: str) -> None:
    """Take another micro-batch from the next step on, and remember why."""
    change = SizeChange(
        step=state.progress.global_step, old=state.micro_batch.size, new=size, reason=reason
    )
    state.micro_batch.history = [*state.micro_batch.history, change]
    state.micro_batch.size = size


def overwrite(state: RunState, other: RunState) -> None:
    """Copy the values of `other` into `state` in place; references to its parts stay valid."""
    for name in RunState.model_fields:
        mine = getattr(state, name)
        theirs = getattr(other, name)
        if isinstance(mine, Part):
            for field in type(mine).model_fields:
                setattr(mine, field, copy.deepcopy(getattr(theirs, field)))
        else:
            setattr(state, name, theirs)


def after_rewind(now: RunState, stored: RunState) -> RunState:
    """Return the counters after a rewind to `stored`; those `kept_on_rewind` are as in `now`."""
    result = stored.model_copy(deep=True)
    _keep(now, result)
    for name in RunState.model_fields:
        part = getattr(result, name)
        if isinstance(part, Part):
            _keep(getattr(now, name), part)
    return result


def _keep(now: Part, result: Part) -> None:
    for name, field in type(now).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("kept_on_rewind"):
            setattr(result, name, copy.deepcopy(getattr(now, name)))


Stored = Mapping[str, Any]  # a checkpoint's content, or a StoredState


class StoredState(TypedDict):
    """Everything that changes while training, as plain values and tensors."""

    model_state_dict: dict[str, Tensor]  # with LoRA: of the added weights alone
    optimizer_state_dict: dict[str, Any]
    scaler_state_dict: dict[str, Any]
    state: dict[str, Any]  # RunState, nested
    rng: dict[str, Any]


def collect_state(
    state: RunState, model: nn.Module, optimizer: Optimizer, scaler: SafeGradScaler
) -> StoredState:
    """Return everything that changes while training; tensors are shared, not copied.

    The counters get the same check as when loading, so every saved state can be loaded.
    Raises: pydantic.ValidationError.
    """
    return {
        "model_state_dict": trained_state(model),
        "optimizer_state_dict": optimizer.state_dict(),
        "scaler_state_dict": scaler.state_dict(),
        "state": RunState.model_validate(state.model_dump()).model_dump(),
        "rng": generator_states(),
    }


def restore_state(
    stored: Stored,
    state: RunState,
    model: nn.Module,
    optimizer: Optimizer,
    scaler: SafeGradScaler,
) -> None:
    """Load a collected state, the generators last. The caller has checked that it fits."""
    load_trained_state(model, stored["model_state_dict"])
    optimizer.load_state_dict(stored["optimizer_state_dict"])
    allocate_state(optimizer)  # a state from before the first update has none
    scaler.load_state_dict(stored["scaler_state_dict"])
    overwrite(state, RunState.model_validate(stored["state"]))
    set_generator_states(stored["rng"])


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators as tensors, lists and plain numbers."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Load the states from `generator_states` into the global generators."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
