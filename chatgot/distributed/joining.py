"""How a process joins the group that torchrun has started it for."""

import os

import torch

from chatgot.config import Config
from chatgot.distributed.ranks import Ranks
from chatgot.errors import ConfigError
from chatgot.torchrun import is_rank


def join(config: Config, device: torch.device) -> Ranks:
    """Return the ranks of a run: those that torchrun has started, or this process alone.

    In a group it waits until all ranks are there.
    device: of this rank (see own_device).
    Raises: ConfigError.
    """
    if not is_rank(os.environ):
        return Ranks()
    settings = config.distributed
    backend = settings.backend
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise ConfigError(
            f"distributed.backend=nccl: it sends between NVIDIA cards, and the device is "
            f"{device.type}: set distributed.backend=auto"
        )
    ranks = int(os.environ["WORLD_SIZE"])
    S = config.training.sequences_per_step
    if ranks > S:
        raise ConfigError(
            f"{ranks} ranks share the {S} sequences of a step, so some have none: start at most "
            f"{S} ranks, or raise training.batch_size"
        )
    # not at the top: one process alone needs none of it
    from chatgot.distributed.group import Group

    return Group(device, backend, settings.timeout_s)


def own_device(device: torch.device) -> torch.device:
    """Return this rank's card among those of its machine; another device as it is."""
    if device.type != "cuda" or not is_rank(os.environ):
        return device
    card = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(card)
    return card
