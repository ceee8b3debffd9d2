"""The story of a run is read from its events alone."""

from pathlib import Path

import made_runs
import pytest

from chatgot.report import page, story
from chatgot.report.run_record import Event, read_events
from chatgot.report.story import GROUP_FROM, Status


def events_of(folder: Path, *events: dict[str, object]) -> list[Event]:
    """Return events as they are read back from a file."""
    return read_events(made_runs.write(folder, *events))


def saves(*steps: int) -> list[Event]:
    times = [f"2025-01-02 03:{step // 60:02d}:{step % 60:02d}" for step in steps]
    return [
        Event(time, step, "save", f"saved a_step_{step}.pt")
        for time, step in zip(times, steps, strict=True)
    ]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (made_runs.end("done"), Status("done", "good")),
        (
            made_runs.end("stop", signal="SIGINT", exit_code=130),
            Status("stopped by SIGINT", "calm"),
        ),
        (made_runs.end("stop"), Status("stopped by a signal", "calm")),
        (made_runs.end("crash", exit_code=4), Status("ended by an error", "bad")),
        (made_runs.event("resume", 3), Status("still running, or killed", "warn")),
    ],
)
def test_the_state_of_a_run_is_its_last_beginning_or_end(tmp_path, last, expected):
    """Events after an end, or between two, change nothing."""
    after = made_runs.event("warning", 40, "careful", level="ERROR")
    events = events_of(tmp_path, made_runs.start(), made_runs.end("done", 9), last, after)
    assert story.status(events) == expected


@pytest.mark.parametrize("events", [[], saves(1, 2)])
def test_the_state_of_a_run_without_beginning_and_end_is_unknown(events):
    assert story.status(events) == Status("it is not known how the run ended", "warn")
    assert story.resume_command(events) == ""
    assert story.about(events) == []


def test_the_command_to_go_on_is_shown_only_while_the_run_is_over(tmp_path):
    stop = made_runs.end("stop", 9)
    assert story.resume_command(events_of(tmp_path / "1", stop)) == stop["resume_command"]
    resumed = events_of(tmp_path / "2", stop, made_runs.event("resume", 9))
    assert story.resume_command(resumed) == ""
    nothing_saved = made_runs.end("stop", 0, resume_command=None)
    assert story.resume_command(events_of(tmp_path / "3", nothing_saved)) == ""


def test_a_run_is_described_by_its_last_beginning(tmp_path):
    resume = made_runs.start(device="cuda") | {"kind": "resume"}
    assert story.about(events_of(tmp_path, made_runs.start(), resume)) == [
        "model: gpt, 0.0 M parameters",
        "text: 6,000 characters",
        "device: cuda",
        "software: ChatGoT 1.0, torch 2.13.0",
    ]


def test_precisions_are_listed_once_for_each_change(tmp_path):
    events = events_of(
        tmp_path,
        made_runs.start(precision="bf16"),
        made_runs.event("precision", 10, old="bf16", new="fp32"),
        made_runs.end("stop", 12),
        made_runs.event("resume", 12, precision="fp32"),
        made_runs.event("precision", 30, old="fp32", new="bf16"),
    )
    assert story.precisions(events, {}) == ["bf16", "fp32", "bf16"]


def test_precisions_come_from_the_curve_where_there_are_no_events():
    board = {"amp/precision": [(1.0, 2.0), (2.0, 2.0), (3.0, 0.0), (4.0, 9.0)]}
    assert story.precisions([], board) == ["fp16", "fp32"]


def test_curves_from_events_go_back_with_a_rewind(tmp_path):
    events = events_of(
        tmp_path,
        made_runs.start(precision="bf16"),
        made_runs.event("skip", 3),
        made_runs.event("micro_batch", 5, old=4, new=2, reason="oom"),
        made_runs.event("precision", 10, old="bf16", new="fp32"),
        made_runs.event("skip", 12),
        made_runs.event("rewind", 13, to=8),
        made_runs.event("skip", 9),
    )
    assert story.curves(events, 20) == {
        "amp/precision": [(0, 1), (8, 0), (20, 0)],
        "batch/micro_batch_size": [(0, 4), (5, 2), (20, 2)],
        "amp/skipped_steps": [(0, 0), (3, 1), (8, 2), (9, 3), (20, 3)],
    }
    assert story.curves([], 20) == {}


def test_many_events_of_a_kind_become_one_line_but_not_across_a_resume():
    resume = Event("2025-01-02 03:30:00", 9, "resume", "", {"resumed_from": "a_step_9.pt"})
    lines = story.table([*saves(*range(100, 1000, 100)), resume, *saves(1200, 1300)])
    assert [(line.count, line.text) for line in lines] == [
        ("9 times, step 100 to 900", "saved a_step_900.pt"),
        ("", "resumed from a_step_9.pt"),
        ("", "saved a_step_1200.pt"),
        ("", "saved a_step_1300.pt"),
    ]
    assert (lines[0].time, lines[0].until) == ("2025-01-02 03:01:40", "03:15:00")
    assert len(story.table(saves(*range(1, GROUP_FROM)))) == GROUP_FROM - 1


