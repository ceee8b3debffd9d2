"""How a run goes on from a file: which one, whether it fits, what changes.

All of it is strict, except `start_from`, which begins a new run with another run's weights.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatgot.checkpointing.checkpoint_file import stored_config
from chatgot.checkpointing.checkpoints import is_whole, read_outline
from chatgot.checkpointing.names import FILE, NAME
from chatgot.checkpointing.run_files import (
    files_after,
    older_files,
    run_files,
    set_aside,
    superseded_by,
)
from chatgot.checkpointing.stored_vocabulary import VOCABULARY_KEYS, vocabulary_keys
from chatgot.checkpointing.tensors import check_tensors, is_finite, weights_sha256
from chatgot.command_line import as_typed, command_words
from chatgot.config import Config, TrainingConfig, changes_on_resume
from chatgot.errors import CheckpointRejected, OtherFormat, StorageError
from chatgot.logs.events import event
from chatgot.logs.origins import AnyRun, is_gone, is_same_file, yaml_that_began
from chatgot.machine.device import versions
from chatgot.model.lora import frozen_state, has_lora, trained_state
from chatgot.numerics.optim import lr_at, schedule_horizon
from chatgot.run.assembly import Run
from chatgot.run.ending import decay_in_force, leave_decay, take_back_decay
from chatgot.run.fits import check_optimizer, check_scaler, read_checkpoint
from chatgot.run.modes import asked_for_another_precision, change_precision
from chatgot.run.run_state import RunState, Stored, change_size, restore_state
from chatgot.run.starting import CONTEXT, Start, with_shape_of
from chatgot.sampling.base_weights import ReadBase, base_weights, fit_base

logger = logging.getLogger(__name__)

POSITIONS = "position_embedding.weight"  # (max_seq_length, C)
# What other trainers call their newest checkpoint
OTHER_WORDS = {"last", "newest", "recent", "auto", "true", "yes", "final", "best"}
TOKEN_ROWS = {"token_embedding.weight", "head.weight"}  # (V, C): one row a token

Check = Callable[[Path], object]  # raises CheckpointRejected for a file that would not do


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint, and how it was asked for."""

    path: Path
    content: dict[str, Any]
    config: Config  # the one asked for; the shape of an imported model is the run's own
    changes: list[str]  # what the configuration changes, one line each
    config_path: Path
    named_by_set: set[str]
    newest: Path | None  # for `latest`: the run's newest file by name, when it was looked for


def find_checkpoint(
    resume_from: str, config: Config, config_path: Path, named_by_set: set[str]
) -> ResumePoint:
    """Return the checkpoint to resume: `latest` or a file's path; whole, of this configuration.

    config_path: the YAML, whose stem is the configuration's name.
    Raises: CheckpointRejected naming file and reason, and the newest older file that would do.
    """
    newest = None
    content = None
    if resume_from == "latest":
        path, content, newest = find_latest(config, config_path)
    else:
        path = Path(resume_from)
        refuse_misspelt_latest(path)

    def read(path: Path, content: dict[str, Any] | None = None) -> ResumePoint:
        stored = read_checkpoint(path) if content is None else content
        asked = _with_imported_shape(config, stored, path, named_by_set)
        changes = check_settings(stored, path, asked, config_path.stem, named_by_set)
        return ResumePoint(path, stored, asked, changes, config_path, named_by_set, newest)

    try:
        return read(path, content)
    except CheckpointRejected as error:
        older_runs = () if newest is None else _older_runs_of_yaml(path, config, config_path)
        raise _with_older_file(error, path, config, config_path, read, older_runs) from error


def refuse_misspelt_latest(path: Path) -> None:
    """Refuse a word that is no file and was probably meant as `latest`. Raises: CheckpointRejected.

    `latest` is the one word that is not read as a path.
    """
    word = str(path).strip("\"' ").casefold().removesuffix(FILE)
    is_meant = word in OTHER_WORDS or bool(get_close_matches(word, ["latest"], cutoff=0.7))
    if is_meant and is_gone(path):
        raise CheckpointRejected(
            f"{path}: no such file; did you mean --resume_from latest? It is the newest checkpoint "
            "of the run that was begun last"
        )


