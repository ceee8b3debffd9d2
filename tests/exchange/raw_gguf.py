"""GGUF files byte by byte, so that a test can write what no writer would."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np

# struct's names for the types of values, by GGUF's numbers
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U32 = 4
I32 = 5
F32 = 6
BOOL = 7
STRING = 8
ARRAY = 9
U64 = 10
F64 = 12
ALIGNMENT = 32


@dataclass
class RawTensor:
    """What a header says of a tensor, and its bytes. sizes: the row's length first."""

    sizes: list[int]
    kind: int
    data: bytes
    begin: int | None = None  # None: where it is

    @classmethod
    def of(cls, values: Any) -> "RawTensor":
        """Return a tensor of fp32."""
        array = np.asarray(values, dtype="<f4")
        return cls(list(reversed(array.shape)), 0, array.tobytes())


@dataclass
class RawGguf:
    """A file. keys: the type and the value of each; items may be added twice."""

    keys: list[tuple[str, int, Any]] = field(default_factory=list)
    tensors: list[tuple[str, RawTensor]] = field(default_factory=list)
    version: int = 3
    n_keys: int | None = None  # None: as many as there are
    n_tensors: int | None = None

    @classmethod
    def of(cls, path: Path) -> "RawGguf":
        """Return what a file says."""
        reader = gguf.GGUFReader(path)
        raw = cls()
        for name, read in reader.fields.items():
            if not name.startswith("GGUF."):
                kinds = [int(kind) for kind in read.types]
                value = read.contents()
                raw.keys.append((name, kinds[0], (kinds[1], value) if kinds[1:] else value))
        for tensor in reader.tensors:
            sizes = [int(size) for size in tensor.shape]
            kind = int(tensor.tensor_type)
            raw.tensors.append((tensor.name, RawTensor(sizes, kind, tensor.data.tobytes())))
        return raw

    def set(self, name: str, kind: int, value: Any) -> None:
        """Set a key; that of an array is (type of its items, items)."""
        self.remove(name)
        self.keys.append((name, kind, value))

    def get(self, name: str) -> Any:
        """Return the value of a key; that of an array is its items."""
        kind, value = next((kind, value) for key, kind, value in self.keys if key == name)
        return value[1] if kind == ARRAY else value

    def remove(self, name: str) -> None:
        self.keys = [item for item in self.keys if item[0] != name]

    def tensor(self, name: str) -> RawTensor:
        return next(tensor for key, tensor in self.tensors if key == name)

    def header(self) -> bytes:
        """Return all that comes before the tensors' bytes."""
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        parts = [b"GGUF", struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        parts += [
            text(name) + struct.pack("<I", kind) + packed(kind, value)
            for name, kind, value in self.keys
        ]
        end = 0
        for name, tensor in self.tensors:
            begin = end if tensor.begin is None else tensor.begin
            parts.append(text(name) + struct.pack("<I", len(tensor.sizes)))
            parts.append(struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes))
            parts.append(struct.pack("<IQ", tensor.kind, begin))
            end += padded(len(tensor.data))
        return b"".join(parts)

    def write(self, path: Path) -> Path:
        """Write the file; return its path."""
        header = self.header()
        data = b"".join(t.data.ljust(padded(len(t.data)), b"\0") for _, t in self.tensors)
        path.write_bytes(header.ljust(padded(len(header)), b"\0") + data)
        return path


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def packed(kind: int, value: Any) -> bytes:
    """Return a value as a file has it; bytes stay as they are where they are no text."""
    if kind == STRING:
        return text(value)
    if isinstance(value, bytes):
        return value
    if kind == ARRAY:
        inner, items = value
        count = struct.pack("<IQ", inner, len(items))
        return count + b"".join(packed(inner, item) for item in items)
    return struct.pack(f"<{FORMS[kind]}", value)
