"""Whole runs end to end, with a text and a model that take seconds."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import pytest
import torch

LONG = {
    "max_steps": 120,
    "save_checkpoint_steps": 10,
    "eval_interval": 50,
    "sample_interval_steps": None,
}


def trained(folder: Path, step: int = 12) -> dict[str, Any]:
    """Return what must be equal after `step` in two runs of the same steps."""
    return harness.trained(harness.load(harness.checkpoints(folder)[step]))


def losses(folder: Path) -> list[dict[str, Any]]:
    """Return the part of the rows of metrics that must be equal in two runs."""
    names = ("step", "train_loss", "val_loss", "lr", "grad_norm")
    return [{name: row.get(name) for name in names} for row in harness.rows(folder)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 12 steps with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("straight")
    config = harness.write_config(folder, training={"save_checkpoint_steps": 1})
    done = harness.run_script(folder, "--config", config.name)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """An undisturbed run of 120 steps."""
    folder = tmp_path_factory.mktemp("long")
    harness.write_config(folder, training=LONG)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


def copy_at(straight: Path, folder: Path, step: int) -> Path:
    """Copy the undisturbed run as it was when the file of `step` was the newest."""
    shutil.copytree(straight, folder)
    for other, path in harness.checkpoints(folder).items():
        if other > step:
            path.unlink()
    return harness.checkpoints(folder)[step]


def test_a_run_resumed_in_a_new_process_equals_the_undisturbed_one(straight, tmp_path):
    folder = tmp_path / "resumed"
    path = copy_at(straight, folder, 7)
    done = harness.run_script(folder, "--config", "tiny.yaml", "--resume_from", str(path))
    assert done.returncode == 0, done.stderr
    assert harness.same(trained(folder), trained(straight))
    assert losses(folder) == losses(straight)


@pytest.mark.parametrize("step", harness.slow_but([1, 5, 11], range(1, 12)))
def test_a_run_resumed_at_any_step_equals_the_undisturbed_one(straight, tmp_path, step):
    folder = tmp_path / "resumed"
    path = copy_at(straight, folder, step)
    assert harness.train_here(folder, "--config", "tiny.yaml", "--resume_from", str(path)) == 0
    assert harness.same(trained(folder), trained(straight))
    assert losses(folder) == losses(straight)


def test_two_fresh_runs_end_in_the_same_bits(straight, tmp_path):
    harness.write_config(tmp_path, training={"save_checkpoint_steps": 1})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    assert harness.same(trained(tmp_path), trained(straight))


def test_sampling_evaluating_and_saving_at_every_step_changes_no_weight(tmp_path):
    intervals = ("eval_interval", "sample_interval_steps", "save_checkpoint_steps", "log_interval")
    keys = {
        "off": dict.fromkeys((*intervals, "checkpoint_interval_minutes")),
        "on": dict.fromkeys(intervals, 1),
    }
    weights = []
    for name, training in keys.items():
        folder = tmp_path / name
        folder.mkdir()
        harness.write_config(folder, training=training)
        assert harness.train_here(folder, "--config", "tiny.yaml") == 0
        content = harness.load(harness.checkpoints(folder)[12])
        names = ("model_state_dict", "optimizer_state_dict", "loss")
        weights.append({name: content[name] for name in names})
    assert list(harness.checkpoints(tmp_path / "off")) == [12]
    assert len(harness.checkpoints(tmp_path / "on")) == 12
    assert harness.same(*weights)


def test_a_run_writes_the_promised_rows_of_metrics(straight):
    rows = harness.rows(straight)
    assert [row["step"] for row in rows] == list(range(13))
    assert rows[0]["train_loss"] is None
    assert 2.5 < rows[0]["val_loss"] < 4.5  # about ln V
    assert all((row["val_loss"] is not None) == (row["step"] % 4 == 0) for row in rows)
    assert rows[-1]["val_loss_full"] > 0
    assert [row["tokens"] for row in rows] == [step * 12 * 16 for step in range(13)]
    assert rows[-1]["val_loss_full"] < rows[0]["val_loss"]


def test_the_log_ends_with_best_loss_newest_file_and_command_to_resume(straight):
    *_, best, newest, command = harness.log_of(straight).splitlines()
    path = harness.checkpoints(straight)[12]
    assert "best_val_loss" in best
    assert str(path) in newest
    assert f"--config tiny.yaml --resume_from checkpoints/{path.name}" in command


def test_the_best_evaluations_file_survives_retention(tmp_path):
    # the rate rises to 0.2 after step 6 and spoils the weights: the last evaluation is not the best
    keys = {
        "learning_rate": 1e-2,
        "min_learning_rate": 0.2,
        "warmup_steps": 6,
        "eval_interval": 3,
        "save_checkpoint_steps": 1,
        "max_checkpoints_to_keep": 2,
    }
    harness.write_config(tmp_path, training=keys)
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    evaluated = {}
    for row in harness.rows(tmp_path):
        if row["step"] > 0 and row["val_loss"] is not None:
            evaluated[row["step"]] = row["val_loss"]
    best = min(evaluated, key=evaluated.get)
    assert best in (6, 9), evaluated
    assert sorted(harness.checkpoints(tmp_path)) == [best, 11, 12]


def test_no_trigger_saves_during_a_series_of_skipped_steps(tmp_path):
    settings = {"save_checkpoint_steps": 1, "eval_interval": 1, "max_nan_before_fallback": 9}
    harness.write_config(tmp_path, training=settings)
    script = harness.load_script()
    bad = {5, 6}
    real = script.compute_gradients

    def compute_gradients(run):
        loss = real(run)
        return loss * float("nan") if run.state.progress.global_step + 1 in bad else loss

    script.compute_gradients = compute_gradients
    with contextlib.chdir(tmp_path):
        assert script.main(["--config", "tiny.yaml"]) == 0
    assert sorted(harness.checkpoints(tmp_path)) == [1, 2, 3, 4, 7, 8, 9, 10, 11, 12]


def train_with_flipped_bits(folder: Path, times: int) -> tuple[int, int]:
    """Train while a bit flips in memory after step 3, at most `times` times.

    Return exit code and number of flips.
    """
    harness.write_config(folder, training={"save_checkpoint_steps": 1})
    script = harness.load_script()
    real = script.update_weights
    flips = []

    def update_weights(run, loss):
        real(run, loss)
        if run.state.progress.global_step == 3 and len(flips) < times:
            flips.append(3)
            run.optimizer.state[run.model.head.weight]["exp_avg"][0, 0] = torch.inf

    script.update_weights = update_weights
    with contextlib.chdir(folder):
        exit_code = script.main(["--config", "tiny.yaml"])
    assert harness.events(folder, "rewind")[0]["to"] == 2
    assert "optimizer_state_dict.state.0.exp_avg" in harness.warnings(folder)
    assert not list((folder / "logs").rglob("crash.txt"))
    return exit_code, len(flips)


def test_a_non_finite_state_is_rewound_instead_of_saved(straight, tmp_path):
    """The data are not to blame: none is skipped, and the run ends like the undisturbed one."""
    assert train_with_flipped_bits(tmp_path, times=1) == (0, 1)
    ended = trained(tmp_path)
    health = ended["state"]["health"]
    assert (health["rewinds"], health["rewound_to"]) == (1, 2)
    undisturbed = trained(straight)
    health |= {name: undisturbed["state"]["health"][name] for name in ("rewinds", "rewound_to")}
    assert undisturbed["state"]["health"]["rewinds"] == 0
    assert harness.same(ended, undisturbed)


def test_a_state_that_stays_non_finite_is_never_saved_and_is_exit_4(tmp_path):
    assert train_with_flipped_bits(tmp_path, times=99) == (4, 4)
    assert sorted(harness.checkpoints(tmp_path)) == [1, 2]


def test_the_log_says_which_state_was_not_saved(tmp_path):
    train_with_flipped_bits(tmp_path, times=1)
    words = "step 3 was not saved: found NaN or infinity in optimizer_state_dict.state.0.exp_avg"
    assert words in harness.log_of(tmp_path)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGKILL, -9), *harness.slow((signal.SIGTERM, 143), (signal.SIGINT, 130))],
)
def test_a_stopped_or_killed_run_resumes_and_ends_like_an_undisturbed_one(
    long_run, tmp_path, number, exit_code
):
    harness.write_config(tmp_path, training=LONG)
    command = [sys.executable, str(harness.SCRIPT), "--config", "tiny.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(harness.checkpoints(tmp_path)) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == exit_code, said
    reached = max(harness.checkpoints(tmp_path))
    assert reached < LONG["max_steps"], "the signal was to come before the end"
    if number != signal.SIGKILL:
        (stop,) = harness.events(tmp_path, "stop")
        assert stop["signal"] == signal.Signals(number).name
        assert f"step_{reached}.pt" in stop["resume_command"]
        assert f"step_{reached}.pt" in said.splitlines()[-1]
    assert harness.train_here(tmp_path, "--config", "tiny.yaml", "--resume_from", "latest") == 0
    last_step = LONG["max_steps"]
    assert harness.same(trained(tmp_path, last_step), trained(long_run, last_step))
    assert losses(tmp_path) == losses(long_run)
