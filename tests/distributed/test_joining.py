"""Which processes join a group, with what; wrong ones are told so before they wait for others."""

import parts
import pytest
import torch

from chatgot.distributed import group, joining
from chatgot.distributed.joining import join, own_device
from chatgot.errors import ConfigError
from chatgot.torchrun import RANK_VARIABLES, quiet_rank, speaks_for_its_machine, was_started_again

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def no_rank(monkeypatch) -> None:
    for name in (*RANK_VARIABLES, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def joined(monkeypatch) -> list[tuple[object, ...]]:
    """Make this process rank 1 of 4; return what groups are joined with."""
    values = ("1", "4", "1", "127.0.0.1", "1")
    for name, value in zip(RANK_VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    joined: list[tuple[object, ...]] = []
    monkeypatch.setattr(group, "Group", lambda *settings: joined.append(settings))
    return joined


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    assert join(parts.config(), parts.CPU).is_alone
    monkeypatch.setenv("WORLD_SIZE", "4")  # as other launchers set it
    monkeypatch.setenv("RANK", "1")
    assert join(parts.config(), parts.CPU).is_alone


@pytest.mark.parametrize(
    ("backend", "device", "expected"),
    [
        ("auto", parts.CPU, "gloo"),
        ("auto", CUDA, "nccl"),
        ("gloo", CUDA, "gloo"),
        ("nccl", CUDA, "nccl"),
    ],
)
def test_the_device_decides_what_sends_tensors(joined, backend, device, expected):
    join(parts.config(distributed={"backend": backend, "timeout_s": 7}), device)
    assert joined == [(device, expected, 7.0)]


def test_nccl_without_a_card_is_refused(joined):
    with pytest.raises(ConfigError, match=r"distributed.backend=nccl.*auto"):
        join(parts.config(distributed={"backend": "nccl"}), parts.CPU)
    assert joined == []


def test_more_ranks_than_sequences_of_a_step_are_refused(joined):
    few = {"batch_size": 3, "accumulate_grad_batches": 1}
    with pytest.raises(ConfigError, match="4 ranks share the 3 sequences"):
        join(parts.config(training=few), parts.CPU)
    enough = {"batch_size": 4, "accumulate_grad_batches": 1}
    join(parts.config(training=enough), parts.CPU)
    assert len(joined) == 1


def test_a_rank_takes_the_card_of_its_number_on_its_machine(joined, monkeypatch):
    taken: list[object] = []
    monkeypatch.setattr(joining.torch.cuda, "set_device", taken.append)
    assert own_device(CUDA) == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)]
    assert own_device(parts.CPU) == parts.CPU


def test_one_process_keeps_its_device():
    assert own_device(CUDA) == CUDA


def environment(rank: str, local: str, **more: str) -> dict[str, str]:
    values = (rank, "4", local, "host", "1")
    return dict(zip(RANK_VARIABLES, values, strict=True)) | more


def test_only_rank_0_is_loud_and_one_of_each_machine_names_mistakes():
    assert quiet_rank({}) is None
    assert quiet_rank(environment("0", "0")) is None
    assert quiet_rank(environment("2", "0")) == 2
    assert speaks_for_its_machine({})
    assert speaks_for_its_machine(environment("2", "0"))
    assert not speaks_for_its_machine(environment("3", "1"))


@pytest.mark.parametrize(
    ("counts", "again"),
    [
        ({}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"SLURM_RESTART_COUNT": "1"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, False),
    ],
)
def test_a_group_that_was_lost_before_knows_it(counts, again):
    assert was_started_again(counts) is again
