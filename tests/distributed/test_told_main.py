"""Rank 0's log has the warnings of all ranks, each once."""

import logging
from contextlib import closing

import pytest
from thread_ranks import Meeting, ThreadRanks, by_ranks

from chatgot.distributed import told_main
from chatgot.distributed.ranks import Ranks
from chatgot.distributed.told_main import ToldMain
from chatgot.logs.logging_setup import LOGGERS

logger = logging.getLogger("chatgot.test")


def told(caplog: pytest.LogCaptureFixture, said: dict[int, list[str]], size: int = 3) -> list[str]:
    """Return what rank 0 logs of what each rank has warned of."""
    handlers = [ToldMain(ThreadRanks(rank, size, Meeting(size))) for rank in range(size)]
    for handler in handlers:  # all ranks are this process: let one hear at a time
        handler.close()
    for rank, handler in enumerate(handlers):
        LOGGERS[0].addHandler(handler)
        for text in said.get(rank, []):
            logger.warning(text)
        handler.close()
    caplog.clear()

    def tell(ranks: ThreadRanks) -> None:
        handlers[ranks.rank]._ranks = ranks
        handlers[ranks.rank].tell()

    by_ranks(size, tell)
    assert not any(handler.has_some for handler in handlers)
    return [record.getMessage() for record in caplog.records]


def test_rank_0_logs_what_other_ranks_warn_of(caplog):
    lines = told(caplog, {1: ["its disk is full"], 2: ["its card is hot"]})
    assert lines == ["rank 1: its disk is full", "rank 2: its card is hot"]


def test_what_all_ranks_say_is_not_said_again(caplog):
    everywhere = {rank: ["step 5 skipped"] for rank in range(3)}
    assert told(caplog, everywhere) == []


def test_what_other_ranks_say_alike_is_said_once(caplog):
    assert told(caplog, {1: ["no memory"], 2: ["no memory"]}) == ["rank 1: no memory"]


def test_more_warnings_than_a_rank_keeps_are_counted(caplog, monkeypatch):
    monkeypatch.setattr(told_main, "MOST", 2)
    lines = told(caplog, {1: ["one", "two", "three", "four"]})
    assert lines[:2] == ["rank 1: one", "rank 1: two"]
    assert lines[2] == "rank 1: 2 more warnings, which its own log has"


def test_only_other_ranks_have_something_to_tell():
    for rank, has_some in ((0, False), (1, True)):
        with closing(ToldMain(ThreadRanks(rank, 2, Meeting(2)))) as handler:
            assert not handler.has_some
            logger.warning("a warning")
            logger.info("no warning")
            assert handler.has_some is has_some


def test_a_process_alone_keeps_nothing_and_has_no_handler():
    before = list(LOGGERS[0].handlers)
    handler = ToldMain(Ranks())
    assert LOGGERS[0].handlers == before
    logger.warning("a warning")
    assert not handler.has_some


def test_closing_takes_the_handler_off():
    before = [list(target.handlers) for target in LOGGERS]
    handler = ToldMain(ThreadRanks(1, 2, Meeting(2)))
    assert [list(target.handlers) for target in LOGGERS] != before
    handler.close()
    assert [list(target.handlers) for target in LOGGERS] == before
