"""Checkpoint folders as a group of ranks writes them, made by one process."""

import json
import shutil
from pathlib import Path
from typing import Any

from chatgot.atomic_file import mode_of_new_files
from chatgot.checkpointing.checkpoint_file import load_checkpoint
from chatgot.checkpointing.checkpoint_folder import begin_folder, complete_folder, write_plain
from chatgot.checkpointing.manifest import Listed, encoded
from chatgot.checkpointing.names import MANIFEST
from chatgot.checkpointing.saver import unseen
from chatgot.checkpointing.shards import Shard, hash_of, write_shard
from chatgot.distributed.own_rows import own_rows
from chatgot.distributed.ranks import Ranks
from chatgot.run.assembly import Run

RANKS = 3


def make_folder(parent: Path, run: Run, ranks: int = RANKS) -> Path:
    """Save a run below `parent` as so many ranks would, under its own name; return the path."""
    path = parent / f"{run.state.run_id}_step_{run.state.progress.global_step}.sharded"
    temporary = begin_folder(path)
    mode = mode_of_new_files()
    shards = []
    content: dict[str, Any] = {}
    for rank in reversed(range(ranks)):  # rank 0 the last: its content is the one that counts
        content, shard = write_one(temporary, run, rank, ranks)
        shards.insert(0, shard)
    write_plain(temporary, content, mode, unseen)
    complete_folder(temporary, path, content, shards)
    return path


def as_folder(file: Path, ranks: int = RANKS) -> Path:
    """Put a folder in the place of a checkpoint's file, as so many ranks would; return its path."""
    stored = load_checkpoint(file)
    path = file.with_suffix(".sharded")
    temporary = begin_folder(path)
    mode = mode_of_new_files()
    content: dict[str, Any] = {}
    shards = []
    for rank in range(ranks):
        content, parts = own_rows(stored, rank, ranks)
        shards.append(write_shard(temporary, rank, parts, mode))
    write_plain(temporary, content, mode, unseen)
    complete_folder(temporary, path, content, shards)
    file.unlink()
    return path


def write_one(temporary: Path, run: Run, rank: int, ranks: int) -> tuple[dict[str, Any], Shard]:
    """Write the rows of one rank; return the content that is left, and what was written."""
    run.ranks = Ranks()
    run.ranks.rank = rank
    run.ranks.size = ranks
    content, parts = run.parts()
    run.ranks = Ranks()
    return content, write_shard(temporary, rank, parts, mode_of_new_files())


def copy_of(folder: Path, parent: Path) -> Path:
    """Copy a folder below another parent, under the same name."""
    return Path(shutil.copytree(folder, parent / folder.name))


def forge(folder: Path, **changes: Any) -> None:
    """Write a manifest with the right hashes of whatever the folder has, as an attacker could.

    changes: of the manifest's run_id and step.
    """
    path = folder / MANIFEST
    content = json.loads(path.read_bytes())
    path.unlink()
    files = []
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            files.append(Listed(file.name, *hash_of(opened)))
    about = {"run_id": content["run_id"], "step": content["step"]} | changes
    path.write_bytes(encoded(about["run_id"], about["step"], files))
