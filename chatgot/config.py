"""Which keys exist: type, default, unit, range, and what a resumed run may change.

One pydantic model per section of the YAML. Every field's description gives its meaning and unit; `resume` says what
happens when a resumed run asks for another value than the one stored in the checkpoint:
"free": taken, "set": taken only when `--set` names the key, "never": refused, "kept": not compared, handled elsewhere.
"""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _refuse_bool(value: Any) -> Any:
    """Keep `yes` and `true` from counting as the number 1, which pydantic would accept."""
    if isinstance(value, bool):
        raise ValueError("expected a number, found a truth value")
    return value


Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Bool = Annotated[bool, Field(strict=True)]
PathText = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]


def key(
    default: Any,
    meaning: str,
    *,
    resume: Literal["free", "set", "never", "kept"] = "never",
    **limits: Any,
) -> Any:
    """Declare one YAML key: its default, its meaning with the unit, what a resumed run may do with it, its range."""
    return Field(default, description=meaning, json_schema_extra={"resume": resume}, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelConfig(Section):
    architecture: Literal["gpt", "modern"] = key(
        "gpt",
        "gpt: GPT-2's block: LayerNorm, GELU, learned positions; modern: Qwen3's: RMSNorm, SwiGLU, rotary positions, "
        "normalised queries and keys, no biases",
    )
    d_model: Int = key(512, "width of the residual stream, a multiple of n_head", ge=1)
    n_layers: Int = key(6, "number of blocks", ge=1)
    n_head: Int = key(8, "attention heads in each block", ge=1)
    n_kv_head: Int | None = key(None, "heads of keys and values; null: n_head; modern only", ge=1)
    head_dim: Int | None = key(
        None, "elements of one head; null: d_model / n_head; modern only", ge=1
    )
    rope_base: Float = key(10_000.0, "base of the rotary positions' wavelengths; modern only", ge=1)
    qk_norm: Bool = key(True, "normalise queries and keys in each head; modern only")
    d_hid: Int | None = key(
        None, "width of the MLP's hidden layer; null: 4 x d_model, modern 8/3 x d_model", ge=1
    )
    max_seq_length: Int = key(256, "context, in tokens; a training sequence has this length", ge=1)
    dropout: Float = key(
        0.0,
        "share of activations dropped on embeddings and residual branches",
        ge=0,
        lt=1,
        resume="set",
    )
    attention_dropout: Float = key(
        0.0,
        "share of attention weights dropped; above 0 it rules out the fast kernel",
        ge=0,
        lt=1,
        resume="set",
    )
    layer_norm_eps: Float = key(
        1e-5, "added to the variance in LayerNorm, to the mean square in RMSNorm", gt=0
    )
    bias: Bool = key(True, "biases in Linear and LayerNorm; modern has none")
    init_range: Float = key(0.02, "standard deviation of the initial weights", gt=0)
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
    def _heads_divide_the_width(self) -> "ModelConfig":
        if self.d_model % self.n_head and self.head_dim is None:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of n_head ({self.n_head})"
            )
        if self.architecture == "modern" and self.head_size % 2:
            found = self.head_size
            raise ValueError(
                f"d_model / n_head ({found}) must be even: rotary positions turn pairs of elements"
            )
        return self


class SpikeConfig(Section):
    enabled: Bool = key(
        False, "also count a step as bad whose loss stands far out of the recent ones", resume="set"
    )
    window: Int = key(
        100, "good steps that a loss is compared with; before so many are there, none is bad", ge=8
    )
    threshold: Float = key(
        8.0,
        "how far above the window's median, in 1.4826 x its median absolute deviation",
        gt=0,
        resume="set",
    )


