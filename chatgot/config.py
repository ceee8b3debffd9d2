"""All keys of the configuration: type, default, unit, range, and whether a resume may change it.

One pydantic model for each section of the YAML. A field's description gives its meaning and unit;
its bounds keep the computations that use it within range. `resume` says what happens when a resumed
run asks for a value that differs from the checkpoint's:
"free": the new value is used; "set": it is used only if `--set` names the key; "never": the run is
refused; "kept": not compared here, the run keeps its own value or decides elsewhere.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)
from pydantic.fields import FieldInfo

from chatgot.encoding_names import codec_name
from chatgot.given_path import expanded, refuse_other_bytes

# Weights and learning rates are fp32: its smallest normal number, and about its largest number.
FP32_MIN = 1.2e-38
FP32_MAX = 3e38
# Up to here step numbers are exact in float64, which the schedule uses. A checkpoint's counters may
# reach 2^62, far more.
MAX_STEPS = 10**15
# About 2,000 years, and less than any step takes.
MAX_MINUTES = 1e9
MIN_MINUTES = 1e-9
# Seeds are 0 to 2^63 - 1: every generator takes these.
SEEDS = 2**63
# Sequences in one step, and so in a micro-batch. Shuffling this many takes 1 s and 1 GB. With
# MAX_LENGTH they are 2^44 tokens. Sequences are counted up to 2^62, which is 2^38 such steps. A
# checkpoint accepts far larger micro-batches.
MAX_SEQUENCES = 2**24
MAX_LENGTH = 2**20
MAX_EPOCHS = 10**9
# A checkpoint is a zip with an entry for each tensor, at most 48 for a block (a weight and its
# optimizer's state). Loading refuses a zip with more entries than these blocks have.
MAX_LAYERS = 1000
# A checkpoint has each of these losses and bad steps; loading refuses more values than they are.
MAX_WINDOW = 10**5
MAX_BAD_STEPS = 10**4
# Model sizes: the largest weight matrix has 2 x MAX_HIDDEN x MAX_WIDTH or 3 x MAX_HEADS x
# MAX_HEAD_SIZE x MAX_WIDTH elements. It takes less than 2^52 bytes, a size that torch can handle.
MAX_WIDTH = 2**20
MAX_HIDDEN = 2**24
MAX_HEADS = 2**14
MAX_HEAD_SIZE = 2**14
# Tokens of a batch x a width of the model. The widest tensor (hidden layer, d_hid null) has 4 times
# as many elements: 2^62 bytes in fp32, just below the overflow of torch's int64 sizes.
MAX_ELEMENTS = 2**58
# Muon multiplies its learning rate by weight_decay, and by up to 2^12 for a matrix's shape: both
# products stay within fp32.
MAX_MUON_RATE = 1e30
MAX_DECAY = 1e6
# More tokens ahead, or larger weights, would leave next to nothing of the loss on the next token.
MAX_LATER_TOKENS = 16
MAX_LATER_WEIGHT = 1e3
# A larger one only makes the gradients of LoRA's matrices larger.
MAX_ALPHA = 1e6
DECAY_SHARE = 0.4  # of a run with lr_schedule wsd
# The teachers' temperature: its square multiplies their part of the loss. Beyond these, their
# probabilities are those of one token, or hardly differ from token to token.
MIN_SOFTENING = 0.05
MAX_SOFTENING = 20.0
MOST_TEACHERS = 64  # in a configuration and in a checkpoint
# The linear layers of a block, for each architecture.
LAYERS = {"gpt": ("qkv", "proj", "up", "down"), "modern": ("qkv", "proj", "gate_up", "down")}

ResumeRule = Literal["free", "set", "never", "kept"]
Value = TypeVar("Value")


class Limits(TypedDict, total=False):
    """The range of a number, as pydantic's `Field` takes it."""

    ge: float
    gt: float
    le: float
    lt: float


