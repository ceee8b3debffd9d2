"""The server of the fault trials forks only while CUDA has not started in it."""

import os

import fault_server
import pytest
import torch


@pytest.mark.parametrize("has_started", [True, False])
def test_server_forks_only_before_cuda_starts_in_it(has_started, monkeypatch):
    forks = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: has_started)
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or 7)
    if has_started:
        with pytest.raises(RuntimeError, match="CUDA has started in the fault server"):
            fault_server.fork()
    else:
        assert fault_server.fork() == 7
    assert len(forks) == (not has_started)
