"""What a run occupies on the disk: its id and its locks, its log, the folder of its curves."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.checkpointing.leftovers import sweep_temporaries
from chatgot.checkpointing.run_lock import RunLock, lock_new_run, lock_old_run, lock_this_run
from chatgot.config import settings_hash
from chatgot.config_file import effective_yaml
from chatgot.errors import StorageError
from chatgot.logs.events import EventLog
from chatgot.logs.logging_setup import link_log, setup_logging
from chatgot.logs.origins import is_gone, is_same_file
from chatgot.run.assembly import Run
from chatgot.run.earlier_folders import split_warnings
from chatgot.run.resuming import ResumePoint, refuse_newer_files

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPaths:
    """Where a run's log is, and the folder of its curves and events.

    chosen_yaml: the YAML that was written for a run which began without one.
    """

    log_path: Path
    run_dir: Path
    chosen_yaml: Path | None = None


@contextmanager
def open_folder(
    run: Run, config_name: str, point: ResumePoint | None, chosen_yaml: str | None = None
) -> Iterator[RunPaths]:
    """Take the run's id (a new one for a new run), and write its log and events until the end.

    chosen_yaml: the text of the YAML for a run that began without one; it is written into the
    run's folder and counts as the YAML that began the run.
    The log is linked beside the curves, at the start and again at the end, when the report is
    written and the run's lock released.
    Other ranks than the first write nothing but a log of their own, which stays on their machine.
    Raises: StorageError.
    """
    logs_dir = Path(run.config.paths.logs)
    if not run.ranks.is_main:
        yield _beside_main(run, config_name, logs_dir)
        return
    with ExitStack() as at_end:
        lock = _lock(run, config_name, logs_dir, at_end)
        run.state.run_id = run.ranks.from_main(lock.run_id)
        if point is not None:
            refuse_newer_files(point, run.config)  # before anything of the run is touched
        log_path = setup_logging(config_name, lock.timestamp, logs_dir)
        run_dir = logs_dir / "tensorboard" / lock.run_id
        yaml_path = None
        if chosen_yaml is not None:
            yaml_path = run_dir / f"{config_name}.yaml"
            _write_yaml(yaml_path, chosen_yaml)
            run.config_path = str(yaml_path.resolve())
        paths = RunPaths(log_path, run_dir, yaml_path)
        _begin(run, paths)
        at_end.callback(_complete, run, paths)
        at_end.enter_context(
            EventLog(
                paths.run_dir,
                step=lambda: run.state.progress.global_step,
                keep_up_to=run.state.progress.global_step if point else None,
            )
        )
        cache_dir = Path(run.config.paths.cache)
        sweep_temporaries(run.checkpoint_dir, logs_dir, cache_dir, lock.run_id)
        if point is not None:
            _say_what_moves(run, point)
        yield paths


def _beside_main(run: Run, config_name: str, logs_dir: Path) -> RunPaths:
    """Take the run's id from rank 0, and log into a file of this rank's own."""
    run.state.run_id = run.ranks.from_main("")
    timestamp = run.state.run_id.rpartition("_")[2]
    log_path = setup_logging(config_name, timestamp, logs_dir, rank=run.ranks.rank)
    return RunPaths(log_path, logs_dir / "tensorboard" / run.state.run_id)


def _say_what_moves(run: Run, point: ResumePoint) -> None:
    """Log which of a resumed run's files go elsewhere from now on, and to whom it belongs."""
    with suppress(OSError, ValueError):  # best effort: folders that cannot be looked at
        for warning in split_warnings(point, run.config.paths):
            logger.warning("%s", warning)
    before = str(point.content["config_path"])
    if before and not is_same_file(before, run.config_path):
        gone = " (which is gone)" if is_gone(Path(before)) else ""
        logger.info(
            "until now, this run belonged to %s%s, from now on it belongs to %s",
            before,
            gone,
            run.config_path,
        )


def _lock(run: Run, config_name: str, logs_dir: Path, at_end: ExitStack) -> RunLock:
    """Take the run's id, or a new one, in both folders: several of checkpoints may share the logs.

    Raises: StorageError.
    """
    is_shared = logs_dir.resolve() == run.checkpoint_dir.resolve()
    if run.state.run_id:
        lock = lock_old_run(run.checkpoint_dir, run.state.run_id)
        at_end.callback(lock.release)
        if not is_shared:
            at_end.callback(lock_old_run(logs_dir, lock.run_id).release)
        return lock
    while True:
        lock = lock_new_run(run.checkpoint_dir, config_name, [logs_dir, logs_dir / "tensorboard"])
        if is_shared:
            at_end.callback(lock.release)
            return lock
        logs_lock = lock_this_run(logs_dir, lock.run_id)
        if logs_lock is not None:
            at_end.callback(lock.release)
            at_end.callback(logs_lock.release)
            return lock
        lock.release()  # a run of another folder of checkpoints has this id: try the next second


def _write_yaml(path: Path, text: str) -> None:
    """Write the YAML that was chosen for a run. Raises: StorageError, since a resume needs it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: the run's YAML cannot be written: {error.strerror or error}; "
            "set paths.logs to a folder that can be written"
        ) from error


def _begin(run: Run, paths: RunPaths) -> None:
    """Make the folder of the curves, with the settings and a link to the log; best effort."""
    about = {
        "run_id": run.state.run_id,
        "config_path": run.config_path,
        "config_sha256": settings_hash(run.config),
    }
    try:
        paths.run_dir.mkdir(parents=True, exist_ok=True)
        settings = effective_yaml(run.config)
        (paths.run_dir / "config.yaml").write_text(settings, encoding="utf-8", newline="\n")
        with atomic_file(paths.run_dir / "run.json") as file:
            file.write(json.dumps(about, indent=1).encode() + b"\n")
        link_log(paths.log_path, paths.run_dir)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): no curves; training goes on",
            paths.run_dir,
            error.strerror,
        )


def _complete(run: Run, paths: RunPaths) -> None:
    """Put the last part of the log and the report beside the curves; best effort."""
    link_log(paths.log_path, paths.run_dir)
    if not run.config.training.report:
        return
    try:
        from chatgot.report.page import write_report  # not at the top: no step waits for it

        write_report(paths.run_dir)
    except Exception as error:  # noqa: BLE001 whatever fails in it, the run is over and saved
        logger.warning("%s: no report: %s", paths.run_dir, error)
