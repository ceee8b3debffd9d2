"""The keys of a configuration: bounds that arithmetic can take, and keys that belong together."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

import harness
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

from chatgot.config import (
    FP32_MAX,
    FP32_MIN,
    LAYERS,
    MAPPINGS,
    MAX_DECAY,
    MAX_HEAD_SIZE,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_MUON_RATE,
    MAX_SEQUENCES,
    MAX_STEPS,
    MAX_WIDTH,
    Config,
    ModelConfig,
    keys_of,
    remarks,
)
from chatgot.config_file import load_config
from chatgot.errors import ConfigError
from chatgot.model.gpt import build_model, model_without_weights
from chatgot.numerics.muon import Muon

FIELDS = dict(keys_of())
LARGEST_INT64 = 2**63 - 1


class Bounds(NamedTuple):
    """The range of one number of a key, from its field; None where the field has no bound."""

    kind: type
    ge: float | None
    gt: float | None
    le: float | None
    lt: float | None

    @property
    def complete(self) -> bool:
        """Return whether there is one lower and one upper bound."""
        return (self.ge is None) != (self.gt is None) and (self.le is None) != (self.lt is None)

    @property
    def lowest(self) -> float:
        return self.ge if self.gt is None else self._next(self.gt, math.inf)

    @property
    def highest(self) -> float:
        return self.le if self.lt is None else self._next(self.lt, -math.inf)

    @property
    def below(self) -> float:
        return self._next(self.lowest, -math.inf)

    @property
    def above(self) -> float:
        return self._next(self.highest, math.inf)

    def _next(self, value: float, towards: float) -> float:
        if self.kind is int:
            return value + (1 if towards > 0 else -1)
        return math.nextafter(value, towards)


def bounds_in(annotation: Any, metadata: list[Any]) -> Iterator[Bounds]:
    """Yield the bounds of each number in a type, including members of unions and tuples."""
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        yield from bounds_in(args[0], [*metadata, *args[1:]])
    elif origin in (Union, UnionType):
        for arg in args:
            yield from bounds_in(arg, metadata)
    elif origin in (list, tuple):
        for arg in args:
            yield from bounds_in(arg, [])
    elif origin is dict:
        yield from bounds_in(args[1], [])
    elif annotation in (int, float):
        limits = [limit for part in metadata for limit in getattr(part, "metadata", [part])]
        given = {
            name: getattr(limit, name)
            for limit in limits
            for name in ("ge", "gt", "le", "lt")
            if hasattr(limit, name)
        }
        yield Bounds(annotation, *(given.get(name) for name in ("ge", "gt", "le", "lt")))


def numbers_of_keys() -> dict[str, list[Bounds]]:
    """Return the bounds of the numbers in each key that has any."""
    found = {
        name: list(bounds_in(field.annotation, field.metadata)) for name, field in FIELDS.items()
    }
    return {name: bounds for name, bounds in found.items() if bounds}


NUMBERS = numbers_of_keys()


def numbers_at(*places: str) -> list[tuple[str, float]]:
    """Return (key, number) for these places of the range of each key that has a full one."""
    return [
        (name, getattr(bounds, place))
        for name, (bounds, *_) in NUMBERS.items()
        for place in places
        if bounds.complete
    ]


# The keys to set together with a key at an end of its range, since two keys limit each other there.
BESIDE: dict[str, dict[str, Any]] = {
    "model.d_model": {"model.n_head": 1},
    "model.n_head": {"model.d_model": MAX_HEADS},
    "model.n_kv_head": {
        "model.architecture": "modern",
        "model.n_head": MAX_HEADS,
        "model.head_dim": 2,
    },
    "model.head_dim": {"model.architecture": "modern"},
    "training.batch_size": {"training.accumulate_grad_batches": 1},
    "training.accumulate_grad_batches": {"training.batch_size": 1},
    "training.micro_batch_size": {
        "training.batch_size": 1,
        "training.accumulate_grad_batches": MAX_SEQUENCES,
    },
    "training.lora.rank": {"model.d_model": MAX_WIDTH},
}
# An end of a range that another rule forbids, and the next number that is allowed.
OTHER_END = {("model.head_dim", 1): 2}


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return sections from dotted names, plus the keys that every configuration needs."""
    return harness.merged({"training": {"max_steps": 10}}, harness.nested(values))


