"""Ranks that are threads of this process: for unit tests of what ranks tell each other.

They share torch's generators, so they train nothing.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from chatgot.distributed.ranks import Moment, Ranks
from chatgot.errors import UserError

LIMIT_S = 10.0  # for the others to come


class Meeting:
    """Where the threads meet to exchange what they say."""

    def __init__(self, size: int) -> None:
        self._said: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=LIMIT_S)
        self.exchanges = 0

    def exchange(self, rank: int, said: Any) -> list[Any]:
        self._said[rank] = said
        if self._barrier.wait() == 0:
            self.exchanges += 1
        said_by_all = list(self._said)
        self._barrier.wait()
        return said_by_all


class ThreadRanks(Ranks):
    """One of several ranks, each a thread."""

    is_alone = False

    def __init__(self, rank: int, size: int, meeting: Meeting) -> None:
        self.rank = rank
        self.size = size
        self.meeting = meeting

    def all(self, said: Any) -> list[Any]:
        return self.meeting.exchange(self.rank, said)

    def from_main(self, said: Any) -> Any:
        return self.all(said)[0]

    def on_main(self, do: Callable[[], Any], *, patient: bool = False) -> Any:
        result = None
        error = None
        if self.is_main:
            try:
                result = do()
            except UserError as raised:
                error = raised
        result, error = self.from_main((result, error))
        if error is not None:
            raise error
        return result

    def long_on_main(self, do: Callable[[Callable[[], bool]], Any]) -> Any:
        return self.from_main(super().long_on_main(do) if self.is_main else None)

    def largest(self, number: int) -> int:
        return max(self.all(int(number)))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        of_all = self.all([tensor.clone() for tensor in tensors])
        for i, tensor in enumerate(tensors):
            tensor.copy_(sum(of_rank[i] for of_rank in of_all))

    def gather(self, part: Tensor, count: int) -> Tensor:
        return torch.cat(self.all(part.clone()))

    def agree(self, moment: Moment) -> Moment:
        of_all = self.all(moment)
        stops = [(of.stop[0], rank) for rank, of in enumerate(of_all) if of.stop is not None]
        stop = max(stops, default=None)
        warnings = any(of.warnings for of in of_all)
        return Moment(stop, of_all[0].time_s, warnings, any(of.writing for of in of_all))


def by_ranks(size: int, do: Callable[[ThreadRanks], Any]) -> list[Any]:
    """Return what `do` returns on each rank; each calls it in a thread of its own."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(do, ThreadRanks(rank, size, meeting)) for rank in range(size)]
        return [thread.result() for thread in running]