def _refuse_bool(value: object) -> object:
    """Refuse a truth value where a number is expected; pydantic would read `true` as 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, found a truth value")
    return value


# Validating with this context means that a user gives the values, not a checkpoint.
GIVEN = {"given": True}


class Explained(ValueError):
    """A wrong value of a key, in words that need no list of what is accepted."""


def _expand_given(value: object, info: ValidationInfo) -> object:
    """Expand `~` and variables in a path that a user gives; one in a checkpoint stays as it is."""
    if not isinstance(value, str) or info.context != GIVEN:
        return value
    try:
        refuse_other_bytes(value)
        return expanded(value)
    except ValueError as error:
        raise Explained(str(error)) from error


def _codec_name(name: str) -> str:
    try:
        return codec_name(name)
    except ValueError as error:
        raise Explained(str(error)) from error


Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True)]
PathText = Annotated[
    str,
    Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$"),
    BeforeValidator(_expand_given),
]

SpeakerName = Annotated[str, Field(min_length=1, max_length=40)]
SourceName = Annotated[str, Field(min_length=1, max_length=4096)]
Weight = Annotated[Float, Field(ge=1e-9, le=1e9)]
EncodingName = Annotated[str, AfterValidator(_codec_name)]
MicroBatch = Annotated[Int, Field(ge=1, le=MAX_SEQUENCES)]
Count = Annotated[Int, Field(ge=1, le=10**9)]
Beta = Annotated[Float, Field(ge=0, lt=1)]
LaterWeight = Annotated[Float, Field(ge=0, le=MAX_LATER_WEIGHT)]
# The logits are divided by it in fp32. 0 means greedy, without a division.
Temperature = Annotated[
    Annotated[Float, Field(ge=FP32_MIN, le=FP32_MAX)] | Literal[0], BeforeValidator(_refuse_bool)
]


def key(
    default: Value,
    meaning: str,
    *,
    resume: ResumeRule = "never",
    **limits: Unpack[Limits],
) -> Value:
    """Declare one YAML key: default, meaning with unit, rule on resume, and range."""
    value: Value = Field(
        default, description=meaning, json_schema_extra={"resume": resume}, **limits
    )
    return value


MAX_THREADS = 4096  # CPU threads, in a configuration and in a checkpoint


class Section(BaseModel):
    """A section of the YAML: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    """`model`: the shape of the network. Only dropout may change on resume."""

    architecture: Literal["gpt", "modern"] = key(
        "gpt",
        "gpt: the block of GPT-2 (LayerNorm, GELU, learned positions); modern: the block of Qwen3 "
        "(RMSNorm, SwiGLU, rotary positions, normalised queries and keys, no biases)",
    )
    d_model: Int = key(
        512,
        "width of the residual stream; a multiple of n_head if head_dim is null",
        ge=1,
        le=MAX_WIDTH,
    )
    n_layers: Int = key(6, "number of blocks", ge=1, le=MAX_LAYERS)
    n_head: Int = key(8, "attention heads in each block", ge=1, le=MAX_HEADS)
    n_kv_head: Int | None = key(
        None,
        "heads of keys and values; each is shared by n_head / n_kv_head query heads; null: n_head; "
        "modern only",
        ge=1,
        le=MAX_HEADS,
    )
    head_dim: Int | None = key(
        None,
        "size of one head, an even number; null: d_model / n_head; modern only",
        ge=1,
        le=MAX_HEAD_SIZE,
    )
    d_hid: Int | None = key(
        None,
        "width of the MLP's hidden layer; null: 4 x d_model (modern: about 8/3 x d_model)",
        ge=1,
        le=MAX_HIDDEN,
    )
    max_seq_length: Int = key(
        256, "context length in tokens; training sequences are this long", ge=1, le=MAX_LENGTH
    )
    rope_base: Float = key(
        10_000.0,
        "base of the rotary positions; a larger base makes the rotations slower; modern only",
        ge=1,
        le=FP32_MAX,
    )
    qk_norm: Bool = key(True, "normalise queries and keys in each head; modern only")
    dropout: Float = key(
        0.0,
        "probability of dropping an activation, in embeddings and residual branches",
        ge=0,
        lt=1,
        resume="set",
    )
    attention_dropout: Float = key(
        0.0,
        "probability of dropping an attention weight; above 0, the fast kernel cannot be used",
        ge=0,
        lt=1,
        resume="set",
    )
    # A norm's backward needs its power of -3/2. Within these bounds that stays within fp32, and so
    # does its sum with a variance.
    layer_norm_eps: Float = key(
        1e-5,
        "added to the variance in LayerNorm, to the mean square in RMSNorm",
        ge=1e-20,
        le=1e10,
    )
    bias: Bool = key(True, "biases in Linear and LayerNorm; modern has none")
    activation: Literal["gelu", "gelu_tanh"] = key(
        "gelu",
        "the MLP's activation: gelu is exact; gelu_tanh is its approximation, as in the GPT-2 of "
        "OpenAI; gpt only",
    )
    # At 1,000 and above, the gradients of a deep gpt are NaN at the first step.
    init_range: Float = key(0.02, "standard deviation of the initial weights", ge=1e-30, le=100)
    tie_embeddings: Bool = key(True, "token embedding and output head share one matrix")

    @property
    def kv_heads(self) -> int:
        """Return the number of heads that keys and values have."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def head_size(self) -> int:
        """Return the number of elements of one head's query, key and value."""
        return self.d_model // self.n_head if self.head_dim is None else self.head_dim

    @model_validator(mode="after")
    def _heads_fit(self) -> "ModelConfig":
        modern = self.architecture == "modern"
        if not modern or self.head_dim is None:
            self._require_whole_heads()
        if not modern:
            self._require_plain_heads()
        if self.n_head % self.kv_heads:
            raise ValueError(
                f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})"
            )
        if modern and self.head_size % 2:
            name = "d_model / n_head" if self.head_dim is None else "head_dim"
            raise ValueError(
                f"{name} ({self.head_size}) must be even: rotary positions rotate pairs of elements"
            )
        return self

    def _require_whole_heads(self) -> None:
        if self.d_model % self.n_head:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of n_head ({self.n_head})"
            )

    def _require_plain_heads(self) -> None:
        """Refuse keys that would change shapes in GPT-2's block, where these are fixed."""
        if self.kv_heads != self.n_head:
            raise ValueError(
                f"n_kv_head ({self.n_kv_head}) must be null or n_head ({self.n_head}): "
                "architecture is gpt"
            )
        if self.head_size != self.d_model // self.n_head:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be null or d_model / n_head "
                f"({self.d_model // self.n_head}): architecture is gpt"
            )


