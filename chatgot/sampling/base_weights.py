"""The weights that LoRA builds on: find them, read them, check that they are still the same.

A checkpoint with LoRA has the added weights alone, and says which file has the others.
"""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from torch import Tensor

from chatgot.checkpointing.checkpoint_file import ZIP_START, stored_config
from chatgot.checkpointing.checkpoints import (
    is_meant_as_folder,
    load_checkpoint,
    load_weights,
    read_outline,
)
from chatgot.checkpointing.stored_vocabulary import rows_of_tokens, stored_vocabulary
from chatgot.checkpointing.tensors import check_tensors, is_finite, refuse, weights_sha256
from chatgot.errors import CheckpointRejected
from chatgot.model.gpt import GPT, model_without_weights
from chatgot.model.lora import add_lora, frozen_state, merge, trained_state
from chatgot.plain_yaml import escaped

EMBEDDING = "token_embedding.weight"  # (V, C)
HEAD = "head.weight"  # (V, C)
POSITIONS = "position_embedding.weight"  # (max_seq_length, C)
MOST_BASES = 8  # of a checkpoint with LoRA on top of one with LoRA, and so on


class Weights(Protocol):
    """Weights under our own names, and the text of each id; see run/starting.py."""

    @property
    def tensors(self) -> dict[str, Tensor]: ...

    @property
    def tokens(self) -> str | list[str] | None: ...


# Reads a model that is no torch.save file, such as a folder of transformers
ReadBase = Callable[[Path], Weights]


def read_weights(
    path: Path, read_base: ReadBase | None = None
) -> tuple[dict[str, Tensor], str | list[str] | None]:
    """Read the weights of any torch.save file for a new run, and its vocabulary.

    Those of a checkpoint with LoRA are merged with its base.

    read_base: reads a base that is no torch.save file.
    Raises: CheckpointRejected.
    """
    return _read_weights(path, read_base, 0)


def _read_weights(
    path: Path, read_base: ReadBase | None, depth: int
) -> tuple[dict[str, Tensor], str | list[str] | None]:
    if not _has_base(path):
        return load_weights(path)
    stored = load_checkpoint(path)
    tokens: list[str] = stored["vocabulary"]
    return _whole_weights(stored, path, read_base, depth), tokens


def _has_base(path: Path) -> bool:
    """Return whether this is a whole checkpoint that builds on the weights of another file."""
    try:
        return "base" in read_outline(path)
    except CheckpointRejected:
        return False


def whole_weights(
    stored: Mapping[str, Any], path: Path, read_base: ReadBase | None = None
) -> dict[str, Tensor]:
    """Return all weights of a loaded checkpoint, checked; those of LoRA are merged with the base.

    path: the checkpoint's. read_base: reads a base that is no torch.save file.
    Raises: CheckpointRejected.
    """
    return _whole_weights(stored, path, read_base, 0)


def _whole_weights(
    stored: Mapping[str, Any], path: Path, read_base: ReadBase | None, depth: int
) -> dict[str, Tensor]:
    config = stored_config(stored, path)
    weights: dict[str, Tensor] = stored["model_state_dict"]
    lora = config.training.lora
    vocabulary = stored_vocabulary(stored, path)
    V = len(vocabulary) if lora.enabled else rows_of_tokens(weights, vocabulary)
    model = model_without_weights(config.model, V)
    if lora.enabled:
        add_lora(model, lora)
    check_tensors(path, weights, trained_state(model))
    if lora.rank is None:
        return weights
    base = _base_weights(stored, path, model, read_base, depth)
    return merge(base, weights, lora.alpha / lora.rank)


def base_weights(
    stored: Mapping[str, Any], path: Path, model: GPT, read_base: ReadBase | None = None
) -> dict[str, Tensor]:
    """Read the weights that a checkpoint with LoRA builds on, as `model` has them.

    path: the checkpoint's. model: of the right shapes, which is not changed.
    Raises: CheckpointRejected where the file is gone, or has other weights than at the run's start.
    """
    return _base_weights(stored, path, model, read_base, 0)


