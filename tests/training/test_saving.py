"""Saving a run: a failed save leaves no mark, and the best step always has a file."""

import errno
import math
import os
import shutil
from pathlib import Path

import harness
import parts
import pytest
import torch

from chatgot.errors import Diverged, OutOfMemory, StorageError
from chatgot.run.assembly import Run
from chatgot.training.saving import Saver
from chatgot.training.step import compute_gradients, update_weights


def never() -> bool:
    """Nobody asks the run to stop."""
    return False


def always() -> bool:
    """A signal has asked the run to stop."""
    return True


def run_in(folder: Path, **training: object) -> Run:
    """Return a run that saves into `folder`/checkpoints, which exists."""
    keys = {"max_steps": 1000, "save_checkpoint_steps": None} | training
    run = parts.run(training=keys, paths={"checkpoints": str(folder / "checkpoints")})
    run.checkpoint_dir.mkdir()
    return run


def train(run: Run, steps: int = 1) -> None:
    for _ in range(steps):
        assert update_weights(run, compute_gradients(run))


def evaluated(run: Run, val_loss: float) -> None:
    """Mark the current step as evaluated."""
    run.state.marks.val_loss = val_loss
    run.state.marks.last_eval_step = run.state.progress.global_step


def ruin(run: Run) -> None:
    """Put a NaN into one weight."""
    with torch.no_grad():
        run.model.norm.weight[0] = math.nan


def take_folder_away(run: Run) -> None:
    """Make every save fail from now on."""
    shutil.rmtree(run.checkpoint_dir)


def saved_steps(run: Run) -> list[int]:
    return sorted(harness.checkpoints(run.checkpoint_dir.parent))


def stored_state(run: Run, step: int) -> dict:
    return harness.load(harness.checkpoints(run.checkpoint_dir.parent)[step])["state"]


# A save that succeeds


def test_a_save_is_recorded_in_the_run_and_in_its_file(tmp_path):
    run = run_in(tmp_path)
    train(run, 2)
    assert Saver(run, never).save()
    assert saved_steps(run) == [2]
    assert run.state.marks.last_save_step == 2
    assert stored_state(run, 2) == run.state.model_dump()


def test_a_step_becomes_the_best_when_its_file_is_written(tmp_path):
    run = run_in(tmp_path)
    train(run, 2)
    evaluated(run, 2.5)
    assert run.state.marks.best_step == -1
    assert Saver(run, never).save()
    marks = run.state.marks
    assert (marks.best_step, marks.best_val_loss) == (2, 2.5)
    stored = stored_state(run, 2)["marks"]
    assert (stored["best_step"], stored["best_val_loss"]) == (2, 2.5)


def test_a_save_that_is_not_the_best_does_not_change_the_best(tmp_path):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    evaluated(run, 2.5)
    assert saver.save()
    train(run)
    assert saver.save()
    train(run)
    evaluated(run, 2.6)
    assert saver.save()
    marks = run.state.marks
    assert (marks.best_step, marks.best_val_loss) == (1, 2.5)


def test_the_best_file_stays_when_older_ones_are_removed(tmp_path):
    run = run_in(tmp_path, max_checkpoints_to_keep=1)
    saver = Saver(run, never)
    train(run)
    evaluated(run, 2.5)
    for _ in range(3):
        assert saver.save()
        train(run)
    assert saved_steps(run) == [1, 3]


def test_the_files_for_a_rewind_stay_as_well(tmp_path):
    run = run_in(tmp_path, max_checkpoints_to_keep=1, save_checkpoint_steps=2)
    saver = Saver(run, never)
    for _ in range(7):
        train(run)
        assert saver.save()
    assert saved_steps(run) == [4, 6, 7]


def test_a_late_save_replaces_the_file_that_the_run_resumed_from(tmp_path):
    """The new file adds the evaluation that came late, after a resume."""
    run = run_in(tmp_path)
    train(run, 2)
    assert Saver(run, never).save()
    evaluated(run, 2.5)
    assert Saver(run, never).save()
    marks = stored_state(run, 2)["marks"]
    assert (marks["val_loss"], marks["best_step"]) == (2.5, 2)


