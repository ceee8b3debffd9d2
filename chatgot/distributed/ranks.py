"""The processes that compute a run together, and what they tell each other.

A run of one process is a group of one rank: it agrees with itself, at no cost. Under torchrun there
are more (group.py). Every rank calls these methods in the same order.

Letters: S sequences of one optimizer step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from chatgot.errors import RankLost
from chatgot.stopping import Stopped, StopRequest, never

Said = TypeVar("Said")


@dataclass(frozen=True)
class Moment:
    """What all ranks know alike after a step.

    stop: the exit code of the signal that asked one of them to stop, and that rank; None: none did.
    time_s: the training time on rank 0, whose clock counts.
    warnings: whether a rank has something to say to rank 0.
    writing: whether a rank is writing its part of a checkpoint beside the steps.
    """

    stop: tuple[int, int] | None
    time_s: float
    warnings: bool = False
    writing: bool = False


class Ranks:
    """The ranks of a run; this class is one process alone.

    rank: of this process, counted from 0. size: how many there are. Rank 0 is the main one: it
    logs, samples and writes.
    """

    rank = 0
    size = 1
    is_alone = True  # there is nobody to agree with
    is_sharded = False  # each rank holds a part of the weights
    stop: StopRequest | None = None  # the signals to this process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, of: Sequence[int]) -> Sequence[int]:
        """Return this rank's part of a sequence of things to do; neighbours stay together."""
        return of[self.shares(len(of))[self.rank]]

    def shares(self, count: int) -> list[slice]:
        """Return where each rank's part of `count` things begins and ends."""
        edges = [rank * count // self.size for rank in range(self.size + 1)]
        return [slice(*ends) for ends in pairwise(edges)]

    def all(self, said: Said) -> list[Said]:
        """Return what every rank says, in the order of ranks."""
        return [said]

    def first_problem(self, problem: str | None) -> str:
        """Return the problem of the first rank that has one; empty: none has."""
        return next((found for found in self.all(problem) if found), "")

    def from_main(self, said: Said) -> Said:
        """Return what rank 0 says."""
        return said

    def on_main(self, do: Callable[[], Said], *, patient: bool = False) -> Said:
        """Let rank 0 do something; return its result, or raise its error, on every rank.

        patient: it may take longer than a rank waits for the others in an exchange.
        """
        return do()

    def long_on_main(self, do: Callable[[Stopped], Said]) -> Said:
        """Let rank 0 do something long, which a signal to any rank may stop.

        do: gets a function that tells whether a signal has come; then it should return soon.
        Returns its result, or raises its error, on every rank. The others wait as long as it takes.
        """
        return do(never if self.stop is None else self.stop.requested)

    def obey(self, stop: StopRequest) -> None:
        """Take the signals to this process for those of the group: all ranks stop together."""
        self.stop = stop

    def own_signal(self) -> int | None:
        """Return the exit code of the signal that this process has got; None: it has got none."""
        return None if self.stop is None else self.stop.exit_code

    def stop_together(self, exit_code: int, rank: int) -> None:
        """Take the signal that a rank has got, which all ranks have agreed on."""
        if self.stop is not None:
            self.stop.agreed(exit_code, rank)

    def note_stop(self) -> None:
        """Note that a signal to this rank has stopped the group, for a start that follows."""

    def stopped_before(self) -> tuple[int, str] | None:
        """Return exit code and name of the signal that stopped this group in its last start.

        None: it was not stopped, or whoever starts the ranks was told to end, too.
        """
        return None

    def begin_exchange(self) -> None:
        """Note that this rank begins a pass in which it exchanges parts of the weights."""

    def lost_by(self, error: RuntimeError) -> RankLost | None:
        """Return what an error of such a pass means for the group; None: it is another error."""
        return None

    def largest(self, number: int) -> int:
        """Return the largest number that a rank says."""
        return number

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks into each tensor; the same bits on every rank."""

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Return what all ranks have together: `count` along the first dimension, each its share.

        part: this rank's, as many as its share of `count`.
        """
        return part

    def agree(self, moment: Moment) -> Moment:
        """Return what all know after a step: the signal that one has got, and rank 0's clock."""
        return moment

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others: it measures, or writes a cache."""
        yield

    def close(self) -> None:
        """Leave the group."""
