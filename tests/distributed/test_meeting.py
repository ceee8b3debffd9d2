"""The ranks of one start find each other in a store that has keys of earlier starts."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chatgot.distributed import group
from chatgot.distributed.group import STARTS_NAME, meet
from chatgot.errors import RankLost

SOON_S = 10.0


class Store:
    """A store that threads share, as ranks share torchrun's."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._lock = threading.Lock()

    def set(self, key: str, value: str | bytes) -> None:
        with self._lock:
            self._values[key] = value if isinstance(value, str) else value.decode()

    def get(self, key: str) -> bytes:
        with self._lock:
            return self._values[key].encode()

    def check(self, keys: list[str]) -> bool:
        with self._lock:
            return all(key in self._values for key in keys)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(group, "POLL_S", 0.01)


def met(store: Store, ranks: list[int], size: int, timeout_s: float = SOON_S) -> list[str]:
    """Return the names that ranks find, each in a thread that starts a little after the last."""

    def join(i: int) -> str:
        time.sleep(0.05 * i)
        return meet(store, ranks[i], size, timeout_s)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(join, range(len(ranks))))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_ranks_meet_in_whatever_order_they_come(order):
    assert len(set(met(Store(), order, 3))) == 1


def test_each_start_has_a_name_of_its_own():
    """Also where the others come first, and find the name of the start before."""
    store = Store()
    names = [met(store, order, 3)[0] for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0])]
    assert len(set(names)) == 3


def test_a_start_of_other_ranks_meets_after_one_that_did_not():
    """A machine is lost while the group starts; then the others start with fewer ranks."""
    store = Store()
    with pytest.raises(RankLost, match="not started: rank 2; rank 0 waited"):
        met(store, [0, 1], 3, timeout_s=0.2)
    assert len(set(met(store, [1, 0], 2))) == 1


def test_a_rank_does_not_take_an_answer_to_another_process():
    """The rank before it, of the same number, was seen by a rank 0 that has ended."""
    store = Store()
    (old, _) = met(store, [0, 1], 2)
    assert store.get(STARTS_NAME).decode() == old
    with pytest.raises(RankLost, match="not started: rank 0; rank 1 waited 0 s"):
        meet(store, 1, 2, 0.2)


def test_a_store_that_is_gone_is_a_lost_rank():
    class Gone(Store):
        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(RankLost, match="store of the group is gone"):
        meet(Gone(), 1, 2, SOON_S)
