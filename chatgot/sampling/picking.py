"""Which checkpoint is meant: that of a run, of a configuration's newest run, or a file."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from chatgot.checkpointing.checkpoints import is_meant_as_folder, is_whole, read_outline
from chatgot.checkpointing.names import FILE, FOLDER, RUN_ID
from chatgot.checkpointing.run_files import all_runs
from chatgot.errors import CheckpointRejected, ConfigError
from chatgot.logs.origins import is_gone, origin, origin_of_yaml, run_of_name
from chatgot.plain_yaml import PlainYaml

logger = logging.getLogger(__name__)

RUNS = Path("logs", "tensorboard")
SUFFIXES = (FILE, FOLDER)
MOST_NAMED = 5  # names in one message
TRAIN = "chatgot train TEXT"
PASSED_OVER = "; passed over"
Files = dict[int, Path]  # the checkpoints of one run, by step
Warn = Callable[[str], object]  # is told what is passed over, in one line


@dataclass(frozen=True)
class KnownRun:
    """A run that has a whole checkpoint.

    best: of the lowest held-out loss; None: there was no evaluation, or that file is not whole.
    latest: of the greatest step.
    """

    run_id: str
    best: Path | None
    latest: Path


def list_runs(checkpoint_dir: Path) -> list[KnownRun]:
    """Return the runs that have a whole checkpoint in a folder, newest first.

    Each file is verified once; a folder that does not exist has no runs.
    """
    try:
        runs = _runs_in(checkpoint_dir)
    except CheckpointRejected:
        return []
    known = (_known_run(run_id, runs[run_id], lambda _: None) for run_id in _newest_first(runs))
    return [run for run in known if run is not None]


def find_checkpoint_file(
    name: str | None,
    checkpoint: Literal["best", "latest"] = "best",
    checkpoint_dir: Path = Path("checkpoints"),
) -> Path:
    """Return the checkpoint that a user means.

    A damaged file is passed over, with one warning. Where the best one is gone it is the latest.

    name: a configuration's name (its newest run), a run's id, a run's folder in logs/tensorboard,
    or a checkpoint's path, which is returned as it is; None: the newest run here.
    checkpoint: which one of a run.
    Raises: CheckpointRejected where there is none, or where several files of that name began runs.
    """
    runs = _runs_in(checkpoint_dir)
    run_ids = _meant(name, runs)
    if not run_ids and name is not None:
        path = _named_file(name, checkpoint_dir)
        if path is not None:
            return path
        if os.path.isdir(name):  # noqa: PTH112 Path's own raises for names that are too long
            run_id, checkpoint_dir = _run_of_folder(Path(name), checkpoint_dir)
            runs = _runs_in(checkpoint_dir)
            run_ids = [run_id]
    if not run_ids:
        raise CheckpointRejected(_nothing_there(name, runs, checkpoint_dir))
    newest_first = list(_newest_first(run_ids))
    run_id = newest_first[0]
    if name is not None and len(newest_first) > 1:
        run_id = _run_of_name(name, newest_first, runs, checkpoint_dir)
    return _pick(runs, run_id, checkpoint)


def _meant(name: str | None, runs: Iterable[str]) -> list[str]:
    """Return the runs that a configuration's name or a run's id means; None: all."""
    if name is None:
        return list(runs)
    return [run_id for run_id in runs if name in (run_id, run_id.rpartition("_")[0])]


def _runs_in(checkpoint_dir: Path) -> dict[str, Files]:
    """Return a folder's runs with their checkpoints; only names are examined.

    Raises: CheckpointRejected.
    """
    try:
        return all_runs(checkpoint_dir)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointRejected(f"{checkpoint_dir}: cannot be listed: {error.strerror}") from error


def _newest_first(run_ids: Iterable[str]) -> Iterator[str]:
    yield from sorted(run_ids, key=lambda run_id: run_id.rpartition("_")[::-1], reverse=True)


def _known_run(run_id: str, files: Files, warn: Warn) -> KnownRun | None:
    """Return a run with its best and its latest whole file; None: no file is whole.

    warn: is told of each file that is passed over.
    """
    for step in sorted(files, reverse=True):
        try:
            outline = read_outline(files[step])
        except CheckpointRejected as error:
            if not is_gone(files[step]):  # else training has removed it in the meantime
                warn(f"{error}{PASSED_OVER}")
            continue
        return KnownRun(run_id, _best_file(outline, files, warn), files[step])
    return None


def _best_file(outline: dict[str, Any], files: Files, warn: Warn) -> Path | None:
    """Return the file of the lowest held-out loss, as a checkpoint's marks say; None: no such."""
    marks = outline["state"].get("marks")
    step = marks.get("best_step") if isinstance(marks, dict) else None
    if not isinstance(step, int) or step < 0:  # there was no evaluation
        return None
    path = files.get(step)
    if path is None:
        warn(f"{outline['run_id']}: its best checkpoint, of step {step}, is no longer here")
    elif not is_whole(path):
        warn(f"{path}: the best checkpoint is damaged{PASSED_OVER}")
        path = None
    return path


def _pick(runs: dict[str, Files], run_id: str, checkpoint: Literal["best", "latest"]) -> Path:
    """Return a run's best or latest checkpoint. Raises: CheckpointRejected: no file is whole."""
    problems: list[str] = []
    run = _known_run(run_id, runs[run_id], problems.append)
    if run is None:
        raise CheckpointRejected(_nothing_whole(problems, run_id, _whole_before(run_id, runs)))
    for problem in problems:
        logger.warning("%s", problem)
    return run.best or run.latest if checkpoint == "best" else run.latest