class SpikeConfig(Section):
    """`training.safety.spike`: a check for loss spikes, finer than the check that is always on."""

    enabled: Bool = key(
        False, "also count a step as bad if its loss is far above the recent losses", resume="set"
    )
    window: Int = key(
        100,
        "how many recent good steps a loss is compared with; before that many, nothing is a spike",
        ge=8,
        le=MAX_WINDOW,
    )
    threshold: Float = key(
        8.0,
        "how far above the window's median a spike begins, in units of 1.4826 x the window's "
        "median absolute deviation (for normal noise, one standard deviation)",
        ge=FP32_MIN,
        le=FP32_MAX,
        resume="set",
    )


class SafetyConfig(Section):
    """`training.safety`: what to do when steps go wrong; rarely changed."""

    max_rewinds: Int = key(
        3,
        "how many times a run may rewind to an older checkpoint before it fails (exit 4)",
        ge=0,
        le=1000,
        resume="free",
    )
    rewind_skip_steps: Int = key(
        20,
        "steps of data to skip after the bad steps, in addition to the data of the bad steps",
        ge=0,
        le=10**6,
    )
    amp_retry_steps: Int = key(
        1000,
        "good steps after a fallback before mixed precision is tried again, once in a run",
        ge=1,
        le=MAX_STEPS,
    )
    min_loss_scale: Float = key(
        1.0,
        "smallest loss scale of fp16; a bad step at this scale triggers the fallback",
        ge=FP32_MIN,
        le=FP32_MAX,
    )
    spike: SpikeConfig = SpikeConfig()


class DynamicBatchSizeConfig(Section):
    """`training.dynamic_batch_size`: how many sequences go through the model at once."""

    enabled: Bool = key(
        False,
        "find the fastest micro-batch size that fits into memory, and adapt it while training; a "
        "step still trains on the same sequences",
        resume="set",
    )
    initial: MicroBatch | Literal["auto"] = key(
        "auto",
        "micro-batch size at the start; auto: sizes are tried at the first step, and the fastest "
        "that fits is used",
        resume="set",
    )
    minimum: Int = key(
        1,
        "smallest micro-batch size; if it does not fit into memory, the run fails (exit 6)",
        ge=1,
        le=MAX_SEQUENCES,
        resume="set",
    )
    maximum: Int | None = key(
        None,
        "largest micro-batch size; null: batch_size x accumulate_grad_batches",
        ge=1,
        le=MAX_SEQUENCES,
        resume="set",
    )
    growth_interval_steps: Int = key(
        100, "good steps before the next larger size is tried", ge=1, le=10**9, resume="set"
    )
    # The longest wait is its 64th power, which must stay within float64.
    growth_backoff: Float = key(
        2.0,
        "each time a size is rejected, the wait before its next trial grows by this factor",
        ge=1,
        le=1e4,
        resume="set",
    )
    memory_headroom: Float = key(
        0.1,
        "share of the memory that must stay free when a larger size is tried, with "
        "micro_batch_size and gradient_checkpointing auto, and beside the copy for a save in the "
        "background",
        ge=0,
        lt=1,
        resume="set",
    )
    minimum_gain: Float = key(
        0.03,
        "relative gain in tokens/s that a larger size must bring; -1: any speed is accepted",
        ge=-1,
        le=1e9,
        resume="set",
    )


class LoraConfig(Section):
    """`training.lora`: freeze the model of --init_from, and train small matrices added to it."""

    rank: Int | None = key(
        None,
        "inner size of the matrices added to each layer; null: off, all weights train",
        ge=1,
        le=MAX_WIDTH,
    )
    alpha: Float = key(
        16.0,
        "what the added matrices compute is multiplied by alpha / rank",
        ge=FP32_MIN,
        le=MAX_ALPHA,
    )
    targets: list[Literal["qkv", "proj", "up", "gate_up", "down"]] | None = key(
        None,
        "the linear layers of each block that get them: qkv and proj of the attention, up (modern: "
        "gate_up) and down of the MLP; null: all",
    )

    @property
    def enabled(self) -> bool:
        return self.rank is not None

    def targets_in(self, architecture: str) -> tuple[str, ...]:
        """Return the layers that get matrices, in the order of the block."""
        layers = LAYERS[architecture]
        wanted = layers if self.targets is None else self.targets
        return tuple(layer for layer in layers if layer in wanted)

    @model_validator(mode="after")
    def _has_targets(self) -> "LoraConfig":
        if self.targets is not None and not self.targets:
            raise ValueError("targets is empty: name the layers, or set null for all")
        return self


class DistillationConfig(Section):
    """`training.distillation`: learn from trained models as well, the teachers of this one."""

    teachers: Annotated[list[PathText], Field(min_length=1)] | None = key(
        None,
        "checkpoints (.pt) of the teachers, trained on the same text with the same tokens; null: "
        "off; a resumed run needs the same weights, wherever their files are now",
        resume="kept",
    )
    weight: Float = key(
        0.7,
        "share of the teachers in the loss: (1 - weight) x cross-entropy on the text + weight x "
        "cross-entropy against the mean of the teachers' probabilities; 0: the text alone",
        ge=0,
        le=1,
    )
    temperature: Float = key(
        1.0,
        "the logits of teachers and student are divided by it in the teachers' part of the loss, "
        "which is multiplied by its square; above 1, unlikely tokens count more",
        ge=MIN_SOFTENING,
        le=MAX_SOFTENING,
    )

    @property
    def enabled(self) -> bool:
        return self.teachers is not None

    @model_validator(mode="after")
    def _names_each_teacher_once(self) -> "DistillationConfig":
        teachers = self.teachers or []
        if len(teachers) > MOST_TEACHERS:
            raise ValueError(f"teachers: found {len(teachers)}, expected at most {MOST_TEACHERS}")
        twice = [path for path in teachers if teachers.count(path) > 1]
        if twice:
            raise ValueError(f"teachers: {twice[0]} is listed twice; leave one out")
        return self


