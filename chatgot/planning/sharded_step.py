"""One step of many ranks on this machine alone: fake ranks, fake tensors, real shapes.

Torch's own sharding runs (FSDP2: each block, then the root), for one of the ranks; what the others
would send is not there. So it shows that shapes and sharding fit, and nothing about numbers.
"""

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import utils
from torch.testing._internal.distributed.fake_pg import FakeStore

from chatgot.config import Config
from chatgot.distributed.sharded_muon import ShardedMuon
from chatgot.distributed.strategies import shard, zeros_for
from chatgot.model.gpt import GPT, model_without_weights
from chatgot.model.lora import add_lora
from chatgot.numerics.optim import allocate_state, build_optimizer
from chatgot.numerics.precision import autocast
from chatgot.planning.live_bytes import fake_tensors

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FakeStep:
    """What a fake step has shown.

    own: parameters that the first rank holds; whole: of the model.
    """

    ranks: int
    strategy: str
    own: int
    whole: int
    seconds: float


def fake_step(config: Config, V: int, ranks: int, strategy: str, sequences: int) -> FakeStep:
    """Do forward, backward and update of one step as one of many ranks, with fake tensors.

    strategy: fsdp or ddp. sequences: of this rank, at once.
    Side effects: this process has a process group while it runs.
    Raises: RuntimeError, where shapes and sharding do not go together.
    """
    started = time.perf_counter()
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (ranks,))
        model = _model(config, V)
        if strategy == "fsdp":
            # on the meta device: fake tensors would take 20 s to be cut for 512 ranks
            shard(model, mesh)
        with fake_tensors():
            model.to_empty(device=CPU)
            model.tie()
            _step(model, config, strategy, sequences)
        own = sum(_own(parameter) for parameter in model.parameters())
    finally:
        dist.destroy_process_group()
    return FakeStep(ranks, strategy, own, model.parameter_count(), time.perf_counter() - started)


def _model(config: Config, V: int) -> GPT:
    model = model_without_weights(config.model, V)
    if config.training.lora.enabled:
        add_lora(model, config.training.lora)
    asked = config.training.gradient_checkpointing
    model.recompute_every = 2 if asked == "every_2" else int(asked is True) or None
    return model.train()


def _step(model: GPT, config: Config, strategy: str, sequences: int) -> None:
    if strategy == "fsdp":
        optimizer = build_optimizer(model, config.training, "bf16", ShardedMuon)
        allocate_state(optimizer, zeros_for)
    else:
        optimizer = build_optimizer(model, config.training, "bf16")
        allocate_state(optimizer)
    x = torch.zeros(sequences, config.model.max_seq_length, dtype=torch.int64)
    precision = "bf16" if config.training.mixed_precision else "fp32"
    with autocast(CPU, precision):
        _, loss = model(x, x)
        assert loss is not None
        loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if strategy == "ddp":
        for gradient in gradients:
            dist.all_reduce(gradient)
    if config.training.grad_clip is not None:
        norm = utils.get_total_norm(gradients)
        utils.clip_grads_with_norm_(model.parameters(), config.training.grad_clip, norm)
    optimizer.step()


def _own(parameter: torch.Tensor) -> int:
    """Return how many elements of a parameter this rank holds."""
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()
