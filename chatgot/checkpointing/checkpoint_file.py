"""One checkpoint file: written whole or not at all, and trusted only after it has been verified.

A checkpoint is a `torch.save` zip that `torch.load(weights_only=True)` reads. The zip's comment holds the SHA-256 (hex)
of everything before it, so that a single flipped bit anywhere is noticed before anything is read from the file.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chatgot.atomic_file import atomic_file
from chatgot.checkpointing.names import NAME as NAME
from chatgot.checkpointing.names import RUN_ID
from chatgot.checkpointing.tensors import all_tensors, not_finite
from chatgot.checkpointing.zip_structure import END_OF_ZIP, odd_entries
from chatgot.errors import CheckpointRejected

FORMAT_VERSION = 4
DIGEST = 64  # bytes of a SHA-256 in hex
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
SCHEMA: dict[str, type | tuple[type, ...]] = {
    "format_version": int, "run_id": str, "epoch": int, "global_step": int, "loss": (float, type(None)),
    "model_state_dict": dict, "optimizer_state_dict": dict, "scaler_state_dict": dict, "run": dict, "rng": dict,
    "config": dict, "vocabulary": str, "data_sha256": str, "versions": dict,
}  # fmt: skip


class _HashingWriter(io.RawIOBase):
    """Passes bytes on and hashes them, holding back the zip's last record so that it can be given a comment."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.tail = file, sha256(), b""
        self.error: OSError | None = None  # torch raises one of its own over it

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= END_OF_ZIP:
            self._pass_on(self.tail)
            self._pass_on(view[:-END_OF_ZIP])
            self.tail = bytes(view[-END_OF_ZIP:])
        else:
            pending = self.tail + bytes(view)
            self._pass_on(pending[:-END_OF_ZIP])
            self.tail = pending[-END_OF_ZIP:]
        return len(view)

    def finish(self) -> None:
        self._pass_on(self.tail[:-2] + DIGEST.to_bytes(2, "little"))
        self.file.write(self.digest.hexdigest().encode())
        self.file.flush()

    def _pass_on(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise


def save_checkpoint(path: Path, checkpoint: dict[str, Any], replace: bool = False) -> bool:
    """Write one checkpoint: temporary file, hash, fsync, verification, rename, fsync of the folder.

    A file that has this name already is replaced only when it is damaged, or with `replace`; else a whole one stays,
    and False is returned.
    Raises: OSError with an errno when the disk refuses; then no file has changed.
    """
    if not replace and is_whole(path):
        return False

    def verify(temporary: Path) -> None:
        with temporary.open("rb") as file:
            if why := damage(file):
                raise OSError(errno.EIO, f"the file read back is {why}", str(temporary))
            try:
                outline = _outline(file, path)
            except CheckpointRejected as error:
                raise RuntimeError(
                    f"what was to be saved could not be loaded again: {error}"
                ) from error
            _verified.add(
                _identity(path.name, os.fstat(file.fileno()))
            )  # renaming changes none of it
        assert all(outline[key] == checkpoint[key] for key in ("run_id", "global_step"))

    with atomic_file(path, verify) as file:
        writer = _HashingWriter(file)
        try:
            torch.save(checkpoint, writer)
        except RuntimeError as error:
            raise writer.error or error from None
        writer.finish()
    return True


def damage(file: BinaryIO) -> str | None:
    """Return what is wrong with a checkpoint's bytes, or None when they are whole.

    Looks at the hash first and at the zip's entries second; reads nothing that the file could have been made to mean.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size < END_OF_ZIP + DIGEST or file.read(4) != b"PK\x03\x04":
        return f"not a checkpoint: {size} bytes, no zip file"
    body = size - DIGEST
    file.seek(body - END_OF_ZIP)
    end, stored = file.read(END_OF_ZIP), file.read(DIGEST)
    file.seek(0)
    digest, left = sha256(), body
    while left and (block := file.read(min(left, 1 << 20))):
        digest.update(block)
        left -= len(block)
    if digest.hexdigest().encode() != stored:
        return "damaged: its SHA-256 does not match (truncated, altered, or not written by ChatGoT)"
    if not end.startswith(b"PK\x05\x06") or not end.endswith(DIGEST.to_bytes(2, "little")):
        return "damaged: it does not end in the record that ChatGoT writes"
    return odd_entries(file)


def is_whole(path: Path) -> bool:
    """Return whether `path` is a regular file that a finished save has written under this name.

    Its bytes are verified once, and again when inode, size or time have changed. Tensors are not read: whether they
    fit a model is for who loads them.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode):
            return False
        if _identity(path.name, about) in _verified:
            return True
        with _reading(path) as file:
            if damage(file) is not None:
                return False
            _outline(file, path)
            _verified.add(_identity(path.name, os.fstat(file.fileno())))
        return True
    except (OSError, CheckpointRejected):
        return False


def _identity(name: str, about: os.stat_result) -> tuple[str, int, int, int, int]:
    return name, about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


