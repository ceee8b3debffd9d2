"""Weights of which each rank keeps a part get the updates that whole ones get."""

import subprocess
import sys
from pathlib import Path

import harness
import pytest
from child_environment import child_environment

WORKER = Path(__file__).with_name("sharded_worker.py")
LONGEST_S = 120

pytestmark = pytest.mark.slow  # the continuous tests have them


@pytest.mark.parametrize("ranks", [2, 3])
def test_parts_of_weights_get_the_updates_of_whole_ones(ranks):
    """AdamW, Muon and NorMuon; both architectures; rows that the ranks do not divide."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    ended = subprocess.run(
        [sys.executable, *launcher, str(WORKER)],
        env=child_environment(harness.ROOT, harness.ROOT / "tests", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