class TrainingConfig(Section):
    """`training`: length, batch, optimizer, precision, and when to save, evaluate and log."""

    batch_size: Int = key(12, "sequences in one batch", ge=1, le=MAX_SEQUENCES)
    accumulate_grad_batches: Int = key(
        1,
        "batches in one optimizer step; the gradient is the mean over all their tokens",
        ge=1,
        le=MAX_SEQUENCES,
    )
    micro_batch_size: MicroBatch | Literal["auto"] = key(
        "auto",
        "sequences that go through the model at once; auto: batch_size, but on an NVIDIA card the "
        "size at which the speed stops growing, within its memory",
        resume="set",
    )
    epochs: Int | None = key(
        None,
        "end after this many passes over the training text; null: no limit",
        ge=1,
        le=MAX_EPOCHS,
        resume="free",
    )
    max_steps: Int | None = key(
        None,
        "end after this many optimizer steps; null: no limit",
        ge=1,
        le=MAX_STEPS,
        resume="free",
    )
    max_minutes: Float | None = key(
        None,
        "end after this many minutes of training, counted over all resumes; null: no limit",
        ge=MIN_MINUTES,
        le=MAX_MINUTES,
        resume="free",
    )
    stop_when_no_better: Int | None = key(
        None,
        "end after this many evaluations in a row without a better held-out loss, better beyond "
        "its noise; with lr_schedule wsd the decay begins first, and the run ends after it; null: "
        "off",
        ge=1,
        le=10**9,
        resume="free",
    )
    optimizer: Literal["adamw", "muon"] = key(
        "adamw",
        "adamw: AdamW for all weights; muon: Muon for the hidden matrices, AdamW for the rest",
    )
    learning_rate: Float = key(
        6e-4,
        "peak learning rate, reached after the warmup",
        ge=FP32_MIN,
        le=FP32_MAX,
        resume="set",
    )
    min_learning_rate: Float = key(
        6e-5, "learning rate at the end of the decay", ge=0, le=FP32_MAX, resume="set"
    )
    warmup_steps: Int = key(
        100, "optimizer steps of linear warmup", ge=0, le=MAX_STEPS, resume="set"
    )
    lr_schedule: Literal["cosine", "linear", "wsd"] = key(
        "cosine",
        "shape of the decay after the warmup; wsd: constant, then a linear decay that begins "
        "before the last step, before max_minutes are over, or when stop_when_no_better says so",
        resume="set",
    )
    decay_share: Float = key(
        DECAY_SHARE,
        "share of the run that the decay of wsd takes",
        ge=1e-6,
        le=1,
        resume="set",
    )
    lr_decay_steps: Int | None = key(
        None,
        "step at which the decay ends; null: max_steps, else the steps of all epochs",
        ge=1,
        le=MAX_STEPS,
        resume="set",
    )
    muon_learning_rate: Float = key(
        0.02,
        "Muon's peak learning rate; it follows the same schedule as learning_rate",
        ge=FP32_MIN,
        le=MAX_MUON_RATE,
        resume="set",
    )
    muon_momentum: Float = key(0.95, "Muon's Nesterov momentum", ge=0, lt=1)
    muon_beta2: Float | None = key(
        None,
        "NorMuon: each row of Muon's update is divided by the root of the running mean of its mean "
        "square, with this decay rate; null: plain Muon",
        ge=0,
        lt=1,
    )
    weight_decay: Float = key(0.1, "decoupled weight decay, on matrices only", ge=0, le=MAX_DECAY)
    input_noise: Float = key(
        0.0,
        "share of the tokens that are replaced, where the model reads them in training, by others "
        "of the same window; what it is to predict stays. Against learning a short text by heart",
        ge=0,
        lt=1,
        resume="set",
    )
    multi_token_weights: Annotated[list[LaterWeight], Field(max_length=MAX_LATER_TOKENS)] = key(
        [],
        "multi-token prediction: weights of the losses on the tokens after the next one, nearest "
        "first (the next one has 1). They fade out in the first two thirds of the learning rate's "
        "decay; []: off",
        resume="set",
    )
    betas: tuple[Beta, Beta] = key(
        (0.9, 0.95), "AdamW's decay rates of the first and second moments, each in [0, 1)"
    )
    adam_eps: Float = key(1e-8, "AdamW's epsilon", ge=FP32_MIN, le=FP32_MAX)
    grad_clip: Float | None = key(
        1.0,
        "a gradient with a larger norm is scaled down to this norm; null: no clipping",
        ge=FP32_MIN,
        le=FP32_MAX,
        resume="set",
    )
    mixed_precision: Bool = key(
        False, "run forward and loss under autocast; weights stay fp32", resume="set"
    )
    precision_dtype: Literal["auto", "bf16", "fp16"] = key(
        "auto",
        "dtype of autocast; auto: bf16 if it is fast on this machine, fp16 on older GPUs and MPS",
        resume="set",
    )
    max_nan_before_fallback: Int = key(
        3,
        "bad steps in a row before a fallback to a safer precision (fp16 -> bf16 -> fp32); in "
        "fp32, before a rewind",
        ge=1,
        le=MAX_BAD_STEPS,
        resume="free",
    )
    safety: SafetyConfig = SafetyConfig()
    lora: LoraConfig = LoraConfig()
    distillation: DistillationConfig = DistillationConfig()
    dynamic_batch_size: DynamicBatchSizeConfig = DynamicBatchSizeConfig()
    gradient_checkpointing: Bool | Literal["every_2", "auto"] = key(
        False,
        "recompute activations in backward: less memory, more time; every_2: only in every second "
        "layer; auto: only if a micro-batch does not fit into the memory free at the start",
        resume="set",
    )
    save_checkpoint_steps: Int | None = key(
        100, "steps between two checkpoints; null: off", ge=1, le=MAX_STEPS, resume="free"
    )
    checkpoint_interval_minutes: Float | None = key(
        2.0,
        "minutes between two checkpoints; null: off",
        ge=MIN_MINUTES,
        le=MAX_MINUTES,
        resume="free",
    )
    max_checkpoints_to_keep: Int = key(
        5,
        "how many of the newest checkpoints to keep; the best is kept too",
        ge=1,
        le=10**9,
        resume="free",
    )
    background_saves: Bool | Literal["auto"] = key(
        "auto",
        "copy the state, and let a thread write the checkpoint while training goes on; auto: only "
        "on a GPU, because on a CPU the thread would take a core from training",
        resume="free",
    )
    log_interval: Int | None = key(
        10, "steps between two lines of the log; null: off", ge=1, le=MAX_STEPS, resume="free"
    )
    eval_interval: Int | None = key(
        250, "steps between two evaluations; null: off", ge=1, le=MAX_STEPS, resume="free"
    )
    eval_batches: Count | Literal["all"] = key(
        20,
        "batches in one evaluation, always the same, spread evenly over the validation text; all: "
        "the whole validation text",
        resume="free",
    )
    sample_interval_steps: Int | None = key(
        250, "steps between two rounds of samples; null: off", ge=1, le=MAX_STEPS, resume="free"
    )
    sample_interval_minutes: Float | None = key(
        None,
        "minutes between two rounds of samples; null: off",
        ge=MIN_MINUTES,
        le=MAX_MINUTES,
        resume="free",
    )
    report: Bool = key(
        True, "write report.html next to the curves when the run ends", resume="free"
    )
    threads: Int | None = key(
        None,
        "CPU threads; null: OMP_NUM_THREADS, or else the faster number measured here, "
        "within a container's CPU quota",
        ge=1,
        le=MAX_THREADS,
        resume="kept",
    )
    niceness: Int = key(
        0,
        "nice value added to this program's own: a higher one leaves more of the cores to others",
        ge=0,
        le=19,
        resume="free",
    )
    attention: Literal["auto", "sdpa", "products"] = key(
        "auto",
        "sdpa: torch's scaled_dot_product_attention; products: matrix products, for short contexts "
        "on a CPU; auto: the faster one on this machine",
        resume="kept",
    )
    compile: Bool | Literal["auto"] = key(
        "auto",
        "compile the blocks with torch.compile; auto: if that saves more time than it takes; "
        "false: on a GPU no CUDA graphs either",
        resume="set",
    )

    @model_validator(mode="after")
    def _makes_sense_together(self) -> "TrainingConfig":
        self._require_an_end()
        self._require_countable_steps()
        self._require_a_rate_for_muon()
        if self.dynamic_batch_size.enabled:
            self._require_ordered_sizes()
        return self

    def _require_an_end(self) -> None:
        if self.stop_when_no_better is not None and self.eval_interval is None:
            raise ValueError(
                f"stop_when_no_better={self.stop_when_no_better} counts evaluations, and "
                "eval_interval is null: set eval_interval, or stop_when_no_better=null"
            )
        ends = (self.epochs, self.max_steps, self.max_minutes, self.stop_when_no_better)
        if all(end is None for end in ends):
            raise ValueError(
                "set at least one of epochs, max_steps, max_minutes, stop_when_no_better: "
                "nothing would end the run"
            )
        if self.has_horizon:
            return
        alone = "max_minutes" if self.stop_when_no_better is None else "stop_when_no_better"
        if self.lr_schedule != "wsd":
            raise ValueError(
                f"with {alone} alone, the learning rate's decay has no last step: "
                "set lr_decay_steps, max_steps or epochs, or lr_schedule=wsd"
            )
        if self.decay_share == 1:
            raise ValueError(
                f"with {alone} alone, a decay_share of 1 has no last step: "
                "set a lower decay_share, or lr_decay_steps, max_steps or epochs"
            )

    def _require_countable_steps(self) -> None:
        if self.sequences_per_step > MAX_SEQUENCES:
            raise ValueError(
                f"batch_size ({self.batch_size}) x accumulate_grad_batches "
                f"({self.accumulate_grad_batches}) must be at most {MAX_SEQUENCES:,} sequences"
            )
        if self.micro_batch_size != "auto" and self.micro_batch_size > self.sequences_per_step:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must be at most "
                f"{self.sequences_per_step} (batch_size x accumulate_grad_batches)"
            )

    def _require_a_rate_for_muon(self) -> None:
        """Refuse a `min_learning_rate` so high that Muon's learning rate would overflow fp32."""
        ratio = self.min_learning_rate / self.learning_rate
        highest = self.muon_learning_rate * max(1.0, ratio)
        if self.optimizer == "muon" and highest > MAX_MUON_RATE:
            raise ValueError(
                "Muon's learning rate would rise to "
                f"muon_learning_rate ({self.muon_learning_rate:g}) x min_learning_rate "
                f"({self.min_learning_rate:g}) / learning_rate ({self.learning_rate:g}), "
                f"which must be at most {MAX_MUON_RATE:g}"
            )

    def _require_ordered_sizes(self) -> None:
        dynamic = self.dynamic_batch_size
        most = self.sequences_per_step
        sizes = [dynamic.minimum]
        if dynamic.initial != "auto":
            sizes.append(dynamic.initial)
        if dynamic.maximum is not None:
            sizes.append(dynamic.maximum)
        sizes.append(most)
        if sizes != sorted(sizes):
            raise ValueError(
                f"dynamic_batch_size needs minimum <= initial <= maximum <= {most} "
                f"(batch_size x accumulate_grad_batches), "
                f"found {dynamic.minimum}, {dynamic.initial}, {dynamic.maximum}"
            )

    @property
    def has_horizon(self) -> bool:
        """Return whether it is known beforehand at which step the learning rate's decay ends."""
        ends = (self.lr_decay_steps, self.max_steps, self.epochs)
        return any(end is not None for end in ends)

    @property
    def sequences_per_step(self) -> int:
        """Return S, the sequences of one optimizer step."""
        return self.batch_size * self.accumulate_grad_batches

    @property
    def uses_muon(self) -> bool:
        """Return whether Muon updates any weight; LoRA's small matrices are AdamW's."""
        return self.optimizer == "muon" and not self.lora.enabled

    def tokens_per_step(self, model: ModelConfig) -> int:
        return self.sequences_per_step * model.max_seq_length