def _with_imported_shape(
    config: Config, stored: Mapping[str, Any], path: Path, named_by_set: set[str]
) -> Config:
    """Return a configuration with the shape that a run took from an imported model, if it did.

    Keys that the user sets stay as they are: they are compared with the run's, as all others.
    Raises: CheckpointRejected.
    """
    imported = stored.get("imported")
    if imported is None:
        return config
    keys = [key for key in imported["keys"] if f"model.{key}" not in named_by_set]
    context = imported["context"]
    if f"model.{CONTEXT}" in named_by_set:
        context = config.model.max_seq_length
    return with_shape_of(config, stored_config(stored, path).model.model_dump(), keys, context)


def find_latest(config: Config, config_path: Path) -> tuple[Path, dict[str, Any], Path]:
    """Return the newest checkpoint of the latest run that can be loaded, with its content.

    The third value is the run's newest file by name, whether or not it can be loaded.
    Logs by name and reason which ones it passes over, and what that costs.
    Raises: CheckpointRejected when there is none, naming the folder and, if any, the next older
    run's best file.
    """
    files = latest_run(config, config_path)
    newest_step = max(files)
    for step in sorted(files, reverse=True):
        path = files[step]
        try:
            content = read_checkpoint(path)
        except OtherFormat:
            raise  # the run's other files are of that format, too
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
        return path, content, files[newest_step]
    checkpoint_dir = Path(config.paths.checkpoints)
    run_id = files[newest_step].name.rpartition("_step_")[0]
    hint = ""
    other = _whole_file_of_older_run(checkpoint_dir, config_path.stem, run_id)
    if other is not None:
        hint = f"; an older run's newest whole file is {other}"
    raise CheckpointRejected(
        f"{checkpoint_dir}: all checkpoints of run {run_id} are damaged or cannot be read{hint}"
    )


def _older_runs_of_yaml(path: Path, config: Config, config_path: Path) -> Iterator[Path]:
    """Yield the newest file of each older run that this very YAML began, the newest run first.

    path: a checkpoint of the run that the others are older than.
    """
    try:
        runs = run_files(Path(config.paths.checkpoints), config_path.stem)
    except OSError:
        return
    own_path = str(config_path.resolve())
    own_timestamp = path.name.rpartition("_step_")[0].rpartition("_")[2]
    for timestamp in sorted((run for run in runs if run < own_timestamp), reverse=True):
        files = runs[timestamp]
        if is_same_file(_yaml_that_began(files, Path(config.paths.logs)), own_path):
            yield _newest_file(files)


def latest_run(config: Config, config_path: Path) -> dict[int, Path]:
    """Return the checkpoints, by step, of the run that `latest` means.

    It is the last one begun by this very YAML; if there is none, the last one of this name whose
    YAML is gone (moved, or its folder renamed).
    Raises: CheckpointRejected where there is none, or where another YAML began all of them.
    """
    checkpoint_dir = Path(config.paths.checkpoints)
    config_name = config_path.stem
    try:
        runs = run_files(checkpoint_dir, config_name)
    except OSError as error:
        raise CheckpointRejected(f"{checkpoint_dir}: cannot be listed: {error.strerror}") from error
    if not runs:
        raise CheckpointRejected(
            f"{checkpoint_dir}: no checkpoint of {config_name} is here; nothing to resume"
        )
    own_path = str(config_path.resolve())
    newest_first = (runs[timestamp] for timestamp in sorted(runs, reverse=True))
    with_origins = (
        (files, _yaml_that_began(files, Path(config.paths.logs))) for files in newest_first
    )
    files, others = last_run_of(own_path, with_origins)
    if files is not None:
        return files
    other, its_files = next(iter(others.items()))
    newest = _newest_file(its_files)
    raise CheckpointRejected(
        f"{checkpoint_dir}: the runs of {config_name} here were begun by {other}, "
        f"not by {own_path}\n"
        f"go on with that one: {_resume_command(other, 'latest')}; "
        f"or take its checkpoint: {_resume_command(str(config_path), str(newest))}"
    )


