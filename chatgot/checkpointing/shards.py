"""The tensors in a checkpoint folder: each rank writes its rows, and a reader joins them.

They are written by torch.distributed.checkpoint, so other programs can read them, too. It notes
where each tensor is in `.metadata`, which is a pickle. So the same is noted in `parts.json`, and we
read that: nothing of a folder is unpickled but tensors.
Source: torch.distributed.checkpoint, https://docs.pytorch.org/docs/stable/distributed.checkpoint.html

Letters: R rows of a whole tensor, its first dimension.
"""

import errno
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from chatgot.atomic_file import set_mode
from chatgot.checkpointing.checkpoint_file import (
    DTYPES,
    READ_SIZE,
    is_plain,
    read_tensors,
    some_names,
)
from chatgot.checkpointing.manifest import Listed
from chatgot.checkpointing.names import PARTS
from chatgot.checkpointing.zip_structure import odd_entries
from chatgot.errors import CheckpointRejected

MOST_BYTES = 1 << 28  # of PARTS; a chunk of it has some 100
MOST_DIMENSIONS = 8
MOST_NUMBERS = 1 << 50  # in one tensor
NAME = re.compile(r"(model/[\w.]{1,200}|optimizer/\d{1,9}/\w{1,100})", re.ASCII)
DTYPE_OF = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
CHUNK_KEYS = {"first", "rows", "file", "offset", "length"}


@dataclass(frozen=True)
class Part:
    """The rows of a tensor that one rank writes.

    name: `model/{name}` or `optimizer/{index}/{name}`. tensor: (rows here, ...).
    first: the first of these rows. R: of the whole tensor.
    """

    name: str
    tensor: Tensor
    first: int
    R: int


@dataclass(frozen=True)
class Chunk:
    """Rows of a tensor in a file: from `first` on, `rows` of them; offset, length: in bytes."""

    first: int
    rows: int
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that a folder has; its chunks are in the order of their rows."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Shard:
    """What one rank has written. file: None where it has no rows of any tensor.

    results: what torch.distributed.checkpoint says of each chunk. about: of the chunk's tensor,
    its dtype, its whole shape and the chunk's number of rows.
    """

    file: Listed | None
    results: list[WriteResult]
    about: dict[str, tuple[torch.dtype, tuple[int, ...], int]]


class _HashingFile(io.RawIOBase):
    """A new file that hashes what is written to it, and counts its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = 0
        self.digest = sha256()
        self.error: OSError | None = None  # torch hides it behind an error of its own

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            self.file.write(view)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size


class _Writing(FileSystem):
    """Makes the one file of a rank, never over another one, and never a folder."""

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.stream: _HashingFile | None = None

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        pass

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags, 0o600), "w+b") as file:
            self.stream = _HashingFile(file)
            yield self.stream
            file.flush()
            set_mode(file.fileno(), self.mode)
            os.fsync(file.fileno())


class _Writer(FileSystemWriter):
    """Writes a folder without naming it in the metadata: it may move."""

    def storage_meta(self) -> StorageMeta | None:
        return None


class _Planner(SavePlanner):
    """Hands the rows out by the name of their tensor; there is nothing left to plan."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._rows = {part.name: part.tensor for part in parts}

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._rows[write_item.index.fqn]

    def set_up_planner(self, *args: Any, **keywords: Any) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> SavePlan:
        raise NotImplementedError

    def create_global_plan(self, all_plans: Any) -> Any:
        raise NotImplementedError

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        raise NotImplementedError


