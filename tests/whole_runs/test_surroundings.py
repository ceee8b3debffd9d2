"""The scripts work whatever environment they are started in."""

import os
import subprocess
import sys

import harness
import pytest


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--to", "out", "--format", "hf"],
        *harness.slow((["chat"],), (["serve", "--port", "0"],)),
    ],
)
def test_unusable_variables_of_tqdm_do_not_end_a_script(tmp_path, words):
    """torch imports tqdm too, which reads them: a new process for each script, about 2 s."""
    script = harness.ROOT / "scripts" / f"{words[0]}.py"
    done = subprocess.run(
        [sys.executable, str(script), *words[1:]],
        cwd=tmp_path,
        env=os.environ | {"TQDM_MININTERVAL": "often"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no trained model is in" in done.stderr
    assert (done.returncode, done.stdout) == (3, "")
