"""How a run goes on from a file: which one, whether it fits, what changes.

All of it is strict, except `start_from`, which begins a new run with another run's weights.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from chatgot.checkpointing.checkpoint_file import NAME, is_whole
from chatgot.checkpointing.run_files import older_files, run_files
from chatgot.checkpointing.tensors import check_tensors, is_finite
from chatgot.config import Config, changes_on_resume
from chatgot.errors import CheckpointRejected, StorageError
from chatgot.machine.device import versions
from chatgot.numerics.optim import schedule_horizon
from chatgot.run.assembly import Run
from chatgot.run.fits import check_optimizer, check_scaler, read_checkpoint
from chatgot.run.modes import asked_for_another_precision, change_precision
from chatgot.run.run_state import restore_state

logger = logging.getLogger(__name__)

Check = Callable[[Path], object]  # raises CheckpointRejected for a file that would not do


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint, and what was asked of it."""

    path: Path
    content: dict[str, Any]
    changes: list[str]  # what the configuration changes, one line each
    config_name: str
    named_by_set: set[str]
    newest: Path | None  # for `latest`: the run's newest file by name, when it was looked for


def find_checkpoint(
    resume_from: str, config: Config, config_name: str, named_by_set: set[str]
) -> ResumePoint:
    """Return the checkpoint to resume: `latest` or a file's path; whole, of this configuration.

    Raises: CheckpointRejected naming file and reason, and the newest older file that would do.
    """
    checkpoint_dir = Path(config.paths.checkpoints)
    newest = None
    content = None
    if resume_from == "latest":
        newest = next(_newest_run(checkpoint_dir, config_name), None)
        path, content = find_latest(checkpoint_dir, config_name)
    else:
        path = Path(resume_from)

    def read(path: Path) -> ResumePoint:
        stored = read_checkpoint(path)
        changes = check_settings(stored, path, config, config_name, named_by_set)
        return ResumePoint(path, stored, changes, config_name, named_by_set, newest)

    try:
        if content is None:
            return read(path)
        changes = check_settings(content, path, config, config_name, named_by_set)
        return ResumePoint(path, content, changes, config_name, named_by_set, newest)
    except CheckpointRejected as error:
        raise _with_older_file(error, path, checkpoint_dir, config_name, read) from error


def find_latest(checkpoint_dir: Path, config_name: str) -> tuple[Path, dict[str, Any]]:
    """Return the newest checkpoint of the newest run that can be loaded, and its content.

    Logs by name and reason which ones it passes over, and what that costs.
    Raises: CheckpointRejected when there is none, naming the folder and, if any, the next older
    run's best file.
    """
    try:
        runs = run_files(checkpoint_dir, config_name)
    except OSError as error:
        raise CheckpointRejected(f"{checkpoint_dir}: cannot be listed: {error.strerror}") from error
    if not runs:
        raise CheckpointRejected(
            f"{checkpoint_dir}: no checkpoint of {config_name} is here; nothing to resume"
        )
    timestamp = max(runs)
    newest_step = max(runs[timestamp])
    for step in sorted(runs[timestamp], reverse=True):
        path = runs[timestamp][step]
        try:
            content = read_checkpoint(path)
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        if step != newest_step:
            logger.warning(
                "resuming costs %d steps: from step %d instead of %d",
                newest_step - step,
                step,
                newest_step,
            )
        return path, content
    hint = ""
    for older in sorted(runs, reverse=True)[1:]:
        whole = [runs[older][step] for step in sorted(runs[older], reverse=True)]
        other = next(filter(is_whole, whole), None)
        if other is not None:
            hint = f"; an older run's newest whole file is {other}"
            break
    raise CheckpointRejected(
        f"{checkpoint_dir}: all checkpoints of run {config_name}_{timestamp} are damaged{hint}"
    )


def _with_older_file(
    error: CheckpointRejected, path: Path, checkpoint_dir: Path, config_name: str, check: Check
) -> CheckpointRejected:
    """Return the rejection with the newest older file that passes `check`."""
    for older in _candidates(path, checkpoint_dir, config_name):
        try:
            check(older)
        except CheckpointRejected:
            continue
        return CheckpointRejected(f"{error}\nthe newest older file that would do: {older}")
    if NAME.fullmatch(path.name):
        return CheckpointRejected(f"{error}\nno older file of that run would do")
    return error


