"""A resumed run: which settings it may change, which it refuses, and what happens to files."""

import contextlib
from pathlib import Path

import harness
import pytest

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.checkpointing.run_lock import lock_old_run


def resume(folder: Path, *settings: str, start: str = "latest") -> int:
    """Resume with settings that `--set` takes; return the exit code."""
    overrides = []
    for setting in settings:
        overrides += ["--set", setting]
    return harness.train_here(folder, "--config", "tiny.yaml", "--resume_from", start, *overrides)


def all_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint_bytes(folder: Path) -> dict[int, bytes]:
    return {step: path.read_bytes() for step, path in harness.checkpoints(folder).items()}


@pytest.mark.parametrize(
    "setting",
    [
        "training.log_interval=2",
        "training.max_checkpoints_to_keep=3",
        "sampling.temperature=0",
        "paths.cache=other",
    ],
)
def test_settings_that_cannot_change_the_maths_are_taken_and_logged(trained, setting):
    assert resume(trained, "training.max_steps=5", setting) == 0
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    stored = harness.load(harness.checkpoints(trained)[5])["config"]
    assert str(stored[section][name]) == value
    log = harness.log_of(trained)
    assert f"{key}: " in log
    assert f"-> {value}" in log


@pytest.mark.parametrize("key", ["training.learning_rate", "training.grad_clip", "model.dropout"])
def test_settings_that_change_the_maths_are_taken_only_with_set(trained, key, capsys):
    section, name = key.split(".")
    harness.write_config(trained, **{section: {name: 0.25}})
    longer = ("training.max_steps=5", "training.save_checkpoint_steps=2")
    assert resume(trained, *longer) == 3
    assert f"--set {key}=0.25" in capsys.readouterr().err
    assert resume(trained, *longer, f"{key}=0.25") == 0


@pytest.mark.parametrize(
    "setting",
    [
        "seed=9",
        "model.d_model=32",
        "training.batch_size=2",
        "training.accumulate_grad_batches=1",
        "training.weight_decay=0",
        "data.test_split=0.2",
        "data.learn_from=[FOOL]",
    ],
)
def test_sizes_seed_and_step_size_never_change_on_resume(trained, setting, capsys):
    before = checkpoint_bytes(trained)
    assert resume(trained, "training.max_steps=5", setting) == 3
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert checkpoint_bytes(trained) == before


def test_another_text_is_refused_unless_set_allows_it(trained, capsys):
    """With other characters it is refused even then."""
    text = trained / "text.txt"
    changed = text.read_text().replace("king", "gink", 1)
    text.write_text(changed)
    assert resume(trained, "training.max_steps=5") == 3
    assert "data.allow_change=true" in capsys.readouterr().err
    assert resume(trained, "training.max_steps=5", "data.allow_change=true") == 0
    text.write_text(changed + "§")
    assert resume(trained, "training.max_steps=6", "data.allow_change=true") == 3


def test_a_text_under_another_name_and_encoding_is_the_same_text(trained):
    (trained / "renamed.txt").write_text((trained / "text.txt").read_text(), encoding="utf-16")
    assert resume(trained, "training.max_steps=5", "data.path=renamed.txt") == 0


def test_resuming_a_finished_run_is_exit_0_and_writes_nothing(trained, capsys):
    """The message says how to extend the run."""
    before = all_files(trained)
    assert resume(trained) == 0
    assert "training.max_steps" in capsys.readouterr().err
    assert all_files(trained) == before


def test_a_final_evaluation_cut_short_by_a_stop_is_made_on_resume(trained):
    whole = harness.rows(trained)
    path = harness.checkpoints(trained)[4]
    content = harness.load(path)
    content["state"]["marks"] |= {"last_eval_step": 3, "best_step": -1}
    path.unlink()
    assert save_checkpoint(path, content)  # the file that a signal in the last step leaves
    metrics = harness.run_dir(trained) / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert resume(trained) == 0
    rows = harness.rows(trained)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["val_loss_full"] == whole[-1]["val_loss_full"]
    (resumed,) = harness.events(trained, "resume")
    assert resumed["step"] == 4


def test_a_resume_removes_only_leftovers_of_a_killed_save(trained):
    path = harness.checkpoints(trained)[4]
    left = path.with_name(f".{path.name}.4242.tmp")
    other = path.with_name(".another.pt.4242.tmp")
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    assert resume(trained, "training.max_steps=5") == 0
    assert not left.exists()
    assert other.exists()


def test_extending_a_run_warns_that_the_schedule_changes(trained):
    assert resume(trained, "training.max_steps=5") == 0
    words = "the schedule changes from here: its decay now ends at step 5"
    assert words in harness.log_of(trained)