def last_run_of(
    own_origin: str, runs: Iterable[tuple[AnyRun, str]]
) -> tuple[AnyRun | None, dict[str, AnyRun]]:
    """Return the run that `latest` means, and the newest run of each other origin.

    It is the newest run that `own_origin` began; if there is none, the newest one whose origin is
    gone.

    runs: the newest first, each with the path of the YAML or text that began it; empty: unknown,
    which counts as the own one.
    """
    orphan = None
    others: dict[str, AnyRun] = {}
    for run, began_from in runs:
        if not began_from or is_same_file(began_from, own_origin):
            return run, {}
        if not is_gone(Path(began_from)):
            others.setdefault(began_from, run)
        elif orphan is None:
            orphan = run
    return orphan, others


def _resume_command(config_path: str, resume_from: str) -> str:
    arguments = ["--config", config_path, "--resume_from", resume_from]
    return as_typed([*command_words(), *arguments])


def _yaml_that_began(files: Mapping[int, Path], logs_dir: Path) -> str:
    """Return the path of the YAML that a run was begun with; empty: nobody knows."""
    run_id = files[max(files)].name.rpartition("_step_")[0]
    yaml_path = yaml_that_began(logs_dir / "tensorboard" / run_id)
    if yaml_path:
        return yaml_path
    for step in sorted(files, reverse=True):
        try:
            return str(read_outline(files[step])["config_path"])
        except CheckpointRejected:
            continue
    return ""


def _newest_file(files: Mapping[int, Path]) -> Path:
    return files[max(files)]


def _whole_file_of_older_run(checkpoint_dir: Path, config_name: str, run_id: str) -> Path | None:
    """Return the newest whole file of the newest run that is older than `run_id` and has one."""
    runs = run_files(checkpoint_dir, config_name)
    for timestamp in sorted(runs, reverse=True):
        if f"{config_name}_{timestamp}" >= run_id:
            continue
        files = runs[timestamp]
        whole = (files[step] for step in sorted(files, reverse=True) if is_whole(files[step]))
        newest = next(whole, None)
        if newest is not None:
            return newest
    return None


def _with_older_file(
    error: CheckpointRejected,
    path: Path,
    config: Config,
    config_path: Path,
    check: Check,
    older_runs: Iterable[Path] = (),
) -> CheckpointRejected:
    """Return the rejection with the newest older file that passes `check`.

    older_runs: files of other runs, which come after all of this one.
    """
    if isinstance(error, OtherFormat):
        return error

    def would_do(file: Path) -> bool:
        try:
            check(file)
        except CheckpointRejected:
            return False
        return True

    older = next(filter(would_do, _candidates(path, config, config_path)), None)
    if older is not None:
        return CheckpointRejected(f"{error}\nthe newest older file that would do: {older}")
    older = next(filter(would_do, older_runs), None)
    if older is not None:
        return CheckpointRejected(f"{error}\nan older run of this YAML would do: {older}")
    if NAME.fullmatch(path.name):
        return CheckpointRejected(f"{error} (no older file of that run would do)")
    return error


def _candidates(path: Path, config: Config, config_path: Path) -> Iterator[Path]:
    """Yield the older files of a checkpoint's run, the newest first.

    A file with another name has no step to compare: all of the latest run are candidates.
    """
    if NAME.fullmatch(path.name):
        yield from older_files(path)
        return
    try:
        files = latest_run(config, config_path)
    except CheckpointRejected:
        return
    for step in sorted(files, reverse=True):
        yield files[step]


def check_settings(
    stored: dict[str, Any], path: Path, config: Config, config_name: str, named_by_set: set[str]
) -> list[str]:
    """Compare a checkpoint's configuration with the one asked for; return what changes, in lines.

    Side effect: keys that are newer than the checkpoint get their defaults in `stored`.
    Raises: CheckpointRejected for another configuration's checkpoint and for refused changes.
    """
    if stored["run_id"].rpartition("_")[0] != config_name:
        raise CheckpointRejected(
            f"{path}: belongs to run {stored['run_id']}, not to {config_name}; "
            "give --config that run's YAML, or start a new run from its weights with --init_from"
        )
    stored["config"] = stored_config(stored, path).model_dump(mode="json")
    accepted, refused = changes_on_resume(stored["config"], config, named_by_set)
    if refused:
        raise CheckpointRejected(
            f"{path}: its run was trained with other settings (stored -> asked): "
            f"{'; '.join(refused)}"
        )
    return accepted