class DataConfig(Section):
    """`data`: the text and its split."""

    path: PathText | Annotated[list[PathText], Field(min_length=1)] | None = key(
        None,
        "text file, a folder of them, or a list of both; between two files stands an end-of-text "
        "token; null: the default text, Shakespeare's plays",
        resume="free",
    )
    shards: PathText | None = key(
        None,
        "folder of token shards that prepare_data.py --shards has made, or its address, such as "
        "s3://bucket/folder: the text is read from there block by block, so it may be larger than "
        "this machine; its tokenizer and its held-out part were chosen then; null: the text of "
        "path",
        resume="free",
    )
    encoding: EncodingName | None = key(
        None,
        "encoding of the text file, such as cp1250 or gb18030; null: it is guessed, and a text "
        "that no guess fits is refused",
        resume="free",
    )
    # Closer to 0 or 1, one of the two parts would be empty in any real text.
    test_split: Float = key(
        0.1,
        "share of the text held out for validation; see split",
        ge=1e-9,
        le=0.999999,
    )
    split: Literal["tail", "documents"] = key(
        "tail",
        "what is held out; tail: the end of each source; documents: whole documents, which "
        "<|endoftext|> on a line of its own separates, chosen by their content, so that they stay "
        "held out when others are added; what nearly repeats them never trains",
    )
    tokenizer: Literal["char", "bpe"] = key(
        "char",
        "what a token is; char: a character; bpe: a subword, from byte-level BPE that is trained "
        "on the training part of the text",
    )
    # With fewer there is no room for the 256 bytes and the end-of-text token.
    vocab_size: Int = key(
        2048, "most tokens of the vocabulary of bpe; a short text has fewer", ge=257, le=2**18
    )
    learn_from: Annotated[list[SpeakerName], Field(min_length=1)] | None = key(
        None,
        "speakers, as they stand before the colon of their lines: the loss is that of their lines "
        "only, in training and evaluation, and a pass over the text leaves out what has none; "
        "null: all of the text",
    )
    mixture: Annotated[dict[SourceName, Weight], Field(min_length=1)] | None = key(
        None,
        "weight of each source of the text, by its name in path: training windows come from them "
        "in these shares, and each source has epochs of its own; null: as much as there is of each",
    )
    replay: Float | None = key(
        None,
        "with --init_from: share of the training windows from the text of the run before it, "
        "which the model would forget otherwise; 0: none, but the held-out loss on it is measured; "
        "null: that text is not read",
        ge=0,
        le=0.999,
    )
    replay_path: PathText | None = key(
        None,
        "where the replayed text is; null: where the run before had it; a resumed run knows it",
        resume="kept",
    )
    allow_change: Bool = key(
        False,
        "true: a resumed run may continue with a different text, if its characters are the same",
        resume="kept",
    )

    @model_validator(mode="after")
    def _shards_are_alone(self) -> "DataConfig":
        """Refuse shards together with what needs the text itself."""
        beside = ("path", "encoding", "mixture", "learn_from", "replay")
        found = [name for name in beside if getattr(self, name) is not None]
        if self.shards is not None and found:
            raise ValueError(
                f"shards ({self.shards}) and {found[0]}: shards are a text of their own; "
                f"set data.{found[0]}=null or data.shards=null"
            )
        return self


