"""Everything that changes in training goes into a checkpoint and comes back.

A checkpoint that does not fit the run changes nothing.
"""

import math
import random
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import parts
import pytest
import torch

from chatgot.checkpointing.checkpoint_file import load_checkpoint, save_checkpoint
from chatgot.checkpointing.tensors import MAX_VALUES
from chatgot.checkpointing.zip_structure import MAX_ENTRIES
from chatgot.config import MAX_BAD_STEPS, MAX_LAYERS, MAX_WINDOW, Config
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Characters
from chatgot.errors import CheckpointRejected
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.run.assembly import Run
from chatgot.run.fits import read_checkpoint
from chatgot.run.resuming import check_settings, check_state, find_checkpoint, resume
from chatgot.run.run_state import (
    BadStep,
    Part,
    Plateau,
    RejectedSize,
    RunState,
    Schedule,
    SizeChange,
    after_rewind,
    generator_states,
    set_generator_states,
)
from chatgot.sampling.speakers import Speaker
from chatgot.training.step import compute_gradients, update_weights


def train(run: Run, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        update_weights(run, compute_gradients(run))
        losses.append(run.state.progress.train_loss)
    return losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint after two steps with dropout."""
    run = parts.run(model={"dropout": 0.2})
    train(run, 2)
    return parts.checkpoint_file(tmp_path_factory.mktemp("saved"), run)


def fresh(stored: dict[str, Any] | None = None, **sections) -> Run:
    """Return a run before its first step; each of its weights differs from the saved run's."""
    model = {"dropout": 0.2, **sections.pop("model", {})}
    run = parts.run(stored, model=model, **sections)
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.5)
    return run


def everything(run: Run) -> dict[str, Any]:
    """Return copies of everything that `resume` may change."""
    state = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    state |= {"scaler": run.scaler.state_dict(), "state": run.state.model_dump()}
    return parts.copied(state | {"rng": generator_states()})


def resume_from(path: Path, run: Run | None = None) -> Run:
    """Resume a run from a file as the script does."""
    run = run or fresh(load_checkpoint(path))
    resume(run, find_checkpoint(str(path), run.config, Path("tiny.yaml"), set()))
    run.model.train()
    return run


# Saved and loaded


def test_a_checkpoint_from_before_a_counter_has_its_default(saved, tmp_path):
    content = dict(load_checkpoint(saved))
    newer = ("graphed", "gradient_checkpointing_chosen", "card")
    modes = {k: v for k, v in content["state"]["modes"].items() if k not in newer}
    assert len(modes) == len(content["state"]["modes"]) - len(newer)
    content["state"] = {**content["state"], "modes": modes}
    path = tmp_path / saved.name
    save_checkpoint(path, content)
    assert resume_from(path).state.model_dump() == resume_from(saved).state.model_dump()


def test_a_resumed_run_continues_the_saved_one_bit_for_bit(saved):
    undisturbed = parts.run(model={"dropout": 0.2})
    train(undisturbed, 2)
    torch.manual_seed(77)
    resumed = resume_from(saved)
    assert train(resumed, 3) == train(undisturbed, 3)
    for key in ("model_state_dict", "optimizer_state_dict", "scaler_state_dict"):
        assert parts.same(resumed.checkpoint()[key], undisturbed.checkpoint()[key]), key
    assert resumed.state.model_dump() == undisturbed.state.model_dump()


def test_a_save_right_after_a_resume_has_the_same_content(saved, tmp_path):
    again = parts.checkpoint_file(tmp_path, resume_from(saved))
    assert again.name == saved.name
    assert parts.same(load_checkpoint(again), load_checkpoint(saved))


