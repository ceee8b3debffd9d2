"""The teachers of a run: which checkpoints they are, and whether the run may learn from them.

A teacher that has trained on what the run holds out would hand that on, and the held-out loss would
no longer say how well the run predicts text that it has not seen. So a teacher must have the same
text, and hold out the same part of it.

A student's checkpoint says where its teachers were, and what their weights are: a resumed run needs
the same ones, in any place.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatgot.checkpointing.checkpoint_file import stored_config
from chatgot.checkpointing.checkpoints import read_outline
from chatgot.checkpointing.run_files import newest_whole
from chatgot.checkpointing.stored_vocabulary import VOCABULARY_KEYS, vocabulary_keys
from chatgot.checkpointing.tensors import weights_sha256
from chatgot.command_line import as_typed
from chatgot.config import Config
from chatgot.data.old_text import OldText, old_texts_in
from chatgot.data.own_text import setting
from chatgot.data.token_cache import Tokens
from chatgot.errors import CheckpointRejected, UserError
from chatgot.model.gpt import GPT
from chatgot.run.run_state import Stored
from chatgot.sampling.base_weights import ReadBase
from chatgot.sampling.loading import load_model

logger = logging.getLogger(__name__)

KEY = "training.distillation.teachers"
SHOWN_HASH = 12  # digits in a message


@dataclass(frozen=True)
class Teacher:
    """A trained model that a run learns from.

    model: in evaluation mode, on the run's device. path: absolute. sha256: of its weights.
    minutes: that its run has trained, as far as its files say.
    """

    model: GPT
    path: Path
    sha256: str
    run_id: str
    step: int
    minutes: float

    @property
    def name(self) -> str:
        return f"{self.run_id} step {self.step}"

    @property
    def as_stored(self) -> dict[str, str]:
        """What a student's checkpoint says of it."""
        return {"path": str(self.path), "sha256": self.sha256}


@dataclass(frozen=True)
class Student:
    """What a teacher must fit: the settings and the text of the run that learns from it."""

    config: Config
    tokens: Tokens
    old_texts: Sequence[OldText] = ()


def load_teachers(
    student: Student,
    device: torch.device,
    read_base: ReadBase | None = None,
    stored: Stored | None = None,
    checkpoint: Path | None = None,
) -> list[Teacher]:
    """Return the teachers that a configuration names; none: it names none.

    Those of a resumed run come in the order in which they were stored: the last bits depend on it.

    read_base: reads weights below LoRA's that are in no torch.save file.
    stored, checkpoint: the content and the path of the file that the run goes on from.
    Raises: CheckpointRejected for a file that cannot be read, does not fit, or is not the one that
        the run has learned from.
    """
    paths = [Path(path) for path in student.config.training.distillation.teachers or []]
    known: list[dict[str, str]] | None = None
    if stored is not None:
        assert checkpoint is not None, "a stored state comes from a file"
        known = stored.get("teachers", [])
        _refuse_other_number(paths, known, checkpoint)
    outlines = [(path, _read(path, is_resumed=known is not None)) for path in paths]
    if known is None:
        _refuse_unfit(outlines, student)
    for path, outline in outlines:
        _warn_of_unknown_past(path, outline)
    teachers = [_load(path, outline, device, read_base) for path, outline in outlines]
    if known is None:
        return teachers
    assert checkpoint is not None, "a stored state comes from a file"
    teachers = _as_known(teachers, known, checkpoint, read_base)
    _refuse_unfit(outlines, student)  # the run's text may be another one now
    return teachers


def _read(path: Path, *, is_resumed: bool) -> dict[str, Any]:
    """Return a teacher's plain values. Raises: CheckpointRejected."""
    try:
        return read_outline(path)
    except CheckpointRejected as error:
        what_to_do = ""
        if is_resumed:
            what_to_do = "\nthis run goes on with that very teacher only: name a whole copy of it"
        raise CheckpointRejected(f"{KEY}: {error}{what_to_do}") from error


def _refuse_unfit(outlines: Sequence[tuple[Path, Mapping[str, Any]]], student: Student) -> None:
    """Refuse teachers with other tokens, another text, or another held-out part.

    outlines: with their files. Raises: CheckpointRejected.
    """
    for path, outline in outlines:
        problem = _misfit(path, outline, student)
        if problem:
            raise CheckpointRejected(f"{path}: as a teacher, it {problem}")


def _misfit(path: Path, outline: Mapping[str, Any], student: Student) -> str:
    """Return why a model cannot teach a student; empty: it can."""
    problem = _other_tokens(outline, student) or _other_text(outline, student)
    theirs = stored_config(outline, path)
    problem = problem or _other_held_out_part(theirs, student.config)
    T = student.config.model.max_seq_length
    if not problem and theirs.model.max_seq_length < T:
        problem = (
            f"reads at most {theirs.model.max_seq_length} tokens at once, this run's windows have "
            f"{T}; lower model.max_seq_length, or leave this teacher out"
        )
    return problem


def _other_tokens(outline: Mapping[str, Any], student: Student) -> str:
    theirs = {key: outline[key] for key in VOCABULARY_KEYS if key in outline}
    if theirs == vocabulary_keys(student.tokens.vocabulary):
        return ""
    kind = "subwords" if "tokenizer" in outline else "characters"
    own = student.tokens.vocabulary
    return (
        f"has other tokens ({len(outline['vocabulary'])} {kind}) than this run ({len(own)} "
        f"{own.kind}); train it on the same text with the same data.tokenizer and data.vocab_size"
    )


def _other_text(outline: Mapping[str, Any], student: Student) -> str:
    def replayed(texts: Sequence[OldText]) -> list[tuple[str, float, str]]:
        return [(text.sha256, text.data.test_split, text.data.split) for text in texts]

    sha256 = student.tokens.text_sha256
    if outline["data_sha256"] != sha256:
        return (
            f"was trained on another text (SHA-256 {outline['data_sha256'][:SHOWN_HASH]}..., this "
            f"run's {sha256[:SHOWN_HASH]}...) and may know what this run holds out; "
            "train it on this run's text"
        )
    if replayed(old_texts_in(outline)) != replayed(student.old_texts):
        return "replays other old texts than this run and may know what this run holds out"
    return ""


def _other_held_out_part(theirs: Config, own: Config) -> str:
    for key in ("split", "test_split"):
        found = getattr(theirs.data, key)
        expected = getattr(own.data, key)
        if found != expected:
            return (
                f"was trained with data.{key}={found}, this run has {expected}: it knows text that "
                "this run holds out, or holds out other text"
            )
    return ""


def _warn_of_unknown_past(path: Path, outline: Mapping[str, Any]) -> None:
    """Warn where nothing says what a teacher has seen before."""
    past = ""
    if outline["state"].get("from_seed") is False:
        past = "began with the weights of another model"
    elif outline["config"].get("data", {}).get("allow_change"):
        past = "may have trained on another text before (data.allow_change)"
    if past:
        logger.warning(
            "%s: this teacher %s: if that has seen the text which this run holds out, "
            "the held-out losses are too good",
            path,
            past,
        )


def _load(
    path: Path, outline: Mapping[str, Any], device: torch.device, read_base: ReadBase | None
) -> Teacher:
    model = load_model(path, torch.device("cpu"), read_base).model
    sha256 = weights_sha256(model.state_dict())
    return Teacher(
        model=model.to(device),
        path=path.resolve(),
        sha256=sha256,
        run_id=outline["run_id"],
        step=outline["global_step"],
        minutes=_minutes_of_run(path, outline),
    )


def _minutes_of_run(path: Path, outline: Mapping[str, Any]) -> float:
    """Return how long a teacher's run has trained: until its newest file, which may be a later one.

    A run costs what it trained after its best checkpoint, too.
    """
    seconds = _seconds(outline)
    newest = newest_whole(path.parent, outline["run_id"])
    if newest is not None:
        with suppress(CheckpointRejected):  # its run goes on and has removed it in the meantime
            seconds = max(seconds, _seconds(read_outline(newest)))
    return seconds / 60


def _seconds(outline: Mapping[str, Any]) -> float:
    progress = outline["state"].get("progress")
    seconds = progress.get("time_s") if isinstance(progress, dict) else None
    return seconds if isinstance(seconds, float) and seconds >= 0 else 0.0


# --------------------------------------------------------------------------------------------------
# A resumed run has the teachers that it had


def _refuse_other_number(
    paths: Sequence[Path], known: Sequence[Mapping[str, str]], checkpoint: Path
) -> None:
    """Refuse a number of teachers that is not the run's. Raises: CheckpointRejected."""
    if len(paths) == len(known):
        return
    if not known:
        raise CheckpointRejected(
            f"{checkpoint}: its run learns from no teacher; leave {KEY} out, or begin a new run"
        )
    names = as_typed(["--set", setting(KEY, [teacher["path"] for teacher in known])])
    named = f"{len(paths)} are" if len(paths) != 1 else "1 is"
    raise CheckpointRejected(
        f"{checkpoint}: its run learns from {_count(known)}, but {named} named\n"
        f"name those that it had: {names} (distil.py takes the files themselves)"
    )


def _count(teachers: Sequence[object]) -> str:
    return "1 teacher" if len(teachers) == 1 else f"{len(teachers)} teachers"


def _as_known(
    teachers: Sequence[Teacher],
    known: Sequence[Mapping[str, str]],
    checkpoint: Path,
    read_base: ReadBase | None,
) -> list[Teacher]:
    """Return the teachers in the order in which a checkpoint has them.

    Raises: CheckpointRejected for one that the checkpoint does not have.
    """
    left = list(teachers)
    found = []
    missing = []
    for teacher in known:
        same = [other for other in left if other.sha256 == teacher["sha256"]]
        if same:
            found.append(same[0])
            left.remove(same[0])
        else:
            missing.append(teacher)
    if not missing:
        return found
    expected = missing[0]
    raise CheckpointRejected(
        f"{left[0].path}: has other weights than the teacher that {checkpoint} has learned from: "
        f"expected {expected['path']} as it was "
        f"(SHA-256 of its weights {expected['sha256'][:SHOWN_HASH]}...)\n"
        f"{_advice(expected, left[0].path, checkpoint, read_base)}"
    )


def _advice(
    expected: Mapping[str, str], named: Path, checkpoint: Path, read_base: ReadBase | None
) -> str:
    """Return how a run goes on for which a wrong teacher was named.

    The right one may still be where it was, or next to the one that was named.
    """
    stored = Path(expected["path"])
    for path in (stored, named.with_name(stored.name)):
        with suppress(UserError):  # it is gone, or not what it was
            weights = load_model(path, torch.device("cpu"), read_base).model.state_dict()
            if weights_sha256(weights) == expected["sha256"]:
                return f"that one is still there, name this file: {path}"
    return (
        "name a whole copy of that one, wherever it is; without it, a new run may begin with this "
        f"run's weights: --init_from {checkpoint}"
    )
