"""A run with LoRA: what it trains and saves, how it goes on, and what it builds on."""

import os
import shutil
from pathlib import Path
from typing import Any

import harness
import parts
import pytest
import torch

from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.checkpointing.tensors import weights_sha256
from chatgot.errors import CheckpointRejected
from chatgot.model.gpt import evaluating
from chatgot.model.lora import frozen_state, merged, trained_state
from chatgot.numerics.gradient_checkpointing import enable_gradient_checkpointing
from chatgot.run.assembly import Run
from chatgot.run.resuming import start_from
from chatgot.run.run_state import restore_state
from chatgot.run.starting import Start
from chatgot.sampling.base_weights import MOST_BASES, base_weights, read_weights
from chatgot.sampling.loading import load_model
from chatgot.training.recovery import rewind
from chatgot.training.step import compute_gradients, set_learning_rate, update_weights

LORA = {"rank": 2, "alpha": 4}
STEPS = {"max_steps": 6, "save_checkpoint_steps": 3, "lora": LORA}


def lines(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().err.splitlines()


def base_of(folder: Path) -> Path:
    (path,) = (folder / "checkpoints").glob("tiny_*_step_4.pt")
    return path


def adapted(folder: Path, step: int, name: str = "adapted") -> Path:
    (path,) = (folder / "checkpoints").glob(f"{name}_*_step_{step}.pt")
    return path


def adapt(folder: Path, *arguments: str, name: str = "adapted", **sections: Any) -> int:
    """Train the matrices of LoRA on top of the folder's finished run; arguments come last."""
    sections["training"] = STEPS | sections.get("training", {})
    harness.write_config(folder, name=name, **sections)
    begin = () if "--resume_from" in arguments else ("--init_from", str(base_of(folder)))
    return harness.train_here(folder, "--config", f"{name}.yaml", *begin, *arguments)


def start_of(run: Run) -> Start:
    """Return the weights of a plain run as another run's start."""
    return Start(parts.copied(dict(run.model.state_dict())), run.vocabulary.tokens)


def on_top(tmp_path: Path, **sections: Any) -> Run:
    """Return a run with LoRA, in training mode, on top of a plain model."""
    folders = {"checkpoints": str(tmp_path)}
    training = {"lora": LORA} | sections.pop("training", {})
    run = parts.run(training=training, paths=folders, **sections)
    start_from(run, start_of(parts.run(**sections | {"seed": 9})), tmp_path / "base.pt")
    return run


def steps(run: Run, count: int) -> None:
    for _ in range(count):
        set_learning_rate(run)
        update_weights(run, compute_gradients(run))


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = torch.arange(8, device=next(model.parameters()).device)[None]  # (1, 8)
    with evaluating(model):
        return model(x)[0]


# What trains and what is saved


def test_a_checkpoint_holds_the_added_weights_and_names_the_base(trained):
    assert adapt(trained) == 0
    content = load_checkpoint(adapted(trained, 6))
    weights = content["model_state_dict"]
    assert all("lora" in name for name in weights)
    assert len(weights) == 2 * 2 * 4
    assert len(content["optimizer_state_dict"]["state"]) == len(weights)
    whole = harness.load(base_of(trained))["model_state_dict"]
    assert content["base"] == {
        "path": str(base_of(trained)),
        "sha256": weights_sha256(whole),
    }
    assert all(weight.any() for weight in weights.values())


def test_the_log_says_how_many_weights_train(trained, capsys):
    assert adapt(trained) == 0
    (line,) = [line for line in lines(capsys) if "LoRA: rank 2" in line]
    assert "on qkv, proj, up, down" in line
    added = load_checkpoint(adapted(trained, 6))["model_state_dict"]
    assert f"{sum(t.numel() for t in added.values()):,} of " in line


def test_training_changes_no_bit_of_the_frozen_weights(tmp_path):
    run = on_top(tmp_path, model={"dropout": 0.2})
    before = parts.copied(frozen_state(run.model))
    steps(run, 4)
    assert parts.same(frozen_state(run.model), before)
    assert all(tensor.any() for tensor in trained_state(run.model).values())
    assert run.model.parameter_count() > 2 * run.model.trained_count()


def test_the_seed_of_the_run_draws_the_added_weights(tmp_path):
    names = [name for name in trained_state(on_top(tmp_path).model) if name.endswith("lora_a")]
    first, again, other = (trained_state(on_top(tmp_path, seed=s).model) for s in (5, 5, 6))
    for name in names:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_without_a_step_the_model_is_the_base_bit_for_bit(tmp_path):
    run = on_top(tmp_path)
    base = parts.run(seed=9)
    assert torch.equal(logits(run.model), logits(base.model))
    assert torch.equal(logits(merged(run.model)), logits(base.model))


def test_muon_leaves_the_added_weights_to_adamw(tmp_path):
    run = on_top(tmp_path, training={"optimizer": "muon"})
    assert isinstance(run.optimizer, torch.optim.AdamW)
    steps(run, 1)


def test_recomputed_activations_change_no_gradient_of_lora(tmp_path):
    run = on_top(tmp_path, model={"dropout": 0.2})
    steps(run, 2)
    assert enable_gradient_checkpointing(run.model)


# How it goes on


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_with_lora_ends_in_the_same_bits(trained, precision):
    """With dropout and accumulation, which the tiny configuration has."""
    numbers = {"mixed_precision": precision != "fp32", "precision_dtype": "bf16"}
    assert adapt(trained, name="whole", training=numbers) == 0
    assert adapt(trained, name="parted", training=numbers | {"max_steps": 3}) == 0
    start = adapted(trained, 3, "parted")
    assert adapt(trained, "--resume_from", str(start), name="parted", training=numbers) == 0
    whole = harness.load(adapted(trained, 6, "whole"))
    parted = harness.load(adapted(trained, 6, "parted"))
    assert whole["state"]["modes"]["precision"] == precision
    assert harness.same(harness.trained(parted), harness.trained(whole))
    assert parted["base"] == whole["base"]


def test_a_rewind_to_the_start_brings_the_fresh_matrices_back(tmp_path):
    run = on_top(tmp_path)
    before = parts.copied(trained_state(run.model))
    steps(run, 3)
    rewind(run)
    assert run.state.progress.global_step == 0
    assert parts.same(trained_state(run.model), before)


def test_a_rewind_goes_back_to_a_checkpoint_of_the_same_base_alone(tmp_path, caplog):
    run = on_top(tmp_path, training={"save_checkpoint_steps": 1})
    steps(run, 1)
    path = parts.checkpoint_file(tmp_path, run)
    kept = parts.copied(trained_state(run.model))
    steps(run, 1)
    rewind(run)
    assert run.state.progress.global_step == 1
    assert parts.same(trained_state(run.model), kept)
    content = parts.copied(load_checkpoint(path))
    content["base"]["sha256"] = "0" * 64
    parts.forge(path, content)
    steps(run, 1)
    rewind(run)
    assert run.state.progress.global_step == 0
    assert "builds on other weights than this run" in caplog.text


# What it builds on


def test_a_new_run_with_lora_needs_weights_to_build_on(tmp_path, capsys):
    harness.write_config(tmp_path)
    arguments = ("--config", "tiny.yaml", "--set", "training.lora.rank=2")
    assert harness.train_here(tmp_path, *arguments) == 2
    (line,) = lines(capsys)
    assert "--init_from" in line
    script = harness.run_script(tmp_path, *arguments)
    assert script.returncode == 2
    assert "--init_from" in script.stderr


def test_lora_on_top_of_another_shape_is_exit_3(trained, capsys):
    assert adapt(trained, model={"d_hid": 40}) == 3
    assert "layers.0.mlp.up.weight has shape (24, 16), expected (40, 16)" in lines(capsys)[-1]
    assert not list((trained / "checkpoints").glob("adapted*"))


def test_tokens_that_the_base_does_not_know_are_named_and_stay_zero(trained, capsys):
    text = (trained / "text.txt").read_text().replace("q", "é")
    (trained / "other.txt").write_text(text, encoding="utf-8")
    assert adapt(trained, data={"path": "other.txt"}) == 0
    (warning,) = [line for line in lines(capsys) if "does not know" in line]
    assert warning.endswith("'é'")
    last = adapted(trained, 6)
    loaded = load_model(last, parts.CPU)
    row = loaded.vocabulary.encode("é")[0]
    assert not loaded.model.head.weight[row].any()
    assert loaded.model.head.weight[row + 1 :].any() or loaded.model.head.weight[:row].any()
    more = ("--resume_from", str(last), "--set", "training.max_steps=7")
    assert adapt(trained, *more, data={"path": "other.txt"}) == 0


@pytest.fixture
def tuned(trained) -> Path:
    """A folder with a run with LoRA on top of a finished one."""
    assert adapt(trained) == 0
    return trained


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory) -> Path:
    """The same, for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("tuned")
    harness.write_config(folder, training={"max_steps": 4, "save_checkpoint_steps": 4})
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    assert adapt(folder) == 0
    return folder


@pytest.fixture
def copy(tuned_once, tmp_path) -> Path:
    """A copy of the last checkpoint with LoRA; its base is not next to it."""
    path = adapted(tuned_once, 6)
    return Path(shutil.copy(path, tmp_path / path.name))


def forge(checkpoint: Path, **base: Any) -> None:
    """Change what a checkpoint says of its base."""
    content = parts.copied(load_checkpoint(checkpoint))
    content["base"] |= base
    parts.forge(checkpoint, content)


def alter(path: Path, name: str = "layers.0.mlp.up.weight") -> None:
    """Change one weight of a checkpoint by the least amount; the file is whole."""
    content = parts.copied(load_checkpoint(path))
    weight = content["model_state_dict"][name]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    parts.forge(path, content)


def test_a_changed_base_is_refused_in_two_lines(tuned, capsys):
    alter(base_of(tuned))
    last = adapted(tuned, 6)
    capsys.readouterr()
    more = ("--resume_from", str(last), "--set", "training.max_steps=9")
    assert adapt(tuned, *more) == 3
    first, second = lines(capsys)[-2:]
    assert str(base_of(tuned)) in first
    assert last.name in first
    assert "SHA-256" in second
    with pytest.raises(CheckpointRejected, match="its weights are not those"):
        load_model(last, parts.CPU)


def test_a_base_that_is_gone_is_refused_in_two_lines(tuned, capsys):
    elsewhere = tuned / base_of(tuned).name
    beside = base_of(tuned)
    beside.rename(elsewhere)
    capsys.readouterr()
    more = ("--resume_from", str(adapted(tuned, 6)), "--set", "training.max_steps=9")
    assert adapt(tuned, *more) == 3
    first, second = lines(capsys)[-2:]
    assert "which is gone" in first
    assert str(beside) in second


@pytest.mark.parametrize("there", ["/gone/{}", "C:\\gone\\{}"])
def test_a_base_next_to_the_checkpoint_is_found(tuned_once, copy, there):
    """The checkpoint and its base came together from another machine."""
    expected = logits(load_model(copy, parts.CPU).model)
    base = base_of(tuned_once)
    forge(copy, path=there.format(base.name))
    with pytest.raises(CheckpointRejected, match="which is gone"):
        load_model(copy, parts.CPU)
    shutil.copy(base, copy.parent)
    assert torch.equal(logits(load_model(copy, parts.CPU).model), expected)


def test_a_base_in_another_format_is_read_by_who_can(tuned_once, copy, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    expected = logits(load_model(copy, parts.CPU).model)
    forge(copy, path=str(folder))
    with pytest.raises(CheckpointRejected, match="no checkpoint"):
        load_model(copy, parts.CPU)
    tensors, tokens = read_weights(base_of(tuned_once))
    del tensors["head.weight"]  # tied: a file may have one of both
    read = {folder: Start(tensors, tokens, "hf")}
    loaded = load_model(copy, parts.CPU, read.__getitem__)
    assert torch.equal(logits(loaded.model), expected)


def test_the_loaded_model_is_the_merged_one(tuned_once, copy):
    loaded = load_model(copy, parts.CPU)
    assert not any(p.requires_grad for p in loaded.model.parameters())
    added = load_checkpoint(copy)["model_state_dict"]
    weights = harness.load(base_of(tuned_once))["model_state_dict"]
    product = added["layers.1.mlp.down.lora_b"] @ added["layers.1.mlp.down.lora_a"]
    name = "layers.1.mlp.down.weight"
    found = loaded.model.state_dict()
    assert torch.allclose(found[name], weights[name] + LORA["alpha"] / LORA["rank"] * product)
    assert not torch.allclose(found[name], weights[name])
    assert torch.equal(found["norm.weight"], weights["norm.weight"])


def test_init_from_a_checkpoint_with_lora_takes_the_merged_weights(copy, tmp_path):
    still = {"max_steps": 1, "learning_rate": 1e-30, "min_learning_rate": 0, "weight_decay": 0}
    harness.write_config(tmp_path, name="after", training=still)
    arguments = ("--config", "after.yaml", "--init_from", str(copy))
    assert harness.train_here(tmp_path, *arguments) == 0
    after = load_model(adapted(tmp_path, 1, "after"), parts.CPU).model
    assert parts.same(after.state_dict(), load_model(copy, parts.CPU).model.state_dict())


def test_lora_on_top_of_lora_builds_on_the_merged_weights(copy, tmp_path):
    harness.write_config(tmp_path, name="second", training=STEPS | {"max_steps": 3})
    arguments = ("--config", "second.yaml", "--init_from", str(copy))
    assert harness.train_here(tmp_path, *arguments) == 0
    second = adapted(tmp_path, 3, "second")
    below = load_model(copy, parts.CPU).model.state_dict()
    assert load_checkpoint(second)["base"]["sha256"] == weights_sha256(below)
    found = load_model(second, parts.CPU).model.state_dict()
    assert torch.equal(found["token_embedding.weight"], below["token_embedding.weight"])
    assert not torch.equal(found["layers.0.mlp.up.weight"], below["layers.0.mlp.up.weight"])


def test_a_checkpoint_that_builds_on_itself_is_refused(copy):
    forge(copy, path=str(copy))
    with pytest.raises(CheckpointRejected, match=f"more than {MOST_BASES} times"):
        load_model(copy, parts.CPU)


def test_a_checkpoint_with_lora_that_names_no_base_is_refused(copy):
    content = parts.copied(load_checkpoint(copy))
    del content["base"]
    parts.forge(copy, content)
    with pytest.raises(CheckpointRejected, match="does not say on which weights"):
        load_model(copy, parts.CPU)


def test_other_matrices_than_the_configuration_says_are_refused(copy):
    content = parts.copied(load_checkpoint(copy))
    content["config"]["training"]["lora"]["rank"] = 3
    parts.forge(copy, content)
    with pytest.raises(CheckpointRejected, match="the weights do not fit"):
        load_model(copy, parts.CPU)


@pytest.mark.parametrize(
    "base",
    [
        {"path": "base.pt"},
        {"path": "/a\0b"},
        {"path": 3},
        {"sha256": "0" * 63},
        {"sha256": "G" * 64},
        {"more": "x"},
    ],
)
def test_an_odd_base_is_refused_before_it_is_looked_for(copy, base):
    forge(copy, **base)
    with pytest.raises(CheckpointRejected, match="invalid or missing: base"):
        load_checkpoint(copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_as_base_is_refused_without_waiting(copy, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    forge(copy, path=str(tmp_path / "pipe"))
    with parts.at_once(), pytest.raises(CheckpointRejected, match="no checkpoint"):
        load_model(copy, parts.CPU)


def test_the_hash_depends_on_names_shapes_dtypes_and_bits_alone():
    a = torch.arange(6.0)
    known = weights_sha256({"a": a, "b": a})
    assert weights_sha256({"b": a.clone(), "a": a}) == known
    for other in (a.reshape(2, 3), a.to(torch.bfloat16), a.view(torch.int32), a + 1):
        assert weights_sha256({"a": other, "b": a}) != known
    assert weights_sha256({"a": a, "c": a}) != known
    assert weights_sha256({"a": a.reshape(2, 3).T}) == weights_sha256(
        {"a": a.reshape(2, 3).T.contiguous()}
    )


def test_a_resumed_run_has_the_base_below_its_matrices(tmp_path):
    base = parts.run(seed=9)
    base_path = parts.checkpoint_file(tmp_path, base)
    run = parts.run(training={"lora": LORA})
    start_from(run, Start(*read_weights(base_path)), base_path)
    steps(run, 2)
    stored = parts.copied(run.checkpoint())
    again = parts.run(stored=stored, training={"lora": LORA})
    weights = base_weights(stored, tmp_path / "adapted.pt", again.model)
    assert parts.same(weights, dict(base.model.state_dict()))
    restore_state(stored, again.state, again.model, again.optimizer, again.scaler)
    assert parts.same(trained_state(again.model), trained_state(run.model))
