"""What to do with a run that has ended."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from chatgot.training.what_now import show_student


@pytest.mark.parametrize(
    ("seed", "second", "student"), [(1, 2, 3), (2**63 - 2, 2**63 - 1, 0), (2**63 - 1, 0, 1)]
)
def test_each_run_of_a_student_has_a_seed_of_its_own(caplog, seed, second, student):
    run = SimpleNamespace(
        config=SimpleNamespace(seed=seed), state=SimpleNamespace(run_id="plays_20260101-000000")
    )
    caplog.set_level("INFO", "chatgot")
    show_student(run, Path("my text.yaml"))
    again, of_both = caplog.messages
    assert again.endswith(f"--config 'my text.yaml' --set seed={second}")
    assert of_both.endswith(f"plays_20260101-000000 RUN --to 'my text.yaml' --set seed={student}")