def unlike_any_other() -> RunState:
    """Return a state in which each counter has a different value, and none that of a fresh run."""
    state = RunState(run_id=parts.RUN_ID, from_seed=False)
    for number, (part, name) in enumerate(counters(), start=100):
        value = getattr(getattr(state, part), name)
        kind = type(value)
        if kind is bool:
            setattr(getattr(state, part), name, not value)
        elif kind is int:
            setattr(getattr(state, part), name, number)
        elif kind is float or value is None:
            setattr(getattr(state, part), name, number + 0.5)
    state.progress.position = 220
    state.progress.global_step = 200
    state.progress.skipped_steps = 3
    state.progress.skipped_ranges = [(3, 9), (12, 14)]
    state.modes.precision = "bf16"
    state.modes.asked_precision = "fp16"
    state.modes.attention = "products"
    state.modes.muon_precision = "bf16"
    state.modes.threads = 1
    state.modes.gradient_checkpointing_chosen = True
    state.modes.card = "a card"
    state.micro_batch.size = 3
    state.micro_batch.eval_size = 2
    state.micro_batch.history = [SizeChange(step=0, old=4, new=3, reason="oom")]
    state.micro_batch.rejected = [RejectedSize(size=4, times=2, until=30, reason="oom")]
    state.marks.loss_by_source = {"a.txt": 1.5}
    state.marks.first_loss_by_source = {"a.txt": 2.5}
    state.health.bad_steps = [BadStep(step=200, position=219, loss=math.inf, grad_norm=2.0)]
    state.health.recent_losses = [1.5, 1.25]
    state.schedule = Schedule(decay_began=9, decay_steps=4, decay_cause="no better", in_decay=True)
    state.plateau = Plateau(reference=[(1.5, 10)], reference_step=8, no_better=1, noise=0.125)
    return state


def counters() -> list[tuple[str, str]]:
    """Return (part, name) of each counter."""
    state = RunState()
    named = []
    for part in RunState.model_fields:
        value = getattr(state, part)
        if isinstance(value, Part):
            named += [(part, name) for name in type(value).model_fields]
    return named


def test_every_counter_of_a_run_is_restored(tmp_path, monkeypatch):
    def not_compiled(function, **how):
        return function

    monkeypatch.setattr(torch, "compile", not_compiled)  # the stored run was compiled
    decaying = {"lr_schedule": "wsd", "stop_when_no_better": 2, "compile": "auto"}
    run = parts.run(model={"dropout": 0.2}, training=decaying)
    train(run, 1)
    run.state = unlike_any_other()
    run.state.modes.precision = run.state.modes.asked_precision = "fp32"
    run.state.modes.graphed = False  # a CPU has no CUDA graphs
    run.state.modes.card = ""  # this device: on another one some choices are made anew
    expected = run.state.model_dump()
    fresh_values = RunState().model_dump()
    for part, name in counters():
        exceptions = ("precision", "asked_precision", "threads", "card", "graphed")
        assert name in exceptions or expected[part][name] != fresh_values[part][name], name
    path = parts.checkpoint_file(tmp_path, run)
    again = parts.run(load_checkpoint(path), model={"dropout": 0.2}, training=decaying)
    assert resume_from(path, again).state.model_dump() == expected


KEPT = {  # by a rewind; all other counters go back with the weights
    "progress": {"time_s"},
    "modes": set(RunState().modes.model_dump()),
    "micro_batch": set(RunState().micro_batch.model_dump()),
    "health": {"skips", "rewinds", "rewound_to"},
    "marks": set(),
    "schedule": set(),
    "plateau": set(),
}


def test_a_rewind_keeps_only_the_counters_that_it_must_not_undo():
    now = unlike_any_other()
    before = now.model_dump()
    stored = RunState(run_id="tiny_20200101-000000")
    result = after_rewind(now, stored)
    assert result.run_id == now.run_id
    assert result.from_seed is stored.from_seed
    for part, name in counters():
        expected = now if name in KEPT[part] else stored
        assert getattr(getattr(result, part), name) == getattr(getattr(expected, part), name), name
    assert now.model_dump() == before


def test_a_state_that_cannot_be_loaded_is_not_saved():
    run = parts.run()
    run.state.modes.threads = 5000
    with pytest.raises(ValueError, match="threads"):
        run.checkpoint()


