"""What a run occupies on the disk: its id and its locks, its log, the folder of its curves."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.checkpointing.run_files import (
    files_after,
    set_aside,
    superseded_by,
    sweep_temporaries,
)
from chatgot.checkpointing.run_lock import lock_new_run, lock_old_run
from chatgot.config_file import effective_yaml
from chatgot.logs.events import EventLog
from chatgot.logs.logging_setup import link_log, setup_logging
from chatgot.report.page import write_report
from chatgot.run.assembly import Run, settings_hash
from chatgot.run.resuming import ResumePoint, check_nothing_newer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """Where a run writes its log, and its curves with all that lies beside them."""

    log_path: Path
    run_dir: Path


@contextmanager
def open_folder(run: Run, config_name: str, point: ResumePoint | None) -> Iterator[Folder]:
    """Take the run's id (a new one for a new run), and write its log and events until the end.

    At the end the log is linked beside the curves, the report written, the run's lock released.
    Raises: StorageError.
    """
    logs_dir = Path(run.config.paths.logs)
    with ExitStack() as at_end:
        if run.state.run_id:
            lock = lock_old_run(run.checkpoint_dir, run.state.run_id)
        else:
            lock = lock_new_run(run.checkpoint_dir, config_name)
        at_end.callback(lock.release)
        # two folders of checkpoints may share one of logs
        at_end.callback(lock_old_run(logs_dir, lock.run_id).release)
        run.state.run_id = lock.run_id
        sweep_temporaries(run.checkpoint_dir, lock.run_id)
        log_path = setup_logging(config_name, lock.timestamp, logs_dir)
        folder = Folder(log_path, logs_dir / "tensorboard" / lock.run_id)
        _begin(run, folder)
        at_end.callback(_complete, run, folder)
        at_end.enter_context(
            EventLog(
                folder.run_dir,
                step=lambda: run.state.progress.global_step,
                keep_up_to=run.state.progress.global_step if point else None,
            )
        )
        yield folder


def _begin(run: Run, folder: Folder) -> None:
    """Make the folder of the curves; best effort, like all that is in it."""
    about = {
        "run_id": run.state.run_id,
        "config_path": run.config_path,
        "config_sha256": settings_hash(run.config),
    }
    try:
        folder.run_dir.mkdir(parents=True, exist_ok=True)
        settings = effective_yaml(run.config)
        (folder.run_dir / "config.yaml").write_text(settings, encoding="utf-8")
        with atomic_file(folder.run_dir / "run.json") as file:
            file.write(json.dumps(about, indent=1).encode() + b"\n")
        link_log(folder.log_path, folder.run_dir)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): no curves; training goes on",
            folder.run_dir,
            error.strerror,
        )


def _complete(run: Run, folder: Folder) -> None:
    """Put the last part of the log and the report beside the curves; best effort."""
    link_log(folder.log_path, folder.run_dir)
    if not run.config.training.report:
        return
    try:
        write_report(folder.run_dir)
    except Exception as error:  # noqa: BLE001 whatever fails in it, the run is over and saved
        logger.warning("%s: no report: %s", folder.run_dir, error)


def leave_newer_files_behind(run: Run, point: ResumePoint) -> None:
    """Set the checkpoints aside that are newer than the one the run goes on from.

    Raises: StorageError, also when another process has trained on since `latest` was looked for.
    """
    check_nothing_newer(point, run.config)
    if run.ended():
        return
    progress = run.state.progress
    newer = superseded_by(run.checkpoint_dir, run.state.run_id, progress.global_step, point.path)
    set_aside(newer)


def has_newer_files(run: Run) -> bool:
    """Return whether the run has checkpoints of later steps than the present one."""
    progress = run.state.progress
    return bool(files_after(run.checkpoint_dir, run.state.run_id, progress.global_step))