def test_a_group_is_placed_at_its_first_event():
    skip = Event("2025-01-02 03:00:02", 2, "skip", "step 2 skipped")
    lines = story.table([*saves(1), skip, *saves(3, 4, 5)])
    assert [line.label for line in lines] == ["save", "skip"]


def test_warnings_of_different_wording_are_kept_apart_and_none_is_lost():
    level = {"level": "WARNING"}
    warnings = [
        Event("2025-01-02 03:00:00", 1, "warning", f"disk {i} is slow", level) for i in range(5)
    ]
    other = Event("2025-01-02 03:00:01", 1, "warning", "another matter", level)
    error = Event("2025-01-02 03:00:02", 1, "warning", "out of room", {"level": "ERROR"})
    lines = story.table([*warnings, other, error])
    assert [(line.count, line.text, line.label, line.color) for line in lines] == [
        ("5 times, step 1", "disk 4 is slow", "warning", "warn"),
        ("", "another matter", "warning", "warn"),
        ("", "out of room", "error", "bad"),
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "label", "color"),
    [
        ("evaluation", {"best": True}, "best", "good"),
        ("micro_batch", {"reason": "oom"}, "micro batch", "warn"),
        ("micro_batch", {"reason": "trial"}, "micro batch", "calm"),
        ("rewind", {}, "rewind", "warn"),
        ("crash", {}, "crash", "bad"),
        ("save", {"best": True}, "save", "calm"),
        ("of tomorrow", {}, "of tomorrow", "calm"),
    ],
)
def test_each_kind_has_a_label_and_a_colour(kind, fields, label, color):
    (line,) = story.table([Event("", 1, kind, "words", fields)])
    assert (line.label, line.color, line.text) == (label, color, "words")


def test_evaluations_that_are_not_the_best_are_only_in_the_chart():
    assert story.table([Event("", 1, "evaluation", "", {"best": False})]) == []


def test_seconds_of_contention_add_up_over_sessions():
    """An event has those of its session so far; a session that was killed lacks its last ones."""

    def contention(seconds: float, *, on: bool) -> Event:
        return Event("", 1, "contention", "", {"on": on, "seconds": seconds})

    first = [contention(0.0, on=True), contention(12.5, on=False)]
    second = [contention(0.0, on=True), contention(4.0, on=False), contention(9.0, on=False)]
    begin = Event("", 0, "start", "")
    resume = Event("", 5, "resume", "")
    assert story.contended_s([begin, *first, resume, *second]) == 21.5
    assert story.contended_s([begin, resume]) == 0.0
    (fact,) = page.contended([begin, *first], 50.0)
    assert (fact.value, fact.unit) == ("25%", "of the time")
    assert page.contended([begin, resume], 50.0) == []


# The prediction


BAR = {"low": 1.4, "high": 1.6}


def predicted_facts(tmp_path, *events: dict[str, object]) -> dict[str, tuple[str | None, str]]:
    facts = page.predicted(events_of(tmp_path, *events))
    return {fact.name: (fact.value, fact.unit) for fact in facts}


def test_the_page_has_what_was_predicted_and_what_came_out(tmp_path):
    choice = made_runs.event("choice", what="prediction", chosen=1.5, measured=BAR)
    outcome = made_runs.event("outcome", 40, val_loss_full=1.45678, inside=True)
    missed = made_runs.event("outcome", 40, val_loss_full=1.75, inside=False)
    before = ("1.5", "1.4 to 1.6")
    assert predicted_facts(tmp_path / "1", choice) == {"predicted val_loss_full": before}
    assert predicted_facts(tmp_path / "2", choice, outcome) == {
        "predicted val_loss_full": before,
        "came out": ("1.4568", "inside the error bar"),
    }
    both = predicted_facts(tmp_path / "3", choice, outcome, missed)
    assert both["came out"] == ("1.7500", "outside the error bar")


@pytest.mark.parametrize(
    "fields",
    [
        {"what": "prediction", "chosen": None, "measured": {}},
        {"what": "prediction", "chosen": 1.5, "measured": "damaged"},
        {"what": "prediction", "chosen": "1.5", "measured": BAR},
        {"what": "steps", "chosen": 1.5, "measured": BAR},
    ],
)
def test_without_a_prediction_the_page_says_nothing_of_it(tmp_path, fields):
    choice = made_runs.event("choice", **fields)
    assert predicted_facts(tmp_path, choice, made_runs.event("outcome", 40)) == {}
