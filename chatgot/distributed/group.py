"""A group of ranks that torchrun has started, over torch.distributed.

Control goes over gloo, on the host: small numbers and pickled objects. Tensors are added up over
the backend of the device. Before each exchange a rank notes in the group's store how many it has
begun. So when one does not answer, the others can say which it is.
"""

import logging
import os
import pickle
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor

from chatgot.distributed.ranks import Moment, Ranks, Said
from chatgot.errors import RankLost, UserError
from chatgot.stopping import Stopped, StopRequest

logger = logging.getLogger(__name__)

BUCKET = 1 << 23  # numbers that are added up at once: 32 MiB in fp32
POLL_S = 0.05  # how often a rank looks whether rank 0 is done
STARTS_NAME = "chatgot/name of the newest start"  # a key of torchrun's store
LOOK_S = 0.5  # how often rank 0 looks whether a signal has come to a rank that waits for it
STORE_S = 10.0  # for asking the store who is behind
# Parts of the messages with which torch's backends fail because another rank is gone or hangs
LOST_WORDS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")


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
        self._notes, self._store = _open_stores(self.rank, self.size, timeout)
        dist.init_process_group(
            backends, store=self._store, rank=self.rank, world_size=self.size, timeout=timeout
        )
        self._begun = 0  # exchanges
        self._begun_s = 0.0  # when the last one began, by the monotonic clock
        self._orders = 0  # blocks of main_first
        self._next_look_s = 0.0  # of rank 0, by the monotonic clock

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

    def long_on_main(self, do: Callable[[Stopped], Said]) -> Said:
        """Let rank 0 do something long, which a signal to any rank may stop (see Ranks)."""
        self._next_look_s = 0.0
        result = self.on_main(partial(do, self._signal_to_any), patient=True)
        # only now: this answer shows that all ranks are still there
        exit_codes = self.all(self.own_signal())
        signals = [(code, rank) for rank, code in enumerate(exit_codes) if code is not None]
        if signals:
            self.stop_together(*max(signals))
        return result

    def obey(self, stop: StopRequest) -> None:
        """Take the signals to this process for those of the group: all ranks stop together."""
        super().obey(stop)
        stop.waits_for_agreement = True

    def note_stop(self) -> None:
        """Note that a signal to this rank has stopped the group, for a start that follows.

        torchrun takes such an end for a failure. It starts the group again if it may.
        """
        if self.stop is None or not self.stop.came_here:
            return
        said = f"{_starts()} {self.stop.exit_code} {self.stop.signal_name} to rank {self.rank}"
        try:
            self._notes.set(_stop_of_own_agent(), said)
        except RuntimeError as error:
            logger.warning("no note of the stop, torchrun may start the group again: %s", error)

    def stopped_before(self) -> tuple[int, str] | None:
        """Return exit code and name of the signal that stopped this group in its last start.

        The agent that started the rank which got it must be there again. If it was told to end,
        too, its machine is taken away, and the others go on.
        """
        own = None
        with self._exchange():
            key = _stop_of_own_agent()
            if self._notes.check([key]):
                own = self._notes.get(key).decode()
        for said in filter(None, self.all(own)):
            start, exit_code, name = said.split(maxsplit=2)
            # other starts than by a failure are not counted: a machine has joined
            if int(start) < _starts():
                return int(exit_code), name
        return None

    def begin_exchange(self) -> None:
        """Note in the store that this rank begins an exchange, so that others know who is behind.

        Raises: RuntimeError if the store is gone.
        """
        self._begun += 1
        self._begun_s = time.monotonic()
        self._store.set(_begun(self.rank), str(self._begun))

    def lost_by(self, error: RuntimeError) -> RankLost | None:
        """Return what an error of such a pass means for the group; None: it is another error."""
        is_of_backend = isinstance(error, dist.DistError)
        if is_of_backend or any(words in str(error) for words in LOST_WORDS):
            return self._lost(error)
        return None

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
            dist.all_gather_single(everything, own)
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
        numbers = torch.tensor([code, time_s, moment.warnings, moment.writing], dtype=torch.float64)
        with self._exchange():
            dist.all_reduce(numbers, dist.ReduceOp.MAX)
        code, time_s, warnings, writing = numbers.tolist()
        stop = divmod(int(code), self.size) if code else None
        return Moment(stop, time_s, bool(warnings), bool(writing))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let rank 0 run the block before the others: it measures, or writes a cache.

        They wait as long as it takes: reading and tokenising a large text may take hours.
        """
        self._orders += 1
        done = _order(self._orders)
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
        rank 0 has failed, would wait half a minute for them. Rank 0 is told of a signal that only
        asks to stop.
        """
        is_told = False
        try:
            while not self._store.check([done]):
                if not is_told and self.own_signal() is not None:
                    self._store.set(_signal_in(done), "came")
                    is_told = True
                time.sleep(POLL_S)
        except RuntimeError as error:
            raise RankLost(f"rank 0 is gone, for which rank {self.rank} waits") from error

    def _signal_to_any(self) -> bool:
        """Return whether a signal has come to rank 0, or to one that waits for it."""
        if self.own_signal() is not None:
            return True
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        return bool(self._store.check([_signal_in(_order(self._orders))]))

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Note in the store that an exchange begins; if it fails, say which rank is missing."""
        try:
            self.begin_exchange()
            yield
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> RankLost:
        """Return the error that names the ranks which have not begun this exchange."""
        waited_s = time.monotonic() - self._begun_s
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


def _open_stores(rank: int, size: int, timeout: timedelta) -> tuple[Any, Any]:
    """Return the store of all starts, and that through which the ranks of this start find another.

    torchrun keeps one store over all starts. Without keys of each start's own, a rank would find
    the address of one that has ended, and never reach it.
    Raises: RankLost.
    """
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    # torch's stubs lack both classes
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank == 0 and not agent_has_it,
        timeout=timeout,
        wait_for_workers=False,
    )
    name = meet(store, rank, size, timeout.total_seconds())
    return store, dist.PrefixStore(f"chatgot/{name}", store)  # type: ignore[attr-defined]


def meet(store: Any, rank: int, size: int, timeout_s: float) -> str:
    """Return the name of this start, the same on all ranks, when all of them are there.

    Rank 0 makes it up. The others may find that of an earlier start first: so each says that it is
    there, and goes on when rank 0 has seen it. torchrun's own count of starts is no such name: each
    machine counts the failures of its own ranks.
    Raises: RankLost naming who is missing.
    """
    end_s = time.monotonic() + timeout_s
    own = uuid4().hex
    try:
        if rank == 0:
            _see_all(store, own, size, end_s, timeout_s)
            return own
        while True:
            name = store.get(STARTS_NAME).decode() if store.check([STARTS_NAME]) else ""
            if name and _is_seen(store, name, rank, own):
                return name
            _wait_until(end_s, {0}, rank, timeout_s)
    except RuntimeError as error:
        raise RankLost(f"rank {rank}: the store of the group is gone: {error}") from error


def _see_all(store: Any, name: str, size: int, end_s: float, timeout_s: float) -> None:
    """Make a start known by its name, and answer each other rank that says it is there."""
    store.set(STARTS_NAME, name)
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([_here(name, other)]):
                store.set(_seen(name, other), store.get(_here(name, other)))
                missing.remove(other)
        _wait_until(end_s, missing, 0, timeout_s)


def _is_seen(store: Any, name: str, rank: int, own: str) -> bool:
    """Say that this process is there; return whether rank 0 of this start has answered it."""
    store.set(_here(name, rank), own)
    key = _seen(name, rank)
    return bool(store.check([key]) and store.get(key) == own.encode())


def _wait_until(end_s: float, missing: Collection[int], rank: int, timeout_s: float) -> None:
    """Wait a moment, if somebody is missing. Raises: RankLost after the end."""
    if not missing:
        return
    if time.monotonic() > end_s:
        names = ", ".join(f"rank {other}" for other in sorted(missing))
        raise RankLost(
            f"not started: {names}; rank {rank} waited {timeout_s:.0f} s "
            f"(distributed.timeout_s={timeout_s:g})"
        )
    time.sleep(POLL_S)


def _here(name: str, rank: int) -> str:
    return f"chatgot/{name}/here {rank}"


def _seen(name: str, rank: int) -> str:
    return f"chatgot/{name}/seen {rank}"


def _order(number: int) -> str:
    return f"main first {number}"


def _signal_in(order: str) -> str:
    return f"signal in {order}"


def _starts() -> int:
    """Return how often torchrun has started this group again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _stop_of_own_agent() -> str:
    """Return the key under which ranks of this agent note a stop; the agent outlives its ranks."""
    return f"chatgot/stopped under {socket.gethostname()} {os.getppid()}"


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