def _base_weights(
    stored: Mapping[str, Any], path: Path, model: GPT, read_base: ReadBase | None, depth: int
) -> dict[str, Tensor]:
    base = stored.get("base")
    if base is None:
        raise CheckpointRejected(f"{path}: trained with LoRA, but does not say on which weights")
    if depth >= MOST_BASES:
        raise CheckpointRejected(
            f"{path}: builds on a checkpoint that builds on another, more than {MOST_BASES} times"
        )
    file = _find(base["path"], path)
    if _is_torch_file(file):
        tensors, tokens = _read_weights(file, read_base, depth + 1)
    elif read_base is not None:
        read = read_base(file)
        tensors = read.tensors
        tokens = read.tokens
    else:
        raise CheckpointRejected(f"{file}: no checkpoint; {path} builds on its weights")
    weights, _ = fit_base(file, tensors, tokens, model, stored["vocabulary"])
    if weights_sha256(weights) != base["sha256"]:
        raise CheckpointRejected(
            f"{file}: its weights are not those that {path} was trained on top of\n"
            f"expected weights with SHA-256 {base['sha256'][:12]}...: put the right file there, "
            "or next to the checkpoint under the same name"
        )
    return weights


def _find(name: str, path: Path) -> Path:
    """Return where a base is: where it was, else next to the checkpoint that builds on it.

    The checkpoint may come from another machine, and from another system.
    """
    windows = not name.startswith("/")
    there: PurePath = PureWindowsPath(name) if windows else PurePosixPath(name)
    beside = path.parent / there.name
    for candidate in (Path(name), beside):
        if os.path.lexists(candidate):
            return candidate
    raise CheckpointRejected(
        f"{path}: holds only what LoRA has added to {escaped(name)}, which is gone\n"
        f"put that file back, or next to the checkpoint: {escaped(beside)}"
    )


def _is_torch_file(path: Path) -> bool:
    """Return whether this is a folder of ours, or a regular file that begins as torch.save's do."""
    if is_meant_as_folder(path):
        return True
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(ZIP_START)) == ZIP_START
    except OSError as error:
        raise CheckpointRejected(f"{path}: cannot be read: {error.strerror or error}") from error


def fit_base(
    path: Path,
    tensors: Mapping[str, Tensor],
    tokens: str | Sequence[str] | None,
    model: GPT,
    own_tokens: Sequence[str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a base as a model has them, and the tokens that the base does not know.

    The result depends on the arguments alone. Rows of the embedding and the head are matched by the
    text of their token; those of unknown tokens are zero, since nothing would train them. Learned
    positions are cut to the model's context.

    path: of the base, for messages. tokens: the text of each id of the base; None: the rows fit.
    model: of the right shapes, without LoRA's matrices or with them; its values do not matter.
    own_tokens: the text of each id of the model.
    Raises: CheckpointRejected where a weight is missing or does not fit.
    """
    expected = frozen_state(model)
    fitted = dict(tensors)
    if model.cfg.tie_embeddings and EMBEDDING in fitted:
        fitted[HEAD] = fitted[EMBEDDING]
    if POSITIONS in fitted and POSITIONS in expected:
        fitted[POSITIONS] = fitted[POSITIONS][: len(expected[POSITIONS])]
    for name in {EMBEDDING, HEAD} & fitted.keys():
        if tokens is not None and len(fitted[name]) > len(tokens):  # rows without a token
            fitted[name] = fitted[name][: len(tokens)]
    unknown: list[str] = []
    if tokens is not None and list(tokens) != list(own_tokens):
        row_of = {token: row for row, token in enumerate(tokens)}
        unknown = [token for token in own_tokens if token not in row_of]
        for name in {EMBEDDING, HEAD} & fitted.keys():
            if fitted[name].dim() == 2 and len(fitted[name]) == len(row_of):
                fitted[name] = _rows_of(own_tokens, fitted[name], row_of)
    problems = [f"{name} is missing" for name in expected.keys() - fitted.keys()]
    problems += [f"{name} is not in this model" for name in fitted.keys() - expected.keys()]
    for name in expected.keys() & fitted.keys():
        problems += _problems(name, fitted[name], expected[name])
    refuse(path, "LoRA needs all weights of the model, and these do not fit", problems)
    weights = {
        name: fitted[name].to(tensor.dtype).contiguous() for name, tensor in expected.items()
    }
    return weights, unknown


def _problems(name: str, tensor: Tensor, expected: Tensor) -> list[str]:
    if tensor.shape != expected.shape:
        return [f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"]
    return [] if is_finite(tensor.float()) else [f"{name} contains NaN or infinity"]


def _rows_of(own_tokens: Sequence[str], theirs: Tensor, row_of: Mapping[str, int]) -> Tensor:
    """Return one row for each of our tokens, (V, C); zeros where they have none."""
    rows = theirs.new_zeros(len(own_tokens), theirs.size(1))
    for row, token in enumerate(own_tokens):
        if token in row_of:
            rows[row] = theirs[row_of[token]]
    return rows
