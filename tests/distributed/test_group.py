"""What a rank of a group does, against a store and exchanges that are made up."""

import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import torch
from thread_ranks import Meeting

from chatgot.distributed import group
from chatgot.distributed.group import Group
from chatgot.distributed.ranks import Moment
from chatgot.errors import OutOfMemory, RankLost, StorageError
from chatgot.stopping import StopRequest

Do = Callable[[Callable[[], bool]], str]


class Store:
    """A store in this process; `gone` makes each call fail, as when its process has ended."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.gone = False
        self.looks = 0

    def _look(self) -> None:
        self.looks += 1
        if self.gone:
            raise RuntimeError("Connection reset by peer")

    def check(self, keys: list[str]) -> bool:
        self._look()
        return all(key in self.values for key in keys)

    def set(self, key: str, value: str) -> None:
        self._look()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self._look()
        if key not in self.values:
            raise RuntimeError("wait timeout")
        return self.values[key].encode()

    def set_timeout(self, timeout: timedelta) -> None:
        pass


def rank_of(rank: int, size: int = 2, store: Store | None = None) -> Group:
    """Return a rank that has joined no group."""
    member = Group.__new__(Group)
    member.rank = rank
    member.size = size
    member.timeout_s = 5.0
    member._store = Store() if store is None else store
    member._notes = member._store
    member._begun = 0
    member._begun_s = 0.0
    member._next_look_s = 0.0
    member._orders = 0
    return member


# After a step


@pytest.mark.parametrize("writing", [False, True])
@pytest.mark.parametrize("warnings", [False, True])
@pytest.mark.parametrize("stop", [None, (143, 0), (130, 1)])
def test_what_a_rank_says_of_a_moment_is_what_all_know(monkeypatch, stop, warnings, writing):
    """Of a group whose other rank says nothing; the clock is rank 0's."""
    monkeypatch.setattr(group.dist, "all_reduce", lambda numbers, operation: None)
    rank = 0 if stop is None else stop[1]
    agreed = rank_of(rank).agree(Moment(stop, 7.5, warnings, writing))
    assert agreed == Moment(stop, -1.0 if rank else 7.5, warnings, writing)


# Rank 0 first


def test_others_wait_until_rank_0_is_done():
    store = Store()
    order = []

    def other() -> None:
        with rank_of(1, store=store).main_first():
            order.append("other")

    waiting = threading.Thread(target=other)
    with rank_of(0, store=store).main_first():
        waiting.start()
        waiting.join(0.5)  # it looks again and again
        order.append("main")
    waiting.join(10)
    assert order == ["main", "other"]
    assert store.looks > 3


def test_a_wait_for_rank_0_lets_signals_in(monkeypatch):
    """Between two looks, Python runs the handlers; a handler ends a rank by SystemExit."""

    def signalled(seconds: float) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(group.time, "sleep", signalled)
    with pytest.raises(SystemExit), rank_of(1).main_first():
        pass


def test_rank_0_that_is_gone_with_the_store_is_a_lost_rank():
    member = rank_of(1)
    member._store.gone = True
    with pytest.raises(RankLost, match="rank 0 is gone"), member.main_first():
        pass