class DynamicBatchSizeConfig(Section):
    enabled: Bool = key(
        False,
        "find, lower and raise the sequences that go through at once; what a step computes stays",
        resume="set",
    )
    initial: Int | Literal["auto"] = key(
        "auto",
        "sequences at the start; auto: the fastest valid size, tried at the first step",
        resume="set",
    )
    minimum: Int = key(
        1, "fewest sequences; where they do not fit the run ends (exit 6)", ge=1, resume="set"
    )
    maximum: Int | None = key(
        None, "most sequences; null: batch_size x accumulate_grad_batches", ge=1, resume="set"
    )
    growth_interval_steps: Int = key(
        100, "good steps before the next larger size is tried", ge=1, le=10**9, resume="set"
    )
    growth_backoff: Float = key(
        2.0,
        "factor by which that waiting time grows with each rejection of a size",
        ge=1,
        resume="set",
    )
    memory_headroom: Float = key(
        0.1, "share of the memory that a larger size must leave free", ge=0, lt=1, resume="set"
    )
    minimum_gain: Float = key(
        0.03,
        "relative rise of tokens/s that a larger size must bring; -1: any speed will do",
        ge=-1,
        resume="set",
    )


class TrainingConfig(Section):
    batch_size: Int = key(12, "sequences of one batch", ge=1)
    accumulate_grad_batches: Int = key(
        1, "batches of one optimizer step, gradients averaged over all tokens", ge=1
    )
    epochs: Int | None = key(
        None,
        "end after this many passes over the training text; null: no limit",
        ge=1,
        resume="free",
    )
    max_steps: Int | None = key(
        None, "end after this many optimizer steps; null: no limit", ge=1, resume="free"
    )
    max_minutes: Float | None = key(
        None,
        "end after this many minutes of training, all resumes together; null: no limit",
        gt=0,
        resume="free",
    )
    optimizer: Literal["adamw", "muon"] = key(
        "adamw",
        "adamw: AdamW, fused kernels; muon: Muon for the hidden matrices, AdamW for the rest",
    )
    learning_rate: Float = key(
        6e-4, "peak learning rate, reached after the warmup", gt=0, resume="set"
    )
    min_learning_rate: Float = key(
        6e-5, "learning rate at the end of the decay", ge=0, resume="set"
    )
    warmup_steps: Int = key(100, "optimizer steps of linear warmup", ge=0, resume="set")
    lr_schedule: Literal["cosine", "linear"] = key(
        "cosine", "shape of the decay after the warmup", resume="set"
    )
    lr_decay_steps: Int | None = key(
        None,
        "step at which the decay ends; null: max_steps, else the steps of all epochs",
        ge=1,
        resume="set",
    )
    muon_learning_rate: Float = key(
        0.02,
        "Muon's peak learning rate; it rises and falls as learning_rate does",
        gt=0,
        resume="set",
    )
    muon_momentum: Float = key(0.95, "Muon's momentum, Nesterov's kind", ge=0, lt=1)
    weight_decay: Float = key(0.1, "decoupled weight decay, on matrices only", ge=0)
    betas: tuple[Float, Float] = key(
        (0.9, 0.95), "AdamW's decay rates of first and second moment, each in [0, 1)"
    )
    adam_eps: Float = key(1e-8, "AdamW's epsilon", gt=0)
    grad_clip: Float | None = key(
        1.0, "largest norm of the gradient; null: no clipping", gt=0, resume="set"
    )
    mixed_precision: Bool = key(
        False, "autocast around forward and loss; weights stay fp32", resume="set"
    )
    precision_dtype: Literal["auto", "bf16", "fp16"] = key(
        "auto",
        "autocast's dtype; auto: bf16 where this machine is fast at it, fp16 on older GPUs",
        resume="set",
    )
    max_nan_before_fallback: Int = key(
        3,
        "bad steps in a row before the precision is lowered, then training rewinds",
        ge=1,
        resume="free",
    )
    min_loss_scale: Float = key(
        1.0, "floor of fp16's loss scale; a bad step there lowers the precision", gt=0
    )
    amp_retry_steps: Int = key(
        1000, "good steps after a fallback until the precision may climb back, once", ge=1
    )
    max_rewinds: Int = key(
        3, "rewinds to an older checkpoint before training stops (exit 4)", ge=0, resume="free"
    )
    rewind_skip_steps: Int = key(
        20, "steps of data left out after a bad window, beside the window itself", ge=0
    )
    spike: SpikeConfig = SpikeConfig()
    dynamic_batch_size: DynamicBatchSizeConfig = DynamicBatchSizeConfig()
    gradient_checkpointing: Bool | Literal["every_2"] = key(
        False,
        "recompute activations in backward: less memory, more time; every_2: in every second layer",
        resume="set",
    )
    save_checkpoint_steps: Int | None = key(
        100, "steps between two checkpoints; null: off", ge=1, resume="free"
    )
    checkpoint_interval_minutes: Float | None = key(
        2.0, "minutes between two checkpoints; null: off", gt=0, resume="free"
    )
    max_checkpoints_to_keep: Int = key(
        5, "newest checkpoints of this run to keep, besides the best", ge=1, resume="free"
    )
    log_interval: Int | None = key(
        10, "steps between two lines of the log; null: off", ge=1, resume="free"
    )
    eval_interval: Int | None = key(
        250, "steps between two evaluations; null: off", ge=1, resume="free"
    )
    eval_batches: Int | Literal["all"] = key(
        20,
        "fixed batches of one evaluation, spread evenly over the validation text, or all",
        resume="free",
    )
    sample_interval_steps: Int | None = key(
        250, "steps between two rounds of samples; null: off", ge=1, resume="free"
    )
    sample_interval_minutes: Float | None = key(
        None, "minutes between two rounds of samples; null: off", gt=0, resume="free"
    )
    report: Bool = key(True, "write report.html beside the curves when the run ends", resume="free")
    threads: Int | None = key(
        None,
        "CPU threads; null: OMP_NUM_THREADS, else as many as were measured to be fast",
        ge=1,
        resume="kept",
    )
    attention: Literal["auto", "sdpa", "products"] = key(
        "auto",
        "kernel: torch's SDPA, or matrix products, fast in short contexts; auto: as measured",
        resume="kept",
    )
    compile: Bool | Literal["auto"] = key(
        "auto",
        "torch.compile for the blocks; auto: where it saves more time than it takes",
        resume="set",
    )

    @model_validator(mode="after")
    def _makes_sense_together(self) -> "TrainingConfig":
        if self.epochs is None and self.max_steps is None and self.max_minutes is None:
            raise ValueError(
                "set at least one of epochs, max_steps, max_minutes: nothing would end the run"
            )
        if self.epochs is None and self.max_steps is None and self.lr_decay_steps is None:
            raise ValueError(
                "max_minutes alone gives the learning rate no horizon: set lr_decay_steps, max_steps or epochs"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), found {list(self.betas)}")
        if self.eval_batches != "all" and self.eval_batches < 1:
            raise ValueError(f"eval_batches must be at least 1 or all, found {self.eval_batches}")
        dynamic, S, limit = (
            self.dynamic_batch_size,
            self.sequences_per_step,
            "batch_size x accumulate_grad_batches",
        )
        sizes = [
            dynamic.minimum,
            *([] if dynamic.initial == "auto" else [dynamic.initial]),
            dynamic.maximum or S,
            S,
        ]
        if dynamic.enabled and sizes != sorted(sizes):
            raise ValueError(
                f"dynamic_batch_size needs minimum <= initial <= maximum <= {S} ({limit}), "
                f"found {dynamic.minimum}, {dynamic.initial}, {dynamic.maximum}"
            )
        return self

    @property
    def sequences_per_step(self) -> int:
        return self.batch_size * self.accumulate_grad_batches

    def tokens_per_step(self, model: ModelConfig) -> int:
        return self.sequences_per_step * model.max_seq_length