def check_state(run: Run, stored: Stored, path: Path, data_may_change: bool) -> None:
    """Check a checkpoint's text, weights, optimizer and scaler against a run before loading.

    A load that fails would leave the run half restored; this touches nothing.
    Raises: CheckpointRejected.
    """
    _check_text(run, stored, path, data_may_change)
    check_tensors(path, stored["model_state_dict"], trained_state(run.model))
    if run.base and stored.get("base", {}).get("sha256") != run.base["sha256"]:
        raise CheckpointRejected(f"{path}: builds on other weights than this run")
    taught_by = [teacher["sha256"] for teacher in stored.get("teachers", [])]
    if taught_by != [teacher.sha256 for teacher in run.teachers]:
        raise CheckpointRejected(f"{path}: has learned from other teachers than this run")
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


def _check_text(run: Run, stored: Stored, path: Path, data_may_change: bool) -> None:
    asked = vocabulary_keys(run.vocabulary)
    if {key: stored[key] for key in VOCABULARY_KEYS if key in stored} != asked:
        if "tokenizer" in stored or "tokenizer" in asked:
            raise CheckpointRejected(
                f"{path}: trained on {'subwords' if 'tokenizer' in stored else 'characters'}, "
                f"this run has other tokens: {len(run.vocabulary)} {run.vocabulary.kind}; "
                "resume it as it was begun"
            )
        raise CheckpointRejected(
            f"{path}: trained on a text with {len(stored['vocabulary']) - 1} characters, "
            f"this one has other characters ({len(run.vocabulary) - 1}); "
            "set data.path to the same text"
        )
    if stored["data_sha256"] != run.tokens.text_sha256 and not data_may_change:
        raise CheckpointRejected(
            f"{path}: trained on another text (SHA-256 {stored['data_sha256'][:12]}..., "
            f"this text {run.tokens.text_sha256[:12]}...); set data.path to the same text, "
            "or insist with --set data.allow_change=true"
        )


def resume(run: Run, point: ResumePoint, read_base: ReadBase | None = None) -> None:
    """Check that a checkpoint fits, then put its state into a freshly assembled run.

    read_base: reads weights below LoRA's that are in no torch.save file.
    Raises: CheckpointRejected; then nothing has been touched.
    """
    config = run.config
    stored = point.content
    data_may_change = config.data.allow_change and "data.allow_change" in point.named_by_set

    def check(path: Path) -> None:
        content = stored if path == point.path else read_checkpoint(path)
        check_settings(content, path, config, point.config_path.stem, point.named_by_set)
        check_state(run, content, path, data_may_change)

    try:
        check(point.path)
    except CheckpointRejected as error:
        raise _with_older_file(error, point.path, config, point.config_path, check) from error
    if has_lora(run.model):
        _put_below(run, base_weights(stored, point.path, run.model, read_base))
        run.base = stored["base"]
    before = stored_config(stored, point.path).training
    _log_differences(run, stored)

    new_precision = run.state.modes.precision
    chosen = run.state.modes.model_copy()
    size = run.state.micro_batch.size
    restore_state(stored, run.state, run.model, run.optimizer, run.scaler)
    _take_schedule(run, before)
    modes = run.state.modes
    modes.compiled = chosen.compiled  # the user may ask for another mode, or the compiler is gone
    modes.graphed = chosen.graphed
    modes.gradient_checkpointing_chosen = chosen.gradient_checkpointing_chosen
    modes.gradient_checkpointing_failed |= chosen.gradient_checkpointing_failed
    modes.card = chosen.card
    if not config.training.dynamic_batch_size.enabled and run.state.micro_batch.size != size:
        _take_other_size(run.state, size)
    if asked_for_another_precision(before, config.training):
        if modes.precision != new_precision:
            change_precision(run.state, run.scaler, new_precision)
        modes.asked_precision = new_precision
        modes.precision_raised = False
    if not run.state.from_seed:
        run.start = None  # the starting weights are gone; only a step-0 checkpoint has them