def test_each_block_of_rank_0_is_waited_for(monkeypatch):
    """The key of an earlier block does not open the next one."""
    store = Store()
    main = rank_of(0, store=store)
    other = rank_of(1, store=store)
    with main.main_first():
        pass
    with other.main_first():
        pass

    def too_early(seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(group.time, "sleep", too_early)
    with pytest.raises(TimeoutError), other.main_first():
        pass


def test_a_failed_block_of_rank_0_opens_nothing():
    store = Store()
    with pytest.raises(ValueError, match="made up"), rank_of(0, store=store).main_first():
        raise ValueError("made up")
    assert store.values == {}


@pytest.mark.parametrize("patient", [True, False])
def test_only_a_patient_wait_outlives_an_exchange(monkeypatch, patient):
    """Then the others wait for a key of the store, which has no time limit."""
    store = Store()
    main = rank_of(0, store=store)
    monkeypatch.setattr(main, "from_main", lambda said: said)
    assert main.on_main(lambda: 7, patient=patient) == 7
    assert bool(store.values) is patient


# Long work on rank 0


def signalled(code: int = signal.SIGTERM) -> StopRequest:
    """Return the signals of a rank that trains and has got one."""
    stop = StopRequest()
    stop.training = True
    stop._on_signal(code, None)
    return stop


def long_work(monkeypatch, stops: list[StopRequest], do: Do) -> list[object]:
    """Let rank 0 of two do something long; return what each rank gets."""
    store = Store()
    members = [rank_of(rank, store=store) for rank in range(2)]
    meeting = Meeting(2)
    for member, stop in zip(members, stops, strict=True):
        member.obey(stop)
        exchange = partial(meeting.exchange, member.rank)
        monkeypatch.setattr(member, "all", exchange)
        monkeypatch.setattr(member, "from_main", lambda said, all_=exchange: all_(said)[0])
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(member.long_on_main, do) for member in members]
        return [thread.result() for thread in running]


def work_for(limit_s: float, stopped: Callable[[], bool]) -> str:
    """Work until a signal comes."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if stopped():
            return "stopped"
        time.sleep(0.01)
    return "done"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_ends_long_work_on_rank_0(monkeypatch, rank):
    stops = [StopRequest(), StopRequest()]
    stops[rank] = signalled()
    found = long_work(monkeypatch, stops, partial(work_for, 10.0))
    assert found == ["stopped", "stopped"]
    assert all(stop.requested() for stop in stops)
    assert [stop.exit_code for stop in stops] == [143, 143]


def test_long_work_without_a_signal_comes_to_its_end(monkeypatch):
    stops = [StopRequest(), StopRequest()]
    assert long_work(monkeypatch, stops, partial(work_for, 0.2)) == ["done", "done"]
    assert not any(stop.requested() for stop in stops)


def test_each_long_work_has_signals_of_its_own(monkeypatch):
    """The key by which a rank has told rank 0 of one is that of this work alone."""
    member = rank_of(0)
    member.obey(StopRequest())
    other = rank_of(1, store=member._store)
    other.obey(signalled())
    monkeypatch.setattr(group.time, "sleep", lambda seconds: member._store.set("main first 1", ""))
    with other.main_first():
        pass
    member._orders = 1
    assert member._signal_to_any()
    member._orders = 2
    member._next_look_s = 0.0
    assert not member._signal_to_any()


# A group that was stopped, and torchrun starts it again


def noted(monkeypatch, start: int, came_here: bool = True) -> Store:
    """Let a rank note that a signal has stopped its group; return the store of all starts."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(start))
    member = rank_of(1)
    member.obey(signalled() if came_here else StopRequest())
    member.stop_together(143, 0)
    member.note_stop()
    return member._store


def stopped_in(monkeypatch, store: Store, start: int) -> tuple[int, str] | None:
    """Return what a rank says that finds the notes of earlier starts."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(start))
    member = rank_of(0, store=store)
    monkeypatch.setattr(member, "all", lambda said: [said, None])
    return member.stopped_before()


def test_a_stop_is_known_in_each_start_after_it(monkeypatch):
    store = noted(monkeypatch, 1)
    assert stopped_in(monkeypatch, store, 2) == (143, "SIGTERM to rank 1")
    assert stopped_in(monkeypatch, store, 3) == (143, "SIGTERM to rank 1")


def test_a_machine_that_joins_is_no_failure(monkeypatch):
    """torchrun stops the ranks by SIGTERM then, and counts no new start."""
    assert stopped_in(monkeypatch, noted(monkeypatch, 0), 0) is None


def test_a_stop_under_an_agent_that_is_gone_lets_the_others_go_on(monkeypatch):
    """Its machine was taken away: torchrun's agent there was told to end, too."""
    store = noted(monkeypatch, 0)
    monkeypatch.setattr(group.os, "getppid", lambda: 1)
    assert stopped_in(monkeypatch, store, 1) is None


