"""What one of several ranks checks about weights of which each keeps a part.

Started by torchrun; ends with an error where something differs from whole weights.
"""

import copy

import parts
import torch
import torch.distributed as dist

from chatgot.distributed.ranks import Ranks
from chatgot.distributed.sharded_muon import ShardedMuon
from chatgot.distributed.strategies import part_of, parts_of_state, shard, whole, zeros_for
from chatgot.model.gpt import GPT
from chatgot.numerics.optim import allocate_state, build_optimizer
from chatgot.run.run_state import restore_state
from chatgot.run.sharding import shard_run

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


class TheseRanks(Ranks):
    """The ranks of this group, each with a part of the weights."""

    is_alone = False
    is_sharded = True

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()


def check_start() -> None:
    """Share out a run that goes on: what it began with are not the weights that it has now."""
    run = parts.run(training={"optimizer": "muon", "muon_beta2": 0.95})
    began_with = copy.deepcopy(run.start)
    step(run.model, run.optimizer, 0)
    shard_run(run)
    assert run.start is not None
    for name, tensor in whole(run.start["model_state_dict"]).items():
        assert torch.equal(tensor, began_with["model_state_dict"][name]), name
    restore_state(copy.deepcopy(run.start), run.state, run.model, run.optimizer, run.scaler)
    for name, tensor in whole(run.model.state_dict()).items():
        assert torch.equal(tensor, began_with["model_state_dict"][name]), name
    for values in whole(run.optimizer.state_dict())["state"].values():
        assert not any(value.any() for value in values.values())


def check_whole_model() -> None:
    """Rank 0 samples from the model with all weights, those below LoRA's too."""
    run = parts.run(training={"lora": {"rank": 2}})
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.25)  # other than fresh ones
    weights = copy.deepcopy(run.model.state_dict())
    run.ranks = TheseRanks()
    shard_run(run)
    model = run.whole_model()
    assert (model is not None) == run.ranks.is_main
    if model is not None:
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check_parts()
    check_start()
    check_whole_model()
    for of_model in SHAPES:
        for of_optimizer in OPTIMIZERS:
            check_updates(of_model, of_optimizer)
    dist.destroy_process_group()