def _take_other_size(state: RunState, size: int) -> None:
    """Take another micro-batch than the checkpoint's: one was asked for, or the device is new."""
    old = state.micro_batch.size
    logger.info(
        "micro_batch_size %d -> %d: another one is asked for, or this is another device",
        old,
        size,
        extra=event("micro_batch", old=old, new=size, reason="settings"),
    )
    change_size(state, size, "settings")


def _log_differences(run: Run, stored: Stored) -> None:
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


def _take_schedule(run: Run, before: TrainingConfig) -> None:
    """Let the new settings decide about the decay of the learning rate; say what they change.

    before: the checkpoint's settings.
    """
    step = run.state.progress.global_step
    per_epoch = run.train_windows.per_epoch
    settings = run.config.training
    decay_steps_before = schedule_horizon(before, per_epoch)
    decay_before = decay_in_force(before, run.state, per_epoch)
    old = lr_at(step, before, decay_steps_before, decay_before)
    if take_back_decay(settings, before, run.state):
        logger.info("the decay of the learning rate is taken back, which these settings end")
    decay = run.decay
    if decay is None or step < decay.began:
        leave_decay(run.state)
    new = lr_at(step, settings, run.decay_steps, decay)
    if decay_steps_before != run.decay_steps:
        end = "the run's end" if run.decay_steps is None else f"step {run.decay_steps}"
        logger.info("the schedule changes from here: its decay now ends at %s", end)
    if f"{old:.2e}" != f"{new:.2e}":
        level = logging.WARNING if new > old else logging.INFO
        logger.log(level, "the learning rate at step %d changes: %.2e -> %.2e", step, old, new)


def has_newer_files(run: Run) -> bool:
    """Return whether the run has checkpoints of later steps than the present one."""
    progress = run.state.progress
    return bool(files_after(run.checkpoint_dir, run.state.run_id, progress.global_step))


def leave_newer_files_behind(run: Run, point: ResumePoint) -> None:
    """Set the checkpoints aside that are newer than the one the run goes on from.

    Raises: StorageError.
    """
    if run.ended():
        return
    progress = run.state.progress
    newer = superseded_by(run.checkpoint_dir, run.state.run_id, progress.global_step, point.path)
    set_aside(newer)


def refuse_newer_files(point: ResumePoint, config: Config) -> None:
    """Make sure, with the run's lock held, that no other process has trained on meanwhile.

    Raises: StorageError.
    """
    if point.newest is None:
        return
    newest = _newest_file(latest_run(config, point.config_path))
    if point.newest != newest:
        raise StorageError(
            f"{newest} was saved by another process in the meantime: give the command once more"
        )


def start_from(run: Run, start: Start, path: Path) -> None:
    """Start a new run from the weights that match in name and shape; log each one that does not.

    Rows of the embedding and of the head are matched by the text of their token. With LoRA all
    weights must match: they are frozen from now on.
    Raises: CheckpointRejected when nothing matches; then the model is as it was.
    """
    if start.binds_yaml:
        keys = sorted(start.shape.keys() - {CONTEXT})
        run.imported = {"kind": start.kind, "keys": keys, "context": start.shape[CONTEXT]}
    if has_lora(run.model):
        _start_on_top(run, start, path)
        return
    tensors = start.tensors
    own = run.model.state_dict()
    tokens = list(start.tokens) if start.tokens is not None else run.vocabulary.tokens
    new_rows: set[str] = set()
    if tokens != run.vocabulary.tokens:
        tensors = dict(tensors)
        for name in TOKEN_ROWS & own.keys() & tensors.keys():
            if len(tensors[name]) == len(tokens) and tensors[name].shape[1:] == own[name].shape[1:]:
                tensors[name], missing = _rows_by_token(
                    tensors[name], tokens, own[name], run.vocabulary.tokens
                )
                new_rows |= missing
    tensors = _without_late_positions(tensors, own)
    in_both = own.keys() & tensors.keys()
    fitting = {name for name in in_both if _fits(tensors[name], own[name])}
    if not fitting:
        raise CheckpointRejected(f"{path}: no weight matches this model in name and shape")
    _log_left_out(own, tensors, fitting)
    if new_rows:
        logger.warning(
            "init_from: %s does not know %d of this text's tokens; each begins as the mean of all "
            "that it knows, and their rows are new: %s",
            path,
            len(new_rows),
            " ".join(repr(token) for token in sorted(new_rows)),
        )
    with torch.no_grad():
        for name in sorted(fitting):
            own[name].copy_(tensors[name])
    _begin_here(run)
    logger.info(
        "init_from: %d of %d weights from %s, a new run from step 0", len(fitting), len(own), path
    )