def _named_file(name: str, checkpoint_dir: Path) -> Path | None:
    """Return the file that a name means, in the working folder or that of the checkpoints.

    Whether it is a checkpoint is examined when it is loaded.
    Raises: CheckpointRejected for the name of a file that does not exist.
    """
    for path in (Path(name), checkpoint_dir / name):
        # not Path's own: they raise for odd names
        is_other_folder = os.path.isdir(path) and not is_meant_as_folder(path)  # noqa: PTH112
        if os.path.lexists(path) and not is_other_folder:
            return path
    if not name.endswith(SUFFIXES) or os.path.isdir(name):  # noqa: PTH112
        return None
    runs = _runs_in(checkpoint_dir).values()
    names = [path.name for files in runs for path in files.values()]
    with suppress(OSError, ValueError):
        names += [entry.name for entry in os.scandir(Path(name).parent)]
    names = sorted({known for known in names if known.endswith(SUFFIXES)})
    nearest = _nearest(name, names) or f"; train a model first: {TRAIN}"
    raise CheckpointRejected(f"{name}: no such file, also not in {checkpoint_dir}{nearest}")


def _run_of_folder(folder: Path, checkpoint_dir: Path) -> tuple[str, Path]:
    """Return the id of the run whose folder this is, and the folder of its checkpoints.

    They are where the run's settings say; where there are none, as the folder has moved, they are
    looked for in `checkpoint_dir`. Raises: CheckpointRejected.
    """
    run_id = _id_in_folder(folder)
    if run_id is None:
        raise CheckpointRejected(
            f"{folder}: this folder is not that of a run: it has no run.json, and its name is no "
            f"run's id; give a folder of {RUNS}, a configuration's name, or a checkpoint (.pt)"
        )
    places = [checkpoint_dir]
    stored = _checkpoints_of(folder)
    if stored is not None:
        places.insert(0, stored)
    for place in places:
        if run_id in _runs_in(place):
            return run_id, place
    looked = " or ".join(dict.fromkeys(str(place) for place in places))
    raise CheckpointRejected(f"{folder}: no checkpoint of {run_id} is in {looked}")


def _id_in_folder(folder: Path) -> str | None:
    """Return the id that a run's folder records, or is named by; None: it is no run's folder."""
    try:
        about = json.loads((folder / "run.json").read_bytes())
        recorded = about.get("run_id") if isinstance(about, dict) else None
    except (OSError, ValueError, RecursionError):
        recorded = None
    for run_id in (recorded, folder.resolve().name):
        if isinstance(run_id, str) and RUN_ID.fullmatch(run_id):
            return run_id
    return None


def _checkpoints_of(folder: Path) -> Path | None:
    """Return where the settings in a run's folder say that its checkpoints are; None: unknown."""
    try:
        content = PlainYaml().read((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, ConfigError):
        return None
    paths = content.get("paths") if isinstance(content, dict) else None
    checkpoints = paths.get("checkpoints") if isinstance(paths, dict) else None
    return Path(checkpoints) if isinstance(checkpoints, str) else None


def _run_of_name(
    name: str, newest_first: Sequence[str], runs: Mapping[str, Files], checkpoint_dir: Path
) -> str:
    """Return the run that a name means; see `run_of_name`.

    Raises: CheckpointRejected where several existing YAMLs or texts began runs of that name.
    """
    meant, several = run_of_name([(run, _origin(run, runs[run])) for run in newest_first])
    if meant is None:
        raise CheckpointRejected(
            f"{name}: {len(several)} files of that name began runs in {checkpoint_dir}: "
            f"{', '.join(sorted(several))}\ngive a run's id: {', '.join(newest_first[:MOST_NAMED])}"
        )
    return meant


def _origin(run_id: str, files: Files) -> str:
    """Return what a run began from, as its folder says, else its newest whole file; "": unknown."""
    known = origin(RUNS / run_id)
    if known:
        return known
    for step in sorted(files, reverse=True):
        with suppress(CheckpointRejected):
            return origin_of_yaml(read_outline(files[step])["config_path"])
    return ""


def _whole_before(run_id: str, runs: Mapping[str, Files]) -> Path | None:
    """Return the best file of the newest older run of the same name that has a whole one."""
    name = run_id.rpartition("_")[0]
    older = [known for known in runs if known.rpartition("_")[0] == name and known < run_id]
    for known in _newest_first(older):
        run = _known_run(known, runs[known], lambda _: None)
        if run is not None:
            return run.best or run.latest
    return None


def _nothing_whole(problems: Sequence[str], run_id: str, older: Path | None) -> str:
    """Return the message for a run whose files are all damaged; the newest one's damage is said."""
    message = problems[0].removesuffix(PASSED_OVER) if problems else f"{run_id}: its files are gone"
    if len(problems) > 1:
        message += f" (and none of its {len(problems) - 1} older files is whole)"
    if older is not None:
        return f"{message}\nan older run has a whole file: {older}"
    return f"{message}\nno older run of that name has a whole file: train again: {TRAIN}"


def _nothing_there(name: str | None, runs: Iterable[str], checkpoint_dir: Path) -> str:
    """Return the message for a name that no run here has."""
    place = checkpoint_dir.resolve()
    newest_first = list(_newest_first(runs))
    if not newest_first:
        what = "" if name is None else f"{name}: "
        return f"{what}no trained model is in {place}; train one first: {TRAIN}"
    known = list(dict.fromkeys(run_id.rpartition("_")[0] for run_id in newest_first))
    return (
        f"{name}: no run of that name, and no such file, in {place}"
        f"{_nearest(name or '', [*known, *newest_first]) or _some(known)}"
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint at the known names that are most like one; empty: none is like it."""
    nearest = get_close_matches(Path(name).name, known, n=3)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; there are {', '.join(names[:MOST_NAMED])}{more}; train another: {TRAIN}"