class DataConfig(Section):
    path: PathText | None = key(
        None, "text file, any encoding; null: the default text, Shakespeare's plays", resume="free"
    )
    test_split: Float = key(
        0.1, "share of the text, at its end, held out for validation", gt=0, lt=1
    )
    allow_change: Bool = key(
        False,
        "true lets a resumed run go on with another text of the same characters",
        resume="kept",
    )


class SamplingConfig(Section):
    prompts: list[Annotated[str, Field(min_length=1)]] = key(
        ["KING:\n", "What news from the court?\n"],
        "texts that the model continues; one more prompt is taken from the validation text",
        resume="free",
    )
    max_new_tokens: Int = key(200, "tokens of one sample", ge=1, resume="free")
    temperature: Float = key(
        0.8,
        "below 1: more likely text, above 1: more varied; 0: always the likeliest",
        ge=0,
        resume="free",
    )
    top_k: Int | None = key(
        None, "sample among the k likeliest tokens only; null: among all", ge=1, resume="free"
    )
    top_p: Float | None = key(
        None, "sample among the likeliest tokens that together have this probability; null: among all",
        gt=0, le=1, resume="free",
    )  # fmt: skip


class PathsConfig(Section):
    checkpoints: PathText = key("checkpoints", "folder of the checkpoints", resume="free")
    logs: PathText = key("logs", "folder of logs and TensorBoard events", resume="free")
    cache: PathText = key("data/cache", "folder of the token caches", resume="free")