def make(values: dict[str, Any]) -> Config:
    return Config.model_validate(nested(values))


LISTS = {"training.multi_token_weights"}


def given(name: str, value: float) -> Any:
    """Return the value that gives a key this number: a pair for a key of two numbers.

    For a key of names with numbers one name, for a list one item.
    """
    if name in MAPPINGS:
        return {"a.txt": value}
    if name in LISTS:
        return [value]
    return [value, value] if len(NUMBERS[name]) > 1 else value


def refused(values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        make(values)
    return str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_every_numeric_key_has_a_lower_and_an_upper_bound(name):
    for bounds in NUMBERS[name]:
        assert bounds.complete, bounds


def test_the_numeric_keys_are_all_keys_that_contain_numbers():
    """Bounds are read from the types; a type unknown to the reader must not hide a number."""
    numeric = {
        name
        for name in FIELDS
        if "int" in str(FIELDS[name].annotation) or "float" in str(FIELDS[name].annotation)
    }
    assert numeric == NUMBERS.keys()
    assert len(numeric) > 40


@pytest.mark.parametrize(("name", "value"), numbers_at("lowest", "highest"))
def test_both_ends_of_a_range_are_accepted(name, value):
    value = OTHER_END.get((name, value), value)
    config = make(BESIDE.get(name, {}) | {name: given(name, value)})
    for part in name.split("."):
        config = getattr(config, part)
    expected = given(name, value)
    is_pair = isinstance(expected, list) and name not in LISTS
    assert config == (tuple(expected) if is_pair else expected)


@pytest.mark.parametrize(("name", "value"), numbers_at("below", "above"))
def test_a_number_just_beyond_its_range_is_refused_with_the_range(tmp_path, name, value):
    path = tmp_path / "small.yaml"
    path.write_text("training: {max_steps: 10}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"{name}={given(name, value)}"])
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert name in message
    assert "(at least " in message
    assert ", at most " in message or ", below " in message


@pytest.mark.parametrize(
    ("override", "range_of_it"),
    [
        ("training.accumulate_grad_batches=1e19", "(at least 1, at most 16,777,216)"),
        ("training.accumulate_grad_batches=10000000000000000000", "at most 16,777,216"),
        ("model.d_model=4e9", "(at least 1, at most 1,048,576)"),
        ("model.d_hid=1e19", "(at least 1, at most 16,777,216) or null"),
        ("training.threads=1e11", "(at least 1, at most 4096) or null"),
        ("training.threads=4097", "at most 4096"),
        ("training.learning_rate=1e-300", "(at least 1.2e-38, at most 3e+38)"),
        ("training.learning_rate=1e39", "(at least 1.2e-38, at most 3e+38)"),
        ("training.muon_learning_rate=1e300", "(at least 1.2e-38, at most 1e+30)"),
        ("training.grad_clip=1e39", "(at least 1.2e-38, at most 3e+38) or null"),
        ("sampling.temperature=1e-320", "(at least 1.2e-38, at most 3e+38) or 0"),
        ("sampling.temperature=false", "(at least 1.2e-38, at most 3e+38) or 0"),
        ("sampling.top_p=1e-300", "(at least 1.2e-38, at most 1) or null"),
        ("data.test_split=1e-300", "(at least 1e-09, at most 0.999999)"),
        ("training.dynamic_batch_size.growth_backoff=1e300", "(at least 1, at most 10000)"),
    ],
)
def test_numbers_that_no_arithmetic_can_take_are_refused_with_the_range(
    tmp_path, override, range_of_it
):
    path = tmp_path / "small.yaml"
    path.write_text("training: {max_steps: 10, optimizer: muon}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    message = str(caught.value)
    assert range_of_it in message
    assert len(message) < 300


HUGE = ("1" + 300 * "0", "-" + 5000 * "9", "1e300", "1e-320", "0." + 300 * "0" + "1", "4e9")


def problem_of(path: Path, sections: dict[str, Any], overrides: list[str], value: str) -> str:
    """Return the message that a configuration gets, with `value` in the place of VALUE."""
    text = yaml.safe_dump(sections).replace("VALUE", value)
    path.write_text(text, encoding="utf-8")
    try:
        load_config(path, overrides)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("number", HUGE, ids=lambda number: number[:8])
def test_a_huge_number_is_read_or_refused_in_short_by_every_key(tmp_path, number):
    """In YAML and in --set alike."""
    path = tmp_path / "small.yaml"
    for name in NUMBERS:
        value = f"[{number}, {number}]" if len(NUMBERS[name]) > 1 else number
        by_set = problem_of(path, nested({}), [f"{name}={value}"], value)
        in_yaml = problem_of(path, nested({name: "VALUE"}), [], value)
        assert bool(by_set) == bool(in_yaml), name
        for problem in (by_set, in_yaml):
            assert len(problem) < 500, problem
            assert not re.search("[0-9]{61}", problem), problem
        if len(number) > 40 and float(number) >= 1:
            assert by_set, name


@pytest.mark.parametrize("rate", [1.2e-38, 1e30, 3e38])
def test_rates_have_no_limit_except_that_of_fp32(rate):
    training = make({"training.learning_rate": rate, "training.grad_clip": rate}).training
    assert (training.learning_rate, training.grad_clip) == (rate, rate)


def test_intervals_and_warmup_may_be_longer_than_the_run():
    intervals = [
        name
        for name in FIELDS
        if name.endswith(("_interval", "interval_steps", "checkpoint_steps"))
    ]
    assert len(intervals) >= 5
    for name in [*intervals, "training.warmup_steps"]:
        make({name: 10**9})
        assert "greater than or equal to" in refused({name: -1})
    for name in intervals:
        assert "greater than or equal to 1" in refused({name: 0})


@pytest.mark.parametrize("zero", [0, 0.0])
def test_temperature_zero_is_accepted_and_stays_zero(zero):
    assert make({"sampling.temperature": zero}).sampling.temperature == 0


# Keys that belong together


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"training.batch_size": 2**20, "training.accumulate_grad_batches": 32},
            ["batch_size (1048576)", "accumulate_grad_batches (32)", "at most 16,777,216 seq"],
        ),
        (
            {
                "training.optimizer": "muon",
                "training.learning_rate": 1e-30,
                "training.muon_learning_rate": 1e10,
                "training.min_learning_rate": 1.0,
            },
            [
                "muon_learning_rate (1e+10)",
                "min_learning_rate (1)",
                "learning_rate (1e-30)",
                "at most 1e+30",
            ],
        ),
        (
            {"training.batch_size": 2**24, "model.max_seq_length": 2**20},
            ["training.batch_size (16777216)", "model.max_seq_length (1048576)", "n_head (8)"],
        ),
        (
            {
                "training.batch_size": 2**24,
                "model.max_seq_length": 2**11,
                "model.d_hid": 2**24,
            },
            ["training.batch_size (16777216)", "model.d_hid (16777216)"],
        ),
        (
            {
                "training.batch_size": 2**24,
                "model.max_seq_length": 2**15,
                "model.d_model": 2**20,
            },
            ["training.batch_size (16777216)", "model.d_model (1048576)"],
        ),
        (
            {
                "model.architecture": "modern",
                "training.batch_size": 2**20,
                "model.max_seq_length": 2**11,
                "model.n_head": 2**14,
                "model.head_dim": 2**14,
            },
            ["training.batch_size (1048576)", "model.n_head (16384) x head size (16384)"],
        ),
    ],
)
def test_products_that_overflow_are_refused_with_both_keys(tmp_path, values, named):
    path = tmp_path / "small.yaml"
    path.write_text("training: {max_steps: 10}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, [f"{name}={value}" for name, value in values.items()])
    for words in named:
        assert words in str(caught.value)
    assert "1 problem\n" in str(caught.value)


def test_a_muon_rate_may_rise_to_its_minimum_where_fp32_can_hold_it():
    values = {"training.learning_rate": 1e-3, "training.min_learning_rate": 1e-2}
    assert make(values | {"training.optimizer": "muon"}).training.optimizer == "muon"
    steep = {"training.learning_rate": FP32_MIN, "training.min_learning_rate": FP32_MAX}
    assert make(steep).training.optimizer == "adamw"


# The reasons for the bounds


def test_weights_of_the_largest_model_have_sizes_that_torch_can_count():
    heads = 3 * MAX_HEADS * MAX_HEAD_SIZE
    with torch.device("meta"):
        for rows in (3 * MAX_WIDTH, 2 * MAX_HIDDEN, heads):
            weight = torch.empty(rows, MAX_WIDTH)
            assert weight.nbytes < LARGEST_INT64


def test_numbers_of_tokens_and_sequences_fit_in_int64():
    skipped = 1000 * 10**6  # max_rewinds x rewind_skip_steps at their ends
    assert (2**37 + skipped) * MAX_SEQUENCES < LARGEST_INT64
    assert MAX_SEQUENCES * 2**20 < 2**62
    assert float(MAX_STEPS) == MAX_STEPS
    assert float(MAX_STEPS - 1) != MAX_STEPS


def test_the_highest_rate_of_muon_stays_finite_in_fp32():
    weight = nn.Parameter(torch.ones(2**12, 1))
    settings = {"lr": MAX_MUON_RATE, "momentum": 0.9, "weight_decay": MAX_DECAY}
    muon = Muon([{"params": [weight], "pieces": 1}], torch.float32, **settings)
    muon.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    weight.grad = torch.ones_like(weight)
    muon.step()
    assert bool(weight.isfinite().all())


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("spread", [0.0, 1e-10, 1.0])
def test_norms_stay_finite_at_both_ends_of_eps(kind, spread):
    (bounds,) = NUMBERS["model.layer_norm_eps"]
    for eps in (bounds.lowest, bounds.highest):
        x = (torch.arange(24.0).view(3, 8) * spread).requires_grad_()
        y = kind(8, eps=eps)(x)
        y.square().sum().backward()
        assert bool(y.isfinite().all())
        assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_gradients_are_finite_at_both_ends_of_init_range(architecture):
    (bounds,) = NUMBERS["model.init_range"]
    x = torch.arange(32).view(2, 16)
    for init_range in (bounds.lowest, bounds.highest):
        shape = {"d_model": 64, "n_layers": 12, "n_head": 2, "max_seq_length": 16}
        cfg = ModelConfig(architecture=architecture, init_range=init_range, **shape)
        net = build_model(cfg, 32, torch.device("cpu"), seed=1)
        _, loss = net(x, x)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


# Heads


def model(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(values)


@pytest.mark.parametrize("architecture", ["gpt", "modern"])
def test_default_heads_are_those_of_plain_multi_head_attention(architecture):
    cfg = model(architecture=architecture, d_model=192, n_head=3)
    assert (cfg.n_kv_head, cfg.head_dim, cfg.rope_base, cfg.qk_norm) == (None, None, 10_000, True)
    assert (cfg.kv_heads, cfg.head_size) == (3, 64)


def test_modern_heads_take_sizes_of_their_own():
    cfg = model(architecture="modern", d_model=100, n_head=6, n_kv_head=2, head_dim=32)
    assert (cfg.kv_heads, cfg.head_size) == (2, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_kv_head": 3}, "n_head (8) must be a multiple of n_kv_head (3)"),
        ({"n_kv_head": 16}, "n_head (8) must be a multiple of n_kv_head (16)"),
        ({"head_dim": 63}, "head_dim (63) must be even"),
        ({"d_model": 24}, "d_model / n_head (3) must be even"),
        ({"d_model": 100}, "d_model (100) must be a multiple of n_head (8)"),
    ],
)
def test_modern_heads_that_do_not_fit_are_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        model(architecture="modern", **values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_kv_head": 4}, "n_kv_head (4) must be null or n_head (8): architecture is gpt"),
        ({"head_dim": 32}, "head_dim (32) must be null or d_model / n_head (64): architecture is"),
        ({"head_dim": 32, "d_model": 100}, "d_model (100) must be a multiple of n_head (8)"),
    ],
)
def test_gpt_refuses_heads_that_would_change_its_shapes(values, message):
    with pytest.raises(ValidationError) as caught:
        model(**values)
    assert message in str(caught.value)


