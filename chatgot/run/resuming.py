"""How a run goes on from a file: which one, whether it fits, what changes; strict, but for `start_from`."""

import copy
import logging
from collections.abc import Callable, Iterator
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
from chatgot.run.assembly import Training
from chatgot.run.fits import check_optimizer, check_scaler, read_checkpoint
from chatgot.run.modes import change_precision
from chatgot.run.run_state import restore_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint, and what was asked of it."""

    path: Path
    content: dict[str, Any]
    changes: list[str]  # what the configuration changes, one line each
    config_name: str
    named_by_set: set[str]
    newest: (
        Path | None
    )  # for `latest`: the newest file of the run by name, whole or not, when it was looked for


def find_checkpoint(
    resume_from: str, config: Config, config_name: str, named_by_set: set[str]
) -> ResumePoint:
    """Return the checkpoint to resume: `latest` or a file's path; it is whole, and of this configuration.

    Raises: CheckpointRejected naming the file, the reason, and the newest older file that would do.
    """
    checkpoint_dir, latest = Path(config.paths.checkpoints), resume_from == "latest"
    newest = next(_newest_run(checkpoint_dir, config_name), None) if latest else None
    path, content = (
        find_latest(checkpoint_dir, config_name) if latest else (Path(resume_from), None)
    )

    def read(path: Path, content: dict[str, Any] | None = None) -> ResumePoint:
        content = content or read_checkpoint(path)
        changes = check_settings(content, path, config, config_name, named_by_set)
        return ResumePoint(path, content, changes, config_name, named_by_set, newest)

    try:
        return read(path, content)
    except CheckpointRejected as error:
        raise _with_older_file(error, path, checkpoint_dir, config_name, read) from error


def _with_older_file(
    error: CheckpointRejected,
    path: Path,
    checkpoint_dir: Path,
    config_name: str,
    check: Callable[[Path], Any],
) -> CheckpointRejected:
    """Return the rejection with the newest older file that passes `check`."""
    for older in _candidates(path, checkpoint_dir, config_name):
        try:
            check(older)
        except CheckpointRejected:
            continue
        return CheckpointRejected(f"{error}\nthe newest older file that would do: {older}")
    return (
        CheckpointRejected(f"{error}\nno older file of that run would do")
        if NAME.fullmatch(path.name)
        else error
    )


def _candidates(path: Path, checkpoint_dir: Path, config_name: str) -> Iterator[Path]:
    """Yield the older files of a checkpoint's run; of one with a name of its own nobody knows the age: the newest."""
    return (
        older_files(path) if NAME.fullmatch(path.name) else _newest_run(checkpoint_dir, config_name)
    )


def _newest_run(checkpoint_dir: Path, config_name: str) -> Iterator[Path]:
    """Yield the files of a configuration's newest run, the newest first, by their names alone."""
    try:
        runs = run_files(checkpoint_dir, config_name)
    except OSError:
        return
    newest = runs.get(max(runs, default=""), {})
    yield from (newest[step] for step in sorted(newest, reverse=True))


def check_settings(
    stored: dict[str, Any], path: Path, config: Config, config_name: str, named_by_set: set[str]
) -> list[str]:
    """Hold a checkpoint's configuration against the one asked for; return the lines on what changes.

    Raises: CheckpointRejected for another configuration's checkpoint and for changes that are not allowed.
    """
    if stored["run_id"].rpartition("_")[0] != config_name:
        message = f"{path}: belongs to run {stored['run_id']}, not to {config_name}; give --config that run's YAML"
        raise CheckpointRejected(message + ", or start a new run from its weights with --init_from")
    stored["config"] = _stored_config(stored, path).model_dump(
        mode="json"
    )  # keys that are new since then: defaults
    taken, refused = changes_on_resume(stored["config"], config, named_by_set)
    if refused:
        raise CheckpointRejected(
            f"{path}: its run was trained with other settings (stored -> asked): {'; '.join(refused)}"
        )
    return taken


def _stored_config(stored: dict[str, Any], path: Path) -> Config:
    """Return a checkpoint's configuration, which is data like the rest: held against the keys that exist."""
    try:
        return Config.model_validate(stored["config"])
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:6])
        raise CheckpointRejected(
            f"{path}: its configuration is not one of this ChatGoT: {keys}"
        ) from error


def check_state(
    training: Training, stored: dict[str, Any], path: Path, data_may_change: bool
) -> None:
    """Hold a checkpoint's text, weights and optimizer against an assembled run; touch nothing.

    Raises: CheckpointRejected.
    """
    if stored["vocabulary"] != training.vocabulary.characters:
        message = f"{path}: trained on a text with {len(stored['vocabulary'])} characters, this one has other characters"
        raise CheckpointRejected(
            f"{message} ({len(training.vocabulary)}); set data.path to the same text"
        )
    if stored["data_sha256"] != training.tokens.text_sha256 and not data_may_change:
        found, expected = training.tokens.text_sha256[:12], stored["data_sha256"][:12]
        message = f"{path}: trained on another text (SHA-256 {expected}..., this text {found}...)"
        raise CheckpointRejected(
            f"{message}; set data.path to the same text, or insist with --set data.allow_change=true"
        )
    check_tensors(path, stored["model_state_dict"], training.model.state_dict())
    updates = stored["run"]["global_step"] - stored["run"]["skipped_steps"]
    check_optimizer(path, stored["optimizer_state_dict"], training.optimizer, updates)
    check_scaler(path, stored["scaler_state_dict"], training.scaler)
    S, found = training.config.training.sequences_per_step, stored["run"]["micro_batch_size"]
    if found > S:
        raise CheckpointRejected(f"{path}: a micro-batch of {found} sequences, but a step has {S}")
    batch_size, found = training.config.training.batch_size, stored["run"]["eval_batch_size"]
    if found > batch_size:
        raise CheckpointRejected(
            f"{path}: evaluations of {found} sequences at once, but batch_size is {batch_size}"
        )


