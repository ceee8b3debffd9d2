"""Check what a checkpoint's pickle would call, before torch reads it.

`torch.load(weights_only=True)` runs no foreign code. But it calls, among others, `bytearray` and
the classes of storages, and takes as much memory as a file of 500 bytes asks for.
"""

import pickletools
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

ORDERED_DICT = "collections OrderedDict"
SIZE = "torch Size"
REBUILDERS = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_meta_tensor_no_storage",
    "torch.serialization _get_layout",
    "torch device",
}
# What torch.save writes, and torch.load(weights_only=True) reads. NEWOBJ, which makes an object of
# any class, is missing: no tensor needs it
OPCODES = {
    "PROTO",
    "STOP",
    "MARK",
    "GLOBAL",
    "REDUCE",
    "BUILD",
    "BINPERSID",
    "BINPUT",
    "LONG_BINPUT",
    "BINGET",
    "LONG_BINGET",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINSTRING",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_DICT",
    "SETITEM",
    "SETITEMS",
    "EMPTY_SET",
}
TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # their first operand stays
MOST_DIMENSIONS = 64
MOST_ATTRIBUTES = 64  # a model's state_dict has one, _metadata


@dataclass
class _Name:
    """What a GLOBAL names. It may stand there; only a call of it can take memory."""

    name: str


@dataclass
class _Dict:
    """A dict: only its size matters."""

    is_ordered: bool
    size: int = 0


MARK = object()


class _Odd(Exception):
    """A pickle asks for what no checkpoint needs; the message names it."""


def odd_call(file: BinaryIO) -> str | None:
    """Return what a zip's pickle asks for and no checkpoint needs; None: nothing.

    Nothing is unpickled. Afterwards the file's position is at its start.

    Raises: any error that zipfile and pickletools raise for crafted bytes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                return f"{len(names)} pickles"
            pickled = archive.read(names[0])
    finally:
        file.seek(0)
    try:
        _follow(pickled)
    except _Odd as odd:
        return str(odd)
    return None


def _follow(pickled: bytes) -> None:
    """Follow a pickle's stack without making any of its objects.

    A tuple is a tuple of what stands in it, so that a call's arguments are known.

    Raises: _Odd naming what no checkpoint needs.
    """
    stack: list[object] = []
    memo: dict[object, object] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in OPCODES:
            raise _Odd(f"the opcode {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
            continue
        operands = _pop(stack, opcode)
        if opcode.stack_after:
            stack.append(_pushed(opcode.name, argument, operands, memo))


def _pushed(
    opcode: str, argument: object, operands: list[object], memo: dict[object, object]
) -> object:
    """Return what an opcode puts on the stack; None for what does not matter. Raises: _Odd."""
    if opcode == "MARK":
        return MARK
    if opcode == "GLOBAL":
        return _Name(str(argument))
    if opcode in ("BINGET", "LONG_BINGET"):
        return memo[argument]
    if opcode in TUPLES:
        return tuple(operands)
    if opcode == "EMPTY_DICT":
        return _Dict(is_ordered=False)
    if opcode == "REDUCE":
        return _called(*operands)
    if opcode in CHANGES:
        return _changed(opcode, operands)
    return None


def _called(function: object, arguments: object) -> object:
    """Return what a call makes, if it takes no more memory than its line in the pickle."""
    name = function.name if isinstance(function, _Name) else ""
    if name == ORDERED_DICT and arguments == ():
        # with its items as an argument, one list could be copied again and again
        return _Dict(is_ordered=True)
    if name in REBUILDERS or (name == SIZE and _is_shape(arguments)):
        return None
    raise _Odd(f"a call of {name.replace(' ', '.') or 'a value'}")


def _is_shape(arguments: object) -> bool:
    if not isinstance(arguments, tuple) or len(arguments) != 1:
        return False
    return isinstance(arguments[0], tuple) and len(arguments[0]) <= MOST_DIMENSIONS


def _changed(opcode: str, operands: list[object]) -> object:
    """Return a list or dict that gets items, or an OrderedDict that gets a few attributes."""
    changed = operands[0]
    if opcode == "BUILD":
        attributes = operands[1]
        is_state_dict = isinstance(changed, _Dict) and changed.is_ordered
        few = isinstance(attributes, _Dict) and attributes.size <= MOST_ATTRIBUTES
        if not is_state_dict or not few:
            raise _Odd("an object with attributes")
    elif isinstance(changed, _Dict):
        changed.size += len(operands) // 2
    return changed


def _pop(stack: list[object], opcode: pickletools.OpcodeInfo) -> list[object]:
    """Take an opcode's operands off the stack; a mark among them is left out."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        start = len(stack) - len(before)
        if start < 0:
            raise ValueError("a pickle that takes more than it has")
        operands = stack[start:]
        del stack[start:]
        return operands
    at = len(stack) - 1
    while stack[at] is not MARK:
        at -= 1
    below = before.index(pickletools.markobject)
    operands = stack[at - below : at] + stack[at + 1 :]
    del stack[at - below :]
    return operands
