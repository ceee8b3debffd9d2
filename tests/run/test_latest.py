"""`--resume_from latest` resumes the last run that this YAML started, and no other run.

Several YAMLs with the same stem train in one working folder, with one folder of checkpoints.
"""

import os
import re
from pathlib import Path

import harness
import pytest

from chatgot.command_line import command_words
from chatgot.run import resuming

COMMAND = re.compile(r"--config (\S+) --resume_from ([^\s;]+)")
SHORT = {"max_steps": 2, "save_checkpoint_steps": 1, "eval_interval": None}
SHORT |= {"sample_interval_steps": None, "log_interval": None}


@pytest.fixture
def work(tmp_path) -> Path:
    """A working folder that contains only a text."""
    (tmp_path / "text.txt").write_text(harness.make_text(), encoding="utf-8")
    return tmp_path


def write_yaml(work: Path, folder: str) -> str:
    """Write `folder`/tiny.yaml; return its path in the working folder."""
    (work / folder).mkdir(parents=True)
    harness.write_config(work / folder, training=SHORT)
    return f"{folder}/tiny.yaml"


def run_ids(work: Path, step: int) -> set[str]:
    """Return the runs that have a checkpoint of a step."""
    files = (work / "checkpoints").glob(f"tiny_*_step_{step}.pt")
    return {path.name.partition("_step_")[0] for path in files}


def files_of(work: Path, run_id: str) -> dict[int, Path]:
    files = (work / "checkpoints").glob(f"{run_id}_step_*.pt")
    return {int(path.stem.rpartition("_")[2]): path for path in files}


def begin(work: Path, config: str) -> str:
    """Train 2 steps; return the new run's id."""
    before = run_ids(work, step=2)
    assert harness.train_here(work, "--config", config) == 0
    (run_id,) = run_ids(work, step=2) - before
    return run_id


def go_on(work: Path, config: str, resume_from: str = "latest") -> int:
    """Resume to step 3; return the exit code."""
    arguments = ["--config", config, "--resume_from", resume_from]
    return harness.train_here(work, *arguments, "--set", "training.max_steps=3")


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


# Runs of the same YAML


def test_the_last_run_of_a_yaml_goes_on(work):
    config = write_yaml(work, "one")
    begin(work, config)
    newest = begin(work, config)
    assert go_on(work, config) == 0
    assert run_ids(work, step=3) == {newest}


def test_the_yamls_own_run_goes_on_although_another_run_is_newer(work):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    run_of_two = begin(work, two)
    assert go_on(work, one) == 0
    assert run_ids(work, step=3) == {run_of_one}
    assert go_on(work, two) == 0
    assert run_ids(work, step=3) == {run_of_one, run_of_two}


def test_a_refusal_names_the_newest_run_with_the_settings_asked_for(work, capsys):
    config = write_yaml(work, "one")
    begin(work, config)
    asked_for = begin(work, config)
    for seed in (8, 9):  # as with the commands of a student
        assert harness.train_here(work, "--config", config, "--set", f"seed={seed}") == 0
    write_yaml(work, "two")
    begin(work, "two/tiny.yaml")
    capsys.readouterr()
    assert go_on(work, config) == 3
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "its run was trained with other settings (stored -> asked): seed: 9 -> " in first
    before, _, path = second.rpartition(": ")
    assert before.endswith("an older run of this YAML would do")
    assert path == f"checkpoints/{asked_for}_step_2.pt"
    assert go_on(work, config, path) == 0
    assert run_ids(work, step=3) == {asked_for}


def test_a_symlink_to_a_yaml_counts_as_that_yaml(work):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    begin(work, two)
    (work / "linked").mkdir()
    (work / "linked" / "tiny.yaml").symlink_to(work / one)
    assert go_on(work, "linked/tiny.yaml") == 0
    assert run_ids(work, step=3) == {run_of_one}


def test_a_yaml_with_two_paths_is_one_yaml(work):
    """As on a file system that ignores case, or through a bind mount; here by a hard link."""
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    begin(work, two)
    (work / "again").mkdir()
    (work / "again" / "tiny.yaml").hardlink_to(work / one)
    assert go_on(work, "again/tiny.yaml") == 0
    assert run_ids(work, step=3) == {run_of_one}


@pytest.mark.parametrize("way", ["absolute", "relative", "through a symlinked folder"])
def test_a_yaml_is_the_same_one_from_any_working_directory(work, way):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    places = {"checkpoints": str(work / "checkpoints"), "logs": str(work / "logs")}
    anywhere = [f"--set=paths.{key}={path}" for key, path in places.items()]
    anywhere += [f"--set=data.path={work / 'one' / 'text.txt'}"]
    assert harness.train_here(work, "--config", one, *anywhere) == 0
    assert harness.train_here(work, "--config", two, *anywhere) == 0
    (run_of_one, _) = sorted(run_ids(work, step=2))
    folder = work / "elsewhere"
    folder.mkdir()
    (work / "linked").symlink_to(work / "one")
    config = {
        "absolute": work / one,
        "relative": Path(os.path.relpath(work / one, folder)),
        "through a symlinked folder": work / "linked" / "tiny.yaml",
    }[way]
    resume = ["--config", str(config), "--resume_from", "latest", *anywhere]
    assert harness.train_here(folder, *resume, "--set=training.max_steps=3") == 0
    assert run_ids(work, step=3) == {run_of_one}


# Runs of another YAML


def test_a_run_of_another_yaml_is_refused_with_both_names(work, capsys):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    begin(work, one)
    before = all_files(work)
    capsys.readouterr()
    assert go_on(work, two) == 3
    said = capsys.readouterr().err
    assert str(work / one) in said
    assert str(work / two) in said
    assert all_files(work) == before


@pytest.mark.parametrize("number", [0, 1])
def test_each_command_in_the_refusal_works(work, capsys, number):
    """One names the other YAML, one names its checkpoint; both resume that run."""
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    capsys.readouterr()
    assert go_on(work, two) == 3
    commands = COMMAND.findall(capsys.readouterr().err)
    configs = [config for config, _ in commands]
    assert configs == [str(work / one), two]
    config, resume_from = commands[number]
    assert go_on(work, config, resume_from) == 0
    assert run_ids(work, step=3) == {run_of_one}


def test_the_refusal_shows_whole_commands_of_this_system(work, capsys, monkeypatch):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    begin(work, one)
    capsys.readouterr()
    monkeypatch.setattr(resuming, "as_typed", lambda words: f"<{'|'.join(words)}>")
    assert go_on(work, two) == 3
    start = "|".join(command_words())
    said = capsys.readouterr().err
    assert f"<{start}|--config|{work / one}|--resume_from|latest>" in said
    assert f"<{start}|--config|{two}|--resume_from|" in said


def test_the_command_names_the_newest_checkpoint_of_the_newest_run(work, capsys):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    begin(work, one)
    newest = begin(work, one)
    capsys.readouterr()
    assert go_on(work, two) == 3
    _, (_, resume_from) = COMMAND.findall(capsys.readouterr().err)
    assert work / resume_from == files_of(work, newest)[2]


@pytest.mark.parametrize("content", [None, b"", b'{"config_path": ', b"[]", b'{"config_path": 5}'])
def test_a_checkpoint_names_its_yaml_where_run_json_does_not(work, content):
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    about = work / "logs" / "tensorboard" / run_of_one / "run.json"
    if content is None:
        about.unlink()
    else:
        about.write_bytes(content)
    assert go_on(work, two) == 3
    assert go_on(work, one) == 0
    assert run_ids(work, step=3) == {run_of_one}


def test_a_whole_checkpoint_names_its_yaml_where_the_newest_is_damaged(work):
    """Its run.json is gone, too."""
    one = write_yaml(work, "one")
    two = write_yaml(work, "two")
    run_of_one = begin(work, one)
    (work / "logs" / "tensorboard" / run_of_one / "run.json").unlink()
    damage(files_of(work, run_of_one)[2])
    assert go_on(work, two) == 3
    assert go_on(work, one) == 0
    assert run_ids(work, step=3) == {run_of_one}


# Runs of a YAML that is gone


def test_the_run_of_a_moved_yaml_goes_on(work):
    old = write_yaml(work, "old")
    run_id = begin(work, old)
    (work / "old").rename(work / "new")
    assert go_on(work, "new/tiny.yaml") == 0
    assert run_ids(work, step=3) == {run_id}


def test_the_run_of_a_moved_yaml_goes_on_although_another_is_newer(work):
    old = write_yaml(work, "old")
    other = write_yaml(work, "other")
    run_id = begin(work, old)
    begin(work, other)
    (work / "old").rename(work / "new")
    assert go_on(work, "new/tiny.yaml") == 0
    assert run_ids(work, step=3) == {run_id}


def test_a_yamls_own_run_comes_before_the_run_of_a_missing_yaml(work):
    old = write_yaml(work, "old")
    own = write_yaml(work, "own")
    run_id = begin(work, own)
    begin(work, old)
    (work / old).unlink()
    assert go_on(work, own) == 0
    assert run_ids(work, step=3) == {run_id}


def test_a_resumed_run_of_a_moved_yaml_belongs_to_the_new_path(work):
    """From then on, another YAML at the old path does not get it."""
    old = write_yaml(work, "old")
    run_id = begin(work, old)
    (work / "old").rename(work / "new")
    assert go_on(work, "new/tiny.yaml") == 0
    assert write_yaml(work, "old") == old
    assert go_on(work, old) == 3
    assert go_on(work, "new/tiny.yaml") == 0
    assert run_ids(work, step=3) == {run_id}


# Damaged runs


def test_a_damaged_newest_run_is_refused_with_an_older_runs_file(work, capsys):
    """That file works when the user names it."""
    config = write_yaml(work, "one")
    older = begin(work, config)
    newest = begin(work, config)
    for path in files_of(work, newest).values():
        damage(path)
    damage(files_of(work, older)[2])
    before = all_files(work)
    capsys.readouterr()
    assert go_on(work, config) == 3
    said = capsys.readouterr().err
    best = f"checkpoints/{files_of(work, older)[1].name}"
    assert newest in said
    assert best in said
    assert all_files(work) == before
    assert go_on(work, config, best) == 0
    assert run_ids(work, step=3) == {older}