class SamplingConfig(Section):
    """`sampling`: the samples of a training, and how chat and serve draw texts by default."""

    prompts: list[Annotated[str, Field(min_length=1)]] = key(
        ["KING:\n", "What news from the court?\n"],
        "texts for the model to continue; one more prompt is taken from the validation text",
        resume="free",
    )
    max_new_tokens: Int = key(200, "most tokens in one sample", ge=1, le=10**9, resume="free")
    temperature: Temperature = key(
        0.8,
        "below 1: more likely text; above 1: more varied; 0: always the most likely token",
        resume="free",
    )
    top_k: Int | None = key(
        None,
        "draw from the k most likely tokens only; null: from all",
        ge=1,
        le=10**9,
        resume="free",
    )
    top_p: Float | None = key(
        None,
        "draw from the most likely tokens that together reach this probability; null: from all",
        ge=FP32_MIN,
        le=1,
        resume="free",
    )
    originality: Bool = key(
        True,
        "measure after each sampling what the samples copy from the training text, beside what the "
        "held-out text shares with it; takes 5 bytes of memory for each byte of the text, and of a "
        "text above 32 MB parts are looked at; not with data.shards",
        resume="free",
    )


class PathsConfig(Section):
    """`paths`: where a run writes. In paths, `~` is home and `$NAME` a variable's value."""

    checkpoints: PathText = key("checkpoints", "folder of the checkpoints", resume="free")
    logs: PathText = key("logs", "folder of logs and TensorBoard events", resume="free")
    cache: PathText = key("data/cache", "folder of the token caches", resume="free")


