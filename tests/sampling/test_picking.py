"""Which checkpoint a run's name, its folder or a file means."""

import json
import logging
from pathlib import Path

import parts
import pytest

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.config_file import effective_yaml
from chatgot.errors import CheckpointRejected
from chatgot.run.assembly import Run
from chatgot.sampling.picking import KnownRun, find_checkpoint_file, list_runs

OLD = "tiny_20250102-030405"
NEW = "tiny_20250102-030406"
OTHER = "big_20250102-030407"


@pytest.fixture(scope="module")
def run() -> Run:
    return parts.run()


@pytest.fixture
def save(run, tmp_path, monkeypatch):
    """Return what saves a file of the run `run_id` into checkpoints/ of the working folder."""
    monkeypatch.chdir(tmp_path)

    def save(run_id: str, step: int, best_step: int = -1, config_path: str = "") -> Path:
        run.state.run_id = run_id
        run.config_path = config_path
        run.state.progress.global_step = run.state.progress.position = step
        run.state.marks.best_step = best_step
        path = Path("checkpoints", f"{run_id}_step_{step}.pt")
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, run.checkpoint())
        return path

    return save


@pytest.fixture
def folder(save):
    """Return what makes a run's folder in logs/tensorboard."""

    def folder(run_id: str, checkpoints: str = "checkpoints", config_path: str = "") -> Path:
        path = Path("logs", "tensorboard", run_id)
        path.mkdir(parents=True)
        config = parts.config(paths={"checkpoints": checkpoints})
        (path / "config.yaml").write_text(effective_yaml(config))
        about = {"run_id": run_id, "config_path": config_path}
        (path / "run.json").write_text(json.dumps(about))
        return path

    return folder


