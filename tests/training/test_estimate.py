"""A dry run says what it measured: in which memory, and which part of the work it timed."""

import parts
import torch

from chatgot.machine.memory import MIB
from chatgot.training import batch_size
from chatgot.training.batch_size import most_memory_mib
from chatgot.training.estimate import estimate


def test_the_lines_say_that_only_forward_and_backward_are_timed():
    run = parts.run(training={"max_steps": 3})
    text = "\n".join(estimate(run, repeats=1))
    assert "s for forward and backward of one step of 64 tokens" in text
    assert "until the end of the run, without updates and evaluations" in text
    assert "which includes Python and torch" in text
    assert all(p.grad is None for p in run.model.parameters())


def test_the_memory_of_a_gpu_run_is_that_of_the_gpu_not_the_host(monkeypatch):
    monkeypatch.setattr(batch_size, "used_memory", lambda device: 5 * MIB)
    monkeypatch.setattr(batch_size, "peak_memory_mib", lambda: 7.0)
    assert most_memory_mib(torch.device("cuda")) == 5.0
    assert most_memory_mib(torch.device("cpu")) == 7.0
