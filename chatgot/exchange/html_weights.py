"""How do weights become the text of a page, and numbers again?

A page in windows-1252 has one character for each byte: 8 bits in one byte of the file, where base64
has 6. Four bytes and the sign that escapes them would not survive in it.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatgot.exchange.formats import Dtype
from chatgot.exchange.rounding import TORCH_DTYPES

BLOCK = 32  # weights of a row that share one scale in q8_0, as in GGUF
LARGEST = 127  # of a weight in q8_0
ESCAPE = b"="
ESCAPED_BY = 64  # what is added to a byte after ESCAPE
# a page cannot hold NUL, a carriage return may become a line feed and the other way round, and "<"
# may begin a tag
FORBIDDEN = (0x00, 0x0A, 0x0D, 0x3C)
ESCAPES = {bytes([byte]): ESCAPE + bytes([byte + ESCAPED_BY]) for byte in FORBIDDEN}
ESCAPED_ESCAPE = ESCAPE + bytes([ESCAPE[0] + ESCAPED_BY])


@dataclass(frozen=True)
class Packed:
    """Weights as a page has them.

    text: bytes of windows-1252. about: what the page has to know of them, for JSON.
    """

    text: bytes
    about: dict[str, Any]


def rounded(weight: Tensor, dtype: Dtype) -> Tensor:
    """Return a tensor, fp32, as it is after it went through a page.

    What has one dimension (norms, biases) is kept as it is: it takes no room.
    """
    if weight.dim() < 2 or dtype == "fp32":
        return weight.float()
    if dtype == "q8_0":
        scales, quants = _quantised(weight)
        return torch.from_numpy(_dequantised(scales, quants)).to(weight.device)
    return weight.to(TORCH_DTYPES[dtype]).float()


def pack(tensors: Mapping[str, Tensor], dtype: Dtype) -> Packed:
    """Return tensors by their names as the text of a page, matrices in a dtype."""
    parts: list[bytes] = []
    listed = []
    offset = 0
    for name, tensor in tensors.items():
        kind: Dtype = dtype if tensor.dim() >= 2 else "fp32"
        content = _bytes_of(tensor.detach().cpu().float(), kind)
        shape = list(tensor.shape)
        listed.append({"name": name, "shape": shape, "dtype": kind, "offset": offset})
        parts.append(content)
        offset += len(content)
    data = b"".join(parts)
    shift = _best_shift(data)
    about = {"bytes": len(data), "crc32": zlib.crc32(data), "shift": shift, "tensors": listed}
    return Packed(to_text(data, shift), about)


def unpack(text: bytes, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, fp32, by their names. Raises: ValueError for a text that was changed."""
    data = from_text(text, about["shift"])
    if len(data) != about["bytes"] or zlib.crc32(data) != about["crc32"]:
        raise ValueError("the weights have changed")
    tensors = {}
    for entry in about["tensors"]:
        content = data[entry["offset"] :]
        tensors[entry["name"]] = _tensor_of(content, entry["dtype"], entry["shape"])
    return tensors


def to_text(data: bytes, shift: int) -> bytes:
    """Return bytes as they can stand in a page of windows-1252."""
    text = data.translate(_moved(shift)).replace(ESCAPE, ESCAPED_ESCAPE)
    for byte, escaped in ESCAPES.items():
        text = text.replace(byte, escaped)
    return text


def from_text(text: bytes, shift: int) -> bytes:
    """Return the bytes that `to_text` has made into a text."""
    for byte, escaped in ESCAPES.items():
        text = text.replace(escaped, byte)
    return text.replace(ESCAPED_ESCAPE, ESCAPE).translate(_moved(-shift))


def _moved(shift: int) -> bytes:
    return bytes((byte + shift) % 256 for byte in range(256))


def _best_shift(data: bytes) -> int:
    """Return the shift with which the fewest bytes have to be escaped."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    special = np.array([*FORBIDDEN, ESCAPE[0]])
    return min(range(256), key=lambda shift: int(counts[(special - shift) % 256].sum()))


def _bytes_of(tensor: Tensor, dtype: Dtype) -> bytes:
    if dtype == "q8_0":
        scales, quants = _quantised(tensor)
        return scales.astype("<f2").tobytes() + quants.tobytes()
    if dtype == "bf16":
        return tensor.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    return tensor.numpy().astype({"fp32": "<f4", "fp16": "<f2"}[dtype]).tobytes()


def _tensor_of(content: bytes, dtype: str, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if dtype == "q8_0":
        rows, width = shape
        blocks = -(-width // BLOCK)
        scales = np.frombuffer(content, "<f2", rows * blocks).reshape(rows, blocks)
        quants = np.frombuffer(content, np.int8, count, offset=scales.nbytes)
        return torch.from_numpy(_dequantised(scales, quants.reshape(rows, width)))
    if dtype == "bf16":
        bits = np.frombuffer(content, "<u2", count).astype(np.uint32) << 16
        return torch.from_numpy(bits.view(np.float32).reshape(shape))
    values = np.frombuffer(content, {"fp32": "<f4", "fp16": "<f2"}[dtype], count)
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def _quantised(matrix: Tensor) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Return the scales (rows, blocks) and the weights (rows, width) of a matrix in q8_0.

    Source: https://github.com/ggml-org/ggml, ggml-quants.c, q8_0 (the formula)
    """
    values = matrix.detach().cpu().float().numpy()
    rows, width = values.shape
    blocks = -(-width // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :width] = values
    by_block = padded.reshape(rows, blocks, BLOCK)
    with np.errstate(over="ignore"):  # too large for fp16: whoever writes a file looks for that
        scales = (np.abs(by_block).max(-1) / LARGEST).astype(np.float16)  # (rows, blocks)
    divisors = scales.astype(np.float32)[..., None]
    safe = np.where(divisors > 0, divisors, 1)
    quants = np.clip(np.rint(by_block / safe), -LARGEST, LARGEST) * (divisors > 0)
    return scales, quants.reshape(rows, -1)[:, :width].astype(np.int8)


def _dequantised(scales: NDArray[np.float16], quants: NDArray[np.int8]) -> NDArray[np.float32]:
    width = quants.shape[1]
    each = np.repeat(scales.astype(np.float32), BLOCK, axis=1)[:, :width]
    return each * quants