class Config(Section):
    seed: Int = key(1337, "seed of initialisation, data order, dropout and samples", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda", "mps"] = key(
        "auto", "auto: cuda, then mps, then cpu", resume="free"
    )
    model: ModelConfig = ModelConfig()
    training: TrainingConfig
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    paths: PathsConfig = PathsConfig()


def keys_of(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with its dotted name (`training.batch_size`) and its pydantic field."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one dictionary of dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return result


def changes_on_resume(
    stored: dict[str, Any], config: Config, named_by_set: set[str]
) -> tuple[list[str], list[str]]:
    """Compare the stored configuration with the one asked for.

    Returns (taken, refused), each a list of lines "key: old -> new". A key that may change only when the user insists
    is refused unless `named_by_set` (the dotted names given with `--set`) has it.
    """
    taken, refused = [], []
    before, after = flat(stored), flat(config.model_dump(mode="json"))
    for name, field in keys_of():
        old, new = before.get(name), after[name]
        if old == new:
            continue
        old, new = (
            value if isinstance(value, str) else json.dumps(value) for value in (old, new)
        )  # as in YAML
        line = f"{name}: {old} -> {new}"
        rule = field.json_schema_extra["resume"]
        if rule == "free" or (rule == "set" and name in named_by_set):
            taken.append(line)
        elif rule != "kept":
            refused.append(line + (f" (insist with --set {name}={new})" if rule == "set" else ""))
    return taken, refused


def remarks(config: Config) -> list[str]:
    """Return one line for each key that was set but has no effect beside the others, or an unusual one."""
    training, sampling, lines = config.training, config.sampling, []
    if training.precision_dtype != "auto" and not training.mixed_precision:
        lines.append(
            f"training.precision_dtype={training.precision_dtype} has no effect: mixed_precision is false"
        )
    dynamic = training.dynamic_batch_size
    if not dynamic.enabled and dynamic != DynamicBatchSizeConfig():
        lines.append("training.dynamic_batch_size: its keys have no effect: enabled is false")
    if training.min_learning_rate > training.learning_rate:
        lines.append(
            "training.min_learning_rate is above learning_rate: the rate rises after the warmup"
        )
    if (
        training.optimizer != "muon"
        and {"muon_learning_rate", "muon_momentum"} & training.model_fields_set
    ):
        lines.append(
            "training.muon_learning_rate and muon_momentum have no effect: optimizer is adamw"
        )
    if (
        config.model.architecture == "modern"
        and "bias" in config.model.model_fields_set
        and config.model.bias
    ):
        lines.append("model.bias=true has no effect: the modern architecture has no biases")
    if training.attention == "products" and config.model.attention_dropout:
        lines.append("training.attention=products has no effect: attention_dropout needs sdpa")
    if sampling.temperature == 0 and (sampling.top_k is not None or sampling.top_p is not None):
        lines.append(
            "sampling.top_k and top_p have no effect: temperature 0 always takes the likeliest token"
        )
    return lines
