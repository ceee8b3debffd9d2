"""A copy of a state in the host's memory, which the next steps cannot change."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from chatgot.checkpointing.tensors import all_tensors

Arrived = Callable[[], None]  # waits until the values of a copy are in the host's memory

ALIGNMENT = 64  # bytes; each storage begins at a multiple of it, as in torch's own memory


@dataclass(frozen=True)
class Layout:
    """Where the storages of a state are in a few blocks of memory.

    places: (block, first byte in it, bytes) of each storage, in the order of the state.
    """

    blocks: int
    block_bytes: int
    places: tuple[tuple[int, int, int], ...]


class HostCopy:
    """Copies one state after another to the host's memory, each over the one before."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._layout = Layout(0, 0, ())

    def more_bytes(self, state: dict[str, Any]) -> int:
        """Return how much memory a copy of this state would take, beyond what is here."""
        return self._more([storage.nbytes() for storage in _storages(state).values()])

    def more_bytes_for(self, tensors: Sequence[Tensor]) -> int:
        """Return how much memory copies of these tensors would take, beyond what is here."""
        return self._more([tensor.nbytes for tensor in tensors])

    def _more(self, sizes: list[int]) -> int:
        layout = lay_out(sizes)
        return 0 if layout == self._layout else layout.blocks * layout.block_bytes

    def drop(self) -> None:
        """Keep no memory. What still uses the last copy keeps it for as long as it does.

        Page-locked memory goes back to torch, which keeps it for its next use.
        """
        self._blocks.clear()
        self._layout = Layout(0, 0, ())

    def take(self, state: dict[str, Any]) -> tuple[dict[str, Any], Arrived]:
        """Return a copy of a nested state, and what waits until its values have arrived.

        The copy shares nothing with the state, and its file has the same bytes: tensors that share
        memory share it in the copy, too. It lives until the next call. From a CUDA device, the
        values are copied while this process goes on; the steps that it launches next come after
        that on the device, so they cannot change them.
        Raises: RuntimeError or MemoryError if there is no room; then no memory is kept.
        """
        storages = _storages(state)
        cuda = [storage.device for storage in storages.values() if storage.device.type == "cuda"]
        try:
            self._make_room([storage.nbytes() for storage in storages.values()], bool(cuda))
            copied = {}  # by the address of the original storage
            for (address, storage), place in zip(
                storages.items(), self._layout.places, strict=True
            ):
                copied[address] = self._fill(place, storage)
            copies: dict[int, Any] = {}  # by the id of the original, as deepcopy looks them up
            for _, tensor in all_tensors(state):
                copies[id(tensor)] = _on(copied[tensor.untyped_storage().data_ptr()], tensor)
            result = copy.deepcopy(state, copies)
        except BaseException:  # a signal, too, must not leave the memory taken
            self.drop()
            raise
        return result, _arrival(cuda[0] if cuda else None)

    def take_rows(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Arrived]:
        """Return copies of tensors, each with memory of its own, and what waits for their values.

        As `take`, but of a tensor that is a part of a larger one only the part is copied.
        Raises: RuntimeError or MemoryError if there is no room; then no memory is kept.
        """
        cuda = [tensor.device for tensor in tensors if tensor.is_cuda]
        copies = []
        try:
            self._make_room([tensor.nbytes for tensor in tensors], bool(cuda))
            for tensor, place in zip(tensors, self._layout.places, strict=True):
                copies.append(self._fill_with(place, tensor))
        except BaseException:  # as in `take`
            self.drop()
            raise
        return copies, _arrival(cuda[0] if cuda else None)

    def _fill_with(self, place: tuple[int, int, int], tensor: Tensor) -> Tensor:
        """Copy a tensor to its place; return the copy."""
        number, first, count = place
        if not count:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        block = self._blocks[number]
        part = torch.frombuffer(block.numpy(), dtype=torch.uint8, count=count, offset=first)
        copied = part.view(tensor.dtype).view(tensor.shape)
        block[first : first + count].view(tensor.dtype).view(tensor.shape).copy_(
            tensor, non_blocking=tensor.is_cuda
        )
        return copied

    def _make_room(self, sizes: list[int], from_cuda: bool) -> None:
        """Have blocks for storages of these sizes: those of the last copy, if they fit exactly."""
        layout = lay_out(sizes)
        if layout == self._layout:
            return
        self.drop()
        for _ in range(layout.blocks):
            # page-locked: only then is a copy from a CUDA device asynchronous, and at full speed
            block = torch.empty(layout.block_bytes, dtype=torch.uint8, pin_memory=from_cuda)
            self._blocks.append(block)
        self._layout = layout

    def _fill(self, place: tuple[int, int, int], storage: UntypedStorage) -> UntypedStorage:
        """Copy a storage to its place; return a storage that has this place alone."""
        number, first, count = place
        if not count:
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        block = self._blocks[number]
        source = _bytes_of(storage)
        block[first : first + count].copy_(source, non_blocking=source.is_cuda)
        part = torch.frombuffer(block.numpy(), dtype=torch.uint8, count=count, offset=first)
        return part.untyped_storage()


def lay_out(sizes: list[int]) -> Layout:
    """Return places for storages of these sizes, in as few blocks as comes easily.

    A block has a power of two of bytes, because torch rounds page-locked memory up to one: each
    storage for itself would take two thirds more for an 85M model, one block for all half more.
    """
    block_bytes = 1 << (max([*sizes, ALIGNMENT]) - 1).bit_length()
    used: list[int] = []  # bytes of each block
    places = []
    for size in sizes:
        # the first block with room
        number = next((i for i, n in enumerate(used) if n + size <= block_bytes), len(used))
        if number == len(used):
            used.append(0)
        places.append((number, used[number], size))
        used[number] += -(-size // ALIGNMENT) * ALIGNMENT
    return Layout(len(used), block_bytes, tuple(places))


def _storages(state: dict[str, Any]) -> dict[int, UntypedStorage]:
    """Return each storage of a state once, by its address."""
    storages: dict[int, UntypedStorage] = {}
    for _, tensor in all_tensors(state):
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage)
    return storages


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _on(storage: UntypedStorage, tensor: Tensor) -> Tensor:
    """Return a tensor like this one whose values are in another storage."""
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, *place)


def _arrival(device: torch.device | None) -> Arrived:
    """Return what waits for the copies that were just launched from a CUDA device, if any."""
    if device is None:
        return _nothing
    # blocking: a wait that spins would take a core
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call] # untyped in torch
    copied.record(torch.cuda.current_stream(device))
    return copied.synchronize


def _nothing() -> None:
    """Wait for nothing: the values are there."""
