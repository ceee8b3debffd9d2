"""A run that goes on in other folders than before is warned, once for each kind of its files."""

from pathlib import Path

import harness
import pytest

KEYS = ("checkpoints", "logs")


@pytest.fixture
def begun(tmp_path) -> Path:
    """A folder with the YAML and the files of a run of 2 steps; its text's path is absolute."""
    work = tmp_path / "first folder"
    work.mkdir()
    data = {"path": str(work / "text.txt")}
    training = {"max_steps": 2, "save_checkpoint_steps": 2, "eval_interval": None}
    training |= {"sample_interval_steps": None}
    harness.write_config(work, data=data, training=training)
    assert harness.train_here(work, "--config", "tiny.yaml") == 0
    return work


def go_on(place: Path, begun: Path, resume_from: str, *more: str) -> int:
    place.mkdir(exist_ok=True)
    arguments = ["--config", str(begun / "tiny.yaml"), "--resume_from", resume_from, *more]
    return harness.train_here(place, *arguments, "--set", "training.max_steps=3")


def split_warnings(capsys) -> list[str]:
    said = capsys.readouterr().err
    return [line for line in said.splitlines() if "until now, this run's" in line]


def test_a_resume_by_path_from_elsewhere_names_both_folders_and_the_key(tmp_path, begun, capsys):
    """With what it says the run is in one folder again."""
    path = harness.checkpoints(begun)[2]
    place = tmp_path / "second"
    assert go_on(place, begun, str(path)) == 0
    warnings = split_warnings(capsys)
    assert len(warnings) == 2
    for key, warning in zip(KEYS, warnings, strict=True):
        assert f"in {begun / key}," in warning
        assert f"in {place / key};" in warning
        assert f"--set 'paths.{key}={begun / key}'" in warning
    assert harness.checkpoints(place).keys() == {3}
    joined = [f"--set=paths.{key}={begun / key}" for key in KEYS]
    assert go_on(place, begun, str(path), *joined) == 0
    assert split_warnings(capsys) == []
    assert harness.checkpoints(begun).keys() == {2, 3}
    assert [row["step"] for row in harness.rows(begun)] == [1, 2, 3]


@pytest.mark.parametrize("resume_from", ["latest", "path"])
def test_a_resume_in_its_own_folder_says_nothing(begun, capsys, resume_from):
    path = harness.checkpoints(begun)[2].relative_to(begun)
    assert go_on(begun, begun, resume_from.replace("path", str(path))) == 0
    assert split_warnings(capsys) == []


def test_a_folder_that_moved_as_a_whole_is_not_split(begun, tmp_path, capsys):
    moved = begun.rename(tmp_path / "moved")
    text = f"--set=data.path={moved / 'text.txt'}"
    assert go_on(moved, moved, "latest", text) == 0
    assert split_warnings(capsys) == []


def test_curves_elsewhere_are_named_though_the_checkpoints_stay(tmp_path, begun, capsys):
    """The folder of checkpoints is an absolute path, that of the logs is relative."""
    checkpoints = f"--set=paths.checkpoints={begun / 'checkpoints'}"
    assert go_on(tmp_path / "second", begun, "latest", checkpoints) == 0
    (warning,) = split_warnings(capsys)
    assert f"in {begun / 'logs'}," in warning
    assert f"in {tmp_path / 'second' / 'logs'};" in warning


def test_a_copy_with_another_name_is_traced_to_its_run(tmp_path, begun, capsys):
    copy = tmp_path / "copy.pt"
    copy.write_bytes(harness.checkpoints(begun)[2].read_bytes())
    assert go_on(tmp_path / "second", begun, str(copy)) == 0
    warnings = split_warnings(capsys)
    assert len(warnings) == 2
    for key, warning in zip(KEYS, warnings, strict=True):
        assert f"paths.{key}={begun / key}" in warning


def test_a_run_that_goes_on_under_another_yaml_says_whose_it_was(begun, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    yaml = (begun / "tiny.yaml").rename(tmp_path / "other" / "tiny.yaml")
    arguments = ["--config", str(yaml), "--resume_from", "latest"]
    assert harness.train_here(begun, *arguments, "--set", "training.max_steps=3") == 0
    log = harness.log_of(begun)
    assert f"{begun / 'tiny.yaml'} (which is gone), from now on it belongs to {yaml}" in log