def test_gpt_accepts_heads_of_its_own_default_size():
    cfg = model(n_kv_head=8, head_dim=64)
    assert (cfg.kv_heads, cfg.head_size) == (8, 64)
    assert model(d_model=24, n_head=8).head_size == 3  # an odd size: gpt rotates nothing


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"rope_base": 5e5}, "model.rope_base=500000.0 has no effect: architecture is gpt"),
        ({"qk_norm": False}, "model.qk_norm=false has no effect: architecture is gpt"),
    ],
)
def test_gpt_warns_once_of_a_key_that_only_modern_uses(values, line):
    assert remarks(Config(model=model(**values), training={"max_steps": 1})) == [line]
    modern = model(architecture="modern", **values)
    assert remarks(Config(model=modern, training={"max_steps": 1})) == []


@pytest.mark.parametrize("name", ["rope_base", "qk_norm", "n_kv_head", "head_dim"])
def test_a_shape_or_position_key_never_changes_on_resume(name):
    assert FIELDS[f"model.{name}"].json_schema_extra == {"resume": "never"}


TEACHERS = {"training.distillation.teachers": ["a.pt"], "training.distillation.weight": 1}
SHORT = {"model.max_seq_length": 2}


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, []),
        (TEACHERS, ["training.multi_token_weights has no effect: distillation.weight is 1"]),
        (
            SHORT,
            [
                "training.multi_token_weights: those beyond the first 1 have no effect: "
                "model.max_seq_length is 2"
            ],
        ),
    ],
)
def test_later_tokens_that_never_count_are_named(values, lines):
    assert remarks(make(values | {"training.multi_token_weights": [0.5, 0.25]})) == lines
    assert remarks(make(values)) == []