def write_shard(folder: Path, rank: int, parts: Sequence[Part], mode: int) -> Shard:
    """Write a rank's rows into one file of a folder, fsync it, and read it back.

    No other rank is asked, so this may run in a thread.
    mode: of the file, as `atomic_file` takes it.
    Raises: OSError with an errno when the disk refuses.
    """
    own = [part for part in parts if part.tensor.numel()]
    if not own:
        return Shard(None, [], {})
    # nothing is copied ahead: the parts are in the host's memory, or they may wait for each other
    writer = _Writer(folder, sync_files=False, per_thread_copy_ahead=0)
    system = _Writing(mode)
    writer.fs = system
    writer.set_up_storage_writer(False, rank=rank, use_collectives=False)
    plan = writer.prepare_local_plan(SavePlan([_item_of(part) for part in own]))
    try:
        results = writer.write_data(plan, _Planner(own)).value()
    except RuntimeError as error:
        refused = None if system.stream is None else system.stream.error
        raise refused or error from None
    assert system.stream is not None
    name = results[0].storage_data.relative_path
    listed = Listed(name, system.stream.size, system.stream.digest.hexdigest())
    read_back(folder, listed)
    about = {
        part.name: (part.tensor.dtype, _whole_shape(part), part.tensor.shape[0]) for part in own
    }
    return Shard(listed, results, about)


def _whole_shape(part: Part) -> tuple[int, ...]:
    return (part.R, *part.tensor.shape[1:])


def _item_of(part: Part) -> WriteItem:
    offsets = torch.Size([part.first] + [0] * (part.tensor.dim() - 1))
    return WriteItem(
        index=MetadataIndex(part.name, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets, part.tensor.shape),
            properties=TensorProperties(dtype=part.tensor.dtype),
            size=torch.Size(_whole_shape(part)),
        ),
    )


def read_back(folder: Path, listed: Listed) -> None:
    """Read a file that was just written. Raises: OSError where it is not what was written."""
    path = folder / listed.name
    with path.open("rb") as file:
        if hash_of(file) != (listed.size, listed.sha256):
            raise OSError(errno.EIO, "the file read back is not what was written", str(path))


