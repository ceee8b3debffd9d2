"""A checkpoint as a folder: one file of tensors from each rank, and a manifest that is last.

    {run_id}_step_{step}.sharded/
        __0_0.distcp, __1_0.distcp, ...   the rows of each rank (shards.py)
        .metadata, parts.json             where the rows of each tensor are
        plain.pt                          all that is no tensor of weights or optimizer
        manifest.json                     each file's bytes and SHA-256 (manifest.py)

It is written as `.{name}.{pid}.tmp` and gets its name when all is there and has been read back. So
a save that is cut short leaves what the next start removes. Nothing of it is executed when it is
read.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatgot.atomic_file import atomic_file, fsync_folder, temporary_name
from chatgot.checkpointing import checkpoint_file
from chatgot.checkpointing.checkpoint_file import reading, save_checkpoint, some_names
from chatgot.checkpointing.manifest import (
    Listed,
    Manifest,
    check_files,
    encoded,
    read_manifest,
)
from chatgot.checkpointing.names import FOLDER, MANIFEST, NAME, PARTS, REPLACED
from chatgot.checkpointing.shards import MOST_BYTES as MOST_BYTES_OF_PARTS
from chatgot.checkpointing.shards import (
    Chunk,
    Shard,
    StoredTensor,
    encoded_parts,
    hash_of,
    read_parts,
    read_rows,
    write_metadata,
)
from chatgot.checkpointing.tensors import not_finite
from chatgot.errors import CheckpointRejected
from chatgot.logs.waiting import Advance, waiting

PLAIN = "plain.pt"
METADATA = ".metadata"
SHARD = re.compile(r"__\d{1,9}_0\.distcp", re.ASCII)
WEIGHTS = "model_state_dict"
OPTIMIZER = "optimizer_state_dict"
Wanted = Callable[[str], bool]  # whether a tensor of this name is read

# Writing


def begin_folder(path: Path) -> Path:
    """Make the temporary folder in which a checkpoint is written; return its path.

    Raises: OSError.
    """
    temporary = temporary_name(path)
    if os.path.lexists(temporary):  # of a dead process with the same id
        remove_folder(temporary)
    temporary.mkdir()
    return temporary


def write_plain(
    folder: Path, content: dict[str, Any], mode: int, shown: checkpoint_file.Shown
) -> None:
    """Write what is no tensor of weights or optimizer. Raises: OSError."""
    save_checkpoint(folder / PLAIN, content, shown=shown, mode=mode)


def complete_folder(
    temporary: Path, path: Path, content: dict[str, Any], shards: Sequence[Shard]
) -> int:
    """Write the manifest of a folder whose parts are all there, and give the folder its name.

    A whole checkpoint that has this name already is replaced.
    content: as given to `write_plain`. shards: of all ranks.
    Returns the bytes of all files. Raises: OSError; then no folder of this name has changed.
    """
    of_ranks = [shard.file for shard in shards if shard.file is not None]
    for rank, shard in enumerate(shards):
        if shard.file is not None:
            _check_size(temporary, shard.file, rank)
    write_metadata(temporary, shards)
    parts = encoded_parts(shards)
    with atomic_file(temporary / PARTS) as file:
        file.write(parts)
    files = [*of_ranks, *(_listed(temporary, name) for name in (PLAIN, METADATA, PARTS))]
    manifest = encoded(content["run_id"], content["global_step"], files)
    with atomic_file(temporary / MANIFEST) as file:
        file.write(manifest)
    try:
        written = read_manifest(temporary)
        check_files(temporary, written)
        _stored_tensors(temporary, written)
    except CheckpointRejected as error:
        raise OSError(errno.EIO, f"the folder read back is damaged: {error}") from error
    _take_place(temporary, path)
    with suppress(CheckpointRejected):  # each rank has read back what it wrote
        _verified.add(_identity(path, written))
    return sum(file.size for file in files) + len(manifest)


def _check_size(folder: Path, listed: Listed, rank: int) -> None:
    """Check that rank 0 finds what another rank has written. Raises: OSError."""
    path = folder / listed.name
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise OSError(
            errno.ENOENT,
            f"what rank {rank} has written is not here: all machines must share this folder",
            str(path),
        ) from error
    if size != listed.size:
        raise OSError(errno.EIO, f"what rank {rank} has written is cut short", str(path))


def _listed(folder: Path, name: str) -> Listed:
    with (folder / name).open("rb") as file:
        return Listed(name, *hash_of(file))


def _take_place(temporary: Path, path: Path) -> None:
    """Give a whole folder its name; one that has this name goes out of the way, then away."""
    fsync_folder(temporary)
    before = temporary_name(path.with_name(f"{path.name}{REPLACED}"))
    had_one = os.path.lexists(path)
    if had_one:
        if os.path.lexists(before):
            remove_folder(before)
        path.replace(before)
    try:
        temporary.replace(path)
    except OSError:
        if had_one:
            before.replace(path)
        raise
    fsync_folder(path.parent)
    if had_one:
        with suppress(OSError):
            remove_folder(before)


def remove_folder(folder: Path) -> None:
    """Remove a checkpoint folder, its manifest first: what a kill leaves counts as unfinished.

    Raises: OSError.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    with suppress(FileNotFoundError):
        (folder / MANIFEST).unlink()
    shutil.rmtree(folder)


