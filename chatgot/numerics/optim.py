"""Parameter groups, the optimizer, and the learning rate of each step."""

import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from chatgot.config import TrainingConfig
from chatgot.machine.device import DTYPES
from chatgot.numerics.muon import Muon, MuonWithAdamW

PIECES = {
    "qkv.weight": 3,
    "gate_up.weight": 2,
}  # matrices that are several, stacked: Muon takes them apart


def build_optimizer(
    model: nn.Module, settings: TrainingConfig, muon_precision: str = "fp32"
) -> Optimizer:
    """Make AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

    muon_precision: fp32 or bf16, of the products that Muon's updates are computed by.
    AdamW's decay is on matrices (Linear and Embedding weights) only, Muon's on all that it has.
    Source: Loshchilov & Hutter, arXiv:1711.05101; decay on matrices only: GPT-3, arXiv:2005.14165, appendix B.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(named.values())).device
    hidden = [name for name, p in named.items() if name.startswith("layers.") and p.dim() == 2]
    by_muon = {name: named[name] for name in (hidden if settings.optimizer == "muon" else ())}
    rest = [p for name, p in named.items() if name not in by_muon]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type in ("cpu", "cuda", "mps")
    adamw = AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.adam_eps, fused=fused
    )
    if settings.optimizer == "adamw":
        return adamw
    muon_groups = []
    for pieces in (1, 2, 3):
        of_group = [p for name, p in by_muon.items() if pieces == _pieces(name)]
        muon_groups += [{"params": of_group, "pieces": pieces}] if of_group else []
    muon = Muon(
        muon_groups, DTYPES[muon_precision], lr=settings.muon_learning_rate, momentum=settings.muon_momentum,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    return MuonWithAdamW(muon, adamw)


def _pieces(name: str) -> int:
    return next((count for suffix, count in PIECES.items() if name.endswith(suffix)), 1)


def state_names(group: dict) -> tuple[str, ...]:
    """Return the names of the tensors, shaped as the parameter, that an optimizer keeps for those of a group."""
    return ("momentum_buffer",) if is_muon(group) else ("exp_avg", "exp_avg_sq")


def allocate_state(optimizer: Optimizer) -> None:
    """Make the state that the optimizer would make in its first step: then no later step asks for memory for it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                device = p.device if group.get("fused") else "cpu"
                optimizer.state[p] |= {"step": torch.zeros((), dtype=torch.float32, device=device)}
                optimizer.state[p] |= {name: torch.zeros_like(p) for name in state_names(group)}


def set_lr(optimizer: Optimizer, lr: float, settings: TrainingConfig) -> None:
    """Set the learning rate: AdamW's is `lr`, Muon's stands to it as their peaks do."""
    muon_lr = lr * settings.muon_learning_rate / settings.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = muon_lr if is_muon(group) else lr


def is_muon(group: dict) -> bool:
    """Return whether a group's weights are Muon's."""
    return "momentum" in group


def lr_at(step: int, settings: TrainingConfig, decay_steps: int) -> float:
    """Return the learning rate of one optimizer step: linear warmup, then decay to `min_learning_rate`.

    step: optimizer steps already done, from 0, so the first update already has lr > 0.
    decay_steps: the step at which the decay ends (`schedule_horizon`); later steps keep `min_learning_rate`.
    Source: cosine annealing, Loshchilov & Hutter, arXiv:1608.03983.
    """
    warmup = min(settings.warmup_steps, decay_steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if step >= decay_steps:
        return settings.min_learning_rate
    done = (step - warmup) / (decay_steps - warmup)  # 0 to 1
    left = 0.5 * (1 + math.cos(math.pi * done)) if settings.lr_schedule == "cosine" else 1 - done
    return settings.min_learning_rate + left * (settings.learning_rate - settings.min_learning_rate)


def steps_of_epochs(epochs: int, windows_per_epoch: int, sequences_per_step: int) -> int:
    """Return the optimizer steps after which each window of `epochs` epochs has been used."""
    return math.ceil(epochs * windows_per_epoch / sequences_per_step)


def schedule_horizon(settings: TrainingConfig, windows_per_epoch: int) -> int:
    """Return the step at which the learning rate reaches its minimum."""
    if settings.lr_decay_steps is not None:
        return settings.lr_decay_steps
    if settings.max_steps is not None:
        return settings.max_steps
    assert settings.epochs is not None  # the configuration makes sure
    return steps_of_epochs(settings.epochs, windows_per_epoch, settings.sequences_per_step)


def last_step(settings: TrainingConfig, windows_per_epoch: int) -> int | None:
    """Return the step at which `epochs` or `max_steps` ends the run, whichever is first; None: only time ends it."""
    ends = []
    if settings.max_steps is not None:
        ends.append(settings.max_steps)
    if settings.epochs is not None:
        ends.append(
            steps_of_epochs(settings.epochs, windows_per_epoch, settings.sequences_per_step)
        )
    return min(ends, default=None)
