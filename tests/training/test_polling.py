"""How the ranks of a group stop, or give up, before the same piece of long work."""

import signal
from types import SimpleNamespace

import pytest
from thread_ranks import ThreadRanks, by_ranks

from chatgot.distributed.ranks import Ranks
from chatgot.stopping import StopRequest
from chatgot.training import polling
from chatgot.training.polling import SIGNALLED, FailedElsewhere, Polls

PIECES = 200


def stops_of(size: int) -> list[StopRequest]:
    stops = [StopRequest() for _ in range(size)]
    for stop in stops:
        stop.training = True
        stop.waits_for_agreement = True
    return stops


def pieces_until_stop(ranks: ThreadRanks, stops: list[StopRequest], at: tuple[int, int]) -> int:
    """Work piece by piece; a rank gets a signal before one of them. Return how many were done."""
    stop = stops[ranks.rank]
    ranks.obey(stop)
    polls = Polls(ranks)
    for piece in range(PIECES):
        if (ranks.rank, piece) == at:
            stop._on_signal(signal.SIGTERM, None)
        polls.before_piece()
        if stop.requested():
            polls.failed(False)
            return piece
    polls.failed(False)
    return PIECES


@pytest.mark.parametrize("at", [(0, 0), (2, 0), (1, 1), (1, 50)])
def test_all_ranks_stop_before_the_same_piece(at):
    stops = stops_of(3)
    reached = by_ranks(3, lambda ranks: pieces_until_stop(ranks, stops, at))
    assert len(set(reached)) == 1
    assert at[1] <= reached[0] < PIECES
    assert [stop.exit_code for stop in stops] == [143] * 3


def test_a_signal_before_the_first_piece_stops_at_once():
    stops = stops_of(2)
    assert by_ranks(2, lambda ranks: pieces_until_stop(ranks, stops, (1, 0))) == [0, 0]


def test_a_signal_that_comes_in_the_last_piece_stops_all_after_it():
    stops = stops_of(2)
    reached = by_ranks(2, lambda ranks: pieces_until_stop(ranks, stops, (1, PIECES - 1)))
    assert len(set(reached)) == 1
    assert all(stop.requested() for stop in stops)


def test_a_failure_on_one_rank_ends_the_work_of_all():
    def work(ranks: ThreadRanks) -> str:
        polls = Polls(ranks)
        for piece in range(PIECES):
            try:
                polls.before_piece()
            except FailedElsewhere:
                assert polls.failed(True)  # all know it: nothing is exchanged
                return "told"
            if ranks.rank == 1 and piece == 40:
                assert polls.failed(True)
                return "failed"
        return "went on"

    assert by_ranks(3, work) == ["told", "failed", "told"]


@pytest.mark.parametrize("failing", [None, 0, 1])
def test_ranks_know_at_the_end_whether_one_has_failed(failing):
    """In its last piece, after which no rank asks before another one."""

    def work(ranks: ThreadRanks) -> bool:
        polls = Polls(ranks)
        for _ in range(3):
            polls.before_piece()
        return polls.failed(ranks.rank == failing)

    assert by_ranks(2, work) == [failing is not None] * 2


def test_one_process_exchanges_nothing():
    polls = Polls(Ranks())
    for _ in range(3):
        polls.before_piece()
    assert polls.failed(True)
    assert not polls.failed(False)


class WithSlowPartner(Ranks):
    """A rank whose partner takes ten times as long."""

    is_alone = False
    exchanges = 0

    def largest(self, number: int) -> int:
        self.exchanges += 1
        return 10 * number if number < SIGNALLED else number


@pytest.mark.parametrize(
    ("piece_s", "pieces", "least", "most"),
    [
        (1e-6, 10_000, 6, 10),  # at the beginning, each time after four times as many pieces
        (0.001, 10_000, 180, 230),  # 100 s of the partner's, one exchange in half a second
        (0.1, 100, 100, 102),  # each piece takes longer than that
    ],
)
def test_exchanges_come_about_twice_a_second(monkeypatch, piece_s, pieces, least, most):
    now = [0.0]
    monkeypatch.setattr(polling, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ranks = WithSlowPartner()
    polls = Polls(ranks)
    for _ in range(pieces):
        polls.before_piece()
        now[0] += piece_s
    polls.failed(False)
    assert least <= ranks.exchanges <= most