def _candidates(path: Path, checkpoint_dir: Path, config_name: str) -> Iterator[Path]:
    """Yield the older files of a checkpoint's run, the newest first.

    Nobody knows the age of a file that has a name of its own: for it, all of the newest run.
    """
    if NAME.fullmatch(path.name):
        return older_files(path)
    return _newest_run(checkpoint_dir, config_name)


def _newest_run(checkpoint_dir: Path, config_name: str) -> Iterator[Path]:
    """Yield the files of a configuration's newest run, the newest first, by their names alone."""
    try:
        runs = run_files(checkpoint_dir, config_name)
    except OSError:
        return
    newest = runs.get(max(runs, default=""), {})
    for step in sorted(newest, reverse=True):
        yield newest[step]


def check_settings(
    stored: dict[str, Any], path: Path, config: Config, config_name: str, named_by_set: set[str]
) -> list[str]:
    """Hold a checkpoint's configuration against the one asked for; return the lines on what changes.

    Side effect: keys that are newer than the checkpoint get their defaults in `stored`.
    Raises: CheckpointRejected for another configuration's checkpoint and for refused changes.
    """
    if stored["run_id"].rpartition("_")[0] != config_name:
        raise CheckpointRejected(
            f"{path}: belongs to run {stored['run_id']}, not to {config_name}; "
            "give --config that run's YAML, or start a new run from its weights with --init_from"
        )
    stored["config"] = _stored_config(stored, path).model_dump(mode="json")
    taken, refused = changes_on_resume(stored["config"], config, named_by_set)
    if refused:
        raise CheckpointRejected(
            f"{path}: its run was trained with other settings (stored -> asked): "
            f"{'; '.join(refused)}"
        )
    return taken


def _stored_config(stored: Mapping[str, Any], path: Path) -> Config:
    """Return a checkpoint's configuration, which is data like the rest: checked against our keys."""
    try:
        return Config.model_validate(stored["config"])
    except ValidationError as error:
        problems = error.errors()[:6]
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in problems)
        raise CheckpointRejected(
            f"{path}: its configuration is not one of this ChatGoT: {keys}"
        ) from error


def check_state(run: Run, stored: Mapping[str, Any], path: Path, data_may_change: bool) -> None:
    """Hold a checkpoint's text, weights and optimizer against an assembled run; touch nothing.

    Raises: CheckpointRejected.
    """
    _check_text(run, stored, path, data_may_change)
    check_tensors(path, stored["model_state_dict"], run.model.state_dict())
    progress = stored["state"]["progress"]
    updates = progress["global_step"] - progress["skipped_steps"]
    check_optimizer(path, stored["optimizer_state_dict"], run.optimizer, updates)
    check_scaler(path, stored["scaler_state_dict"], run.scaler)
    settings = run.config.training
    micro_batch = stored["state"]["micro_batch"]
    if micro_batch["size"] > settings.sequences_per_step:
        raise CheckpointRejected(
            f"{path}: a micro-batch of {micro_batch['size']} sequences, "
            f"but a step has {settings.sequences_per_step}"
        )
    if micro_batch["eval_size"] > settings.batch_size:
        raise CheckpointRejected(
            f"{path}: evaluations of {micro_batch['eval_size']} sequences at once, "
            f"but batch_size is {settings.batch_size}"
        )


def _check_text(run: Run, stored: Mapping[str, Any], path: Path, data_may_change: bool) -> None:
    if stored["vocabulary"] != run.vocabulary.characters:
        raise CheckpointRejected(
            f"{path}: trained on a text with {len(stored['vocabulary'])} characters, this one has "
            f"other characters ({len(run.vocabulary)}); set data.path to the same text"
        )
    if stored["data_sha256"] != run.tokens.text_sha256 and not data_may_change:
        raise CheckpointRejected(
            f"{path}: trained on another text (SHA-256 {stored['data_sha256'][:12]}..., "
            f"this text {run.tokens.text_sha256[:12]}...); set data.path to the same text, "
            "or insist with --set data.allow_change=true"
        )


