"""A text without a YAML, as a user trains on it: chosen, written down, repeated, resumed, reported.

The runs last 0.05 minutes, on a text of a few kB.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

from chatgot.config_file import load_config

NAME = "my_text"
SHORT = ["--minutes", "0.05"]
SHORT += ["--set", "sampling.max_new_tokens=4", "--set", "training.report=false"]
# where it does not matter how long the run is
TWO_STEPS = [*SHORT, "--set", "training.max_steps=2"]


def write_text(folder: Path, name: str = "my text.txt", characters: int = 6000) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(harness.make_text(characters), encoding="utf-8")
    return path


def run_dirs(folder: Path, name: str = NAME) -> list[Path]:
    """Return the folders of a name's runs, the oldest first."""
    return sorted((folder / "logs" / "tensorboard").glob(f"{name}_*"))


def steps_of(folder: Path, run_dir: Path) -> list[int]:
    files = (folder / "checkpoints").glob(f"{run_dir.name}_step_*.pt")
    return sorted(int(path.stem.rpartition("_")[2]) for path in files)


def newest_file(folder: Path, run_dir: Path) -> Path:
    step = steps_of(folder, run_dir)[-1]
    return folder / "checkpoints" / f"{run_dir.name}_step_{step}.pt"


def choices(run_dir: Path) -> dict[str, dict]:
    """Return the choices among the events of a run, by what was chosen."""
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return {event["what"]: event for event in events if event["kind"] == "choice"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder with a text and a finished run of it, moved away from where it was trained."""
    folder = tmp_path_factory.mktemp("own") / "work"
    write_text(folder)
    assert harness.train_here(folder, "my text.txt", *SHORT, "--set", "seed=3") == 0
    return folder.rename(folder.with_name("kept"))


@pytest.fixture
def trained(kept) -> Iterator[Path]:
    """A copy of that folder in the place where it was trained."""
    folder = kept.with_name("work")
    shutil.copytree(kept, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)


# The YAML


def test_the_yaml_lies_in_the_runs_folder_and_is_the_one_that_began_it(trained):
    (run_dir,) = run_dirs(trained)
    yaml = run_dir / f"{NAME}.yaml"
    about = json.loads((run_dir / "run.json").read_text())
    checkpoint = harness.load(newest_file(trained, run_dir))
    assert about["config_path"] == checkpoint["config_path"] == str(yaml.resolve())


def test_the_yaml_holds_all_settings_of_the_run(trained):
    (run_dir,) = run_dirs(trained)
    config, _ = load_config(run_dir / f"{NAME}.yaml")
    settings = config.model_dump(mode="json")
    assert settings == harness.load(newest_file(trained, run_dir))["config"]
    assert config.seed == 3
    assert config.data.path == str((trained / "my text.txt").resolve())
    assert config.training.max_minutes == 0.05
    assert config.sampling.prompts[0] in ("KING:\n", "QUEEN:\n", "FOOL:\n")


def test_the_yaml_makes_the_same_run_again(trained):
    """Bit for bit: what was measured before the first run has not changed it."""
    (run_dir,) = run_dirs(trained)
    yaml = run_dir / f"{NAME}.yaml"
    again = trained / "again"
    again.mkdir(exist_ok=True)
    assert harness.train_here(again, "--config", str(yaml)) == 0
    (second,) = run_dirs(again)
    one = harness.load(newest_file(trained, run_dir))
    two = harness.load(newest_file(again, second))
    assert one["config"] == two["config"]
    if one["global_step"] != two["global_step"]:
        pytest.skip("this machine was so busy that the clock ended one of the runs")
    assert harness.same(harness.trained(one), harness.trained(two))


def test_the_log_names_the_yaml_in_the_commands_that_repeat_and_resume(trained):
    (run_dir,) = run_dirs(trained)
    yaml = run_dir.relative_to(trained) / f"{NAME}.yaml"
    log = harness.log_of(trained)
    for words in ("the same run again: ", "resume with: "):
        (line,) = [line for line in log.splitlines() if words in line]
        assert f" --config {yaml}" in line
        assert "--set" not in line  # the YAML has what was set
    (done,) = harness.events(trained, "done")
    assert f" --config {yaml} --resume_from checkpoints/" in done["resume_command"]


def test_what_is_chosen_is_in_the_events_with_what_was_measured(trained):
    (run_dir,) = run_dirs(trained)
    found = choices(run_dir)
    assert {"recipe", "steps", "dropout", "prompts"} <= found.keys()
    assert found["recipe"]["chosen"] == "chatgot_mini"
    assert found["recipe"]["measured"]["tokens_per_s"] > 0
    config, _ = load_config(run_dir / f"{NAME}.yaml")
    assert found["steps"]["chosen"] == config.training.max_steps
    assert found["prompts"]["chosen"] == config.sampling.prompts


# Going on


def test_the_text_resumes_its_newest_run_and_chooses_nothing_again(trained):
    folder = trained
    (run_dir,) = run_dirs(folder)
    before = (run_dir / "events.jsonl").read_text().count('"recipe"')
    last = steps_of(folder, run_dir)[-1]
    more = ["--set", f"training.max_steps={last + 2}", "--set", "training.max_minutes=9"]
    assert harness.train_here(folder, "my text.txt", "--resume_from", "latest", *more) == 0
    assert steps_of(folder, run_dir)[-1] == last + 2
    assert (run_dir / "events.jsonl").read_text().count('"recipe"') == before


def test_a_finished_run_says_how_it_goes_on(trained, capsys):
    (run_dir,) = run_dirs(trained)
    steps = steps_of(trained, run_dir)
    assert harness.train_here(trained, "my text.txt", "--resume_from", "latest") == 0
    assert "to go on add --set training.max_steps=" in capsys.readouterr().err
    assert steps_of(trained, run_dir) == steps


@pytest.mark.parametrize("by", ["latest", "file"])
def test_a_moved_folder_resumes_with_its_text(kept, tmp_path, by):
    """The old place is gone: the YAML and the text are found in the new one."""
    new = tmp_path / "new"
    shutil.copytree(kept, new, symlinks=True)
    (run_dir,) = run_dirs(new)
    last = steps_of(new, run_dir)[-1]
    file = f"checkpoints/{newest_file(new, run_dir).name}"
    more = ["--set", f"training.max_steps={last + 1}", "--set", "training.max_minutes=9"]
    resume_from = "latest" if by == "latest" else file
    assert harness.train_here(new, "my text.txt", "--resume_from", resume_from, *more) == 0
    assert steps_of(new, run_dir)[-1] == last + 1


def test_a_run_of_another_text_with_that_name_is_not_resumed(trained, capsys):
    other = write_text(trained / "elsewhere", characters=7000)
    (run_dir,) = run_dirs(trained)
    file = f"checkpoints/{newest_file(trained, run_dir).name}"
    for resume_from in ("latest", file):
        capsys.readouterr()
        assert harness.train_here(trained, str(other), "--resume_from", resume_from) == 3
        said = capsys.readouterr().err
        assert str(trained / "my text.txt") in said
        assert str(other) in said


def test_a_typing_mistake_at_a_resume_is_named(trained, capsys):
    resume = ["my text.txt", "--resume_from", "latest", "--set", "training.max_step=9"]
    assert harness.train_here(trained, *resume) == 2
    assert "did you mean training.max_steps?" in capsys.readouterr().err


def test_a_damaged_file_is_refused_with_the_older_one(trained, capsys):
    (run_dir,) = run_dirs(trained)
    path = newest_file(trained, run_dir)
    newer = path.with_name(f"{run_dir.name}_step_9999.pt")
    newer.write_bytes(path.read_bytes()[:-1])
    file = f"checkpoints/{newer.name}"
    assert harness.train_here(trained, "my text.txt", "--resume_from", file) == 3
    said = capsys.readouterr().err
    assert newer.name in said
    assert path.name in said


# The report


def report(folder: Path, name: str, capsys) -> tuple[int, str, str]:
    script = harness.load_script(harness.ROOT / "scripts" / "report.py")
    before = Path.cwd()
    os.chdir(folder)
    capsys.readouterr()
    try:
        code = script.main([name])
    finally:
        os.chdir(before)
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_of_two_runs_of_one_text_the_newest_is_reported(trained, capsys):
    """Begun by the text twice, then by the YAML of the first: all three are of one origin."""
    assert harness.train_here(trained, "my text.txt", *TWO_STEPS) == 0
    first, second = run_dirs(trained)
    code, out, _ = report(trained, NAME, capsys)
    assert code == 0
    assert second.name in out
    yaml = first / f"{NAME}.yaml"
    two_steps = ("--set", "training.max_steps=2")
    assert harness.train_here(trained, "--config", str(yaml), *two_steps) == 0
    newest = run_dirs(trained)[-1]
    code, out, _ = report(trained, NAME, capsys)
    assert code == 0
    assert newest.name in out


@pytest.mark.slow
def test_two_texts_of_one_name_are_two_origins(trained, tmp_path, capsys):
    other = write_text(tmp_path / "elsewhere", characters=7000)
    assert harness.train_here(trained, str(other), *TWO_STEPS) == 0
    code, _, said = report(trained, NAME, capsys)
    assert code == 3
    assert str(other) in said
    assert str(trained / "my text.txt") in said


# A dry run, short texts, shipped YAMLs


def test_a_dry_run_says_the_choice_and_leaves_nothing(tmp_path, capsys):
    text = write_text(tmp_path)
    assert harness.train_here(tmp_path, text.name, *SHORT, "--dry_run") == 0
    out = capsys.readouterr().out
    assert out.startswith("recipe: chatgot_mini")
    assert "parameters: " in out
    assert list(tmp_path.iterdir()) == [text]


@pytest.mark.slow
def test_a_short_text_gets_a_shorter_context(tmp_path):
    write_text(tmp_path, characters=1000)
    assert harness.train_here(tmp_path, "my text.txt", *SHORT) == 0
    (run_dir,) = run_dirs(tmp_path)
    config, _ = load_config(run_dir / f"{NAME}.yaml")
    assert config.model.max_seq_length == 32
    assert choices(run_dir)["context"]["chosen"] == 32


@pytest.mark.slow
def test_a_text_called_config_does_not_overwrite_the_settings(tmp_path):
    write_text(tmp_path, "config.txt")
    assert harness.train_here(tmp_path, "config.txt", *TWO_STEPS) == 0
    (run_dir,) = run_dirs(tmp_path, "config_text")
    assert load_config(run_dir / "config.yaml")[0] == load_config(run_dir / "config_text.yaml")[0]


@pytest.mark.parametrize("name", ["chatgot_mini", "chatgot_mini.yaml"])
def test_a_shipped_yaml_is_found_by_its_name(tmp_path, name, capsys):
    write_text(tmp_path)
    of_characters = ["--set", "data.path=my text.txt", "--set", "data.tokenizer=char"]
    dry = [*of_characters, "--set", "training.max_steps=1", "--dry_run"]
    assert harness.train_here(tmp_path, "--config", name, *dry) == 0
    assert "parameters: " in capsys.readouterr().out


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["my_text.txt --minutes 10", "--config", "chatgot_quick"]),
        (["my text.txt", "--config", "chatgot_quick"], ["one of them", "data.path"]),
        (
            ["--config", "chatgot_quick", "--minutes", "3"],
            ["--minutes", "--set training.max_minutes=M"],
        ),
        (
            ["--config", "chatgot_quick", "--until_best"],
            ["--until_best", "training.stop_when_no_better=N", "lr_schedule=wsd"],
        ),
        (["--until_best"], ["my_text.txt --minutes 10"]),
        (["my text.txt", "--until_best", "--minutes", "0"], ["--minutes", "above 0"]),
        (["my text.txt", "--until_best", "--resume_from", "latest"], ["--until_best", "new run"]),
        (
            ["my text.txt", "--until_best", "--set", "training.lr_schedule=linear"],
            ["lr_schedule=wsd"],
        ),
        (["my text.txt", "--minutes", "0"], ["--minutes", "above 0"]),
        (["my text.txt", "--minutes", "-1"], ["--minutes", "above 0"]),
        (["my text.txt", "--minutes", "nan"], ["--minutes", "nan"]),
        (["my text.txt", "--minutes", "inf"], ["--minutes", "inf"]),
        (["my text.txt", "--minutes", "1e10"], ["--minutes", "at most 1e9"]),
        (["my text.txt", "--minutes", "1", "--resume_from", "latest"], ["training.max_steps"]),
        (["my_text.txt"], ["my_text.txt", "no such file", "my text.txt"]),
        (["nothing"], ["no file to read", "an empty folder"]),
        (["empty.txt"], ["empty.txt", "is empty"]),
        (["short.txt"], ["99 characters", "at least 889"]),
        (["my text.txt", "--set", "data.path=empty.txt"], ["data.path", "my text.txt"]),
        (["my text.txt", "--set", "training.max_minutes=3"], ["--minutes instead"]),
        (["my text.txt", "--set", "training.batch_sise=3"], ["did you mean", "batch_size"]),
        (["my text.txt", "--set", "training.lora.rank=8"], ["LoRA adds", "--init_from"]),
        (["my.yaml"], ["did you mean --config my.yaml?"]),
        (["chatgot_quick"], ["did you mean --config chatgot_quick?"]),
        (["--config", "tyni"], ["tyni", "chatgot_mini, chatgot_own_text, chatgot_quick"]),
    ],
)
def test_a_mistake_is_exit_2_before_torch_and_leaves_nothing(tmp_path, arguments, words):
    write_text(tmp_path)
    write_text(tmp_path, "short.txt", characters=99)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.iterdir())
    no_torch = tmp_path.parent / "no_torch"
    no_torch.mkdir(exist_ok=True)
    (no_torch / "torch.py").write_text("raise SystemExit('torch is imported')")
    path = child_environment(no_torch)["PYTHONPATH"]
    done = harness.run_script(tmp_path, *arguments, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_least_length_is_exact(tmp_path):
    least = 889
    write_text(tmp_path, characters=least - 1)
    assert harness.train_here(tmp_path, "my text.txt", *SHORT) == 2
    write_text(tmp_path, characters=least)
    assert harness.train_here(tmp_path, "my text.txt", *SHORT, "--dry_run") == 0


def test_a_text_that_was_never_trained_on_cannot_go_on(tmp_path, capsys):
    write_text(tmp_path)
    assert harness.train_here(tmp_path, "my text.txt", "--resume_from", "latest") == 3
    assert "no run of" in capsys.readouterr().err