def largest_state() -> RunState:
    """Return counters with each list as long as the bounds of the configuration allow."""
    state = RunState()
    state.run_id = parts.RUN_ID
    state.health.recent_losses = [0.5] * MAX_WINDOW
    bad_step = BadStep(step=1, position=1, loss=math.nan, grad_norm=math.inf)
    state.health.bad_steps = [bad_step] * MAX_BAD_STEPS
    return state


def test_a_checkpoint_may_have_as_many_values_as_the_bounds_allow():
    characters = 0x110000
    bad_steps = MAX_BAD_STEPS * (1 + len(BadStep.model_fields))
    layers = MAX_LAYERS * 12 * 6  # parameters, and what there is of each
    assert characters + MAX_WINDOW + bad_steps + layers + 10_000 < MAX_VALUES


@pytest.mark.slow
def test_the_longest_lists_that_the_bounds_allow_can_be_loaded(tmp_path):
    """And with them a vocabulary of all characters that a text can have."""
    run = parts.run()
    run.state = largest_state()
    alphabet = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    run.tokens = Tokens(run.tokens.ids, Characters(alphabet), "0" * 64, "utf-8")
    path = parts.checkpoint_file(tmp_path, run)
    state = RunState.model_validate(read_checkpoint(path)["state"])
    assert len(state.health.recent_losses) == MAX_WINDOW
    assert len(state.health.bad_steps) == MAX_BAD_STEPS


def test_the_file_of_the_deepest_model_has_as_many_entries_as_are_read(tmp_path):
    entries = []
    for layers in (1, 2):
        path = tmp_path / f"{layers}.pt"
        save_checkpoint(path, parts.run(model={"n_layers": layers}).checkpoint())
        with ZipFile(path) as archive:
            entries.append(len(archive.namelist()))
    per_layer = entries[1] - entries[0]
    assert per_layer == 48
    assert entries[0] + per_layer * (MAX_LAYERS - 1) <= MAX_ENTRIES


UNLOADABLE = {
    "threads": lambda run: setattr(run.state.modes, "threads", 5000),
    "micro_batch": lambda run: setattr(run.state.micro_batch, "size", 1 << 40),
    "speakers": lambda run: run.speakers.append(Speaker("A:B", 1, 0.5, "")),
    "base": lambda run: run.base.update(path="relative", sha256="0" * 64),
    "imported": lambda run: run.imported.update(kind="hf", keys=["width"], context=4),
    "run_id": lambda run: setattr(run.state, "run_id", "../elsewhere"),
    "training.threads": lambda run: setattr(run, "config", with_threads(run.config, 5000)),
}


def with_threads(config: Config, threads: int) -> Config:
    """Return a configuration that was never validated."""
    training = config.training.model_copy(update={"threads": threads})
    return config.model_copy(update={"training": training})


@pytest.mark.parametrize("what", UNLOADABLE)
def test_whatever_could_not_be_loaded_is_refused_where_it_is_saved(what):
    run = parts.run()
    UNLOADABLE[what](run)
    with pytest.raises(ValueError, match=what):
        run.checkpoint()


def test_a_run_whose_state_could_not_be_loaded_does_not_begin(monkeypatch):
    """The fault is seen before the first step, not at the first resume."""
    speakers = [Speaker("A:B", 1, 0.5, "")]
    monkeypatch.setattr("chatgot.run.assembly.count_speakers", lambda *_: speakers)
    with pytest.raises(ValueError, match="could not be loaded again: speakers"):
        parts.run()


def test_unmeasured_numbers_are_restored_as_none_and_infinity(tmp_path):
    path = parts.checkpoint_file(tmp_path, parts.run(model={"dropout": 0.2}))
    state = resume_from(path).state
    assert state.progress.train_loss is None
    assert state.marks.val_loss is None
    assert state.marks.best_val_loss == math.inf
    assert state.marks.best_step == -1


def draws() -> list[float]:
    """Draw a few numbers from each global generator."""
    numbers = [random.random(), random.gauss(0, 1)]
    return [*numbers, *np.random.standard_normal(2), *torch.rand(2).tolist()]


