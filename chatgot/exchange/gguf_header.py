"""What a GGUF file says of itself: its keys, and where its tensors are.

Every number is checked against the file's size before it is used: a file from elsewhere may say
anything.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

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
MOST_TENSORS = 1 << 14  # llama.cpp reads at most 512 layers
MOST_ITEMS = 1 << 21  # of all arrays; the largest vocabularies have 300,000 tokens
LARGEST_HEADER = 1 << 25  # bytes; the largest vocabularies take half of it
LONGEST_NAME = 1 << 10  # bytes of a key or of a tensor's name
LONGEST_STRING = 1 << 20  # bytes of a value, such as a chat template
MOST_DIMENSIONS = 4
MOST_ELEMENTS = 1 << 48  # of one tensor
MOST_ALIGNMENT = 1 << 20
ALIGNMENT = 32  # bytes, where no key says another one
SHOWN = 60  # characters of an odd value in a message

Value = int | float | bool | str
Values = Value | list[Value]

# numpy's names for the types of values, by GGUF's numbers
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
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

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        """Read the header. Raises: _Damaged, OSError."""
        self.path = path
        self._file = file
        self.keys, self.places = _read_header(_Reader(file, size))

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, fp32.

        Raises: ImportRejected for NaN, infinity, and a type that the package gguf cannot read.
        """
        place = self.places[name]
        try:
            self._file.seek(place.begin)
            raw = self._file.read(place.n_bytes)
        except OSError as error:
            raise ImportRejected(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(raw) < place.n_bytes:
            raise ImportRejected(f"{self.path}: became shorter while it was read")
        try:
            with np.errstate(all="ignore"):
                values = gguf.dequantize(_as_stored(raw, place), place.stored)
        except NotImplementedError as error:
            raise ImportRejected(
                f"{self.path}: {shown(name)} is stored as {place.stored.name}, which is not read "
                "here; convert the file to Q8_0 or F16"
            ) from error
        tensor = torch.from_numpy(np.array(values, dtype=np.float32)).view(place.shape)
        if not bool(torch.isfinite(tensor).all()):
            raise ImportRejected(f"{self.path}: {shown(name)} contains NaN or infinity")
        return tensor


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Open a GGUF file, after its header has been checked.

    Raises: ImportRejected naming the file and what is wrong.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ImportRejected(f"{path}: cannot be opened: {reason}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):  # before a file is made of it: a folder cannot be one
        os.close(descriptor)
        raise ImportRejected(f"{path}: not a regular file; expected a .gguf")
    with os.fdopen(descriptor, "rb") as file:
        try:
            opened = GgufFile(path, file, about.st_size)
        except _Damaged as error:
            raise ImportRejected(f"{path}: no whole GGUF file: {error}") from error
        except OSError as error:
            raise ImportRejected(f"{path}: cannot be read: {error.strerror}") from error
        yield opened


def shown(value: object) -> str:
    """Return a value from a file as one short line."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


class _Damaged(Exception):
    """What is wrong with a header."""


class _Reader:
    """Reads values one after the other, and none beyond the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.place = 0
        self._items = 0  # of all arrays so far

    def take(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise _Damaged("it ends in the middle of its header")
        if self.place + count > LARGEST_HEADER:
            raise _Damaged(f"its header is larger than {LARGEST_HEADER >> 20} MiB")
        raw = self._file.read(count)
        if len(raw) < count:
            raise _Damaged("it became shorter while it was read")
        self.place += count
        return raw

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

    def value(self, name: str) -> Values:
        """Read the type of a value, and the value. name: of its key."""
        kind = int(self.number("<I"))
        if kind == ARRAY:
            return self._array(name)
        if kind == STRING:
            return self.text(shown(name), LONGEST_STRING)
        return self._numbers(kind, 1, name)[0]

    def _array(self, name: str) -> list[Value]:
        kind = int(self.number("<I"))
        if kind == ARRAY:
            raise _Damaged(f"{shown(name)} is an array of arrays")
        count = self.count(f"items in {shown(name)}", MOST_ITEMS)
        self._items += count
        if self._items > MOST_ITEMS:
            raise _Damaged(f"its arrays have more than {MOST_ITEMS} items")
        if kind == STRING:
            return [self.text(f"a text in {shown(name)}", LONGEST_STRING) for _ in range(count)]
        return self._numbers(kind, count, name)

    def _numbers(self, kind: int, count: int, name: str) -> list[Value]:
        """Read numbers, or truth values, in a row."""
        if kind not in NUMBERS and kind != BOOL:
            raise _Damaged(f"{shown(name)} has a value of an unknown type ({kind})")
        form = np.dtype(NUMBERS.get(kind, "<u1"))
        values = np.frombuffer(self.take(count * form.itemsize), dtype=form)
        found: list[Value] = (values != 0 if kind == BOOL else values).tolist()
        return found


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
            raise _Damaged(f"the key {shown(name)} comes twice")
        keys[name] = reader.value(name)
    relative: dict[str, TensorPlace] = {}
    for _ in range(n_tensors):
        name = reader.text("a tensor's name", LONGEST_NAME)
        if name in relative:
            raise _Damaged(f"the tensor {shown(name)} comes twice")
        relative[name] = _tensor_place(reader, name)
    return keys, _in_file(relative, reader, _alignment(keys))


def _tensor_place(reader: _Reader, name: str) -> TensorPlace:
    """Return what the header says of a tensor; its place counts from the first tensor's."""
    dimensions = int(reader.number("<I"))
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise _Damaged(f"{shown(name)} has {dimensions} dimensions")
    sizes = [int(reader.number("<Q")) for _ in range(dimensions)]  # the row's length first
    if min(sizes) < 1 or prod(sizes) > MOST_ELEMENTS:
        raise _Damaged(f"{shown(name)} has the shape {tuple(reversed(sizes))}")
    kind = int(reader.number("<I"))
    begin = int(reader.number("<Q"))
    try:
        stored = Stored(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[stored]
    except (ValueError, KeyError) as error:
        raise _Damaged(f"{shown(name)} is stored in an unknown way ({kind})") from error
    if sizes[0] % block:
        raise _Damaged(f"{shown(name)} has rows of {sizes[0]}, no multiple of {block}")
    return TensorPlace(tuple(reversed(sizes)), stored, begin, prod(sizes) // block * block_bytes)


def _alignment(keys: dict[str, Values]) -> int:
    alignment = keys.get("general.alignment", ALIGNMENT)
    if isinstance(alignment, bool) or not isinstance(alignment, int):
        raise _Damaged(f"general.alignment is {shown(alignment)}, expected a number")
    if not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment is {alignment}, expected a power of 2")
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
            raise _Damaged(f"{shown(name)} does not begin where a tensor can")
        end = place.begin + place.n_bytes
        if first + end > reader.size:
            raise _Damaged(f"{shown(name)} reaches beyond its end")
        places[name] = TensorPlace(place.shape, place.stored, first + place.begin, place.n_bytes)
    return places


def _as_stored(raw: bytes, place: TensorPlace) -> NDArray[np.generic]:
    """Return a tensor's bytes as the array that the package gguf expects."""
    plain = {Stored.F32: np.float32, Stored.F16: np.float16, Stored.F64: np.float64}
    if place.stored in plain:
        return np.frombuffer(raw, dtype=plain[place.stored]).reshape(place.shape)
    rows = prod(place.shape[:-1])
    return np.frombuffer(raw, dtype=np.uint8).reshape(rows, -1)
