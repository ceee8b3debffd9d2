"""Count the bytes of all tensors that live at once, of real tensors or of fake ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from chatgot.planning.heap import Heap

LEAST_BYTES = 1024  # smaller blocks are not part of the heap that is followed


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # untyped in torch
    """Counts the storages that operations make, until nothing holds them any more.

    now, peak: bytes; peak: since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # untyped in torch
        self.now = 0
        self.peak = 0
        self.heap = Heap()
        self._known: dict[int, ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(result):
            self._note(tensor)
        return result

    def begin(self) -> None:
        """Let `peak` begin again."""
        self.peak = self.now

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        count = storage.nbytes()
        block = self.heap.allocate(count) if count >= LEAST_BYTES else None

        def freed(_: object) -> None:
            self.now -= count
            del self._known[key]
            if block is not None:
                self.heap.release(block)

        self._known[key] = ref(storage, freed)
        self.now += count
        self.peak = max(self.peak, self.now)


def _tensors_in(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors_in(item)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Let tensors have a shape, a type and a device while the block runs, but no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """Count the bytes of fake tensors while the block runs."""
    with fake_tensors(), LiveBytes() as live, torch.device("cpu"):
        yield live
