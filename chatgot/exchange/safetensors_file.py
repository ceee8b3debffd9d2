"""What tensors does a .safetensors file hold, and do its words about them fit the file?

The header is checked before any tensor is read: each range must be in the file, as long as the
shape says, and the ranges must fill the file without gaps or overlaps. Memory is taken for tensors
that were asked for alone, one after the other.
Source: https://github.com/huggingface/safetensors#format
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from chatgot.checkpointing.tensors import is_finite
from chatgot.errors import ImportRejected
from chatgot.exchange.model_folder import (
    MOST_JSON_BYTES,
    decoded,
    json_object,
    open_file,
    shown,
)

LENGTH = 8  # bytes of the header's length
MOST_DIMENSIONS = 8
METADATA = "__metadata__"
KEYS = {"dtype", "shape", "data_offsets"}
ITEM_SIZE = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor; begin and end are places in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file whose header is right."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Raises: ImportRejected."""
        self.path = path
        self._file = file
        try:
            self.entries = _entries(path, file)
        except OSError as error:
            raise ImportRejected(f"{path}: cannot be read: {error.strerror or error}") from error

    def read(self, name: str) -> Tensor:
        """Return a tensor in fp32.

        Raises: ImportRejected for another dtype than fp32, fp16 and bf16, and for values that are
        not finite.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            known = ", ".join(FLOATS)
            raise ImportRejected(
                f"{self.path}: {shown(name)} is {entry.dtype}, which is not read here; "
                f"expected one of {known}"
            )
        stored = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
        try:
            self._file.seek(entry.begin)
            count = self._file.readinto(stored.numpy())  # type: ignore[attr-defined]
        except OSError as error:
            reason = error.strerror or error
            raise ImportRejected(f"{self.path}: cannot be read: {reason}") from error
        if count != len(stored):
            raise ImportRejected(f"{self.path}: became shorter while it was read")
        tensor = stored.view(FLOATS[entry.dtype]).reshape(entry.shape).float()
        if not is_finite(tensor):
            raise ImportRejected(f"{self.path}: {shown(name)} contains NaN or infinity")
        return tensor


@contextmanager
def open_safetensors(path: Path) -> Iterator[SafetensorsFile]:
    """Open a file for as long as it is read. Raises: ImportRejected."""
    with open_file(path) as file:
        yield SafetensorsFile(path, file)


def _entries(path: Path, file: BinaryIO) -> dict[str, Entry]:
    """Return what the header says of each tensor. Raises: ImportRejected, OSError."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(LENGTH), "little")
    if size < LENGTH or length > size - LENGTH:
        raise ImportRejected(
            f"{path}: is no .safetensors file, or damaged: it has {size} bytes, "
            f"its header would have {length}"
        )
    if length > MOST_JSON_BYTES:
        raise ImportRejected(
            f"{path}: its header has {length} bytes, at most {MOST_JSON_BYTES} are read"
        )
    header = json_object(decoded(file.read(length), path), path)
    header.pop(METADATA, None)  # notes, which nothing is read from
    start = LENGTH + length
    entries = {name: _entry(path, name, value, start) for name, value in header.items()}
    _check_ranges(path, entries, start, size)
    return entries


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    """Return one tensor's entry; its length fits its shape. Raises: ImportRejected."""
    if not isinstance(value, dict) or value.keys() != KEYS:
        raise ImportRejected(f"{path}: {shown(name)}: {shown(value)} is not a tensor's entry")
    dtype = value["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise ImportRejected(f"{path}: {shown(name)}: the dtype {shown(dtype)} is not known")
    shape = _whole_numbers(value["shape"])
    offsets = _whole_numbers(value["data_offsets"])
    if shape is None or len(shape) > MOST_DIMENSIONS or offsets is None or len(offsets) != 2:
        raise ImportRejected(
            f"{path}: {shown(name)}: the shape {shown(value['shape'])} or the range "
            f"{shown(value['data_offsets'])} is not valid"
        )
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise ImportRejected(
            f"{path}: {shown(name)}: {dtype} of the shape {shown(shape)} does not fit the range "
            f"{shown(offsets)}"
        )
    return Entry(dtype, tuple(shape), start + begin, start + end)


def _whole_numbers(value: Any) -> list[int] | None:
    """Return a list of sizes; None: it is none."""
    if not isinstance(value, list):
        return None
    # below 2^63, which no file reaches
    return value if all(type(i) is int and 0 <= i < 1 << 63 for i in value) else None


def _check_ranges(path: Path, entries: dict[str, Entry], start: int, size: int) -> None:
    """Check that the tensors fill the file, one behind the other. Raises: ImportRejected."""
    place = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != place:
            raise ImportRejected(
                f"{path}: {shown(name)} begins at byte {entry.begin}, expected {place}: "
                "the tensors overlap, or have gaps between them"
            )
        place = entry.end
    if place != size:
        raise ImportRejected(
            f"{path}: its tensors end at byte {place}, but it has {size} bytes: damaged or cut off"
        )
