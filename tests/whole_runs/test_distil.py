"""Several runs teach one student: as a user does it, resumed, exported to chat, and refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

from chatgot.exchange.importing import read_start
from chatgot.sampling.loading import load_model

DISTIL = harness.SCRIPT.with_name("distil.py")
SECTIONS = {
    "training": {
        "max_steps": 6,
        "eval_interval": 3,
        "sample_interval_steps": None,
        "save_checkpoint_steps": 1,
        "max_checkpoints_to_keep": 10,
    },
}


def distil(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return harness.run_script(folder, *arguments, script=DISTIL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with two teachers, and a student that has learned from both."""
    folder = tmp_path_factory.mktemp("distil")
    for number in (1, 2):
        harness.write_config(folder, name=f"teacher{number}", seed=number, **SECTIONS)
        assert harness.train_here(folder, "--config", f"teacher{number}.yaml") == 0
    harness.write_config(folder, name="student", **SECTIONS)
    done = distil(folder, "teacher1", "teacher2", "--to", "student.yaml")
    assert done.returncode == 0, done.stderr
    return folder


def files(folder: Path, name: str) -> dict[int, Path]:
    paths = (folder / "checkpoints").glob(f"{name}_*_step_*.pt")
    return {int(path.stem.rpartition("_")[2]): path for path in paths}


def events_of(folder: Path, name: str, kind: str) -> list[dict]:
    (run_dir,) = (folder / "logs" / "tensorboard").glob(f"{name}_*")
    return [e for e in harness.lines_in(run_dir / "events.jsonl") if e["kind"] == kind]


def test_the_end_compares_the_student_with_its_teachers(folder):
    (compared,) = events_of(folder, "student", "distillation")
    for number, teacher in enumerate(compared["teachers"], start=1):
        (done,) = events_of(folder, f"teacher{number}", "done")
        assert teacher["step"] == done["best_step"]
        assert teacher["val_loss_full"] == pytest.approx(done["best_val_loss_full"], abs=1e-5)
    losses = [teacher["val_loss_full"] for teacher in compared["teachers"]]
    assert compared["together"]["val_loss_full"] < sum(losses) / 2  # by Jensen's inequality
    assert compared["student"]["step"] in files(folder, "student")


def test_teachers_change_what_a_student_learns(folder, tmp_path):
    alone = harness.write_config(tmp_path, name="student", **SECTIONS)
    shutil.copy(folder / "text.txt", tmp_path / "text.txt")
    assert harness.train_here(tmp_path, "--config", str(alone)) == 0
    without = harness.load(files(tmp_path, "student")[6])
    taught = harness.load(files(folder, "student")[6])
    assert not harness.same(harness.trained(without), harness.trained(taught))


@pytest.mark.slow
def test_a_weight_of_0_is_a_training_without_teachers(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    harness.write_config(copied, name="zero", **SECTIONS)
    harness.write_config(copied, name="plain", **SECTIONS)
    weight = ("--set", "training.distillation.weight=0")
    done = distil(copied, "teacher1", "teacher2", "--to", "zero.yaml", *weight)
    assert done.returncode == 0, done.stderr
    assert harness.train_here(copied, "--config", "plain.yaml") == 0
    zero = harness.load(files(copied, "zero")[6])
    plain = harness.load(files(copied, "plain")[6])
    assert harness.same(zero["model_state_dict"], plain["model_state_dict"])


@pytest.mark.slow
def test_a_student_does_not_depend_on_the_micro_batch(folder, tmp_path):
    """Sums in another order: equal within fp32's rounding after a few small steps."""
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    no_dropout = SECTIONS | {"model": {"dropout": 0.0, "attention_dropout": 0.0}}
    losses = []
    for name, size in (("small", 1), ("large", "auto")):
        harness.write_config(copied, name=name, **no_dropout)
        micro_batch = ("--set", f"training.micro_batch_size={size}")
        done = distil(copied, "teacher1", "teacher2", "--to", f"{name}.yaml", *micro_batch)
        assert done.returncode == 0, done.stderr
        rows_of_run = rows(copied, name)
        losses.append([row["train_loss"] for row in rows_of_run if row["train_loss"] is not None])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def rows(folder: Path, name: str) -> list[dict]:
    (run_dir,) = (folder / "logs" / "tensorboard").glob(f"{name}_*")
    return harness.lines_in(run_dir / "metrics.jsonl")


@pytest.mark.slow
def test_a_killed_student_goes_on_in_the_same_bits(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    harness.write_config(copied, name="killed", **SECTIONS)
    command = [sys.executable, str(DISTIL), "teacher1", "teacher2", "--to", "killed.yaml"]
    process = subprocess.Popen(
        command, cwd=copied, stderr=subprocess.DEVNULL, env=child_environment()
    )
    limit = time.monotonic() + 100
    while 3 not in files(copied, "killed") and process.poll() is None:
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for step, path in files(copied, "killed").items():
        if step > 3:
            path.unlink()
    start = str(files(copied, "killed")[3])
    again = distil(copied, "teacher1", "teacher2", "--to", "killed.yaml", "--resume_from", start)
    assert again.returncode == 0, again.stderr
    straight = harness.load(files(copied, "student")[6])
    resumed = harness.load(files(copied, "killed")[6])
    assert harness.same(harness.trained(straight), harness.trained(resumed))


def test_a_student_is_a_model_like_any_other(folder):
    loaded = load_model(files(folder, "student")[6], "cpu", read_start)
    assert loaded.model.parameter_count() > 0


def test_a_changed_teacher_is_refused_on_resume(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (done,) = events_of(copied, "teacher1", "done")
    best = files(copied, "teacher1")[done["best_step"]]
    other = files(copied, "teacher2")[done["best_step"]]
    shutil.copy(other, best)
    start = ("--resume_from", str(files(copied, "student")[3]))
    again = distil(copied, str(best), "teacher2", "--to", "student.yaml", *start)
    assert again.returncode == 3, again.stderr
    assert "Traceback" not in again.stderr


def test_a_teacher_of_another_text_is_refused(folder, tmp_path):
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    (copied / "text.txt").write_text(harness.make_text(seed=9), encoding="utf-8")
    harness.write_config(copied, name="other", **SECTIONS)
    refused = distil(copied, "teacher1", "--to", "other.yaml")
    assert refused.returncode == 3, refused.stderr
    assert "teacher1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("nobody", "--to", "student.yaml"), 3),
        (("teacher1", "teacher1", "--to", "student.yaml"), 2),
        (("teacher1", "--to", "missing.yaml"), 2),
    ],
)
def test_mistakes_get_one_or_two_lines(folder, arguments, exit_code):
    refused = distil(folder, *arguments)
    assert refused.returncode == exit_code, refused.stderr
    assert "Traceback" not in refused.stderr
    assert 1 <= len(refused.stderr.strip().splitlines()) <= 2