class DistributedConfig(Section):
    """`distributed`: how ranks that torchrun has started share a run; one process ignores it."""

    strategy: Literal["auto", "ddp", "fsdp"] = key(
        "auto",
        "under torchrun; ddp: each rank has the whole model; fsdp: each rank has a part of the "
        "weights and of the optimizer's state; auto: ddp where that fits into a rank's memory",
        resume="free",
    )
    backend: Literal["auto", "gloo", "nccl"] = key(
        "auto",
        "under torchrun: what sends tensors; auto: nccl between NVIDIA cards, else gloo",
        resume="free",
    )
    timeout_s: Float = key(
        300.0,
        "under torchrun: seconds after which a rank that does not answer counts as lost",
        ge=1,
        le=86400,
        resume="free",
    )
    one_file_gb: Float = key(
        20.0,
        "under torchrun: GB of tensors above which a checkpoint is a folder, with a file of each "
        "rank; 0: always",
        ge=0,
        le=1e9,
        resume="free",
    )


class Config(Section):
    """The whole configuration: one YAML file and the `--set` options."""

    seed: Int = key(1337, "seed of initialisation, data order, dropout and samples", ge=0, lt=SEEDS)
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "where to train; auto: cuda if available, else mps, else cpu", resume="free"
    )
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    paths: PathsConfig = PathsConfig()
    distributed: DistributedConfig = DistributedConfig()

    @model_validator(mode="after")
    def _tensors_have_a_size(self) -> "Config":
        """Refuse a batch whose tensors have more bytes than torch can count."""
        model = self.model
        batch_size = self.training.batch_size
        if self.training.micro_batch_size != "auto":
            batch_size = max(batch_size, self.training.micro_batch_size)
        tokens = batch_size * model.max_seq_length
        widths = {
            f"model.d_model ({model.d_model})": model.d_model,
            f"model.d_hid ({model.d_hid})": model.d_hid or 0,
            f"model.n_head ({model.n_head}) x head size ({model.head_size})": model.n_head
            * model.head_size,
            f"model.n_head ({model.n_head}) x model.max_seq_length": model.n_head
            * model.max_seq_length,
        }
        for keys, width in widths.items():
            if tokens * width > MAX_ELEMENTS:
                raise ValueError(
                    f"training.batch_size ({batch_size}) x model.max_seq_length "
                    f"({model.max_seq_length}) x {keys} must be at most {MAX_ELEMENTS:,}"
                )
        return self

    @model_validator(mode="after")
    def _lora_fits(self) -> "Config":
        """Refuse layers that the architecture does not have, and a rank that adds nothing."""
        lora = self.training.lora
        model = self.model
        layers = LAYERS[model.architecture]
        missing = [target for target in lora.targets or () if target not in layers]
        if missing:
            raise ValueError(
                f"training.lora.targets: {', '.join(missing)}: "
                f"the linear layers of architecture {model.architecture} are {', '.join(layers)}"
            )
        if lora.rank is not None and lora.rank > model.d_model:
            raise ValueError(
                f"training.lora.rank ({lora.rank}) must be at most model.d_model "
                f"({model.d_model}): more adds nothing"
            )
        return self


MAPPINGS = ("data.mixture",)  # keys whose values are dictionaries


def keys_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every key with its dotted name (`training.batch_size`) and its pydantic field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def resume_rule(field: FieldInfo) -> str:
    """Return the key's `ResumeRule`."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "every key is declared by key()"
    return str(extra["resume"])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one dictionary of dotted names.

    The value of a key stays whole, even if it is a dictionary.
    """
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name not in MAPPINGS:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def changes_on_resume(
    stored: dict[str, Any], config: Config, named_by_set: set[str]
) -> tuple[list[str], list[str]]:
    """Compare the stored configuration with the new one.

    Returns (taken, refused): two lists of lines "key: old -> new".

    named_by_set: the dotted names given with `--set`. A key with the rule "set" is refused unless
        it is one of them.
    """
    taken: list[str] = []
    refused: list[str] = []
    before = flat(stored)
    after = flat(config.model_dump(mode="json"))
    for name, field in keys_of():
        if before.get(name) == after[name]:
            continue
        new = as_in_yaml(after[name])
        line = f"{name}: {as_in_yaml(before.get(name))} -> {new}"
        rule = resume_rule(field)
        if rule == "free" or (rule == "set" and name in named_by_set):
            taken.append(line)
        elif rule == "set":
            refused.append(f"{line} (to change it, add --set {name}={new})")
        elif rule == "never":
            refused.append(line)
    return taken, refused