def test_all_global_generators_are_restored(tmp_path):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    random.gauss(0, 1)
    np.random.standard_normal(3)  # leaves a second half of a draw behind
    path = parts.checkpoint_file(tmp_path, parts.run(model={"dropout": 0.2}))
    expected = draws()
    resume_from(path)
    assert draws() == expected


def test_setting_generator_states_is_the_inverse_of_reading_them():
    states = generator_states()
    expected = draws()
    set_generator_states(states)
    assert draws() == expected


def test_the_loss_scale_and_growth_of_an_fp16_run_are_restored(tmp_path):
    run = parts.run(precision="fp16", model={"dropout": 0.2})
    run.scaler = SafeGradScaler(parts.DEVICE.type, init_scale=512.0)
    train(run, 2)
    path = parts.checkpoint_file(tmp_path, run)
    settings = {"mixed_precision": True, "precision_dtype": "fp16"}
    stored = load_checkpoint(path)
    resumed = fresh(stored, training=settings)
    assert resumed.scaler.get_scale() == 65536
    resume_from(path, resumed)
    assert resumed.scaler.get_scale() == 512
    assert resumed.scaler.state_dict() == run.scaler.state_dict()
    assert resumed.scaler.state_dict()["_growth_tracker"] == 2


# What does not fit


def put(content: dict[str, Any], where: str, value: Any) -> None:
    """Set one entry of a nested state by a path like `state/modes/threads`; ... deletes it."""
    *above, last = where.split("/")
    for name in above:
        content = content[int(name) if name.isdecimal() else name]
    key = int(last) if last.isdecimal() else last
    if value is ...:
        del content[key]
    else:
        content[key] = value


WEIGHT = "model_state_dict/layers.0.mlp.up.weight"  # (24, 16)
MOMENT = "optimizer_state_dict/state/3/exp_avg"
ENDLESS: list = []
ENDLESS.append(ENDLESS)
DOUBLED: list = []
for _ in range(10):
    DOUBLED = [DOUBLED] * 16
