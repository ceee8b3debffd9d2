"""A run takes its id in both of its folders before it touches any file."""

from pathlib import Path

import harness
import parts
import pytest

from chatgot.checkpointing.run_lock import lock_this_run
from chatgot.config_file import load_config
from chatgot.errors import StorageError
from chatgot.logs.logging_setup import setup_console
from chatgot.run.folder import open_folder
from chatgot.run.resuming import find_checkpoint


@pytest.fixture(autouse=True)
def console():
    setup_console()


def run_with(tmp_path: Path, checkpoints: str):
    folders = {"checkpoints": str(tmp_path / checkpoints), "logs": str(tmp_path / "logs")}
    for folder in folders.values():
        Path(folder).mkdir(exist_ok=True)
    run = parts.run(paths=folders, training={"report": False})
    run.state.run_id = ""
    return run


def test_two_runs_that_share_a_folder_of_logs_get_different_ids(tmp_path):
    """Both start in the same second, each with its own folder of checkpoints."""
    first = run_with(tmp_path, "a")
    second = run_with(tmp_path, "b")
    with open_folder(first, "tiny", None) as one, open_folder(second, "tiny", None) as two:
        assert first.state.run_id != second.state.run_id
        assert one.run_dir != two.run_dir


def test_an_id_is_taken_only_once_in_a_folder(tmp_path):
    lock = lock_this_run(tmp_path, "tiny_20250102-030405")
    assert lock is not None
    lock.release()
    assert lock_this_run(tmp_path, "tiny_20250102-030405") is None


def test_a_refused_resume_does_not_touch_the_runs_events(tmp_path, monkeypatch):
    """Another process has trained on since `latest` was looked up."""
    harness.write_config(tmp_path, training={"max_steps": 4, "save_checkpoint_steps": 2})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    events = harness.events(tmp_path)
    monkeypatch.chdir(tmp_path)
    yaml = Path("tiny.yaml")
    config, _ = load_config(yaml)
    point = find_checkpoint("latest", config, yaml, set())
    newest = point.path
    newest.rename(newest.with_name(newest.name.replace("step_4", "step_5")))
    run = parts.run()
    run.config = config
    run.state.run_id = newest.name.rpartition("_step_")[0]
    with pytest.raises(StorageError, match="another process"), open_folder(run, "tiny", point):
        pass
    assert harness.events(tmp_path) == events
