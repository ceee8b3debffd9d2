"""Whoever takes a checkpoint's file takes a folder: as a user gives it, with the same result."""

import shutil
from pathlib import Path

import harness
import pytest
import starts
import torch
from made_folders import as_folder
from parts import same

from chatgot.checkpointing.checkpoints import is_whole, load_checkpoint
from chatgot.checkpointing.names import MANIFEST
from chatgot.errors import CheckpointRejected
from chatgot.exchange.importing import read_start
from chatgot.sampling.loading import load_model
from chatgot.sampling.picking import find_checkpoint_file, list_runs
from chatgot.serving.models import Catalogue

TRAINING = {
    "max_steps": 8,
    "eval_interval": 4,
    "save_checkpoint_steps": 4,
    "sample_interval_steps": None,
}
CPU = torch.device("cpu")
LONGER = ("--config", "tiny.yaml", "--set", "training.max_steps=12")


@pytest.fixture(scope="module")
def by_file(tmp_path_factory) -> Path:
    """A folder with a run of eight steps, whose checkpoints are files."""
    folder = tmp_path_factory.mktemp("trained")
    harness.write_config(folder, training=TRAINING)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


@pytest.fixture(scope="module")
def by_folder_once(by_file, tmp_path_factory) -> Path:
    """A copy of it, whose checkpoints are folders."""
    folder = Path(shutil.copytree(by_file, tmp_path_factory.mktemp("folders") / "run"))
    for path in harness.checkpoints(folder).values():
        as_folder(path)
    assert {path.suffix for path in harness.checkpoints(folder).values()} == {".sharded"}
    return folder


@pytest.fixture
def by_folder(by_folder_once, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(by_folder_once, tmp_path / "run"))


def run_id(folder: Path) -> str:
    return harness.run_dir(folder).name


def ends(folder: Path, step: int) -> dict:
    return harness.trained(load_checkpoint(harness.checkpoints(folder)[step]))


def test_a_resume_from_a_folder_is_that_from_its_file(by_file, by_folder, tmp_path):
    straight = Path(shutil.copytree(by_file, tmp_path / "straight"))
    for folder in (straight, by_folder):
        path = harness.checkpoints(folder)[8].relative_to(folder)
        assert harness.train_here(folder, *LONGER, "--resume_from", str(path)) == 0
    assert harness.checkpoints(by_folder)[12].suffix == ".pt"  # one process saves files
    assert same(ends(by_folder, 12), ends(straight, 12))


def test_a_resume_from_an_older_folder_sets_the_newer_one_aside(by_folder):
    old = harness.checkpoints(by_folder)[4].relative_to(by_folder)
    assert harness.train_here(by_folder, *LONGER, "--resume_from", str(old)) == 0
    names = [path.name for path in (by_folder / "checkpoints").glob("*superseded")]
    assert names == [f"{run_id(by_folder)}_step_8.sharded.superseded"]
    assert harness.checkpoints(by_folder)[8].suffix == ".pt"


def test_a_damaged_folder_is_refused_with_the_older_one(by_folder, capfd):
    paths = harness.checkpoints(by_folder)
    (paths[8] / "__1_0.distcp").write_bytes(b"damaged")
    code = harness.train_here(
        by_folder, *LONGER, "--resume_from", str(paths[8].relative_to(by_folder))
    )
    said = capfd.readouterr().err
    assert code == 3
    assert "__1_0.distcp: damaged" in said
    assert f"the newest older file that would do: checkpoints/{paths[4].name}" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("tool", ["chat", "export"])
def test_an_unfinished_folder_is_named_as_such(by_folder, tool, capfd):
    path = harness.checkpoints(by_folder)[8]
    (path / MANIFEST).unlink()
    options = {"chat": ("--prompt", "KING:"), "export": ("--to", "out", "--format", "hf")}
    assert starts.run_tool(tool, by_folder, str(path), *options[tool]) == 3
    assert f"{path}: unfinished, or no checkpoint" in capfd.readouterr().err
    with pytest.raises(CheckpointRejected, match="unfinished"):
        read_start(path)