GROUPS = "optimizer_state_dict/param_groups"
FLOAT8 = torch.zeros(24, 16).to(torch.float8_e4m3fn)
BROKEN: dict[str, tuple[str, Any, str]] = {
    "weight missing": (WEIGHT, ..., "layers.0.mlp.up.weight"),
    "weight too many": ("model_state_dict/module.extra", torch.zeros(1), "module.extra"),
    "weight NaN": (WEIGHT, torch.full((24, 16), math.nan), "layers.0.mlp.up.weight"),
    "weight inf": (WEIGHT, torch.full((24, 16), math.inf), "layers.0.mlp.up.weight"),
    "weight transposed": (WEIGHT, torch.zeros(16, 24), "layers.0.mlp.up.weight"),
    "weight flat": (WEIGHT, torch.zeros(384), "layers.0.mlp.up.weight"),
    "weight fp64": (WEIGHT, torch.zeros(24, 16, dtype=torch.float64), "float64"),
    "weight bf16": (WEIGHT, torch.zeros(24, 16, dtype=torch.bfloat16), "bfloat16"),
    "weight no tensor": (WEIGHT, [0.0], "layers.0.mlp.up.weight"),
    "weight without data": (WEIGHT, torch.empty(24, 16, device="meta"), "layers.0.mlp.up.weight"),
    "weight sparse": (WEIGHT, torch.ones(24, 16).to_sparse(), "layers.0.mlp.up.weight"),
    "weight enormous": (WEIGHT, torch.zeros(1).expand(10**6, 10**6), "layers.0.mlp.up.weight"),
    "moment NaN": (MOMENT, math.nan, "exp_avg"),
    "moment missing": (MOMENT, ..., "exp_avg"),
    "moment of another shape": (MOMENT, torch.zeros(5), "exp_avg"),
    "second moment inf": ("optimizer_state_dict/state/3/exp_avg_sq", math.inf, "exp_avg_sq"),
    "second moment fp64": ("optimizer_state_dict/state/3/exp_avg_sq", torch.float64, "exp_avg_sq"),
    "step missing": ("optimizer_state_dict/state/3/step", ..., "step"),
    "step NaN": ("optimizer_state_dict/state/3/step", torch.tensor(math.nan), "step"),
    "state of one parameter missing": ("optimizer_state_dict/state/3", ..., "parameter 3"),
    "state of one parameter no dictionary": ("optimizer_state_dict/state/3", 5, ""),
    "no state at all": ("optimizer_state_dict/state", {}, "has no state"),
    "a group missing": (f"{GROUPS}/1", ..., ""),
    "groups no list": (GROUPS, {}, ""),
    "groups of numbers": (GROUPS, [1, 2], ""),
    "group without parameters": (f"{GROUPS}/0/params", ..., ""),
    "group without betas": (f"{GROUPS}/0/betas", ..., ""),
    "counter missing": ("state/progress/position", ..., "position"),
    "counter of another type": ("state/progress/position", "far", "position"),
    "threads missing": ("state/modes/threads", ..., "threads"),
    "threads negative": ("state/modes/threads", -1, "threads"),
    "micro-batch of nothing": ("state/micro_batch/size", 0, "micro_batch.size"),
    "unknown precision": ("state/modes/precision", "fp8", "precision"),
    "threads without end": ("state/modes/threads", 10**12, "threads"),
    "tokens without end": ("state/progress/tokens", 10**400, "tokens"),
    "time NaN": ("state/progress/time_s", math.nan, "time_s"),
    "position before the step": ("state/progress/position", 0, "position"),
    "more skipped than done": ("state/progress/skipped_steps", 99, "skipped_steps"),
    "skipped negative": ("state/progress/skipped_steps", -99, "skipped_steps"),
    "step a truth value": ("state/progress/global_step", True, "global_step"),
    "micro-batch above the step's sequences": ("state/micro_batch/size", 1 << 20, "micro-batch"),
    "weight float8": (WEIGHT, FLOAT8, "layers.0.mlp.up.weight"),
    "amsgrad": (f"{GROUPS}/0/amsgrad", True, "amsgrad is True"),
    "betas of words": (f"{GROUPS}/0/betas", ("a", "b"), "betas"),
    "other weight decay": (f"{GROUPS}/1/weight_decay", 5.0, "weight_decay is 5.0"),
    "maximising": (f"{GROUPS}/0/maximize", True, "maximize"),
    "configuration of another program": ("config/model/width", 5, "model.width"),
    "configuration without sense": ("config/training/batch_size", -1, "training.batch_size"),
    "nested without end": ("versions/again", ENDLESS, "nested too deeply, cyclic"),
    "nested 2^40 times": ("versions/again", DOUBLED, "nested too deeply"),
    "generator missing": ("rng/torch", ..., ""),
    "generator of another kind": ("rng/numpy", [1], ""),
    "generator cut": ("rng/torch", torch.zeros(3, dtype=torch.uint8), ""),
    "other vocabulary": ("vocabulary", ["<|endoftext|>", *parts.ALPHABET[::-1]], "characters"),
    "other text": ("data_sha256", "0" * 64, "another text"),
}


def assemble_and_resume(path: Path, run: Run) -> None:
    """Do what the script does with a file: find it, assemble a run, resume `run`."""
    point = find_checkpoint(str(path), run.config, Path("tiny.yaml"), set())
    fresh(point.content)  # sets the threads
    resume(run, point)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(saved, tmp_path, kind):
    where, value, word = BROKEN[kind]
    content = parts.copied(load_checkpoint(saved))
    if "moment" in kind and not isinstance(value, torch.Tensor) and value is not ...:
        tensor = content["optimizer_state_dict"]["state"][3][where.rpartition("/")[2]]
        if isinstance(value, torch.dtype):
            value = tensor.to(value)
        else:
            value = torch.full_like(tensor, value)
    put(content, where, value)
    path = tmp_path / "changed.pt"
    # with the right hash, as an attacker or a bug of ours could write it
    parts.forge(path, content)
    run = fresh()
    before = everything(run)
    with pytest.raises(CheckpointRejected, match=str(path)) as refused:
        assemble_and_resume(path, run)
    assert word in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert parts.same(everything(run), before)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"n_layers": 3}, "layers.2."),
        ({"n_layers": 1}, "layers.1."),
        ({"d_model": 32}, "expected"),
        ({"d_hid": 25}, "layers.0.mlp.up.weight"),
        ({"max_seq_length": 9}, "position_embedding"),
        ({"bias": False}, "bias"),
    ],
)
def test_another_architecture_is_refused_with_the_names_that_differ(saved, model, word):
    """Nothing is changed."""
    run = fresh(model=model)
    before = everything(run)
    stored = load_checkpoint(saved)
    with pytest.raises(CheckpointRejected, match="not fit") as refused:
        check_state(run, stored, saved, data_may_change=False)
    assert word in str(refused.value)
    assert parts.same(everything(run), before)
    with pytest.raises(CheckpointRejected, match="model"):
        check_settings(stored, saved, run.config, "tiny", set())


