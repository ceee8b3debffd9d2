"""Fixtures for the tests of how a run begins and resumes."""

from pathlib import Path

import harness
import pytest


@pytest.fixture
def trained(tmp_path) -> Path:
    """A folder with a finished run of 4 steps and its checkpoints of steps 2 and 4."""
    harness.write_config(tmp_path, training={"max_steps": 4, "save_checkpoint_steps": 2})
    assert harness.train_here(tmp_path, "--config", "tiny.yaml") == 0
    return tmp_path
