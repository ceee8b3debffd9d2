"""Saves in the background on a CUDA device; written for GPUs, not run on one yet."""

from pathlib import Path

import harness
import pytest
import torch

from chatgot.checkpointing.host_copy import HostCopy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def test_changes_launched_after_a_copy_do_not_reach_it():
    """Nothing waits for the device in between."""
    state = {"weights": torch.full((64 << 20,), 1.0, device="cuda")}  # 256 MiB
    host_copy = HostCopy()
    host_copy.take(state)[1]()  # the buffers are there from now on
    copy, arrived = host_copy.take(state)
    for _ in range(10):
        state["weights"].mul_(3.0)
    arrived()
    assert copy["weights"].is_pinned()
    assert bool((copy["weights"] == 1.0).all())


def test_changes_launched_after_a_copy_of_rows_do_not_reach_it():
    """As of a rank that writes its rows of a folder; nothing waits for the device in between."""
    weights = torch.full((64 << 10, 1 << 10), 1.0, device="cuda")  # 256 MiB
    rows = [weights[: 32 << 10], weights[48 << 10 :], weights[:0]]
    host_copy = HostCopy()
    host_copy.take_rows(rows)[1]()  # the buffers are there from now on
    copies, arrived = host_copy.take_rows(rows)
    for _ in range(10):
        weights.mul_(3.0)
    arrived()
    assert [copy.shape for copy in copies] == [of.shape for of in rows]
    assert all(bool((copy == 1.0).all()) for copy in copies)


def test_a_gpu_saves_in_the_background_and_ends_in_the_same_weights(tmp_path: Path):
    stored = []
    for key in ("auto", False):
        folder = tmp_path / str(key)
        folder.mkdir()
        training = {"compile": False, "save_checkpoint_steps": 1, "background_saves": key}
        harness.write_config(folder, device="cuda", training=training)
        assert harness.train_here(folder, "--config", "tiny.yaml") == 0
        saves = harness.events(folder, "save")
        assert any("waited_seconds" in event for event in saves) is (key == "auto")
        files = harness.checkpoints(folder)
        stored.append({step: harness.load(path) for step, path in files.items()})
    beside, waited = stored
    assert beside.keys() == waited.keys()
    for step, content in beside.items():
        for part in ("model_state_dict", "optimizer_state_dict"):
            assert harness.same(content[part], waited[step][part])
