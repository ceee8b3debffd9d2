"""What one of several ranks checks about weights of which each keeps a part.

Started by torchrun; ends with an error where something differs from whole weights.
"""

import copy

import parts
import torch
import torch.distributed as dist

from chatgot.distributed.sharded_muon import ShardedMuon
from chatgot.distributed.strategies import part_of, parts_of_state, shard, whole, zeros_for
from chatgot.model.gpt import GPT
from chatgot.numerics.optim import allocate_state, build_optimizer

STEPS = 4
SHAPES = [
    {"architecture": "gpt", "d_model": 16, "d_hid": 24},
    {"architecture": "modern", "d_model": 20, "d_hid": 28, "n_kv_head": 1},  # rows do not divide
]
OPTIMIZERS = [
    {"optimizer": "adamw"},
    {"optimizer": "muon"},
    {"optimizer": "muon", "muon_beta2": 0.95},
]


def check_updates(shape: dict[str, object], optimizer: dict[str, object]) -> None:
    """Make the same updates with whole weights and with parts, from the same gradients."""
    run = parts.run(model=shape, training={"weight_decay": 0.1, **optimizer})
    settings = run.config.training
    plain: GPT = run.model
    sharded = copy.deepcopy(plain)
    before = build_optimizer(plain, settings)
    allocate_state(before)
    step(plain, before, 0)  # so that there is a state to take over
    sharded.load_state_dict(plain.state_dict())
    shard(sharded)
    after = build_optimizer(sharded, settings, muon_class=ShardedMuon)
    after.load_state_dict(parts_of_state(after, copy.deepcopy(before.state_dict())))
    allocate_state(after, zeros_for)
    for number in range(1, STEPS):
        step(plain, before, number)
        step(sharded, after, number)
    for name, tensor in whole(sharded.state_dict()).items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=1e-5, atol=1e-6)
    states = whole(after.state_dict())["state"]
    for index, values in before.state_dict()["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(states[index][name], value, rtol=1e-4, atol=1e-6)


def step(model: GPT, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Give each weight a made-up gradient, the same on all ranks, and update."""
    generator = torch.Generator().manual_seed(number)
    for p in model.parameters():
        full = torch.randn(p.shape, generator=generator)
        p.grad = part_of(full, p)
    optimizer.step()


def check_parts() -> None:
    """Cut tensors into parts and put them together, also of fewer rows than ranks."""
    run = parts.run(model={"d_model": 16, "n_layers": 1})
    full = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    shard(run.model)
    for name, own in run.model.state_dict().items():
        again = whole(part_of(full[name], own))
        assert torch.equal(again, full[name]), name
        assert torch.equal(whole(own), full[name]), name
        assert own.to_local().shape[0] < max(2, full[name].shape[0]), f"{name} is not shared out"


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check_parts()
    for of_model in SHAPES:
        for of_optimizer in OPTIMIZERS:
            check_updates(of_model, of_optimizer)
    dist.destroy_process_group()