def test_the_first_save_after_a_rewind_sets_newer_files_aside(tmp_path):
    run = run_in(tmp_path)
    train(run)
    left_behind = run.checkpoint_dir / f"{parts.RUN_ID}_step_9.pt"
    left_behind.write_bytes(b"later")
    run.abandoned = [left_behind]
    assert Saver(run, never).save()
    assert saved_steps(run) == [1]
    assert left_behind.with_name(f"{left_behind.name}.superseded").is_file()
    assert run.abandoned == []


def test_a_step_triggered_save_proves_gradient_checkpointing_first(tmp_path):
    """The file then has the result of the proof; other saves make no proof."""
    run = run_in(tmp_path, gradient_checkpointing=True, save_checkpoint_steps=2)
    saver = Saver(run, never)
    train(run)
    assert saver.save()
    assert stored_state(run, 1)["marks"]["last_proof_step"] == 0
    train(run)
    assert saver.save()
    assert stored_state(run, 2)["marks"]["last_proof_step"] == 2


# A save that fails


def test_a_failed_save_leaves_no_mark(tmp_path):
    run = run_in(tmp_path)
    train(run, 2)
    evaluated(run, 2.5)
    before = run.state.marks.model_copy()
    take_folder_away(run)
    saver = Saver(run, never)
    assert not saver.save()
    assert run.state.marks == before
    run.checkpoint_dir.mkdir()
    assert saver.save()
    marks = run.state.marks
    assert (marks.last_save_step, marks.best_step, marks.best_val_loss) == (2, 2, 2.5)


def test_a_failed_save_leaves_the_marks_of_earlier_ones(tmp_path):
    run = run_in(tmp_path)
    saver = Saver(run, never)
    train(run)
    evaluated(run, 2.5)
    assert saver.save()
    train(run)
    evaluated(run, 2.4)
    take_folder_away(run)
    assert not saver.save()
    marks = run.state.marks
    assert (marks.last_save_step, marks.best_step, marks.best_val_loss) == (1, 1, 2.5)
    assert (marks.last_eval_step, marks.val_loss) == (2, 2.4)


def test_the_third_failed_save_in_a_row_ends_the_run(tmp_path):
    run = run_in(tmp_path)
    train(run)
    take_folder_away(run)
    saver = Saver(run, never)
    assert not saver.save()
    assert not saver.save()
    with pytest.raises(StorageError, match="3 saves in a row failed"):
        saver.save()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EFBIG, "make room"),
        (errno.ENOENT, "make .* again, or bring it back"),
        (errno.ESTALE, "mount the file system of .* again"),
        (errno.EROFS, "make .* writable"),
    ],
)
def test_the_advice_after_failed_saves_fits_the_reason(number, advice, tmp_path, monkeypatch):
    """`git clean` removes the folder, a server restarts, a quota is used up: room helps once."""

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("chatgot.checkpointing.saver.save_checkpoint", fail)
    run = run_in(tmp_path)
    train(run)
    with pytest.raises(StorageError, match=f"{os.strerror(number)} .*; {advice}, then resume"):
        Saver(run, never).save(last_chance=True)


def test_a_failed_save_without_a_second_chance_ends_the_run(tmp_path):
    run = run_in(tmp_path)
    train(run)
    take_folder_away(run)
    with pytest.raises(StorageError, match="not saved"):
        Saver(run, never).save(last_chance=True)


def test_a_failed_save_at_the_end_of_a_run_is_an_error(tmp_path):
    run = run_in(tmp_path, max_steps=2)
    train(run, 2)
    take_folder_away(run)
    with pytest.raises(StorageError, match="not saved"):
        Saver(run, never).save()


def test_a_failed_save_that_ends_the_run_leaves_no_mark(tmp_path):
    """Otherwise the last lines of the log would name a best step without a file."""
    run = run_in(tmp_path)
    train(run, 2)
    evaluated(run, 2.5)
    before = run.state.marks.model_copy()
    take_folder_away(run)
    with pytest.raises(StorageError):
        Saver(run, never).save(last_chance=True)
    assert run.state.marks == before


