"""A run that learns its text by heart ends by itself; one that still improves goes on."""

import shutil
from pathlib import Path

import harness
import pytest

# a text of two thousand characters is learnt by heart within these steps
OVERFITTING = {
    "model": {"d_model": 32, "n_layers": 2, "n_head": 2, "max_seq_length": 16},
    "training": {
        "max_steps": 3000,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "lr_schedule": "wsd",
        "stop_when_no_better": 3,
        "eval_interval": 10,
        "eval_batches": "all",
        "sample_interval_steps": None,
        "save_checkpoint_steps": 10,
        "max_checkpoints_to_keep": 400,
        "log_interval": 10,
    },
}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("overfitted")
    (folder / "text.txt").write_text(harness.make_text(2000), encoding="utf-8")
    harness.write_config(folder, **OVERFITTING)
    assert harness.train_here(folder, "--config", "tiny.yaml") == 0
    return folder


def final(folder: Path) -> dict:
    steps = harness.checkpoints(folder)
    return harness.load(steps[max(steps)])


def test_a_text_learnt_by_heart_ends_the_run_early_and_says_why(overfitted):
    (done,) = harness.events(overfitted, "done")
    assert done["reason"] in ("no better", "decayed")
    assert done["global_step"] < 3000
    (decay,) = harness.events(overfitted, "decay")
    assert decay["reason"] == "no better"
    assert "no better held-out loss in 3 evaluations since step" in harness.log_of(overfitted)


def test_the_best_checkpoint_is_kept_and_measured_in_full(overfitted):
    (done,) = harness.events(overfitted, "done")
    (best,) = harness.events(overfitted, "best")
    assert best["best_step"] == done["best_step"] < done["global_step"]
    assert done["best_step"] in harness.checkpoints(overfitted)
    assert best["val_loss_full"] == done["best_val_loss_full"]
    assert best["val_loss_full"] == pytest.approx(done["best_val_loss"], abs=1e-6)
    assert best["val_loss_full"] < done["val_loss_full"]
    assert "chat, serve and export take it" in harness.log_of(overfitted)


def test_a_run_that_still_improves_does_not_end_early(tmp_path):
    slow = harness.merged(OVERFITTING, {"training": {"max_steps": 60, "learning_rate": 1e-3}})
    harness.write_config(tmp_path, **slow)
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    (done,) = harness.events(tmp_path, "done")
    assert (done["global_step"], done["reason"]) == (60, "max_steps")


def test_a_resume_at_any_moment_ends_as_the_straight_run(overfitted, tmp_path):
    """Before the plateau, within its evaluations, right where the decay begins, and in it."""
    steps = sorted(harness.checkpoints(overfitted))
    (decay,) = harness.events(overfitted, "decay")
    began = decay["step"]
    for step in {10, began - 20, began, began + 10, steps[-2]} & set(steps):
        folder = tmp_path / f"from{step}"
        shutil.copytree(overfitted, folder)
        for other, path in harness.checkpoints(folder).items():
            if other > step:
                path.unlink()
        start = str(harness.checkpoints(folder)[step])
        assert harness.train_here(folder, "--config", "tiny.yaml", "--resume_from", start) == 0
        there = final(overfitted)
        here = final(folder)
        assert there["global_step"] == here["global_step"]
        assert harness.same(harness.trained(there), harness.trained(here))
        for part in ("schedule", "plateau", "marks"):
            assert there["state"][part] == here["state"][part]


def test_a_run_ended_by_its_evaluations_says_how_to_go_on(overfitted, tmp_path, capsys):
    folder = tmp_path / "again"
    shutil.copytree(overfitted, folder)
    steps = harness.checkpoints(folder)
    start = ("--config", "tiny.yaml", "--resume_from", str(steps[max(steps)]))
    assert harness.train_here(folder, *start) == 0
    said = capsys.readouterr().err
    assert "is finished at step" in said
    assert "--set training.stop_when_no_better=null" in said