def test_a_run_whose_checkpoints_are_folders_is_found(by_folder):
    checkpoints = by_folder / "checkpoints"
    paths = harness.checkpoints(by_folder)
    (run,) = list_runs(checkpoints)
    assert run.latest == paths[8]
    assert run.best in paths.values()
    assert find_checkpoint_file("tiny", "latest", checkpoints) == paths[8]
    assert find_checkpoint_file(str(paths[4]), "best", checkpoints) == paths[4]
    assert find_checkpoint_file(paths[4].name, "best", checkpoints) == checkpoints / paths[4].name
    wrong = paths[4].name.replace("step_4", "step_5")
    with pytest.raises(CheckpointRejected, match=r"did you mean .*_step_4\.sharded"):
        find_checkpoint_file(wrong, "best", checkpoints)


def test_the_server_lists_a_folder_and_notices_a_new_one(by_folder):
    paths = harness.checkpoints(by_folder)
    aside = paths[8].rename(by_folder / paths[8].name)
    catalogue = Catalogue(by_folder / "checkpoints", "tiny:latest")
    assert {model.about.step for model in catalogue.models()} == {4}
    aside.rename(paths[8])
    catalogue._looked = float("-inf")  # a second later
    assert 8 in {model.about.step for model in catalogue.models()}


def test_the_model_of_a_folder_is_that_of_its_file(by_file, by_folder):
    one = load_model(harness.checkpoints(by_file)[8], CPU)
    other = load_model(harness.checkpoints(by_folder)[8], CPU)
    assert same(one.model.state_dict(), other.model.state_dict())
    assert (one.run_id, one.step, one.val_loss) == (other.run_id, other.step, other.val_loss)
    first = read_start(harness.checkpoints(by_file)[8])
    second = read_start(harness.checkpoints(by_folder)[8])
    assert same(first.tensors, second.tensors)
    assert (first.tokens, first.shape) == (second.tokens, second.shape)


def test_export_and_chat_take_a_folder(by_folder, by_file, tmp_path, capfd):
    texts = []
    for folder in (by_file, by_folder):
        path = str(harness.checkpoints(folder)[8])
        to = str(tmp_path / f"out_{folder.name}")
        assert starts.run_tool("export", folder, path, "--to", to, "--format", "safetensors") == 0
        capfd.readouterr()
        options = ("--prompt", "KING:", "--seed", "3", "--max_new_tokens", "8", "--device", "cpu")
        assert starts.run_tool("chat", folder, path, *options) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != ""


def test_a_new_run_starts_from_a_folder(by_folder, by_file, tmp_path):
    losses = []
    for folder in (by_file, by_folder):
        new = tmp_path / f"new_{folder.name}"
        new.mkdir()
        assert starts.begin(new, harness.checkpoints(folder)[8]) == 0
        losses.append([row["train_loss"] for row in harness.rows(new)])
    assert losses[0] == losses[1]


def test_lora_builds_on_a_folder_and_resumes(by_folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    base = harness.checkpoints(by_folder)[8]
    assert starts.begin(new, base, training={"lora": {"rank": 2}}) == 0
    assert load_checkpoint(starts.checkpoint_of(new))["base"]["path"] == str(base)
    assert starts.resume(new, "--set", "training.max_steps=6") == 0
    on_top = as_folder(starts.checkpoint_of(new, step=6))
    assert is_whole(on_top)
    load_model(on_top, CPU, read_start)
    (base / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointRejected, match=r"__0_0\.distcp"):
        load_model(on_top, CPU, read_start)


def test_a_student_learns_from_a_folder(by_folder, by_file, tmp_path):
    losses = []
    for folder in (by_file, by_folder):
        new = tmp_path / f"new_{folder.name}"
        new.mkdir()
        teacher = {"teachers": [str(harness.checkpoints(folder)[8])]}
        harness.write_config(new, training=starts.SHORT | {"distillation": teacher})
        assert harness.train_here(new, "--config", "tiny.yaml") == 0
        losses.append([row["train_loss"] for row in harness.rows(new)])
    assert losses[0] == losses[1]