def damage(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def refused(name: str | None, *words: str) -> str:
    with pytest.raises(CheckpointRejected) as raised:
        find_checkpoint_file(name)
    message = str(raised.value)
    assert raised.value.exit_code == 3
    assert len(message.splitlines()) <= 2
    assert all(word in message for word in words), message
    return message


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


# One run


def test_best_is_the_file_of_the_best_step_and_latest_of_the_greatest(save, caplog):
    best = save(OLD, 9)
    latest = save(OLD, 10, best_step=9)
    for name in (None, "tiny", OLD):
        assert find_checkpoint_file(name) == best
        assert find_checkpoint_file(name, "latest") == latest
    assert not warnings(caplog)


def test_best_is_the_latest_where_its_file_is_gone(save, caplog):
    latest = save(OLD, 10, best_step=9)
    assert find_checkpoint_file("tiny") == latest
    assert len(warnings(caplog)) == 1
    assert "of step 9, is no longer here" in warnings(caplog)[0]


def test_best_is_the_latest_where_its_file_is_damaged(save, caplog):
    best = damage(save(OLD, 9))
    latest = save(OLD, 10, best_step=9)
    assert find_checkpoint_file("tiny") == latest
    assert len(warnings(caplog)) == 1
    assert str(best) in warnings(caplog)[0]


def test_best_is_the_latest_without_an_evaluation(save, caplog):
    save(OLD, 9)
    latest = save(OLD, 10)
    assert find_checkpoint_file("tiny") == latest
    assert not warnings(caplog)


def test_a_damaged_newest_file_is_passed_over_with_one_warning(save, caplog):
    whole = save(OLD, 9)
    damaged = damage(save(OLD, 10))
    assert find_checkpoint_file("tiny", "latest") == whole
    assert len(warnings(caplog)) == 1
    assert str(damaged) in warnings(caplog)[0]
    assert "passed over" in warnings(caplog)[0]


def test_a_run_of_damaged_files_is_refused_and_an_older_one_named(save):
    older = save(OLD, 5)
    damage(save(NEW, 8))
    newest = damage(save(NEW, 9))
    refused("tiny", str(newest), "damaged", "1 older", str(older))
    older.unlink()
    refused("tiny", str(newest), "damaged", "chatgot train")


def test_steps_are_compared_as_numbers(save):
    save(OLD, 9)
    latest = save(OLD, 10)
    assert find_checkpoint_file(OLD, "latest") == latest


# Which run


def test_a_configuration_means_its_newest_run(save):
    old = save(OLD, 9)
    new = save(NEW, 1)
    save(OTHER, 5)
    assert find_checkpoint_file("tiny") == new
    assert find_checkpoint_file(OLD) == old


def test_no_name_means_the_newest_run_of_all(save):
    """The timestamp decides, not the name of the configuration."""
    save(NEW, 9)
    newest = save(OTHER, 1)
    assert find_checkpoint_file(None) == newest


def test_a_name_that_several_files_have_begun_is_refused(save, tmp_path):
    """The rule of the report: of those that still exist, and the run's id tells them apart."""
    yamls = [tmp_path / folder / "tiny.yaml" for folder in "ab"]
    for yaml in yamls:
        yaml.parent.mkdir()
        yaml.touch()
    old = save(OLD, 1, config_path=str(yamls[0]))
    new = save(NEW, 1, config_path=str(yamls[1]))
    refused("tiny", *map(str, yamls), f"{NEW}, {OLD}")
    assert find_checkpoint_file(OLD) == old
    assert find_checkpoint_file(None) == new
    yamls[1].unlink()
    assert find_checkpoint_file("tiny") == old  # `latest` of the YAML that is left
    yamls[0].unlink()
    assert find_checkpoint_file("tiny") == new


def test_what_began_a_run_is_read_from_its_folder(save, folder, tmp_path):
    yamls = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for run_id, yaml in zip((OLD, NEW), yamls, strict=True):
        yaml.touch()
        save(run_id, 1)
        folder(run_id, config_path=str(yaml))
    refused("tiny", *map(str, yamls))


def test_a_runs_folder_means_that_run(save, folder):
    old = save(OLD, 1)
    save(NEW, 1)
    assert find_checkpoint_file(str(folder(OLD))) == old


def test_a_runs_folder_says_where_its_checkpoints_are(save, folder, tmp_path):
    save(OLD, 9)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    there = save(OLD, 1).rename(elsewhere / f"{OLD}_step_1.pt")
    assert find_checkpoint_file(str(folder(OLD, str(elsewhere)))) == there


def test_a_folder_that_moved_means_its_run_in_the_given_folder(save, folder, tmp_path):
    """Also when it has another name, or no settings that can be read."""
    path = save(OLD, 1)
    moved = folder(OLD, str(tmp_path / "gone")).rename("renamed")
    assert find_checkpoint_file(str(moved)) == path
    (moved / "config.yaml").write_text("a: [")
    assert find_checkpoint_file(str(moved), checkpoint_dir=Path("checkpoints")) == path


def test_a_folder_without_record_is_known_by_its_name(save):
    path = save(OLD, 1)
    bare = Path("moved", OLD)
    bare.mkdir(parents=True)
    assert find_checkpoint_file(str(bare)) == path


def test_a_folder_that_is_no_runs_is_refused(save):
    save(OLD, 1)
    refused("checkpoints", "not that of a run", "logs/tensorboard")
    Path("odd.pt").mkdir()
    refused("odd.pt", "not that of a run", "a checkpoint (.pt)")


def test_a_runs_folder_without_checkpoints_is_refused(save, folder):
    save(NEW, 1)
    refused(str(folder(OLD, "gone")), OLD, "gone or checkpoints")


def test_a_runs_name_is_not_taken_for_a_folder_or_file_of_that_name(save):
    """A text may lie there under the name that its runs have."""
    path = save(OLD, 1)
    other = save(OTHER, 1)
    Path("tiny").mkdir()
    Path("big").touch()
    assert find_checkpoint_file("tiny") == path
    assert find_checkpoint_file("big") == other


# A file


def test_a_file_is_taken_as_it_is(save):
    """Whether it can be loaded is not asked here."""
    save(OLD, 1)
    any_file = Path("my model.bin")
    any_file.write_bytes(b"?")
    assert find_checkpoint_file(str(any_file)) == any_file


def test_a_files_bare_name_is_found_among_the_checkpoints(save):
    path = save(OLD, 1)
    save(OLD, 2)
    assert find_checkpoint_file(path.name) == path


def test_a_file_that_is_not_there_is_refused_with_the_nearest(save):
    path = save(OLD, 10)
    refused(f"{OLD}_step_11.pt", "no such file", path.name)


# Nothing


@pytest.mark.parametrize("name", [None, "tiny", "x.pt"])
def test_where_nothing_is_trained_the_message_says_so(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refused(name, "chatgot train", name or str(tmp_path / "checkpoints"))


def test_an_unknown_name_is_refused_with_the_nearest(save):
    save(OLD, 1)
    save(OTHER, 1)
    refused("tinny", "tinny", str(Path("checkpoints").resolve()), "did you mean tiny")
    refused("zzz", "there are big, tiny", "chatgot train")


@pytest.mark.parametrize("name", ["", "a" * 5000, "a\0b", "[", "../x", "a\nb"])
def test_an_odd_name_is_refused(save, name):
    save(OLD, 1)
    with pytest.raises(CheckpointRejected):
        find_checkpoint_file(name)


def test_a_file_in_the_folders_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").touch()
    refused("tiny", "checkpoints: cannot be listed")


# The list


def test_runs_are_listed_newest_first_with_their_whole_files(save):
    best = save(OLD, 9)
    latest = save(OLD, 10, best_step=9)
    damage(save(OLD, 11))
    damage(save(NEW, 1))
    only = save(OTHER, 1)
    expected = [KnownRun(OTHER, None, only), KnownRun(OLD, best, latest)]
    assert list_runs(Path("checkpoints")) == expected


def test_a_folder_that_does_not_exist_has_no_runs(tmp_path):
    assert list_runs(tmp_path / "none") == []