# Reading


def is_whole(folder: Path, shown: checkpoint_file.Shown = waiting) -> bool:
    """Return whether a folder is what a finished save wrote under this name.

    As for a file: verified once, and again when a file in it has changed.
    shown: shows the progress of the verification.
    """
    try:
        _outline(folder, shown)
    except (OSError, CheckpointRejected):
        return False
    return True


def read_outline(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's plain values, as of a file. Raises: CheckpointRejected."""
    outline, _ = _outline(folder, waiting)
    return outline


def digest_of(folder: Path) -> str:
    """Return the SHA-256 of a folder's manifest, in hex. Raises: CheckpointRejected."""
    return read_manifest(folder).sha256


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume, as of a file: the same content.

    Each file is opened once, so that what is verified is what is loaded.
    Raises: CheckpointRejected naming file and reason.
    """
    content, tensors = _load(folder, lambda name: True)
    weights, states = _sorted(folder, tensors, content[OPTIMIZER])
    content[WEIGHTS] = {**content[WEIGHTS], **weights}
    for index, values in states.items():
        content[OPTIMIZER]["state"][index] |= values
    bad = not_finite({WEIGHTS: weights, OPTIMIZER: states})
    if bad:
        raise CheckpointRejected(f"{folder}: NaN or infinity in {some_names(bad)}")
    return content


def load_weights(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read the weights of a checkpoint for a new run, and its vocabulary.

    The other tensors are verified, and not loaded. Raises: CheckpointRejected.
    """
    content, tensors = _load(folder, lambda name: name.startswith("model/"))
    weights, _ = _sorted(folder, tensors, {"state": {}})
    return {**content[WEIGHTS], **weights}, content["vocabulary"]


def _outline(folder: Path, shown: checkpoint_file.Shown) -> tuple[dict[str, Any], Manifest]:
    """Return a folder's plain values and its manifest, after verifying all of its bytes."""
    manifest = read_manifest(folder)
    identity = _identity(folder, manifest)
    if identity not in _verified:
        total = sum(file.size for file in manifest.files)
        with shown(f"verifying {folder.name}", total) as advance:
            for listed in manifest.files:
                with reading(folder / listed.name) as file:
                    _refuse_damage(file, folder, listed)
                advance(listed.size)
    outline = checkpoint_file.read_outline(folder / PLAIN)
    _check_names(folder, manifest, outline)
    _stored_tensors(folder, manifest)
    _verified.add(identity)
    outline.pop(WEIGHTS, None)  # the tensors of both are elsewhere
    outline.pop(OPTIMIZER, None)
    return outline, manifest


def _identity(folder: Path, manifest: Manifest) -> tuple[object, ...]:
    """Return what tells a folder from one that has changed. Raises: CheckpointRejected."""
    statuses = check_files(folder, manifest)
    about = [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in statuses]
    return folder.name, manifest.sha256, *about


# a cache, as that of checkpoint_file.py
_verified: set[tuple[object, ...]] = set()


def _refuse_damage(file: Any, folder: Path, listed: Listed) -> None:
    if hash_of(file) != (listed.size, listed.sha256):
        raise CheckpointRejected(
            f"{folder / listed.name}: damaged: its SHA-256 is not the one in {MANIFEST}"
        )


def _check_names(folder: Path, manifest: Manifest, outline: dict[str, Any]) -> None:
    """Check that folder, manifest and content are of one run and one step."""
    run_id = outline["run_id"]
    step = outline["global_step"]
    if (run_id, step) != (manifest.run_id, manifest.step):
        raise CheckpointRejected(f"{folder}: its {PLAIN} and its {MANIFEST} are of other steps")
    own_name = f"{run_id}_step_{step}{FOLDER}"
    if NAME.fullmatch(folder.name) and folder.name != own_name:
        raise CheckpointRejected(
            f"{folder}: the folder was renamed: inside it is {own_name}; give it its own name again"
        )


def _stored_tensors(folder: Path, manifest: Manifest) -> list[StoredTensor]:
    """Return where a folder's tensors are. Raises: CheckpointRejected."""
    names = {file.name for file in manifest.files}
    missing = {PLAIN, PARTS, METADATA} - names
    odd = [name for name in names - {PLAIN, PARTS, METADATA} if not SHARD.fullmatch(name)]
    if missing or odd:
        wrong = some_names(sorted([*missing, *odd]))
        raise CheckpointRejected(f"{folder / MANIFEST}: missing, or of no checkpoint: {wrong}")
    listed = manifest.file(PARTS)
    assert listed is not None
    path = folder / PARTS
    if listed.size > MOST_BYTES_OF_PARTS:
        raise CheckpointRejected(f"{path}: larger than of any checkpoint")
    with reading(path) as file:
        _refuse_damage(file, folder, listed)
        file.seek(0)
        data = file.read(listed.size)
    sizes = {file.name: file.size for file in manifest.files if SHARD.fullmatch(file.name)}
    return read_parts(data, path, sizes)


def _load(folder: Path, wanted: Wanted) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the plain values of a folder, and those of its tensors that are wanted.

    Everything is verified, whether or not it is wanted.
    """
    manifest = read_manifest(folder)
    identity = _identity(folder, manifest)
    plain = manifest.file(PLAIN)
    if plain is None:
        raise CheckpointRejected(f"{folder / MANIFEST}: lists no {PLAIN}")
    with reading(folder / PLAIN) as file:
        _refuse_damage(file, folder, plain)
    content = checkpoint_file.load_checkpoint(folder / PLAIN)
    _check_names(folder, manifest, content)
    stored = [tensor for tensor in _stored_tensors(folder, manifest) if wanted(tensor.name)]
    with waiting(f"loading {folder.name}", sum(file.size for file in manifest.files)) as advance:
        tensors = _read_all(folder, manifest, stored, advance)
    _verified.add(identity)
    return content, tensors


def _read_all(
    folder: Path, manifest: Manifest, stored: Sequence[StoredTensor], advance: Advance
) -> dict[str, Tensor]:
    """Verify each file of a folder, then read from it the rows that are asked for."""
    # the declared sizes are within those of the files: read_parts has checked it
    whole = {tensor.name: torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in stored}
    in_file: dict[str, list[tuple[StoredTensor, Chunk]]] = {}
    for tensor in stored:
        for chunk in tensor.chunks:
            in_file.setdefault(chunk.file, []).append((tensor, chunk))
    for listed in manifest.files:
        path = folder / listed.name
        with reading(path) as file:
            _refuse_damage(file, folder, listed)
            for tensor, chunk in in_file.get(listed.name, []):
                read_rows(file, path, tensor, chunk, whole[tensor.name])
        advance(listed.size)
    return whole


def _sorted(
    folder: Path, tensors: dict[str, Tensor], optimizer: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Return the weights by name, and the optimizer's tensors by the index of their weight."""
    weights = {}
    states: dict[int, dict[str, Tensor]] = {}
    for stored_name, tensor in tensors.items():
        kind, _, name = stored_name.partition("/")
        if kind == "model":
            weights[name] = tensor
            continue
        number, _, of_state = name.partition("/")
        index = int(number)
        known = optimizer.get("state")
        if not isinstance(known, dict) or not isinstance(known.get(index), dict):
            raise CheckpointRejected(f"{folder}: {stored_name} belongs to no weight")
        states.setdefault(index, {})[of_state] = tensor
    return weights, states