def as_in_yaml(value: object) -> str:
    """Return a value as YAML writes it, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def settings_hash(config: Config) -> str:
    """Return the SHA-256 of all settings, in hex."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def remarks(config: Config) -> list[str]:
    """Return one line for each key that was set but has no effect or an unusual one."""
    return [
        *_remarks_on_model(config.model),
        *_remarks_on_training(config),
        *_remarks_on_samples(config),
        *_remarks_on_data(config.data),
    ]


def _remarks_on_model(model: ModelConfig) -> Iterator[str]:
    if model.architecture == "modern":
        if "bias" in model.model_fields_set and model.bias:
            yield "model.bias=true has no effect: the modern architecture has no biases"
        if model.activation != "gelu":
            yield f"model.activation={model.activation} has no effect: architecture is modern"
        return
    defaults = ModelConfig()
    for name in ("rope_base", "qk_norm"):
        value = getattr(model, name)
        if value != getattr(defaults, name):
            yield f"model.{name}={as_in_yaml(value)} has no effect: architecture is gpt"


def _remarks_on_training(config: Config) -> Iterator[str]:
    training = config.training
    dynamic = training.dynamic_batch_size
    if training.precision_dtype != "auto" and not training.mixed_precision:
        yield (
            f"training.precision_dtype={training.precision_dtype} has no effect: "
            "mixed_precision is false"
        )
    # on a card, for gradient_checkpointing and for saves, the headroom counts in any case
    counts = {"memory_headroom": dynamic.memory_headroom}
    if not dynamic.enabled and dynamic != DynamicBatchSizeConfig(**counts):
        yield "training.dynamic_batch_size: its other keys have no effect: enabled is false"
    if dynamic.enabled and training.micro_batch_size != "auto":
        yield (
            f"training.micro_batch_size={training.micro_batch_size} has no effect: "
            "dynamic_batch_size is enabled"
        )
    if training.min_learning_rate > training.learning_rate:
        yield "training.min_learning_rate is above learning_rate: the rate rises after the warmup"
    if training.lr_schedule != "wsd" and training.decay_share != DECAY_SHARE:
        yield f"training.decay_share has no effect: lr_schedule is {training.lr_schedule}"
    muons_keys = {"muon_learning_rate", "muon_momentum", "muon_beta2"}
    if training.optimizer != "muon" and muons_keys & training.model_fields_set:
        yield (
            "training.muon_learning_rate, muon_momentum and muon_beta2 have no effect: "
            "optimizer is adamw"
        )
    yield from _remarks_on_lora(training)
    yield from _remarks_on_multi_token(config)
    yield from _remarks_on_distillation(training.distillation)
    if training.attention == "products" and config.model.attention_dropout:
        yield "training.attention=products has no effect: attention_dropout needs sdpa"


def _remarks_on_lora(training: TrainingConfig) -> Iterator[str]:
    if training.lora.enabled and training.optimizer == "muon":
        yield (
            "training.optimizer=muon has no effect: Muon is for whole matrices, "
            "and AdamW updates the small ones of LoRA"
        )
    if not training.lora.enabled and training.lora != LoraConfig():
        yield "training.lora: its other keys have no effect: rank is null"


def _remarks_on_multi_token(config: Config) -> Iterator[str]:
    weights = config.training.multi_token_weights
    longest = config.model.max_seq_length - 1
    distillation = config.training.distillation
    if weights and distillation.enabled and distillation.weight == 1:
        yield "training.multi_token_weights has no effect: distillation.weight is 1"
    elif len(weights) > longest:
        yield (
            f"training.multi_token_weights: those beyond the first {longest} have no effect: "
            f"model.max_seq_length is {longest + 1}"
        )


def _remarks_on_distillation(distillation: DistillationConfig) -> Iterator[str]:
    if not distillation.enabled:
        if distillation != DistillationConfig():
            yield "training.distillation: its other keys have no effect: teachers is null"
    elif not distillation.weight:
        yield (
            "training.distillation.weight=0: no step learns from the teachers; "
            "they are only compared with at the end"
        )


def _remarks_on_data(data: DataConfig) -> Iterator[str]:
    if data.shards is not None:
        defaults = DataConfig()
        names = ("test_split", "split", "tokenizer", "vocab_size", "replay_path")
        for name in names:
            if getattr(data, name) != getattr(defaults, name):
                value = as_in_yaml(getattr(data, name))
                yield f"data.{name}={value} has no effect: the shards were made with their own"
        return
    if data.tokenizer == "char" and data.vocab_size != DataConfig().vocab_size:
        yield f"data.vocab_size={data.vocab_size} has no effect: data.tokenizer is char"


def _remarks_on_samples(config: Config) -> Iterator[str]:
    sampling = config.sampling
    if sampling.temperature == 0 and (sampling.top_k is not None or sampling.top_p is not None):
        yield (
            "sampling.top_k and top_p have no effect: "
            "temperature 0 always takes the most likely token"
        )