def test_only_the_rank_that_got_the_signal_notes_it(monkeypatch):
    assert noted(monkeypatch, 0, came_here=False).values == {}


# Passes that exchange parts of the weights


@pytest.mark.parametrize(
    "reason",
    [
        "[enforce fail at gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer",
        "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms",
        "NCCL error in: ProcessGroupNCCL.cpp:1970",
    ],
)
def test_a_pass_that_fails_with_another_rank_is_a_lost_rank(reason):
    member = rank_of(0)
    member.begin_exchange()
    lost = member.lost_by(RuntimeError(reason))
    assert isinstance(lost, RankLost)
    assert "rank 1 does not answer" in str(lost)


def test_a_defect_in_a_pass_stays_what_it_is():
    member = rank_of(0)
    member.begin_exchange()
    assert member.lost_by(RuntimeError("shapes do not match")) is None


# A rank that does not answer


def fail(member: Group, reason: str = "Timed out waiting 5000ms for recv") -> str:
    """Let an exchange of a rank fail; return what its error says."""
    with pytest.raises(RankLost) as raised, member._exchange():
        raise RuntimeError(f"{reason}\nmore lines of C++")
    assert raised.value.exit_code == 7
    return str(raised.value)


def begun(store: Store, *counts: int) -> None:
    """Note how many exchanges the ranks have begun; -1: none yet."""
    for rank, count in enumerate(counts):
        if count >= 0:
            store.values[group._begun(rank)] = str(count)


@pytest.mark.parametrize(
    ("counts", "names"),
    [
        ((0, 4, 4), "rank 1, rank 2 do not answer"),
        ((0, 5, 4), "rank 2 does not answer"),
        ((0, 5, -1), "rank 2 does not answer"),
    ],
)
def test_ranks_that_have_not_begun_an_exchange_are_named(counts, names):
    """Also one that has not even begun its first exchange."""
    member = rank_of(0, size=3)
    member._begun = 4
    begun(member._store, *counts)
    words = fail(member)
    assert words.startswith(names)
    assert "distributed.timeout_s=5" in words
    assert "--resume_from latest" in words


def test_an_exchange_that_all_have_begun_names_its_reason():
    member = rank_of(0)
    begun(member._store, 0, 1)
    words = fail(member, "Connection closed by peer")
    assert "Connection closed by peer" in words
    assert "C++" not in words


def test_a_store_that_is_gone_is_a_lost_rank():
    member = rank_of(0)
    member._store.gone = True
    assert "Connection reset by peer" in fail(member)


def test_other_errors_in_an_exchange_stay_what_they_are():
    with pytest.raises(ValueError, match="ours"), rank_of(0)._exchange():
        raise ValueError("ours")


# What is sent


@pytest.mark.parametrize(
    ("error", "code"), [(StorageError("full"), 5), (OutOfMemory("none left", unchanged=True), 6)]
)
def test_an_error_of_rank_0_keeps_its_words_and_its_exit_code(error, code):
    """Also one that cannot be made again from what pickle keeps of it."""
    sent = pickle.loads(pickle.dumps(group._portable(error)))
    assert str(sent) == str(error)
    assert sent.exit_code == code


def test_no_error_stays_none():
    assert group._portable(None) is None


def test_buckets_hold_all_tensors_in_order_and_one_dtype(monkeypatch):
    monkeypatch.setattr(group, "BUCKET", 10)
    dtypes = [torch.float32] * 5 + [torch.bfloat16] * 2 + [torch.float32]
    sizes = [4, 6, 1, 25, 3, 2, 2, 1]
    tensors = [torch.zeros(size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
    buckets = list(group._buckets(tensors))
    assert [[t.numel() for t in bucket] for bucket in buckets] == [
        [4, 6],
        [1],
        [25],
        [3],
        [2, 2],
        [1],
    ]
    assert all(a is b for a, b in zip(tensors, [t for b in buckets for t in b], strict=True))
    assert list(group._buckets([])) == []