@pytest.mark.parametrize(
    ("settings", "step", "level", "rates"),
    [
        (["training.max_steps=8"], 4, "WARNING", ("1.00e-03", "9.14e-03")),
        (["training.epochs=1", "training.max_steps=null"], 4, "WARNING", ("1.00e-03", "9.96e-03")),
        (["training.learning_rate=0.5"], 2, "WARNING", ("1.00e-02", "5.00e-01")),
        (["training.warmup_steps=8"], 2, "INFO", ("1.00e-02", "7.50e-03")),
    ],
)
def test_a_learning_rate_that_jumps_on_resume_is_said(trained, settings, step, level, rates):
    start = str(harness.checkpoints(trained)[step])
    assert resume(trained, *settings, start=start) == 0
    words = f"{level} - the learning rate at step {step} changes: {rates[0]} -> {rates[1]}"
    assert words in harness.log_of(trained)


def test_a_learning_rate_that_goes_on_as_planned_is_not_mentioned(trained):
    files = harness.checkpoints(trained)
    assert resume(trained, "training.log_interval=3", start=str(files[2])) == 0
    assert "the learning rate at" not in harness.log_of(trained)


@pytest.mark.parametrize(
    "word",
    ["Latest", "LATEST", "lastest", "latest.pt", "last", "newest", " latest", "auto", "true"],
)
def test_a_word_that_is_nearly_latest_gets_a_hint(trained, word, capsys):
    before = all_files(trained)
    assert resume(trained, start=word) == 3
    assert "did you mean --resume_from latest?" in capsys.readouterr().err
    assert all_files(trained) == before


def test_a_file_that_is_named_like_latest_is_taken(trained):
    files = harness.checkpoints(trained)
    files[4].rename(trained / "Latest")
    assert resume(trained, "training.max_steps=5", start="Latest") == 0


def test_a_refused_null_is_shown_in_yaml_spelling(trained, capsys):
    keys = {"grad_clip": None, "max_steps": 5, "save_checkpoint_steps": 2}
    harness.write_config(trained, training=keys)
    assert resume(trained) == 3
    words = "training.grad_clip: 1.0 -> null (to change it, add --set training.grad_clip=null)"
    assert words in capsys.readouterr().err


def test_a_resume_from_an_older_file_sets_the_newer_ones_aside(trained):
    files = harness.checkpoints(trained)
    assert resume(trained, "training.max_steps=3", start=str(files[2])) == 0
    assert (trained / "checkpoints" / (files[4].name + ".superseded")).exists()
    assert sorted(harness.checkpoints(trained)) == [2, 3]
    assert [row["step"] for row in harness.rows(trained)] == [0, 1, 2, 3]


def test_resuming_an_older_file_at_the_runs_end_changes_nothing(trained):
    before = all_files(trained)
    assert resume(trained, "training.max_steps=2", start=str(harness.checkpoints(trained)[2])) == 0
    assert all_files(trained) == before


def test_a_live_run_is_not_resumed_into_another_folder(trained, capsys):
    """Only the folder of checkpoints differs; the lock is in the folder of logs, too."""
    files = harness.checkpoints(trained)
    lock = lock_old_run(trained / "logs", files[4].name.partition("_step_")[0])
    rows = harness.rows(trained)
    more = ("training.max_steps=5", "paths.checkpoints=other")
    assert resume(trained, *more, start=str(files[4])) == 5
    assert "still being trained" in capsys.readouterr().err
    assert harness.rows(trained) == rows
    lock.release()
    assert resume(trained, *more, start=str(files[4])) == 0


def test_a_run_that_another_process_continued_is_not_resumed(trained, capsys):
    """The other process trained on after `latest` was looked up."""
    script = harness.load_script()
    newest = harness.checkpoints(trained)[4]
    real = script.load_text

    def meanwhile(*args):  # the other process saves once more, and ends
        newest.with_name(newest.name.replace("_step_4", "_step_5")).write_bytes(newest.read_bytes())
        return real(*args)

    script.load_text = meanwhile
    arguments = ["--config", "tiny.yaml", "--resume_from", "latest"]
    with contextlib.chdir(trained):
        assert script.main([*arguments, "--set", "training.max_steps=6"]) == 5
    assert "saved by another process in the meantime" in capsys.readouterr().err
    assert sorted(harness.checkpoints(trained)) == [2, 4, 5]


def test_a_checkpoint_of_another_configuration_is_refused(trained, capsys):
    harness.write_config(trained, name="other", training={"max_steps": 9})
    path = harness.checkpoints(trained)[4]
    assert harness.train_here(trained, "--config", "other.yaml", "--resume_from", str(path)) == 3
    assert "--init_from" in capsys.readouterr().err
