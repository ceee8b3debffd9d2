"""What a resumed run may change, and what it refuses; where a new run may start from another's weights."""

import contextlib

import harness
import pytest

from chatgot.checkpointing.checkpoint_file import save_checkpoint
from chatgot.checkpointing.run_lock import lock_old_run


@pytest.fixture
def trained(tmp_path):
    """A folder with a finished run of 4 steps; files of steps 2 and 4."""
    harness.write_config(tmp_path, training={"max_steps": 4, "save_checkpoint_steps": 2})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    return tmp_path


def resume(folder, *settings: str, start: str = "latest") -> int:
    overrides = [word for setting in settings for word in ("--set", setting)]
    return harness.train_here(folder, "--config", "tiny.yaml", "--resume_from", start, *overrides)


def log_of(folder) -> str:
    (path,) = (folder / "logs").glob("train_*.log")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "setting",
    [
        "training.log_interval=2",
        "training.max_checkpoints_to_keep=3",
        "sampling.temperature=0",
        "paths.cache=other",
    ],
)
def test_what_cannot_change_the_mathematics_is_taken_and_logged(trained, setting):
    assert resume(trained, "training.max_steps=5", setting) == 0
    key, _, value = setting.partition("=")
    assert f"{key}: " in log_of(trained)
    assert f"-> {value}" in log_of(trained)
    assert 5 in harness.checkpoints(trained)


@pytest.mark.parametrize("key", ["training.learning_rate", "training.grad_clip", "model.dropout"])
def test_what_changes_the_mathematics_is_taken_only_when_set_names_it(trained, key, capsys):
    section, name = key.split(".")
    harness.write_config(
        trained,
        **{section: {name: 0.25, "max_steps": 5} if section == "training" else {name: 0.25}},
    )
    assert resume(trained, "training.max_steps=5", "training.save_checkpoint_steps=2") == 3
    assert f"--set {key}=0.25" in capsys.readouterr().err
    assert (
        resume(trained, "training.max_steps=5", "training.save_checkpoint_steps=2", f"{key}=0.25")
        == 0
    )


@pytest.mark.parametrize(
    "setting", ["seed=9", "model.d_model=32", "training.batch_size=2", "training.accumulate_grad_batches=1",
                "training.weight_decay=0", "data.test_split=0.2"],
)  # fmt: skip
def test_sizes_seed_and_step_size_are_never_changed_on_resume(trained, setting, capsys):
    before = {step: path.read_bytes() for step, path in harness.checkpoints(trained).items()}
    assert resume(trained, "training.max_steps=5", setting) == 3
    assert setting.partition("=")[0] in capsys.readouterr().err
    assert {
        step: path.read_bytes() for step, path in harness.checkpoints(trained).items()
    } == before


def test_another_text_is_refused_unless_set_allows_it_and_it_has_the_same_characters(
    trained, capsys
):
    text = trained / "text.txt"
    changed = text.read_text().replace("king", "gink", 1)
    text.write_text(changed)
    assert resume(trained, "training.max_steps=5") == 3
    assert "data.allow_change=true" in capsys.readouterr().err
    assert resume(trained, "training.max_steps=5", "data.allow_change=true") == 0
    text.write_text(changed + "§")
    assert resume(trained, "training.max_steps=6", "data.allow_change=true") == 3


def test_the_same_text_under_another_name_and_encoding_is_the_same_text(trained):
    (trained / "renamed.txt").write_text((trained / "text.txt").read_text(), encoding="utf-16")
    assert resume(trained, "training.max_steps=5", "data.path=renamed.txt") == 0


def test_resuming_a_finished_run_is_exit_0_says_how_to_extend_it_and_writes_nothing(
    trained, capsys
):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert resume(trained) == 0
    assert "training.max_steps" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_final_evaluation_that_a_stop_cut_short_is_made_on_resume(trained):
    whole = harness.rows(trained)
    path = harness.checkpoints(trained)[4]
    content = harness.load(path)
    content["state"] |= {"last_eval_step": 3, "best_step": -1}
    path.unlink()
    assert save_checkpoint(path, content)  # as it stands after a signal in the last step
    (metrics,) = (trained / "logs" / "tensorboard").glob("*/metrics.jsonl")
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert resume(trained) == 0
    rows = harness.rows(trained)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["val_loss_full"] == whole[-1]["val_loss_full"]


def test_what_a_killed_save_left_behind_is_swept_on_resume_and_nothing_else(trained):
    path = harness.checkpoints(trained)[4]
    left, other = (
        path.with_name(name) for name in (f".{path.name}.4242.tmp", ".another.pt.4242.tmp")
    )
    left.write_bytes(b"half")
    other.write_bytes(b"half")
    assert resume(trained, "training.max_steps=5") == 0
    assert not left.exists()
    assert other.exists()


