"""A copy of a state in the host's memory, which the next steps cannot change."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from chatgot.checkpointing.tensors import all_tensors

Arrived = Callable[[], None]  # waits until the values of a copy are in the host's memory


class HostCopy:
    """Copies one state after another to the host's memory, each over the one before."""

    def __init__(self) -> None:
        self._buffers: list[UntypedStorage] = []

    def take(self, state: dict[str, Any]) -> tuple[dict[str, Any], Arrived]:
        """Return a copy of a nested state, and what waits until its values have arrived.

        The copy shares nothing with the state, and its file has the same bytes: tensors that share
        memory share it in the copy, too. It lives until the next call. From a CUDA device, the
        values are copied while this process goes on; the steps that it launches next come after
        that on the device, so they cannot change them.
        Raises: RuntimeError or MemoryError if there is no room; then no memory is kept.
        """
        copied: dict[int, UntypedStorage] = {}  # by the address of the original storage
        copies: dict[int, Any] = {}  # by the id of the original tensor, as deepcopy looks them up
        device = None
        try:
            for _, tensor in all_tensors(state):
                storage = tensor.untyped_storage()
                address = storage.data_ptr()
                if address not in copied:
                    copied[address] = self._fill(len(copied), storage)
                copies[id(tensor)] = _on(copied[address], tensor)
                if tensor.is_cuda:
                    device = tensor.device
            result = copy.deepcopy(state, copies)
        except BaseException:
            self._buffers.clear()
            raise
        return result, _arrival(device)

    def _fill(self, number: int, storage: UntypedStorage) -> UntypedStorage:
        """Copy a storage into the buffer of this number; return the buffer."""
        from_cuda = storage.device.type == "cuda"
        if number == len(self._buffers) or self._buffers[number].nbytes() != storage.nbytes():
            # page-locked: only then is a copy from a CUDA device asynchronous, and at full speed
            buffer = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=from_cuda)
            self._buffers[number:] = [buffer.untyped_storage()]
        _bytes_of(self._buffers[number]).copy_(_bytes_of(storage), non_blocking=from_cuda)
        return self._buffers[number]


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
