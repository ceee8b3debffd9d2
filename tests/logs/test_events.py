"""events.jsonl: a run's events as programs read them, made from the log's records."""

import json
import logging
import math
import os
import shutil
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from chatgot.logs.events import KINDS, EventLog, event
from chatgot.logs.logging_setup import Early, Steady, setup_console, setup_logging

logger = logging.getLogger("chatgot.test")


def read_events(run_dir: Path) -> list[dict]:
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def told(run_dir: Path, *names: str) -> list[tuple]:
    """Return these fields of each event in the file."""
    return [tuple(fields.get(name) for name in names) for fields in read_events(run_dir)]


@pytest.fixture
def run_dir(clean_log, tmp_path) -> Path:
    """The folder of a run whose log is set up."""
    setup_console()
    setup_logging("x", "t", tmp_path / "logs")
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_an_event_has_its_time_step_kind_text_and_own_fields(run_dir):
    before = datetime.now(UTC)
    with EventLog(run_dir, step=lambda: 7):
        extra = event("save", path="a.pt", best=True, megabytes=1.5)
        logger.info("saved %s\x1b", "a.pt", extra=extra)
        logger.info("of an earlier step", extra=event("skip", 3, loss=math.nan))
        logger.info("no event")
    saved, skipped = read_events(run_dir)
    time = datetime.fromisoformat(saved.pop("time"))
    assert time.utcoffset() == timedelta(0)
    assert abs(time - before) < timedelta(seconds=60)
    assert time.microsecond % 1000 == 0
    assert saved == {
        "step": 7,
        "kind": "save",
        "text": "saved a.pt\x1b",
        "path": "a.pt",
        "best": True,
        "megabytes": 1.5,
    }
    assert list(saved) == ["step", "kind", "text", "path", "best", "megabytes"]
    assert (skipped["step"], skipped["loss"]) == (3, None)


def test_a_field_called_text_replaces_the_message(run_dir):
    with EventLog(run_dir, step=lambda: 0):
        logger.info("run x_t", extra=event("start", ranks=1, text="9 tokens"))
    assert told(run_dir, "ranks", "text") == [(1, "9 tokens")]


def test_an_event_of_unknown_kind_is_refused_where_it_is_created():
    with pytest.raises(AssertionError, match="'evaluated' is no kind of event"):
        event("evaluated")
    assert len(KINDS) == 22


def test_each_event_is_on_disk_when_the_call_returns(run_dir):
    with EventLog(run_dir, step=lambda: 1):
        for count in (1, 2, 3):
            logger.info("a", extra=event("skip"))
            assert len(read_events(run_dir)) == count


def test_warnings_and_errors_become_events_on_their_own(run_dir):
    with EventLog(run_dir, step=lambda: 4), warnings.catch_warnings():
        logger.warning("careful")
        logger.error("bad")
        logger.warning("skipped", extra=event("skip"))
        warnings.simplefilter("always")
        warnings.warn("of python", UserWarning, stacklevel=1)
    logger.warning("after the run")
    assert told(run_dir, "step", "kind", "level")[:3] == [
        (4, "warning", "WARNING"),
        (4, "warning", "ERROR"),
        (4, "skip", None),
    ]
    assert "UserWarning: of python" in read_events(run_dir)[3]["text"]
    assert len(read_events(run_dir)) == 4


def test_a_crash_names_its_exception(run_dir):
    with EventLog(run_dir, step=lambda: 4):
        try:
            raise ValueError("of all things")
        except ValueError:
            logger.exception("a defect:", extra=event("crash", exit_code=1))
    (crash,) = read_events(run_dir)
    assert (crash["kind"], crash["exit_code"]) == ("crash", 1)
    assert (crash["text"], crash["exception"]) == ("a defect:", "ValueError('of all things')")


