"""What to do with a run that has ended."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from chatgot.training.what_now import show_student

YAML = Path("my_text.yaml")


def shown(caplog, seed: int, overrides: list[str]) -> list[str]:
    run = SimpleNamespace(
        config=SimpleNamespace(seed=seed), state=SimpleNamespace(run_id="plays_20260101-000000")
    )
    caplog.set_level("INFO", "chatgot")
    show_student(run, YAML, overrides)
    return caplog.messages


@pytest.mark.parametrize(
    ("seed", "second", "student"), [(1, 2, 3), (2**63 - 2, 2**63 - 1, 0), (2**63 - 1, 0, 1)]
)
def test_each_run_of_a_student_has_a_seed_of_its_own(caplog, seed, second, student):
    again, of_both = shown(caplog, seed, [])
    assert again.endswith(f"--config my_text.yaml --set seed={second}")
    assert of_both.endswith(f"plays_20260101-000000 RUN --to my_text.yaml --set seed={student}")


def test_a_student_and_its_teachers_share_what_set_has_changed(caplog):
    again, of_both = shown(caplog, 5, ["seed=5", "paths.checkpoints=elsewhere"])
    changed = "my_text.yaml --set seed=5 --set paths.checkpoints=elsewhere"
    assert again.endswith(f"--config {changed} --set seed=6")
    assert of_both.endswith(f"--to {changed} --set seed=7")
