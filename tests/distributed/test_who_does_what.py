"""Who of a run's ranks does what; one process is a group that agrees with itself."""

import signal

import pytest
import torch
from thread_ranks import Meeting, ThreadRanks

from chatgot.distributed.ranks import Moment, Ranks
from chatgot.stopping import StopRequest


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [1, 3, 4, 12, 13])
def test_shares_are_contiguous_fair_and_complete(size, count):
    meeting = Meeting(size)
    things = range(0, 5 * count, 5)
    shares = [list(ThreadRanks(rank, size, meeting).share(things)) for rank in range(size)]
    assert [thing for share in shares for thing in share] == list(things)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    if count % size == 0:
        assert set(sizes) == {count // size}


def test_one_process_says_and_does_all_itself():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.is_main, ranks.is_alone) == (0, 1, True, True)
    assert ranks.all("word") == ["word"]
    assert ranks.from_main("word") == "word"
    assert ranks.on_main(lambda: 7, patient=True) == 7
    assert ranks.largest(3) == 3
    assert list(ranks.share([1, 2, 3])) == [1, 2, 3]
    moment = Moment((143, 0), 5.0, True)
    assert ranks.agree(moment) is moment
    tensor = torch.ones(3)
    ranks.add_up([tensor])
    assert torch.equal(tensor, torch.ones(3))
    with ranks.main_first():
        pass
    assert ranks.long_on_main(lambda stopped: stopped()) is False
    stop = StopRequest()
    ranks.obey(stop)
    assert not stop.waits_for_agreement
    stop.training = True
    stop._on_signal(signal.SIGTERM, None)
    assert ranks.long_on_main(lambda stopped: stopped()) is True
    assert ranks.own_signal() == 143
    ranks.note_stop()
    assert ranks.stopped_before() is None
    ranks.begin_exchange()
    assert ranks.lost_by(RuntimeError("gloo")) is None
    ranks.close()


def test_an_error_in_one_process_stays_what_it_is():
    def fail() -> None:
        raise ValueError("made up")

    with pytest.raises(ValueError, match="made up"):
        Ranks().on_main(fail)