def _log_left_out(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], fitting: set[str]
) -> None:
    """Log each weight that is not taken, and why."""
    for name in sorted(own.keys() - theirs.keys()):
        logger.warning("init_from: %s is not in the file and keeps its fresh weights", name)
    for name in sorted(theirs.keys() - own.keys()):
        logger.warning("init_from: %s is not in this model", name)
    for name in sorted((own.keys() & theirs.keys()) - fitting):
        if theirs[name].shape == own[name].shape:
            logger.warning("init_from: %s contains NaN or infinity: left out", name)
            continue
        logger.warning(
            "init_from: %s has shape %s (expected %s): left out",
            name,
            tuple(theirs[name].shape),
            tuple(own[name].shape),
        )


def _without_late_positions(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors, the learned positions only as far as our context reaches."""
    theirs = tensors.get(POSITIONS)
    if theirs is None or POSITIONS not in own or len(theirs) <= len(own[POSITIONS]):
        return tensors
    length = len(own[POSITIONS])
    logger.info("init_from: the context is %d instead of %d tokens", length, len(theirs))
    return tensors | {POSITIONS: theirs[:length]}


def _begin_here(run: Run) -> None:
    """Remember the present weights as those that the run began with."""
    run.state.from_seed = False
    run.state.marks.last_save_step = -1  # no seed brings these weights back: save them
    run.start = copy.deepcopy(run.collect_state())


def _start_on_top(run: Run, start: Start, path: Path) -> None:
    """Put the weights of another model below the ones that LoRA has added."""
    weights, unknown = fit_base(path, start.tensors, start.tokens, run.model, run.vocabulary.tokens)
    if unknown:
        logger.warning(
            "init_from: %s does not know %d of this text's tokens, and with LoRA the model does "
            "not learn them: %s",
            path,
            len(unknown),
            " ".join(repr(token) for token in sorted(unknown)),
        )
    _put_below(run, weights)
    run.base = {"path": str(path.resolve()), "sha256": weights_sha256(weights)}
    _begin_here(run)
    logger.info("init_from: LoRA on top of %s, a new run from step 0", path)


def _put_below(run: Run, weights: Mapping[str, Tensor]) -> None:
    own = frozen_state(run.model)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def _rows_by_token(
    theirs: Tensor, their_tokens: list[str], own: Tensor, own_tokens: list[str]
) -> tuple[Tensor, set[str]]:
    """Return our rows (V, C) with theirs for the tokens they know, and the tokens they do not.

    The rows of those are the mean of all of theirs: near what any token means, and about as likely
    as the others, where fresh rows may win over all (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html).
    """
    mean = theirs.double().mean(dim=0).to(theirs.dtype)  # (C,)
    row_of = {token: row for row, token in enumerate(their_tokens)}
    rows = own.detach().clone().to(theirs.dtype)
    missing = set()
    for row, token in enumerate(own_tokens):
        if token in row_of:
            rows[row] = theirs[row_of[token]]
        else:
            rows[row] = mean
            missing.add(token)
    return rows, missing


def _fits(tensor: Tensor, own: Tensor) -> bool:
    return tensor.shape == own.shape and is_finite(tensor.float())