def test_records_from_before_the_folder_are_written_first_and_once(clean_log, tmp_path):
    """Choices are measured before there is a file; warnings may come before there is a folder."""
    setup_console()
    logger.info("fp32", extra=event("choice", what="precision", measured={"loss": math.inf}))
    log = setup_logging("x", "t", tmp_path)
    logger.warning("between file and folder")
    with EventLog(tmp_path, step=lambda: 0):
        logger.info("begins", extra=event("start"))
    assert told(tmp_path, "kind", "measured") == [
        ("choice", {"loss": None}),
        ("warning", None),
        ("start", None),
    ]
    times = [fields["time"] for fields in read_events(tmp_path)]
    assert times == sorted(times)
    assert [line.rpartition(" - ")[2] for line in log.read_text().splitlines()] == [
        "fp32",
        "between file and folder",
        "begins",
    ]
    with EventLog(tmp_path, step=lambda: 9):
        logger.info("again", extra=event("resume"))
    assert [kind for (kind,) in told(tmp_path, "kind")] == ["choice", "warning", "start", "resume"]


def test_early_records_reach_the_log_even_after_they_became_events(clean_log, tmp_path):
    setup_console()
    logger.info("fp32", extra=event("choice"))
    with EventLog(tmp_path, step=lambda: 0):
        logger.info("begins", extra=event("start"))
        log = setup_logging("x", "t", tmp_path)
    assert told(tmp_path, "kind") == [("choice",), ("start",)]
    assert [line.rpartition(" - ")[2] for line in log.read_text().splitlines()] == [
        "fp32",
        "begins",
    ]


def test_a_second_log_does_not_repeat_the_records_of_the_first(clean_log, tmp_path):
    setup_console()
    logger.info("early")
    first = setup_logging("x", "t", tmp_path)
    second = setup_logging("y", "t", tmp_path)
    assert "early" in first.read_text()
    assert second.read_text() == ""


def test_a_program_without_events_keeps_few_records(run_dir):
    for i in range(Early.MOST + 100):
        logger.info("line %d", i)
    (early,) = [
        handler for handler in logging.getLogger("chatgot").handlers if isinstance(handler, Early)
    ]
    assert len(early.records) == Early.MOST


def test_a_resume_removes_later_events_and_a_torn_line(run_dir):
    step = [0]
    with EventLog(run_dir, step=lambda: step[0]):
        for i in range(5):
            step[0] = i
            logger.info("a", extra=event("skip"))
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "ki')
    setup_console()
    logger.info("fp32", extra=event("choice"))
    setup_logging("x", "t", run_dir.parent)
    step[0] = 2
    with EventLog(run_dir, step=lambda: step[0], keep_up_to=2):
        logger.info("resumed", extra=event("resume"))
    assert told(run_dir, "kind", "step") == [
        ("skip", 0),
        ("skip", 1),
        ("skip", 2),
        ("choice", 2),
        ("resume", 2),
    ]


def test_a_vanished_folder_costs_one_warning_and_nothing_else(run_dir, capsys):
    with EventLog(run_dir, step=lambda: 1):
        shutil.rmtree(run_dir)
        for i in range(5):
            logger.info("line %d", i, extra=event("skip"))
        logger.warning("careful")
    lines = capsys.readouterr().err.splitlines()
    lost = [line for line in lines if "events.jsonl" in line]
    assert len(lost) == 1
    assert f"WARNING - {run_dir / 'events.jsonl'}: FileNotFoundError" in lost[0]
    assert len(lines) == 7


def test_a_step_that_cannot_be_read_costs_only_one_event(run_dir, capsys):
    with EventLog(run_dir, step=lambda: 1 // 0):
        logger.info("a", extra=event("skip"))
        logger.info("c", extra=event("skip", 6))
    assert told(run_dir, "step") == [(6,)]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_failing_log_becomes_an_event(run_dir, monkeypatch):
    """Each handler warns through the others; they share one lock, so none waits for another."""
    log = run_dir.parent / "logs" / "train_x_t.log"
    with EventLog(run_dir, step=lambda: 1) as events:
        locks = {
            id(handler.lock)
            for handler in logging.getLogger("chatgot").handlers
            if isinstance(handler, Steady)
        }
        assert locks == {id(events.lock)}
        log.unlink()
        log.symlink_to(os.devnull.replace("null", "full"))
        logger.info("lost")
    assert any("No space left" in fields["text"] for fields in read_events(run_dir))