_verified: set[tuple[str, int, int, int, int]] = (
    set()
)  # a cache of `is_whole`: emptied, it costs time and nothing else


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Open a file for as long as it is read; what the disk refuses is said of the file. Raises: CheckpointRejected."""
    try:
        with _open_regular(path) as file:
            yield file
    except OSError as error:
        raise CheckpointRejected(f"{path}: cannot be read: {error.strerror or error}") from error


def _open_regular(path: Path) -> BinaryIO:
    """Open a file without following a link and without waiting for a pipe. Raises: CheckpointRejected."""
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        if path.is_symlink():
            raise CheckpointRejected(
                f"{path}: is a link; name the file itself: {path.parent / path.readlink()}"
            )
        descriptor = os.open(path, flags)
    except OSError as error:
        raise CheckpointRejected(
            f"{path}: cannot be opened: {error.strerror}{_near(path)}"
        ) from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        os.close(descriptor)
        raise CheckpointRejected(
            f"{path}: empty, or not a regular file; expected a checkpoint (.pt)"
        )
    return os.fdopen(descriptor, "rb")


def _near(path: Path) -> str:
    """Return a hint at the checkpoints that stand in the folder of a path that does not exist."""
    try:
        found = [
            (int(match["step"]), p.name)
            for p in path.parent.iterdir()
            if (match := NAME.fullmatch(p.name))
        ]
    except OSError:
        return ""
    return (
        f"; in that folder: {max(found)[1]}" if found else "; no checkpoint stands in that folder"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint for an exact resume: bytes verified first, then the schema; executes nothing from the file.

    All of it through one descriptor: what was verified is what is loaded. Raises: CheckpointRejected naming file and
    reason.
    """
    with _reading(path) as file:
        if why := damage(file):
            raise CheckpointRejected(f"{path}: {why}")
        _outline(file, path)
        checkpoint = _read(file, path)
        _verified.add(_identity(path.name, os.fstat(file.fileno())))
    if empty := [name for name, tensor in all_tensors(checkpoint) if tensor.device.type != "cpu"]:
        raise CheckpointRejected(f"{path}: no plain tensors: {', '.join(empty[:6])}")
    if bad := not_finite(checkpoint):
        raise CheckpointRejected(f"{path}: NaN or infinity in {', '.join(bad[:6])}")
    return checkpoint


def _outline(file: BinaryIO, path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors without their values, after holding it against schema and name.

    Costs milliseconds and no memory, whatever sizes the file declares. Raises: CheckpointRejected.
    """
    outline = _read(file, path, "meta")
    _check_schema(outline, path)
    match = NAME.fullmatch(path.name)
    inside = f"{outline['run_id']}_step_{outline['global_step']}.pt"
    if match and path.name != inside:
        raise CheckpointRejected(
            f"{path}: the file was renamed: inside it is {inside}; give it its own name again"
        )
    try:
        tensors = list(all_tensors(outline))
    except ValueError as error:
        raise CheckpointRejected(f"{path}: {error}") from error
    if odd := [name for name, tensor in tensors if not _is_plain(tensor)]:
        raise CheckpointRejected(f"{path}: no plain tensors: {', '.join(odd[:6])}")
    # twice: tied weights are two tensors over the same bytes
    if sum(tensor.nbytes for _, tensor in tensors) > 2 * os.fstat(file.fileno()).st_size:
        raise CheckpointRejected(f"{path}: declares tensors that are larger than the file")
    return outline


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype in DTYPES and tensor.layout == torch.strided and tensor.is_contiguous()


def _read(file: BinaryIO, path: Path, device: str = "cpu") -> Any:
    file.seek(0)
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except (
        Exception
    ) as error:  # on crafted bytes the unpickler raises anything; none of it was executed
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise CheckpointRejected(
            f"{path}: cannot be read as tensors and plain values: {reason}"
        ) from error


def _check_schema(checkpoint: Any, path: Path) -> None:
    if not isinstance(checkpoint, dict):
        raise CheckpointRejected(
            f"{path}: holds a {type(checkpoint).__name__}, expected a ChatGoT checkpoint"
        )
    version = checkpoint.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        found = version if isinstance(version, int | str | None) else "unreadable"
        raise CheckpointRejected(
            f"{path}: format version {found}, this ChatGoT reads version {FORMAT_VERSION}"
        )
    wrong = [
        key
        for key, kind in SCHEMA.items()
        if key not in checkpoint or not isinstance(checkpoint[key], kind)
    ]
    wrong += [str(key) for key in checkpoint if key not in SCHEMA]
    if not wrong and not RUN_ID.fullmatch(checkpoint["run_id"]):
        wrong = ["run_id"]
    if wrong:
        raise CheckpointRejected(f"{path}: missing, or not what it should be: {', '.join(wrong)}")


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """Read weights for a new run from any torch.save zip: (named tensors, vocabulary or None).

    Files without ChatGoT's hash are read after the zip's own checksums pass. Raises: CheckpointRejected.
    """
    with _reading(path) as file:
        if file.read(4) != b"PK\x03\x04":
            raise CheckpointRejected(f"{path}: not a torch.save zip file")
        if damage(file) is not None and (why := odd_entries(file, checksums=True)):
            raise CheckpointRejected(f"{path}: {why}")
        content = _read(file, path)
    state = content.get("model_state_dict", content) if isinstance(content, dict) else {}
    state = state if isinstance(state, dict) else {}
    named = {name: tensor for name, tensor in state.items() if isinstance(name, str)}
    weights = {
        name: tensor
        for name, tensor in named.items()
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and _is_plain(tensor)
    }
    if not weights:
        raise CheckpointRejected(f"{path}: holds no named weights")
    return weights, content.get("vocabulary")