def resume(run: Run, point: ResumePoint) -> None:
    """Check that a checkpoint fits, then put its state into a freshly assembled run.

    Raises: CheckpointRejected; then nothing has been touched.
    """
    config = run.config
    stored = point.content
    data_may_change = config.data.allow_change and "data.allow_change" in point.named_by_set

    def check(path: Path) -> None:
        content = stored if path == point.path else read_checkpoint(path)
        check_settings(content, path, config, point.config_name, point.named_by_set)
        check_state(run, content, path, data_may_change)

    try:
        check(point.path)
    except CheckpointRejected as error:
        folder = run.checkpoint_dir
        raise _with_older_file(error, point.path, folder, point.config_name, check) from error
    before = _stored_config(stored, point.path).training
    _say_what_differs(run, stored, schedule_horizon(before, run.train_windows.per_epoch))

    picked = run.state.modes.precision
    compiled = run.state.modes.compiled
    restore_state(stored, run.state, run.model, run.optimizer, run.scaler)
    modes = run.state.modes
    modes.compiled = compiled  # the user may ask for another mode, or the compiler is gone
    if asked_for_another_precision(before, config.training):
        if modes.precision != picked:
            change_precision(run.state, run.scaler, picked)
        modes.asked_precision = picked
        modes.precision_raised = False
    if not run.state.from_seed:
        run.start = None  # the starting weights are gone; only a step-0 checkpoint has them


def _say_what_differs(run: Run, stored: Mapping[str, Any], decay_steps_before: int) -> None:
    if stored["data_sha256"] != run.tokens.text_sha256:
        logger.warning(
            "the text differs from the checkpoint's: training goes on with the new one, as asked"
        )
    stored_versions = stored["versions"]
    differences = []
    for name, version in (versions() | {"device": run.device.type}).items():
        if version != stored_versions.get(name):
            differences.append(f"{name} {stored_versions.get(name)} -> {version}")
    if differences:
        logger.warning(
            "not bit-exact from here: the checkpoint was made with other versions: %s",
            ", ".join(differences),
        )
    if decay_steps_before != run.decay_steps:
        logger.info(
            "the schedule changes from here: its decay now ends at step %d", run.decay_steps
        )


def check_nothing_newer(point: ResumePoint, checkpoint_dir: Path) -> None:
    """Make sure, with the run's lock held, that no other process has trained on meanwhile.

    Raises: StorageError.
    """
    newest = next(_newest_run(checkpoint_dir, point.config_name), None)
    if point.newest not in (None, newest):
        raise StorageError(
            f"{newest} was saved by another process in the meantime: give the command once more"
        )


def start_from(run: Run, weights: tuple[dict[str, torch.Tensor], str | None], path: Path) -> None:
    """Start a new run from the weights that match in name and shape; log each one that does not.

    Raises: CheckpointRejected when nothing matches; then the model is as it was.
    """
    tensors, characters = weights
    own = run.model.state_dict()
    in_both = own.keys() & tensors.keys()
    fitting = {name for name in in_both if _fits(tensors[name], own[name])}
    if not fitting:
        raise CheckpointRejected(f"{path}: no weight matches this model in name and shape")
    for name in sorted(own.keys() - tensors.keys()):
        logger.warning("init_from: %s is not in the file and keeps its fresh weights", name)
    for name in sorted(tensors.keys() - own.keys()):
        logger.warning("init_from: %s is not in this model", name)
    for name in sorted(in_both - fitting):
        logger.warning(
            "init_from: %s has shape %s (expected %s) or is not finite: left out",
            name,
            tuple(tensors[name].shape),
            tuple(own[name].shape),
        )
    if characters is not None and characters != run.vocabulary.characters:
        logger.warning(
            "init_from: %s knows other characters: matching embedding rows stand for other ones",
            path,
        )
    with torch.no_grad():
        for name in sorted(fitting):
            own[name].copy_(tensors[name])
    run.state.from_seed = False
    run.state.marks.last_save_step = -1  # no seed brings these weights back: save them
    run.start = copy.deepcopy(run.collect_state())
    logger.info(
        "init_from: %d of %d weights from %s, a new run from step 0", len(fitting), len(own), path
    )


def _fits(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    return tensor.shape == own.shape and is_finite(tensor.float())
