"""The checkpoints of a run: their names, the newest one that is whole, which ones are kept."""

import logging
import os
import re
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from chatgot.atomic_file import atomic_file
from chatgot.checkpoint_file import NAME, is_whole, save_checkpoint
from chatgot.errors import CheckpointRejected, StorageError

logger = logging.getLogger(__name__)


def checkpoint_path(checkpoint_dir: Path, run_id: str, step: int) -> Path:
    return checkpoint_dir / f"{run_id}_step_{step}.pt"


def probe_folder(folder: Path) -> None:
    """Make `folder` with its parents and write one file into it. Raises: StorageError naming what is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}.tmp"
        with atomic_file(probe) as file:
            file.write(b"\0")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder") from error


def run_files(checkpoint_dir: Path, config_name: str) -> dict[str, dict[int, Path]]:
    """Return the checkpoints of a configuration by their names alone: {timestamp: {step: path}}."""
    runs: dict[str, dict[int, Path]] = {}
    with os.scandir(checkpoint_dir) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if match and match["config"] == config_name and entry.is_file(follow_symlinks=False):
                runs.setdefault(match["timestamp"], {})[int(match["step"])] = checkpoint_dir / entry.name
    return runs


def find_latest(checkpoint_dir: Path, config_name: str) -> Path:
    """Return the newest whole checkpoint of the newest run; says by name which damaged ones it passes over.

    Raises: CheckpointRejected when there is none, naming the folder and, if any, the next older run's best file.
    """
    try:
        runs = run_files(checkpoint_dir, config_name)
    except OSError as error:
        raise CheckpointRejected(f"{checkpoint_dir}: cannot be listed: {error.strerror}") from error
    if not runs:
        raise CheckpointRejected(f"{checkpoint_dir}: no checkpoint of {config_name} stands here; nothing to resume")
    timestamp = max(runs)
    newest = max(runs[timestamp])
    for step in sorted(runs[timestamp], reverse=True):
        path = runs[timestamp][step]
        if is_whole(path):
            if step != newest:
                logger.warning("resuming costs %d steps: from step %d instead of %d", newest - step, step, newest)
            return path
        logger.warning("%s is damaged and passed over", path)
    older = (runs[t][s] for t in sorted(runs, reverse=True)[1:] for s in sorted(runs[t], reverse=True))
    other = next((path for path in older if is_whole(path)), None)
    hint = f"; an older run's newest whole file is {other}" if other else ""
    raise CheckpointRejected(f"{checkpoint_dir}: all checkpoints of run {config_name}_{timestamp} are damaged{hint}")


def newest_whole(checkpoint_dir: Path, run_id: str) -> Path | None:
    """Return the newest whole checkpoint of a run; None where there is none or the folder is gone."""
    config_name, _, timestamp = run_id.rpartition("_")
    try:
        files = run_files(checkpoint_dir, config_name).get(timestamp, {})
    except OSError:
        return None
    return next((files[step] for step in sorted(files, reverse=True) if is_whole(files[step])), None)


def sweep_temporaries(checkpoint_dir: Path, run_id: str) -> None:
    """Remove what killed saves of this run left behind; the caller holds the run's lock, so no save is going on."""
    pattern = re.compile(re.escape(f".{run_id}_step_") + r"\d+\.pt\.\d+\.tmp", re.ASCII)
    with os.scandir(checkpoint_dir) as entries:
        left = [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]
    for path in left:
        with suppress(OSError):
            path.unlink()


def set_aside_newer(checkpoint_dir: Path, run_id: str, step: int) -> None:
    """Rename this run's checkpoints after `step` to NAME.pt.superseded: the run goes on from an older one.

    Raises: StorageError when the folder refuses.
    """
    config_name, _, timestamp = run_id.rpartition("_")
    files = run_files(checkpoint_dir, config_name).get(timestamp, {})
    newer = [files[s] for s in sorted(files) if s > step]
    try:
        for path in newer:
            names = (f"{path.name}.superseded{number}" for number in ("", *(f".{n}" for n in range(2, 1000))))
            path.replace(next(path.with_name(name) for name in names if not path.with_name(name).exists()))
    except OSError as error:
        raise StorageError(f"{path}: a newer checkpoint cannot be set aside: {error.strerror}") from error
    if newer:
        names = ", ".join(path.name for path in newer)
        logger.info("newer than the file resumed from, set aside as .superseded: %s", names)


def cleanup_old_checkpoints(
    checkpoint_dir: Path, config_name: str, timestamp: str, max_to_keep: int = 5, keep: Collection[int] = ()
) -> list[Path]:
    """Remove all but the newest `max_to_keep` whole checkpoints of one run; return the removed paths.

    keep: steps whose files stay beyond that (the best evaluation). Only whole regular files of this run count and go;
    damaged ones, links, other runs' and unknown files stay untouched. A file that cannot be removed: one warning.
    """
    if max_to_keep < 1:
        raise ValueError(f"max_to_keep must be at least 1, found {max_to_keep}")
    try:
        files = run_files(checkpoint_dir, config_name).get(timestamp, {})
    except OSError as error:
        logger.warning("%s cannot be listed (%s): old checkpoints stay", checkpoint_dir, error.strerror)
        return []
    whole = [step for step in sorted(files, reverse=True) if is_whole(files[step])]
    removed = []
    for step in whole[max_to_keep:]:
        if step in keep:
            continue
        try:
            files[step].unlink()
            removed.append(files[step])
        except OSError as error:
            logger.warning("%s is old and could not be removed: %s", files[step], error.strerror)
    return removed


def try_save(path: Path, checkpoint: dict[str, Any], failures: int, limit: int) -> int:
    """Save, or warn that it failed; return how many saves in a row have failed now (0: it went well).

    Raises: StorageError when `limit` saves in a row have failed.
    """
    start = time.perf_counter()
    try:
        if save_checkpoint(path, checkpoint):
            logger.info("saved %s (%.1f MB in %.2f s)", path, path.stat().st_size / 1e6, time.perf_counter() - start)
        else:
            logger.info("%s is there already and whole: left as it is", path)
        return 0
    except OSError as error:
        why = error.strerror or str(error)
        if failures + 1 >= limit:
            count = f"{failures + 1} saves in a row failed" if failures else "the save failed"
            raise StorageError(f"{path}: not saved: {why} ({count}); make room, then resume") from error
        logger.warning("%s: not saved: %s; training goes on, the next save comes as planned", path, why)
        return failures + 1