def test_a_longer_run_says_that_the_schedule_changes(trained):
    assert resume(trained, "training.max_steps=5") == 0
    assert "the schedule changes from here: its decay now ends at step 5" in log_of(trained)


def test_a_refused_null_is_shown_as_yaml_writes_it(trained, capsys):
    harness.write_config(
        trained, training={"grad_clip": None, "max_steps": 5, "save_checkpoint_steps": 2}
    )
    assert resume(trained) == 3
    assert (
        "training.grad_clip: 1.0 -> null (insist with --set training.grad_clip=null)"
        in capsys.readouterr().err
    )


def test_resuming_from_an_older_file_sets_the_newer_ones_aside(trained):
    files = harness.checkpoints(trained)
    assert resume(trained, "training.max_steps=3", start=str(files[2])) == 0
    assert (trained / "checkpoints" / (files[4].name + ".superseded")).exists()
    assert sorted(harness.checkpoints(trained)) == [2, 3]
    assert [row["step"] for row in harness.rows(trained)] == [0, 1, 2, 3]


def test_an_older_file_at_which_the_run_would_end_changes_nothing(trained):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert resume(trained, "training.max_steps=2", start=str(harness.checkpoints(trained)[2])) == 0
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_living_run_is_not_resumed_into_another_folder_of_checkpoints_beside_the_same_logs(
    trained, capsys
):
    files = harness.checkpoints(trained)
    lock = lock_old_run(
        trained / "logs", files[4].name.partition("_step_")[0]
    )  # as the living run holds it
    rows = harness.rows(trained)
    more = ("training.max_steps=5", "paths.checkpoints=other")
    assert resume(trained, *more, start=str(files[4])) == 5
    assert "still being trained" in capsys.readouterr().err
    assert harness.rows(trained) == rows
    lock.release()
    assert resume(trained, *more, start=str(files[4])) == 0


def test_a_run_that_another_process_trained_on_in_the_meantime_is_not_resumed_from_what_was_latest(
    trained, capsys
):
    script = harness.load_script()
    newest = harness.checkpoints(trained)[4]
    real = script.load_text

    def meanwhile(*args):  # the other process saves once more, and ends
        newest.with_name(newest.name.replace("_step_4", "_step_5")).write_bytes(newest.read_bytes())
        return real(*args)

    script.load_text = meanwhile
    with contextlib.chdir(trained):
        code = script.main(
            ["--config", "tiny.yaml", "--resume_from", "latest", "--set", "training.max_steps=6"]
        )
    assert code == 5
    assert "saved by another process in the meantime" in capsys.readouterr().err
    assert sorted(harness.checkpoints(trained)) == [2, 4, 5]


def test_a_checkpoint_of_another_configuration_is_refused(trained, capsys):
    harness.write_config(trained, name="other", training={"max_steps": 9})
    path = harness.checkpoints(trained)[4]
    assert harness.train_here(trained, "--config", "other.yaml", "--resume_from", str(path)) == 3
    assert "--init_from" in capsys.readouterr().err


def test_init_from_takes_what_matches_lists_what_does_not_and_starts_a_new_run(
    trained, tmp_path, capsys
):
    path = harness.checkpoints(trained)[4]
    harness.write_config(trained, name="wider", model={"d_hid": 40}, training={"max_steps": 1, "learning_rate": 1e-30,
                         "min_learning_rate": 0, "weight_decay": 0})  # fmt: skip
    assert harness.train_here(trained, "--config", "wider.yaml", "--init_from", str(path)) == 0
    assert (
        "layers.0.mlp.up.weight has shape (24, 16) (expected (40, 16))" in capsys.readouterr().err
    )
    (new,) = (trained / "checkpoints").glob("wider_*_step_1.pt")
    old, new = harness.load(path)["model_state_dict"], harness.load(new)["model_state_dict"]
    assert harness.same(old["layers.0.attention.qkv.weight"], new["layers.0.attention.qkv.weight"])


def test_init_from_a_file_in_which_nothing_matches_is_exit_3(trained, capsys):
    path = harness.checkpoints(trained)[4]
    harness.write_config(
        trained, name="other", model={"d_model": 20, "n_layers": 1, "d_hid": 8, "max_seq_length": 8}
    )
    assert harness.train_here(trained, "--config", "other.yaml", "--init_from", str(path)) == 3
    assert "no weight matches" in capsys.readouterr().err