# LoRA


@pytest.mark.parametrize(
    ("architecture", "targets", "words"),
    [
        ("gpt", ["qkv", "gate_up"], "gate_up: the linear layers of architecture gpt are qkv, proj"),
        ("modern", ["up"], "up: the linear layers of architecture modern are qkv, proj, gate_up"),
    ],
)
def test_lora_on_layers_that_the_architecture_lacks_is_refused(architecture, targets, words):
    lora = {"training.lora.targets": targets, "model.architecture": architecture}
    assert f"training.lora.targets: {words}" in refused(lora)


def test_a_rank_above_the_width_of_the_model_is_refused():
    make({"training.lora.rank": 512})
    said = refused({"training.lora.rank": 513})
    assert "training.lora.rank (513) must be at most model.d_model (512)" in said


def test_an_empty_list_of_layers_for_lora_is_refused():
    assert "targets is empty" in refused({"training.lora.targets": []})


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"training.lora.rank": 2}, []),
        (
            {"training.lora.alpha": 2},
            ["training.lora: its other keys have no effect: rank is null"],
        ),
        (
            {"training.lora.rank": 2, "training.optimizer": "muon"},
            [
                "training.optimizer=muon has no effect: Muon is for whole matrices, and AdamW "
                "updates the small ones of LoRA"
            ],
        ),
    ],
)
def test_keys_without_effect_beside_lora_are_named(values, lines):
    assert remarks(make(values)) == lines


def test_a_size_of_a_vocabulary_of_characters_has_no_effect():
    line = "data.vocab_size=300 has no effect: data.tokenizer is char"
    assert remarks(make({"data.vocab_size": 300})) == [line]
    assert remarks(make({"data.vocab_size": 300, "data.tokenizer": "bpe"})) == []


def test_each_layer_of_lora_is_a_linear_layer_of_its_architecture():
    for architecture, layers in LAYERS.items():
        cfg = ModelConfig(architecture=architecture, d_model=16, n_layers=1)
        (block,) = model_without_weights(cfg, 4).blocks
        names = {
            name.rpartition(".")[2] for name, m in block.named_modules() if isinstance(m, nn.Linear)
        }
        assert names == set(layers)


# Imports


@pytest.mark.parametrize("name", ["config", "config_file"])
def test_a_configuration_is_read_without_heavy_imports(name):
    code = f"import sys, chatgot.{name}; print(sorted({{'torch', 'numpy'}} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
