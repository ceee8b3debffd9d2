"""What a rank of a group does, against a store and exchanges that are made up."""

import threading
from datetime import timedelta

import pytest

from chatgot.distributed import group
from chatgot.distributed.group import Group
from chatgot.errors import RankLost


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
    member._begun = 0
    member._orders = 0
    return member


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
        while store.looks < 3:
            waiting.join(0.01)
        order.append("main")
    waiting.join(10)
    assert order == ["main", "other"]


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
