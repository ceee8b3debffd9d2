"""A group of ranks that torchrun has started, over torch.distributed.

Control goes over gloo, on the host: small numbers and pickled objects. Tensors are added up over
the backend of the device. Before each exchange a rank notes in the group's store how many it has
begun. So when one does not answer, the others can say which it is.
"""

import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from chatgot.distributed.ranks import Moment, Ranks, Said
from chatgot.errors import RankLost, UserError

logger = logging.getLogger(__name__)

BUCKET = 1 << 23  # numbers that are added up at once: 32 MiB in fp32
POLL_S = 0.05  # how often a rank looks whether rank 0 is done
STORE_S = 10.0  # for asking the store who is behind


class Group(Ranks):
    """The ranks that torchrun has started; joining waits until all of them are there.

    device: of this rank's tensors. backend: gloo or nccl. timeout_s: how long a rank waits for the
    others in one exchange; then RankLost says who is missing.
    """

    is_alone = False

    def __init__(self, device: torch.device, backend: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        timeout = timedelta(seconds=timeout_s)
        backends = "gloo" if backend == "gloo" else f"cpu:gloo,{device.type}:{backend}"
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self._store = _open_store(self.rank, timeout)
        dist.init_process_group(
            backends, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
        )
        self._begun = 0  # exchanges
        self._orders = 0  # blocks of main_first

    def all(self, said: Said) -> list[Said]:
        """Return what every rank says, in the order of ranks. Raises: RankLost."""
        answers: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(answers, said)
        return answers

    def from_main(self, said: Said) -> Said:
        """Return what rank 0 says. Raises: RankLost."""
        box = [said if self.is_main else None]
        with self._exchange():
            dist.broadcast_object_list(box, src=0)
        return cast("Said", box[0])

    def on_main(self, do: Callable[[], Said], *, patient: bool = False) -> Said:
        """Let rank 0 do something; return its result, or raise its error, on every rank.

        patient: it may take longer than a rank waits for the others in an exchange.
        """
        result: Any = None
        error: UserError | None = None
        with self.main_first() if patient else nullcontext():
            if self.is_main:
                try:
                    result = do()
                except UserError as raised:
                    error = raised
        result, error = self.from_main((result, _portable(error)))
        if error is not None:
            error.is_said = not self.is_main
            raise error
        return cast("Said", result)

    def largest(self, number: int) -> int:
        """Return the largest number that a rank says. Raises: RankLost."""
        tensor = torch.tensor(number, dtype=torch.int64)
        with self._exchange():
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks into each tensor; the same bits on every rank.

        They are copied into buckets, so that many small ones cost few messages.
        """
        with self._exchange():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                sizes = [tensor.numel() for tensor in bucket]
                for tensor, total in zip(bucket, torch.split(flat, sizes), strict=True):
                    tensor.copy_(total.view_as(tensor))

    def gather(self, part: Tensor, count: int) -> Tensor:
        """Return what all ranks have together: `count` along the first dimension, each its share.

        part: this rank's, as many as its share of `count`. Raises: RankLost.
        """
        most = -(-count // self.size)
        own = part.new_zeros(most, *part.shape[1:])  # all send as much as the largest share
        own[: len(part)] = part
        everything = own.new_empty(self.size * most, *part.shape[1:])
        with self._exchange():
            dist.all_gather_into_tensor(everything, own)
        if self.size * most == count:
            return everything
        sizes = [share.stop - share.start for share in self.shares(count)]
        parts = zip(torch.split(everything, most), sizes, strict=True)
        return torch.cat([sent[:size] for sent, size in parts])

    def agree(self, moment: Moment) -> Moment:
        """Return what all know after a step: the signal that one has got, and rank 0's clock."""
        code = 0
        if moment.stop is not None:
            code = moment.stop[0] * self.size + self.rank
        time_s = moment.time_s if self.is_main else -1.0
        numbers = torch.tensor([code, time_s, moment.warnings], dtype=torch.float64)
        with self._exchange():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        code, time_s, warnings = numbers.tolist()
        stop = divmod(int(code), self.size) if code else None
        return Moment(stop, time_s, bool(warnings))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others: it measures, or writes a cache.

        They wait as long as it takes: reading and tokenising a large text may take hours.
        """
        self._orders += 1
        done = f"main first {self._orders}"
        if not self.is_main:
            self._wait_for_main(done)
        yield
        if self.is_main:
            self._store.set(done, "done")

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _wait_for_main(self, done: str) -> None:
        """Wait until rank 0 has set a key of the store.

        The store's own wait lets no signal in: torchrun, which ends the others by a signal when
        rank 0 has failed, would wait half a minute for them.
        """
        try:
            while not self._store.check([done]):
                time.sleep(POLL_S)
        except RuntimeError as error:
            raise RankLost(f"rank 0 is gone, for which rank {self.rank} waits") from error

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Note in the store that an exchange begins; if it fails, say which rank is missing."""
        self._begun += 1
        start_s = time.monotonic()
        try:
            self._store.set(_begun(self.rank), str(self._begun))
            yield
        except RuntimeError as error:
            raise self._lost(error, time.monotonic() - start_s) from error

    def _lost(self, error: RuntimeError, waited_s: float) -> RankLost:
        """Return the error that names the ranks which have not begun this exchange."""
        reason = str(error).strip().splitlines()[0]
        behind = self._behind()
        if not behind:
            return RankLost(
                f"rank {self.rank}: the exchange with the others failed: {reason}\n"
                "start the group again with --resume_from latest; "
                "torchrun --max_restarts=3 does it by itself"
            )
        names = ", ".join(f"rank {rank}" for rank in behind)
        verb = "does" if len(behind) == 1 else "do"
        return RankLost(
            f"{names} {verb} not answer: rank {self.rank} waited {waited_s:.0f} s "
            f"(distributed.timeout_s={self.timeout_s:g})\n"
            "start the group again with --resume_from latest; "
            "torchrun --max_restarts=3 does it by itself"
        )

    def _behind(self) -> list[int]:
        """Return the ranks that have not begun the exchange which this one is in."""
        self._store.set_timeout(timedelta(seconds=STORE_S))
        try:
            counts = [self._exchanges_of(rank) for rank in range(self.size)]
        except RuntimeError:  # the store is gone with the rank or node that kept it
            return []
        return [rank for rank, count in enumerate(counts) if count < self._begun]

    def _exchanges_of(self, rank: int) -> int:
        """Return how many exchanges a rank has begun."""
        key = _begun(rank)
        if not self._store.check([key]):  # it has not come to its first one
            return 0
        return int(self._store.get(key))


def _open_store(rank: int, timeout: timedelta) -> Any:
    """Return the store through which the ranks find each other; each start has keys of its own.

    torchrun keeps one store over all starts. Without such keys, a rank would find the address of
    one that has ended, and never reach it.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # torch's stubs lack both classes
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not agent_has_it,
        timeout=timeout,
        wait_for_workers=False,
    )
    return dist.PrefixStore(f"chatgot/start {attempt}", store)  # type: ignore[attr-defined]


def _begun(rank: int) -> str:
    return f"begun by {rank}"


def _portable(error: UserError | None) -> UserError | None:
    """Return an error that every rank can raise: without what cannot be sent."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 whatever it holds
        plain = UserError(str(error))
        plain.exit_code = getattr(error, "exit_code", UserError.exit_code)
        return plain
    return error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors of one dtype together, as many as a bucket holds, in their order."""
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        full = numbers + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
            numbers = 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket
