"""Which tensors of a file has nothing read? Another program would compute otherwise with them."""

from collections.abc import Iterator, Mapping

from torch import Tensor


class TensorsOnceRead(Mapping[str, Tensor]):
    """Tensors by their names, and which of them were asked for."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self._unread = set(tensors)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        self._unread.discard(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check_all_read(self) -> None:
        """Raises: ValueError naming tensors that nothing has read."""
        if self._unread:
            raise ValueError(f"nothing reads {', '.join(sorted(self._unread)[:3])}")
