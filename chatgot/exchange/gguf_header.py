"""What a GGUF file says of itself: its keys, and where its tensors are.

Every number is checked against the file's size before it is used: a file from elsewhere may say
anything.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Stored
from numpy.typing import NDArray
from torch import Tensor

from chatgot.errors import ImportRejected

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_ITEMS = 1 << 22  # of one array; the largest vocabularies have 300,000 tokens
LONGEST_NAME = 1 << 10  # bytes of a key or of a tensor's name
LONGEST_STRING = 1 << 24  # bytes of a value, such as a chat template
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 1 << 48  # of one tensor
MOST_ALIGNMENT = 1 << 20
ALIGNMENT = 32  # bytes, where no key says another one

Value = int | float | bool | str
Values = Value | list[Value]

# GGUF's numbers of the types of values
NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    10: "<Q",
    11: "<q",
    12: "<d",
}
BOOL = 7
STRING = 8
ARRAY = 9


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor's bytes are, and what they are.

    shape: as torch has it, the rows first. begin: in the file; n_bytes: as stored.
    """

    shape: tuple[int, ...]
    stored: Stored
    begin: int
    n_bytes: int


class GgufFile:
    """An open file: its keys, and its tensors one at a time."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._data = data
        reader = _Reader(data)
        self.keys, self.places = _read_header(reader)
        self.path = path

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, fp32.

        Raises: ImportRejected for NaN, infinity, and a type that the package gguf cannot read.
        """
        place = self.places[name]
        raw = self._data[place.begin : place.begin + place.n_bytes]
        try:
            with np.errstate(all="ignore"):
                values = gguf.dequantize(_as_stored(raw, place), place.stored)
        except NotImplementedError as error:
            raise ImportRejected(
                f"{self.path}: {name} is stored as {place.stored.name}, which is not read here; "
                "convert the file to Q8_0 or F16"
            ) from error
        tensor = torch.from_numpy(np.array(values, dtype=np.float32)).view(place.shape)
        if not bool(torch.isfinite(tensor).all()):
            raise ImportRejected(f"{self.path}: {name} contains NaN or infinity")
        return tensor


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Open a GGUF file, after its header has been checked.

    Raises: ImportRejected naming the file and what is wrong.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ImportRejected(f"{path}: cannot be opened: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size < len(MAGIC):
            raise ImportRejected(f"{path}: empty, or not a regular file; expected a .gguf")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                opened = GgufFile(path, data)
            except _Damaged as error:
                raise ImportRejected(f"{path}: no whole GGUF file: {error}") from error
            yield opened


class _Damaged(Exception):
    """What is wrong with a header."""


class _Reader:
    """Reads values one after the other, and none beyond the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.size = len(data)
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise _Damaged("it ends in the middle of its header")
        self.place += count
        return self._data[self.place - count : self.place]

    def number(self, form: str) -> int | float:
        value: int | float = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, what: str, most: int) -> int:
        value = int(self.number("<Q"))
        if value > most:
            raise _Damaged(f"it says that it has {value} {what}, at most {most} are read")
        return value

    def text(self, what: str, longest: int) -> str:
        raw = self.take(self.count(f"bytes of {what}", longest))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"{what} is no UTF-8") from error

    def value(self, kind: int, name: str) -> Value:
        if kind == STRING:
            return self.text(name, LONGEST_STRING)
        if kind == BOOL:
            return self.take(1) != b"\0"
        if kind not in NUMBERS:
            raise _Damaged(f"{name} has a value of an unknown type ({kind})")
        return self.number(NUMBERS[kind])

    def values(self, name: str) -> Values:
        kind = int(self.number("<I"))
        if kind != ARRAY:
            return self.value(kind, name)
        kind = int(self.number("<I"))
        if kind == ARRAY:
            raise _Damaged(f"{name} is an array of arrays")
        count = self.count(f"items in {name}", MOST_ITEMS)
        return [self.value(kind, name) for _ in range(count)]


def _read_header(reader: _Reader) -> tuple[dict[str, Values], dict[str, TensorPlace]]:
    """Return the keys and the places of the tensors. Raises: _Damaged."""
    if reader.take(len(MAGIC)) != MAGIC:
        raise _Damaged(f"it does not begin with {MAGIC.decode()}")
    version = int(reader.number("<I"))
    if version not in VERSIONS:
        raise _Damaged(f"version {version}, expected 2 or 3, in little endian")
    n_tensors = reader.count("tensors", MOST_TENSORS)
    n_keys = reader.count("keys", MOST_KEYS)
    keys: dict[str, Values] = {}
    for _ in range(n_keys):
        name = reader.text("a key", LONGEST_NAME)
        if name in keys:
            raise _Damaged(f"the key {name!r} comes twice")
        keys[name] = reader.values(name)
    relative: dict[str, TensorPlace] = {}
    for _ in range(n_tensors):
        name = reader.text("a tensor's name", LONGEST_NAME)
        if name in relative:
            raise _Damaged(f"the tensor {name!r} comes twice")
        relative[name] = _tensor_place(reader, name)
    return keys, _in_file(relative, reader, _alignment(keys))


def _tensor_place(reader: _Reader, name: str) -> TensorPlace:
    """Return what the header says of a tensor; its place counts from the first tensor's."""
    dimensions = int(reader.number("<I"))
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _Damaged(f"{name} has {dimensions} dimensions")
    sizes = [int(reader.number("<Q")) for _ in range(dimensions)]  # the row's length first
    if min(sizes) < 1 or prod(sizes) > MOST_ELEMENTS:
        raise _Damaged(f"{name} has the shape {tuple(reversed(sizes))}")
    kind = int(reader.number("<I"))
    begin = int(reader.number("<Q"))
    try:
        stored = Stored(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    except (ValueError, KeyError) as error:
        raise _Damaged(f"{name} is stored in an unknown way ({kind})") from error
    if sizes[0] % block:
        raise _Damaged(f"{name} has rows of {sizes[0]}, no multiple of {block}")
    return TensorPlace(tuple(reversed(sizes)), stored, begin, prod(sizes) // block * block_bytes)


def _alignment(keys: dict[str, Values]) -> int:
    alignment = keys.get("general.alignment", ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if not (isinstance(alignment, int) and is_power and alignment <= MOST_ALIGNMENT):
        raise _Damaged(f"general.alignment is {alignment!s:.40}")
    return alignment


def _in_file(
    relative: dict[str, TensorPlace], reader: _Reader, alignment: int
) -> dict[str, TensorPlace]:
    """Return the tensors' places in the file. Raises: _Damaged."""
    first = -(-reader.place // alignment) * alignment
    places = {}
    end = 0
    for name, place in sorted(relative.items(), key=lambda item: item[1].begin):
        if place.begin % alignment or place.begin < end:
            raise _Damaged(f"{name} does not begin where a tensor can")
        end = place.begin + place.n_bytes
        if first + end > reader.size:
            raise _Damaged(f"{name} reaches beyond its end")
        places[name] = TensorPlace(place.shape, place.stored, first + place.begin, place.n_bytes)
    return places


def _as_stored(raw: bytes, place: TensorPlace) -> NDArray[np.generic]:
    """Return a tensor's bytes as the array that the package gguf expects."""
    plain = {Stored.F32: np.float32, Stored.F16: np.float16, Stored.F64: np.float64}
    if place.stored in plain:
        return np.frombuffer(raw, dtype=plain[place.stored]).reshape(place.shape)
    rows = prod(place.shape[:-1])
    return np.frombuffer(raw, dtype=np.uint8).reshape(rows, -1)