def hash_of(file: BinaryIO) -> tuple[int, str]:
    """Return the size of an open file in bytes, and its SHA-256 in hex; the position is its end."""
    digest = sha256()
    size = 0
    file.seek(0)
    while block := file.read(READ_SIZE):
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def write_metadata(folder: Path, shards: Sequence[Shard]) -> None:
    """Write `.metadata`, from which torch.distributed.checkpoint reads the folder.

    Raises: OSError.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    for shard in shards:
        for result in shard.results:
            dtype, shape, rows = shard.about[result.index.fqn]
            known = tensors.setdefault(
                result.index.fqn,
                TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), []),
            )
            assert result.index.offset is not None
            sizes = torch.Size([rows, *shape[1:]])
            known.chunks.append(ChunkStorageMetadata(result.index.offset, sizes))
    # their types forget that both dicts hold what is a part of the union
    metadata = Metadata(cast("Any", tensors))
    _Writer(folder, sync_files=True).finish(metadata, [shard.results for shard in shards])


def encoded_parts(shards: Sequence[Shard]) -> bytes:
    """Return the bytes of `parts.json`: where the rows of each tensor are."""
    tensors: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for result in shard.results:
            name = result.index.fqn
            dtype, shape, rows = shard.about[name]
            known = tensors.setdefault(
                name,
                {"dtype": str(dtype).removeprefix("torch."), "shape": list(shape), "chunks": []},
            )
            assert result.index.offset is not None
            known["chunks"].append(
                {
                    "first": result.index.offset[0],
                    "rows": rows,
                    "file": result.storage_data.relative_path,
                    "offset": result.storage_data.offset,
                    "length": result.storage_data.length,
                }
            )
    return json.dumps(tensors).encode() + b"\n"


def read_parts(data: bytes, path: Path, sizes: dict[str, int]) -> list[StoredTensor]:
    """Read `parts.json`: each tensor once, all its rows once, none of them beyond its file.

    sizes: of the files that may have rows, in bytes.
    Raises: CheckpointRejected.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointRejected(f"{path}: not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointRejected(f"{path}: lists no tensors")
    odd = [str(name) for name, value in content.items() if not _is_tensor(name, value)]
    if odd:
        raise CheckpointRejected(f"{path}: tensors that no run saves: {some_names(odd)}")
    tensors = [_tensor(name, value) for name, value in content.items()]
    for tensor in tensors:
        if not _are_all_rows(tensor):
            raise CheckpointRejected(f"{path}: {tensor.name} lacks rows, or has some twice")
    _check_places(tensors, path, sizes)
    return tensors


def _check_places(tensors: Sequence[StoredTensor], path: Path, sizes: dict[str, int]) -> None:
    """Check that no rows share bytes, and that all are within their file."""
    in_file: dict[str, list[Chunk]] = {}
    for tensor in tensors:
        for chunk in tensor.chunks:
            in_file.setdefault(chunk.file, []).append(chunk)
    strange = sorted(in_file.keys() - sizes.keys())
    if strange:
        raise CheckpointRejected(f"{path}: rows in other files: {some_names(strange)}")
    for name, chunks in in_file.items():
        end = 0
        for chunk in sorted(chunks, key=lambda chunk: chunk.offset):
            if chunk.offset < end:
                raise CheckpointRejected(f"{path}: rows overlap in {name}")
            end = chunk.offset + chunk.length
        if end > sizes[name]:
            raise CheckpointRejected(f"{path}: rows beyond the end of {name}")


def _is_tensor(name: str, value: object) -> bool:
    if NAME.fullmatch(name) is None or not isinstance(value, dict):
        return False
    if value.keys() != {"dtype", "shape", "chunks"} or not isinstance(value["dtype"], str):
        return False
    shape = value["shape"]
    chunks = value["chunks"]
    if value["dtype"] not in DTYPE_OF or not (isinstance(shape, list) and isinstance(chunks, list)):
        return False
    if not 1 <= len(shape) <= MOST_DIMENSIONS or not all(map(_is_count, shape)):
        return False
    return math.prod(shape) <= MOST_NUMBERS and all(map(_is_chunk, chunks))


def _is_chunk(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != CHUNK_KEYS:
        return False
    numbers = [value[key] for key in CHUNK_KEYS - {"file"}]
    return isinstance(value["file"], str) and all(map(_is_count, numbers))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_NUMBERS


def _tensor(name: str, value: dict[str, Any]) -> StoredTensor:
    chunks = sorted((Chunk(**chunk) for chunk in value["chunks"]), key=lambda chunk: chunk.first)
    return StoredTensor(name, DTYPE_OF[value["dtype"]], tuple(value["shape"]), tuple(chunks))


def _are_all_rows(tensor: StoredTensor) -> bool:
    """Return whether the chunks have each row once, and are as long as their rows at least."""
    row_bytes = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    next_row = 0
    for chunk in tensor.chunks:
        if chunk.first != next_row or chunk.length < chunk.rows * row_bytes:
            return False
        next_row += chunk.rows
    return next_row == tensor.shape[0]


def read_rows(file: BinaryIO, path: Path, stored: StoredTensor, chunk: Chunk, into: Tensor) -> None:
    """Read a chunk from its open file into the rows of a whole tensor.

    into: the whole tensor, of the stored shape.
    Raises: CheckpointRejected.
    """
    file.seek(chunk.offset)
    zipped = io.BytesIO(file.read(chunk.length))
    problem = odd_entries(zipped)
    if problem is not None:
        raise CheckpointRejected(f"{path}: {stored.name}: {problem}")
    shape = (chunk.rows, *stored.shape[1:])
    for device in ("meta", "cpu"):  # first without values: nothing declared takes memory
        rows = read_tensors(zipped, path, device)
        is_tensor = isinstance(rows, Tensor) and is_plain(rows)
        if not is_tensor or rows.dtype != stored.dtype or tuple(rows.shape) != shape:
            raise CheckpointRejected(f"{path}: {stored.name}: other rows than {PARTS} says")
    if rows.device.type != "cpu":
        raise CheckpointRejected(f"{path}: {stored.name}: not a plain CPU tensor")
    into[chunk.first : chunk.first + chunk.rows] = rows