def resume(training: Training, point: ResumePoint) -> None:
    """Check that a checkpoint fits, then put its state into a freshly assembled run.

    Raises: CheckpointRejected; then nothing has been touched.
    """
    config, stored = training.config, point.content
    data_may_change = config.data.allow_change and "data.allow_change" in point.named_by_set

    def check(path: Path) -> None:
        content = stored if path == point.path else read_checkpoint(path)
        check_settings(content, path, config, point.config_name, point.named_by_set)
        check_state(training, content, path, data_may_change)

    try:
        check(point.path)
    except CheckpointRejected as error:
        folder = Path(config.paths.checkpoints)
        raise _with_older_file(error, point.path, folder, point.config_name, check) from error
    if stored["data_sha256"] != training.tokens.text_sha256:
        logger.warning(
            "the text differs from the checkpoint's: training goes on with the new one, as asked"
        )
    found, stored_versions = versions() | {"device": training.device.type}, stored["versions"]
    if other := [
        f"{k} {stored_versions.get(k)} -> {found[k]}"
        for k in found
        if found[k] != stored_versions.get(k)
    ]:
        logger.warning(
            "not bit-exact from here: the checkpoint was made with other versions: %s",
            ", ".join(other),
        )
    before = _stored_config(stored, point.path).training
    if schedule_horizon(before, training.train_windows.per_epoch) != training.decay_steps:
        logger.info(
            "the schedule changes from here: its decay now ends at step %d", training.decay_steps
        )
    picked, compiled = training.run.precision, training.run.compiled
    restore_state(stored, training.run, training.model, training.optimizer, training.scaler)
    training.run.compiled = (
        compiled  # now: the user may have asked for another mode, or there is no compiler any more
    )
    asked = [
        (settings.mixed_precision, settings.precision_dtype)
        for settings in (before, config.training)
    ]
    if asked[0] != asked[1]:  # the user wants another one
        if training.run.precision != picked:
            change_precision(training.run, training.scaler, picked)
        training.run.asked_precision, training.run.precision_raised = picked, False
    if (
        not training.run.from_seed
    ):  # its start is not to be had any more, but for the file of step 0
        training.start = {}


def check_nothing_newer(point: ResumePoint, checkpoint_dir: Path) -> None:
    """Make sure, once the run's lock is held, that `latest` still is: another process may have trained on meanwhile.

    Raises: StorageError.
    """
    newest = next(_newest_run(checkpoint_dir, point.config_name), None)
    if point.newest not in (None, newest):
        raise StorageError(
            f"{newest} was saved by another process in the meantime: give the command once more"
        )


def start_from(
    training: Training, weights: tuple[dict[str, torch.Tensor], str | None], path: Path
) -> None:
    """Start a new run from another run's weights: those that match in name and shape; log each one that does not.

    Raises: CheckpointRejected when nothing matches; then the model is as it was.
    """
    tensors, characters = weights
    own = training.model.state_dict()
    both = own.keys() & tensors.keys()
    fits = {
        name
        for name in both
        if tensors[name].shape == own[name].shape and is_finite(tensors[name].float())
    }
    if not fits:
        raise CheckpointRejected(f"{path}: no weight matches this model in name and shape")
    for name in sorted(own.keys() - tensors.keys()):
        logger.warning("init_from: %s is not in the file and keeps its fresh weights", name)
    for name in sorted(tensors.keys() - own.keys()):
        logger.warning("init_from: %s is not in this model", name)
    for name in sorted(both - fits):
        found, expected = tuple(tensors[name].shape), tuple(own[name].shape)
        logger.warning(
            "init_from: %s has shape %s (expected %s) or is not finite: left out",
            name,
            found,
            expected,
        )
    if characters is not None and characters != training.vocabulary.characters:
        logger.warning(
            "init_from: %s knows other characters: matching embedding rows stand for other ones",
            path,
        )
    with torch.no_grad():
        for name in sorted(fits):
            own[name].copy_(tensors[name])
    training.run.from_seed = False
    training.run.last_save_step = -1  # these weights are worth a file: no seed brings them back
    training.start = copy.deepcopy(training.checkpoint())
    logger.info(
        "init_from: %d of %d weights from %s, a new run from step 0", len(fits), len(own), path
    )


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
        raise CheckpointRejected(
            f"{checkpoint_dir}: no checkpoint of {config_name} stands here; nothing to resume"
        )
    timestamp = max(runs)
    newest = max(runs[timestamp])
    for step in sorted(runs[timestamp], reverse=True):
        path = runs[timestamp][step]
        try:
            content = read_checkpoint(path)
        except CheckpointRejected as error:
            logger.warning("%s; passed over", error)
            continue
        if step != newest:
            logger.warning(
                "resuming costs %d steps: from step %d instead of %d", newest - step, step, newest
            )
        return path, content
    older = (
        runs[t][s] for t in sorted(runs, reverse=True)[1:] for s in sorted(runs[t], reverse=True)
    )
    other = next((path for path in older if is_whole(path)), None)
    hint = f"; an older run's newest whole file is {other}" if other else ""
    raise CheckpointRejected(
        f"{checkpoint_dir}: all checkpoints of run {config_name}_{timestamp} are damaged{hint}"
    )
