"""The checkpoints of a run: their names, the newest one that is whole, saving one more, which ones are kept."""

import logging
import math
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from chatgot.atomic_file import atomic_file, fsync_folder
from chatgot.checkpointing.checkpoint_file import DIGEST, NAME, is_whole, load_checkpoint, save_checkpoint
from chatgot.config import TrainingConfig
from chatgot.errors import CheckpointRejected, StorageError
from chatgot.machine.memory import is_out_of_memory
from chatgot.run.run_state import RunState

logger = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3  # in a row; then the run ends rather than go on without a safety net
SAVING_SHARE = 0.01  # of the time; where saving costs more, the log says once which interval would be cheaper


def checkpoint_path(checkpoint_dir: Path, run_id: str, step: int) -> Path:
    return checkpoint_dir / f"{run_id}_step_{step}.pt"


def probe_folder(folder: Path) -> None:
    """Make `folder` with its parents and write one file into it. Raises: StorageError naming what is in the way."""
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            fsync_folder(path.parent)  # else a power cut could take the folder with all that is in it
        try:
            with atomic_file(probe) as file:
                file.write(b"\0")
        finally:
            probe.unlink(missing_ok=True)
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


def find_latest(checkpoint_dir: Path, config_name: str) -> tuple[Path, dict[str, Any]]:
    """Return the newest checkpoint of the newest run that can be loaded, and its content.

    Says by name and reason which ones it passes over, and what that costs.
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
        try:
            content = load_checkpoint(path)
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        if step != newest:
            logger.warning("resuming costs %d steps: from step %d instead of %d", newest - step, step, newest)
        return path, content
    older = (runs[t][s] for t in sorted(runs, reverse=True)[1:] for s in sorted(runs[t], reverse=True))
    other = next((path for path in older if is_whole(path)), None)
    hint = f"; an older run's newest whole file is {other}" if other else ""
    raise CheckpointRejected(f"{checkpoint_dir}: all checkpoints of run {config_name}_{timestamp} are damaged{hint}")


def older_files(path: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint's run that are older than it, the newest one first, by their names alone."""
    match = NAME.fullmatch(path.name)
    if match is None:
        return
    try:
        files = run_files(path.parent, match["config"]).get(match["timestamp"], {})
    except OSError:
        return
    yield from (files[step] for step in sorted(files, reverse=True) if step < int(match["step"]))


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


def files_after(checkpoint_dir: Path, run: RunState) -> list[Path]:
    """Return this run's checkpoints of later steps, by their names alone."""
    config_name, _, timestamp = run.run_id.rpartition("_")
    files = run_files(checkpoint_dir, config_name).get(timestamp, {})
    return [files[step] for step in sorted(files) if step > run.global_step]


def superseded_by(checkpoint_dir: Path, run: RunState, resumed_from: Path) -> list[Path]:
    """Return the checkpoints that a run resumed from an older one leaves behind: those of later steps.

    So is another file of that very step, where the run goes on from a copy that lies elsewhere and is not the same.
    """
    later, own = files_after(checkpoint_dir, run), checkpoint_path(checkpoint_dir, run.run_id, run.global_step)
    with suppress(OSError):
        if own.is_file() and not (is_whole(own) and _digest(own) == _digest(resumed_from)):
            return [own, *later]
    return later


def set_aside(aside: list[Path]) -> None:
    """Rename checkpoints to NAME.pt.superseded. Raises: StorageError when the folder refuses."""
    try:
        for path in filter(Path.is_file, aside):
            names = (f"{path.name}.superseded{number}" for number in ("", *(f".{n}" for n in range(2, 1000))))
            path.replace(next(path.with_name(name) for name in names if not path.with_name(name).exists()))
    except OSError as error:
        raise StorageError(f"{aside[0].parent}: checkpoints cannot be set aside: {error.strerror}") from error
    if aside:
        names = ", ".join(path.name for path in aside)
        logger.info("left behind, set aside as .superseded: %s", names)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - DIGEST))
        return file.read()


