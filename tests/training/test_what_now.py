"""What to do with a run that has ended."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from chatgot.training.what_now import show_student

YAML = Path("my_text.yaml")


def shown(caplog, overrides: list[str], *, seed=1, teachers=(), **training) -> list[str]:
    """Return what is logged of a student of a run with these settings."""
    ends = {"max_steps": None, "epochs": None, "stop_when_no_better": None, "max_minutes": None}
    run = SimpleNamespace(
        config=SimpleNamespace(seed=seed, training=SimpleNamespace(**ends | training)),
        state=SimpleNamespace(run_id="plays_20260101-000000"),
        teachers=teachers,
    )
    caplog.set_level("INFO", "chatgot")
    show_student(run, YAML, overrides)
    return caplog.messages


@pytest.mark.parametrize(
    ("seed", "second", "student"), [(1, 2, 3), (2**63 - 2, 2**63 - 1, 0), (2**63 - 1, 0, 1)]
)
def test_each_run_of_a_student_has_a_seed_of_its_own(caplog, seed, second, student):
    again, of_both = shown(caplog, [], seed=seed)
    assert again.endswith(f"--config my_text.yaml --set seed={second}")
    assert of_both.endswith(f"plays_20260101-000000 RUN --to my_text.yaml --set seed={student}")


def test_a_student_and_its_teachers_share_what_set_has_changed(caplog):
    again, of_both = shown(caplog, ["seed=5", "paths.checkpoints=elsewhere"], seed=5)
    changed = "my_text.yaml --set seed=5 --set paths.checkpoints=elsewhere"
    assert again.endswith(f"--config {changed} --set seed=6")
    assert of_both.endswith(f"--to {changed} --set seed=7")


@pytest.mark.parametrize("end", ["max_steps", "epochs", "stop_when_no_better"])
def test_the_minutes_of_a_run_do_not_cut_its_student_short(caplog, end):
    again, of_both = shown(caplog, [], max_minutes=7.0, **{end: 9})
    assert again.endswith("--set seed=2")
    assert of_both.endswith("--set seed=3 --set training.max_minutes=null")


def test_a_student_ends_by_its_minutes_where_nothing_else_ends_it(caplog):
    _, of_both = shown(caplog, [], max_minutes=7.0)
    assert of_both.endswith("--set seed=3")


def test_a_student_asks_for_no_student_of_its_own(caplog):
    assert shown(caplog, [], teachers=["a teacher"]) == []