# A state that is not finite


def test_a_non_finite_state_is_rewound_instead_of_saved(tmp_path):
    run = run_in(tmp_path, save_checkpoint_steps=1)
    saver = Saver(run, never)
    train(run)
    assert saver.save()
    train(run)
    evaluated(run, 2.5)
    ruin(run)
    assert not saver.save()
    assert saved_steps(run) == [1]
    assert run.state.health.rewinds == 1
    assert run.state.progress.global_step == 1
    assert (run.state.marks.last_save_step, run.state.marks.best_step) == (1, -1)
    assert run.model.norm.weight.isfinite().all()


def test_a_signal_leaves_a_non_finite_state_unsaved(tmp_path):
    """Then the run resumes from an older checkpoint."""
    run = run_in(tmp_path)
    train(run)
    evaluated(run, 2.5)
    ruin(run)
    before = run.state.model_copy(deep=True)
    Saver(run, always).save_before_leaving()
    assert saved_steps(run) == []
    assert run.state == before


def test_a_non_finite_state_ends_the_run_when_no_rewind_is_left(tmp_path):
    run = run_in(tmp_path)
    run.state.health.rewinds = 3
    train(run)
    ruin(run)
    with pytest.raises(Diverged):
        Saver(run, never).save()
    assert run.state.marks.last_save_step == 0


def test_a_rewind_sets_no_file_aside_before_the_next_save(tmp_path):
    run = run_in(tmp_path, save_checkpoint_steps=2)
    saver = Saver(run, never)
    train(run, 2)
    assert saver.save()
    train(run)
    assert saver.save()
    ruin(run)
    assert not saver.save()
    assert run.state.progress.global_step == 2
    assert saved_steps(run) == [2, 3]
    train(run, 2)
    assert saver.save()
    assert saved_steps(run) == [2, 4]


# Before leaving


def test_leaving_before_the_first_step_saves_nothing(tmp_path):
    """Not even weights of another run, which no seed could restore: their file still exists."""
    run = run_in(tmp_path)
    run.state.marks.last_save_step = -1
    Saver(run, always).save_before_leaving()
    assert saved_steps(run) == []


def test_leaving_saves_the_current_step(tmp_path):
    run = run_in(tmp_path)
    train(run)
    Saver(run, always).save_before_leaving()
    assert saved_steps(run) == [1]
    assert run.state.marks.last_save_step == 1


def test_leaving_does_not_save_a_saved_step_again(tmp_path):
    run = run_in(tmp_path)
    train(run)
    saver = Saver(run, always)
    assert saver.save()
    (path,) = run.checkpoint_dir.glob("*.pt")
    path.unlink()
    saver.save_before_leaving()
    assert saved_steps(run) == []


def test_a_failed_save_before_leaving_is_an_error(tmp_path):
    run = run_in(tmp_path)
    train(run)
    take_folder_away(run)
    with pytest.raises(StorageError, match="not saved"):
        Saver(run, always).save_before_leaving()


def test_out_of_memory_saves_the_last_step_if_the_weights_are_whole(tmp_path):
    run = run_in(tmp_path)
    train(run)
    saver = Saver(run, never)
    saver.save_what_is_whole(OutOfMemory("half updated", unchanged=False))
    assert saved_steps(run) == []
    saver.save_what_is_whole(OutOfMemory("no room", unchanged=True))
    assert saved_steps(run) == [1]


def test_out_of_memory_before_the_first_step_saves_nothing(tmp_path):
    run = run_in(tmp_path)
    Saver(run, never).save_what_is_whole(OutOfMemory("no room", unchanged=True))
    assert saved_steps(run) == []


def test_a_failed_save_after_out_of_memory_is_logged_but_not_raised(tmp_path, caplog):
    """Out of memory is the error that ended the run."""
    run = run_in(tmp_path)
    train(run)
    take_folder_away(run)
    Saver(run, never).save_what_is_whole(OutOfMemory("no room", unchanged=True))
    assert "not saved" in caplog.text
