"""Runs of one process and of ranks under torchrun that are to train the same model."""

import shutil
from pathlib import Path
from typing import Any

import group_harness
import harness
import torch
from group_harness import largest_difference, losses, run_group

# Each rank's share is added up by itself first, so that sums of fp32 are rounded elsewhere. Within
# 30 steps of these tiny models that grows to some 1e-6 nats.
TOLERANCE = 1e-5
STEPS = 30
# 12 sequences in 4 micro-batches: 1, 2 and 4 ranks have equally many, and dropout's masks are the
# same
SHARED: dict[str, Any] = {"max_steps": STEPS, "micro_batch_size": 3, "save_checkpoint_steps": 30}
PARTS: dict[str, Any] = {"distributed": {"strategy": "fsdp"}}
CONFIG = ("--config", "tiny.yaml")


def folder_of(parent: Path, name: str, **sections: Any) -> Path:
    """Make a folder with text and YAML; sections are merged into the shared ones."""
    folder = parent / name
    folder.mkdir(exist_ok=True)
    harness.write_config(folder, **harness.merged({"training": SHARED}, sections))
    return folder


def alone(parent: Path, *arguments: str, name: str = "alone", **sections: Any) -> Path:
    """Train in this process; return the folder."""
    folder = folder_of(parent, name, **sections)
    assert harness.train_here(folder, *CONFIG, *arguments) == 0
    return folder


def by_ranks(parent: Path, ranks: int, *arguments: str, **sections: Any) -> Path:
    """Train by ranks under torchrun; return the folder."""
    folder = folder_of(parent, f"ranks{ranks}", **sections)
    done = run_group(folder, ranks, *CONFIG, *arguments)
    assert done.exit_code == 0, done.said
    (start,) = harness.events(folder, "start")
    assert start["ranks"] == ranks
    return folder


def assert_same_training(one: Path, other: Path) -> None:
    """Assert that two runs have the same losses and final weights within the tolerance."""
    assert len(losses(one)) == STEPS
    assert largest_difference(losses(one), losses(other)) <= TOLERANCE
    expected = group_harness.weights(one, STEPS)
    for name, weight in group_harness.weights(other, STEPS).items():
        # Adam divides by the gradient's size: where that is rounding alone, so is the weight
        torch.testing.assert_close(weight, expected[name], atol=1e-3, rtol=1e-3)


def train(folder: Path, ranks: int, *arguments: str) -> None:
    """Train in a folder, by ranks under torchrun or (0) in this process."""
    if ranks == 0:
        assert harness.train_here(folder, *CONFIG, *arguments) == 0
        return
    done = run_group(folder, ranks, *CONFIG, *arguments)
    assert done.exit_code == 0, done.said


def go_on(whole: Path, parent: Path, step: int, ranks: int, *arguments: str) -> Path:
    """Copy a run's folder, and train there again from the checkpoint of a step."""
    folder = parent / "resumed"
    shutil.copytree(whole, folder)
    start = harness.checkpoints(folder)[step].relative_to(folder)
    for of_step, path in harness.checkpoints(folder).items():
        if of_step > step:
            path.unlink()
    train(folder, ranks, "--resume_from", str(start), *arguments)
    return folder