def test_tied_weights_are_refused_for_an_untied_model(saved):
    run = fresh(model={"tie_embeddings": False})
    before = everything(run)
    with pytest.raises(CheckpointRejected, match="optimizer"):
        check_state(run, load_checkpoint(saved), saved, data_may_change=False)
    assert parts.same(everything(run), before)


@pytest.mark.parametrize(
    "change", [{"a": 1}, {"scale": "x"}, {"scale": math.nan}, {"_growth_tracker": -1}]
)
def test_an_invalid_scaler_state_is_refused_before_anything_is_loaded(saved, change):
    run = fresh(precision="fp16")
    stored = load_checkpoint(saved) | {"scaler_state_dict": run.scaler.state_dict() | change}
    before = everything(run)
    with pytest.raises(CheckpointRejected, match="scaler"):
        check_state(run, stored, saved, data_may_change=False)
    assert parts.same(everything(run), before)


def test_a_key_that_is_newer_than_the_checkpoint_gets_its_default(saved):
    content = parts.copied(load_checkpoint(saved))
    del content["config"]["training"]["precision_dtype"]
    path = saved.with_name("older.pt")
    parts.forge(path, content)
    point = find_checkpoint(str(path), fresh().config, Path("tiny.yaml"), set())
    resume(fresh(point.content), point)


def test_weight_names_with_a_prefix_are_refused(saved):
    stored = load_checkpoint(saved)
    weights = stored["model_state_dict"]
    stored["model_state_dict"] = {f"module.{name}": tensor for name, tensor in weights.items()}
    run = fresh()
    before = everything(run)
    with pytest.raises(CheckpointRejected, match=r"head\.weight is missing"):
        check_state(run, stored, saved, data_may_change=False)
    assert parts.same(everything(run), before)


def test_a_checkpoint_of_another_configuration_is_refused(saved):
    stored = load_checkpoint(saved)
    with pytest.raises(CheckpointRejected, match="--init_from"):
        check_settings(stored, saved, parts.config(), "other", set())


def test_another_text_with_the_same_characters_is_taken_when_asked(saved, tmp_path, caplog):
    content = load_checkpoint(saved) | {"data_sha256": "0" * 64}
    path = tmp_path / "other.pt"
    parts.forge(path, content)
    run = fresh(data={"allow_change": True})
    point = find_checkpoint(str(path), run.config, Path("tiny.yaml"), {"data.allow_change"})
    resume(run, point)
    assert run.state.progress.global_step == 2
    assert "text differs" in caplog.text


def test_a_checkpoint_before_the_first_update_needs_no_optimizer_state(tmp_path):
    run = parts.run(model={"dropout": 0.2})
    allocated = run.checkpoint()["optimizer_state_dict"]["state"]
    run.optimizer.state.clear()
    path = parts.checkpoint_file(tmp_path, run)
    assert load_checkpoint(path)["optimizer_state_dict"]["state"] == {}
    resumed = resume_from(path)
    assert resumed.state.progress.global_step == 0
    assert parts.same(resumed.checkpoint()["optimizer_state_dict"]["state"], allocated)
