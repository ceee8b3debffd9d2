"""A machine joins a group while it trains, as one that was taken away and comes back."""

import socket

import pytest
from group_harness import started
from group_training import CONFIG, folder_of

pytestmark = pytest.mark.slow

STEPS = 2000


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_group_that_a_machine_joins_goes_on_with_more_ranks(tmp_path):
    folder = folder_of(
        tmp_path, "joined", training={"max_steps": STEPS, "save_checkpoint_steps": 100}
    )
    machines = [
        "--nnodes=1:2",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=localhost:{free_port()}",
        "--rdzv_id=joined",
        "--rdzv_conf=last_call_timeout=1",
    ]
    # torch 2.13: with the store of its rendezvous shared, the ranks of the second start never meet
    apart = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with started(folder, 1, *CONFIG, machines=machines, said_in="one.txt", **apart) as one:
        one.wait_for("saved checkpoints")
        with started(folder, 1, *CONFIG, machines=machines, said_in="other.txt", **apart):
            one.wait_for("started again, from the last good checkpoint")
            one.wait_for("ranks: 2, ddp")
            assert one.wait() == 0
    runs = {path.name.rpartition("_step_")[0] for path in folder.glob("checkpoints/*.pt")}
    assert len(runs) == 1
    assert f"step {STEPS}" in one.said