def cleanup_old_checkpoints(
    checkpoint_dir: Path, config_name: str, timestamp: str, max_to_keep: int = 5, keep: Collection[int] = (),
    every: int | None = None,
) -> list[Path]:  # fmt: skip
    """Remove all but the newest `max_to_keep` whole checkpoints of one run; return the removed paths.

    keep: steps whose files stay beyond that (the best evaluation); every: so do the two newest files of its multiples,
    which a rewind goes back to. Only whole regular files of this run count and go;
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
    removed, rewind_to = [], [step for step in whole if every and step % every == 0][:2]
    for step in whole[max_to_keep:]:
        if step in keep or step in rewind_to:
            continue
        try:
            files[step].unlink()
            removed.append(files[step])
        except OSError as error:
            logger.warning("%s is old and could not be removed: %s", files[step], error.strerror)
    return removed


class Saver:
    """Saves the checkpoints of one run: counts the failures in a row, and says what saving costs."""

    def __init__(self, step: int) -> None:
        self.failures = 0
        self._last_s, self._last_step, self._first_step = time.monotonic(), step, step
        self._said_the_cost = False

    def save(self, path: Path, checkpoint: dict[str, Any], settings: TrainingConfig, last_chance: bool = False) -> bool:
        """Save one checkpoint, or warn that it failed, for this time; return whether it is there now.

        Raises: StorageError at the third failure in a row, at the first one when there will be no other try.
        """
        begun = time.monotonic()
        since = begun - self._last_s  # seconds of training without a save
        try:
            # the file that this process began with may be replaced: what was evaluated late is added to it
            written = save_checkpoint(path, checkpoint, replace=checkpoint["global_step"] == self._first_step)
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            self.failures += 1
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if last_chance or self.failures >= MAX_FAILED_SAVES:
                count = f"{self.failures} saves in a row failed" if self.failures > 1 else "the save failed"
                raise StorageError(f"{path}: not saved: {why} ({count}); make room, then resume") from error
            logger.warning("%s: not saved: %s; training goes on, the next save comes as planned", path, why)
            return False
        cost = time.monotonic() - begun
        if written:
            size = path.stat().st_size / 1e6
            logger.info("saved %s (%.1f MB in %.2f s, after %.0f s without)", path, size, cost, since)
            self._say_the_cost(cost, since, checkpoint["global_step"] - self._last_step, settings)
        else:
            logger.info("%s is there already and whole: left as it is", path)
        self.failures = 0
        self._last_s, self._last_step = time.monotonic(), checkpoint["global_step"]
        return True

    def _say_the_cost(self, cost: float, since: float, steps: int, settings: TrainingConfig) -> None:
        if self._said_the_cost or steps < 1 or cost <= SAVING_SHARE * since:
            return
        needed_s = cost / SAVING_SHARE
        needed = {"save_checkpoint_steps": _round_up(needed_s / (since / steps))}
        if settings.checkpoint_interval_minutes is not None:
            needed["checkpoint_interval_minutes"] = math.ceil(needed_s / 60)
        short = {key: n for key, n in needed.items() if (getattr(settings, key) or math.inf) < n}
        if short:  # else this save came early, as the last one and the best one may
            self._said_the_cost = True
            advice = ", ".join(f"training.{key}={n}" for key, n in short.items())
            logger.warning("saving takes %.1f %% of the time; %s would bring it under 1 %%", 100 * cost / since, advice)


def _round_up(steps: float) -> int:
    """Return at least `steps`, with two significant digits."""
    digit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return math.ceil(steps / digit) * digit


def open_to_others(folder: Path) -> str | None:
    """Return why other users of the machine may put files into a folder and take them away; None: they may not."""
    if os.name == "nt":
        return None
    about = folder.stat()
    if about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX:
        return "every user may write there"
    return "it belongs to another user" if about.st_uid not in (0, os.getuid()) else None
