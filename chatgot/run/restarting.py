"""Where a group of ranks goes on after one of them was lost and torchrun started all again."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from chatgot.checkpointing.checkpoint_file import read_outline
from chatgot.checkpointing.names import NAME, TIMESTAMP
from chatgot.checkpointing.run_files import run_files
from chatgot.checkpointing.run_lock import is_being_trained
from chatgot.config import Config
from chatgot.errors import CheckpointRejected
from chatgot.run.resuming import ResumePoint

logger = logging.getLogger(__name__)

SLURM = "SLURM_RESTART_COUNT"  # a job that Slurm starts again has new agents


def agent_began_s() -> float:
    """Return when the agent began that started this rank, in seconds since the epoch.

    It outlives the ranks: all that the group does, it does later.
    """
    try:
        return float(psutil.Process(os.getppid()).create_time())
    except psutil.Error:
        return time.time()


def last_good_point(
    config: Config,
    yaml: Path,
    asked: str | None,
    began_s: float,
    find: Callable[[str], ResumePoint],
    *,
    is_known: bool = True,
) -> ResumePoint | None:
    """Return where a group goes on that may have been started before.

    That is its newest good checkpoint, or where it began. None: a new run, and nothing is saved.

    asked: what the group was told to resume from when it was started first; None: nothing.
    began_s: when its first agent began, in seconds since the epoch.
    find: reads and checks a checkpoint, or raises CheckpointRejected.
    is_known: torchrun says that it was. It does not where a machine has joined the others.
    Raises: CheckpointRejected where it was told to resume, and nothing is left to go on from.
    """
    for path in _saved_by_the_group(config, yaml, asked, began_s):
        if not is_known and _is_of_others(path):
            continue
        try:
            point = find(str(path))
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        logger.info("started again, from the last good checkpoint: %s", path)
        return point
    if is_known:
        logger.info("started again: no checkpoint was saved before")
    return None if asked is None else find(asked)


def _saved_by_the_group(
    config: Config, yaml: Path, asked: str | None, began_s: float
) -> Iterator[Path]:
    """Yield the checkpoints that the group may have saved, the newest first."""
    if asked == "latest":  # it means the newest of that run again
        return
    try:
        runs = run_files(Path(config.paths.checkpoints), yaml.stem)
    except OSError:
        return
    if os.environ.get(SLURM, "0") != "0":
        began_s = 0.0
    if asked is not None:
        timestamp, first_step = _run_and_step(Path(asked))
        files = runs.get(timestamp, {})
        later = [step for step in files if step > first_step]
        # older ones were to be set aside when the group began
        steps = [step for step in later if _written_s(files[step]) >= began_s]
    else:
        began = time.strftime(TIMESTAMP, time.localtime(began_s))
        newest = max((timestamp for timestamp in runs if timestamp >= began), default=None)
        files = {} if newest is None else runs[newest]
        steps = list(files)
    for step in sorted(steps, reverse=True):
        yield files[step]


def _is_of_others(path: Path) -> bool:
    """Return whether another group, or process, trains the run of a checkpoint now."""
    run_id, _, _ = path.name.rpartition("_step_")
    return is_being_trained(path.parent, run_id)


def _run_and_step(path: Path) -> tuple[str, int]:
    """Return the timestamp of a checkpoint's run, and its step: by its name, else by its content.

    Raises: CheckpointRejected if it has another name and cannot be read.
    """
    named = NAME.fullmatch(path.name)
    if named is not None:
        return named["timestamp"], int(named["step"])
    outline = read_outline(path)
    _, _, timestamp = str(outline.get("run_id")).rpartition("_")
    step = outline.get("global_step")
    return timestamp, step if isinstance(step, int) else 0


def _written_s(path: Path) -> float:
    """Return when a file was written, in seconds since the epoch; 0: it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
