"""Which files make up a checkpoint folder, byte for byte?

`manifest.json` lists each file of the folder with its bytes and its SHA-256, and ends in a hash of
itself. It is written last: a folder without it is unfinished.
"""

import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from chatgot.checkpointing.checkpoint_file import reading
from chatgot.checkpointing.names import MANIFEST, RUN_ID
from chatgot.errors import CheckpointRejected, OtherFormat

FORMAT_VERSION = 1
MOST_BYTES = 1 << 24  # of a manifest; a line of it has some 150
MOST_FILES = 100_000
LARGEST_FILE = 1 << 62  # bytes
# plain names: no separator, and no name that means another folder
FILE_NAME = re.compile(r"(?!\.\.?$)[A-Za-z0-9_.]{1,100}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
KEYS = {"format_version", "run_id", "step", "files", "sha256"}


@dataclass(frozen=True)
class Listed:
    """A file of a folder: its name, its size in bytes, its SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder holds. sha256: of the manifest itself, in hex."""

    run_id: str
    step: int
    files: tuple[Listed, ...]
    sha256: str

    def file(self, name: str) -> Listed | None:
        """Return the file of a name; None: it is not listed."""
        return next((file for file in self.files if file.name == name), None)


def encoded(run_id: str, step: int, files: Sequence[Listed]) -> bytes:
    """Return the bytes of a manifest."""
    content = {
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "step": step,
        "files": [asdict(file) for file in sorted(files, key=lambda file: file.name)],
    }
    return _with_hash(content)


def _with_hash(content: dict[str, Any]) -> bytes:
    """Return a manifest's content as bytes, with the hash of them as its last key."""
    own_hash = sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "sha256": own_hash}, indent=1).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    It must be, bit for bit, what `encoded` makes of its content.
    Raises: CheckpointRejected.
    """
    path = folder / MANIFEST
    if folder.is_symlink():
        raise CheckpointRejected(f"{folder}: is a link; name the folder itself: {folder.resolve()}")
    if not os.path.lexists(path):
        raise CheckpointRejected(
            f"{folder}: unfinished, or no checkpoint: {MANIFEST} is missing, which comes last"
        )
    with reading(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise CheckpointRejected(f"{path}: larger than any manifest")
        stored = file.read()
    try:
        content = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise CheckpointRejected(f"{path}: damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointRejected(f"{path}: damaged: it is no manifest")
    version = content.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise OtherFormat(
            f"{path}: format version {version}, this ChatGoT reads version {FORMAT_VERSION} only"
        )
    found = content.pop("sha256", None)
    if _with_hash(content) != stored:
        raise CheckpointRejected(f"{path}: damaged: its SHA-256 does not match")
    if not _is_manifest({**content, "sha256": found}):
        raise CheckpointRejected(f"{path}: it lists what no save has written")
    files = tuple(Listed(**file) for file in content["files"])
    return Manifest(content["run_id"], content["step"], files, found)


def _is_manifest(content: dict[str, Any]) -> bool:
    """Return whether each key has a value of the right type and range, and there is no other."""
    if content.keys() != KEYS or content["format_version"] != FORMAT_VERSION:
        return False
    run_id = content["run_id"]
    if not isinstance(run_id, str) or RUN_ID.fullmatch(run_id) is None:
        return False
    files = content["files"]
    if not _is_count(content["step"]) or not isinstance(files, list):
        return False
    if len(files) > MOST_FILES or not all(map(_is_listed, files)):
        return False
    return len({file["name"] for file in files} | {MANIFEST}) == len(files) + 1


def _is_listed(file: object) -> bool:
    if not isinstance(file, dict) or file.keys() != {"name", "size", "sha256"}:
        return False
    name = file["name"]
    digest = file["sha256"]
    return (
        isinstance(name, str)
        and FILE_NAME.fullmatch(name) is not None
        and _is_count(file["size"])
        and isinstance(digest, str)
        and SHA256.fullmatch(digest) is not None
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_FILE


def check_files(folder: Path, manifest: Manifest) -> tuple[os.stat_result, ...]:
    """Check that a folder has each file of its manifest, of the right size, and no other.

    Returns what the system says of each, in the order of the manifest.
    Raises: CheckpointRejected naming the first file that is wrong.
    """
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    except OSError as error:
        raise CheckpointRejected(f"{folder}: cannot be listed: {error.strerror}") from error
    found.pop(MANIFEST, None)
    for listed in manifest.files:
        status = found.get(listed.name)
        path = folder / listed.name
        if status is None:
            raise CheckpointRejected(f"{path}: this part of the checkpoint is missing")
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointRejected(f"{path}: not a regular file")
        if status.st_size != listed.size:
            raise CheckpointRejected(
                f"{path}: damaged: {status.st_size} bytes, expected {listed.size}"
            )
    more = sorted(found.keys() - {listed.name for listed in manifest.files})
    if more:
        raise CheckpointRejected(f"{folder / more[0]}: no part of this checkpoint; take it away")
    return tuple(found[listed.name] for listed in manifest.files)
