"""Folders are found, kept, removed and set aside among a run's files as files are."""

import logging
import os
import shutil
import time
from pathlib import Path

import parts
import pytest
from made_folders import copy_of, make_folder
from parts import RUN_ID

from chatgot.checkpointing import checkpoint_folder
from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.checkpointing.checkpoints import is_whole
from chatgot.checkpointing.leftovers import AGE_S, sweep_temporaries
from chatgot.checkpointing.names import MANIFEST
from chatgot.checkpointing.run_files import (
    checkpoint_path,
    cleanup_old_checkpoints,
    files_of_run,
    newest_whole,
    set_aside,
    superseded_by,
)
from chatgot.training.step import compute_gradients, update_weights

CONFIG, TIMESTAMP = RUN_ID.rsplit("_", 1)
DEAD = 999_999_999  # above the largest id that a kernel gives
OTHER = "other_20250101-000000"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[int, Path]:
    """Whole folders of a run by step, which no test changes, and the file of each step."""
    parent = tmp_path_factory.mktemp("made")
    run = parts.run()
    folders = {}
    for step in range(1, 6):
        update_weights(run, compute_gradients(run))
        folders[step] = make_folder(parent, run)
        save_checkpoint(folders[step].with_suffix(".pt"), run.checkpoint())
    return folders


def put(parent: Path, made: dict[int, Path], *steps: int) -> dict[int, Path]:
    return {step: copy_of(made[step], parent) for step in steps}


def put_file(parent: Path, made: dict[int, Path], step: int) -> Path:
    return Path(shutil.copy(made[step].with_suffix(".pt"), parent))


def damage(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes(b"damaged")


def unfinished(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def test_folders_and_files_of_a_run_are_found_together(tmp_path, made):
    folders = put(tmp_path, made, 2, 4)
    file = put_file(tmp_path, made, 3)
    assert files_of_run(tmp_path, RUN_ID) == {2: folders[2], 3: file, 4: folders[4]}
    assert newest_whole(tmp_path, RUN_ID) == folders[4]


def test_latest_is_the_newest_whole_folder(tmp_path, made, caplog):
    folders = put(tmp_path, made, 2, 3, 4)
    damage(folders[4])
    path, content = parts.latest(tmp_path)
    assert path == folders[3]
    assert content["global_step"] == 3
    assert str(folders[4] / "__0_0.distcp") in caplog.text


def test_an_unfinished_folder_does_not_count(tmp_path, made):
    folders = put(tmp_path, made, 3, 4)
    unfinished(folders[4])
    assert not is_whole(folders[4])
    assert files_of_run(tmp_path, RUN_ID) == {3: folders[3]}
    assert checkpoint_path(tmp_path, RUN_ID, 4).suffix == ".pt"


def test_a_link_to_a_folder_does_not_count(tmp_path, made):
    (tmp_path / made[4].name).symlink_to(made[4])
    assert files_of_run(tmp_path, RUN_ID) == {}


@pytest.mark.parametrize("damaged", ["none", "file", "folder", "both"])
def test_of_a_file_and_a_folder_of_a_step_the_whole_one_counts(tmp_path, made, damaged):
    folder = put(tmp_path, made, 4)[4]
    file = put_file(tmp_path, made, 4)
    if damaged in ("file", "both"):
        file.write_bytes(b"damaged")
    if damaged in ("folder", "both"):
        damage(folder)
    expected = folder if damaged == "file" else file
    assert files_of_run(tmp_path, RUN_ID) == {4: expected}
    assert checkpoint_path(tmp_path, RUN_ID, 4) == expected


# Retention


def clean(parent: Path, **keywords: object) -> list[Path]:
    return cleanup_old_checkpoints(parent, CONFIG, TIMESTAMP, **keywords)


def test_retention_counts_and_removes_folders(tmp_path, made):
    folders = put(tmp_path, made, 1, 2, 3, 4, 5)
    damage(folders[3])
    assert clean(tmp_path, max_to_keep=2, keep=[1]) == [folders[2]]
    assert files_of_run(tmp_path, RUN_ID).keys() == {1, 3, 4, 5}
    assert not folders[2].exists()


def test_a_removal_that_is_cut_short_leaves_no_manifest(tmp_path, made, monkeypatch, caplog):
    folders = put(tmp_path, made, 1, 2)

    def cut_short(folder: Path) -> None:
        assert folder == folders[1]
        raise OSError(5, "cut short")

    monkeypatch.setattr(checkpoint_folder.shutil, "rmtree", cut_short)
    assert clean(tmp_path, max_to_keep=1) == []
    assert "could not be removed: cut short" in caplog.text
    assert folders[1].exists()
    assert files_of_run(tmp_path, RUN_ID) == {2: folders[2]}


# Setting aside


def test_a_folder_is_set_aside_under_a_free_name(tmp_path, made):
    (tmp_path / f"{made[4].name}.superseded").mkdir()
    folder = put(tmp_path, made, 4)[4]
    set_aside([folder])
    assert not folder.exists()
    assert (tmp_path / f"{folder.name}.superseded.2" / MANIFEST).exists()


def test_later_folders_are_superseded_by_an_older_one(tmp_path, made):
    folders = put(tmp_path, made, 2, 3, 4)
    assert superseded_by(tmp_path, RUN_ID, 2, folders[2]) == [folders[3], folders[4]]


def test_a_copy_of_a_folder_supersedes_nothing_of_its_step(tmp_path, made):
    folder = put(tmp_path, made, 2)[2]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copied = copy_of(folder, elsewhere)
    assert superseded_by(tmp_path, RUN_ID, 2, copied) == []


def test_the_file_of_a_step_is_superseded_by_its_folder_and_back(tmp_path, made):
    folder = put(tmp_path, made, 2)[2]
    file = put_file(tmp_path, made, 2)
    assert superseded_by(tmp_path, RUN_ID, 2, folder) == [file]
    assert superseded_by(tmp_path, RUN_ID, 2, file) == [folder]


# What a kill leaves


def leave(parent: Path, made: dict[int, Path], name: str, age_s: float) -> Path:
    path = parent / "checkpoints" / name
    shutil.copytree(made[4], path)
    unfinished(path)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def sweep(parent: Path) -> None:
    sweep_temporaries(parent / "checkpoints", parent / "logs", parent / "cache", RUN_ID)


NAMES = [
    ".{run}_step_4.sharded.{pid}.tmp",
    ".{run}_step_4.sharded.replaced.{pid}.tmp",
    "{run}_step_4.sharded",
]


@pytest.mark.parametrize(
    ("run_id", "age_s", "goes"),
    [(RUN_ID, 0.0, True), (OTHER, 0.0, False), (OTHER, 2 * AGE_S, True)],
)
@pytest.mark.parametrize("name", NAMES)
def test_an_unfinished_folder_is_swept_as_a_file(tmp_path, made, caplog, name, run_id, age_s, goes):
    caplog.set_level(logging.INFO, "chatgot")
    path = leave(tmp_path, made, name.format(run=run_id, pid=DEAD), age_s)
    whole = put(path.parent, made, 3)[3]
    sweep(tmp_path)
    assert path.exists() is not goes
    assert (str(path) in caplog.text) is goes
    assert is_whole(whole)


@pytest.mark.parametrize("name", [".run_step_4.pt.{pid}.tmp", ".{run}_step_4.pt.{pid}.tmp", "mine"])
def test_a_folder_of_any_other_name_is_not_swept(tmp_path, made, name):
    path = leave(tmp_path, made, name.format(run=RUN_ID, pid=DEAD), 2 * AGE_S)
    sweep(tmp_path)
    assert (path / "plain.pt").exists()
