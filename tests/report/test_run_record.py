"""The files of a run are read without trust: damaged and foreign lines are skipped."""

import logging
import math

import made_runs
import pytest

from chatgot.logs.metrics import MetricsWriter
from chatgot.report.run_record import (
    local_time,
    read_board,
    read_events,
    read_rows,
    read_samples,
    whole,
)

GARBAGE = b"""\xff\xfe\x00garbage
[1, 2]
"step"
{"step": "7", "train_loss": 1}
{"step": true, "train_loss": 1}
{"step": 1e999, "train_loss": 1}
{"step": 3, "train_loss": 2.5, "val_loss": null, "tokens_per_s": "a", "grad_norm": 1e300, "lr": NaN}
{"step": 4, "train_loss": null, "nonfinite": true}
{"step": 1e31}
{"step": 1, "train_loss": 3.5, "val_loss": [1], "time_s": -Infinity}
{"step": 5, "tra"""


def test_only_the_valid_rows_among_garbage_are_read(tmp_path):
    rows = read_rows(made_runs.write(tmp_path, rows=GARBAGE + b"\n" + b"[" * 100_000 + b"\n"))
    assert [(row.step, row.numbers["train_loss"], row.nonfinite) for row in rows] == [
        (1, 3.5, False),
        (3, 2.5, False),
        (4, None, True),
    ]
    for name in ("grad_norm", "lr", "tokens_per_s"):
        assert rows[1].numbers[name] is None


def test_rows_are_in_order_and_the_last_row_of_a_step_counts(tmp_path):
    rows = made_runs.json_lines([{"step": 2, "lr": 1}, {"step": 1, "lr": 1}, {"step": 2, "lr": 3}])
    assert [row.numbers["lr"] for row in read_rows(made_runs.write(tmp_path, rows=rows))] == [1, 3]


def test_only_the_valid_events_among_garbage_are_read(tmp_path, utc):
    good = made_runs.event("save", 3, "saved", at=0.999, path="a.pt", best=True, megabytes=1.5)
    run_dir = made_runs.write(tmp_path, good)
    with (run_dir / "events.jsonl").open("ab") as file:
        file.write(b'\xff\n[1]\n{"step": 3}\n{"kind": 7}\n{"kind": "skip", "step": 1e400}\n')
        file.write(b'{"kind": "skip", "time": "noon", "step": [], "text": {}, "loss": NaN}\n{"ki')
    save, *skips = read_events(run_dir)
    assert (save.time, save.step, save.kind) == ("2025-01-02 03:04:05", 3, "save")
    assert save.text == "saved"
    assert save.fields == {"path": "a.pt", "best": True, "megabytes": 1.5}
    assert (save.word("path"), save.word("best")) == ("a.pt", "")
    assert (save.number("megabytes"), save.number("path")) == (1.5, None)
    assert (save.holds("best"), save.holds("path")) == (True, False)
    assert [(skip.time, skip.step, skip.text) for skip in skips] == [("", None, "")] * 2
    assert skips[1].number("loss") is None


def test_samples_are_ordered_by_prompt_and_step_each_once(tmp_path):
    sample = {"time": "", "step": 5, "index": 10, "prompt": "A:", "text": "old", "seed": 1}
    again = sample | {"text": "new"}
    run_dir = made_runs.write(
        tmp_path,
        samples=[
            sample,
            sample | {"index": 2},
            sample | {"step": 4},
            again,
            {"step": 5},
            [1],
            sample | {"text": None},
            sample | {"index": "1"},
        ],
    )
    assert [(s.index, s.step, s.prompt, s.text) for s in read_samples(run_dir)] == [
        (2, 5, "A:", "old"),
        (10, 4, "A:", "old"),
        (10, 5, "A:", "new"),
    ]


def test_a_folder_without_files_gives_an_empty_record(tmp_path):
    assert read_rows(tmp_path) == []
    assert read_events(tmp_path) == []
    assert read_samples(tmp_path) == []
    assert "no TensorBoard event files" in read_board(tmp_path).problem


@pytest.mark.parametrize("value", [None, 5, "", "yesterday", "0001-01-01T00:00:00+00:00", "\x00"])
def test_an_invalid_time_is_read_as_empty(value):
    assert local_time(value) in ("", "1-01-01 00:00:00", "0001-01-01 00:00:00")


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3), (3.0, 3), (True, None), (math.nan, None), ("3", None)]
)
def test_a_step_is_read_only_from_a_whole_number(value, expected):
    assert whole(value) == expected


def test_curves_that_a_resume_undid_are_not_read(tmp_path):
    for keep, numbers in ((None, (10, 20, 30)), (20, (25,)), (22, ())):
        metrics = MetricsWriter(tmp_path, keep_rows_up_to=keep)
        for step in numbers:
            metrics.curves(step, {"perf/memory_mib": step})
        metrics.close()
    assert read_board(tmp_path).curves["perf/memory_mib"] == [(10, 10), (20, 20)]
    assert logging.getLogger("tensorboard").disabled is False
