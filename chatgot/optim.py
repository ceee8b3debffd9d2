"""Parameter groups, the optimizer, and the learning rate of each step."""

import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from chatgot.config import TrainingConfig


def build_optimizer(model: nn.Module, training: TrainingConfig) -> Optimizer:
    """Make AdamW with weight decay on matrices (Linear and Embedding weights) only.

    Source: Loshchilov & Hutter, arXiv:1711.05101; decay on matrices only: GPT-3, arXiv:2005.14165, appendix B.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = parameters[0].device.type in ("cpu", "cuda", "mps")
    return AdamW(groups, lr=training.learning_rate, betas=training.betas, eps=training.adam_eps, fused=fused)


def allocate_state(optimizer: Optimizer) -> None:
    """Make the state that AdamW would make in its first step: then no later step asks for memory for it."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:
                optimizer.state[p] |= {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device if group["fused"] else "cpu"),
                    "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p),
                }  # fmt: skip


def set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def lr_at(step: int, training: TrainingConfig, decay_steps: int) -> float:
    """Return the learning rate of one optimizer step: linear warmup, then decay to `min_learning_rate`.

    step: optimizer steps already done, from 0, so the first update already has lr > 0.
    decay_steps: the step at which the decay ends (`schedule_horizon`); later steps keep `min_learning_rate`.
    Source: cosine annealing, Loshchilov & Hutter, arXiv:1608.03983.
    """
    warmup = min(training.warmup_steps, decay_steps)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if step >= decay_steps:
        return training.min_learning_rate
    done = (step - warmup) / (decay_steps - warmup)  # 0 to 1
    left = 0.5 * (1 + math.cos(math.pi * done)) if training.lr_schedule == "cosine" else 1 - done
    return training.min_learning_rate + left * (training.learning_rate - training.min_learning_rate)


def steps_of_epochs(epochs: int, windows_per_epoch: int, sequences_per_step: int) -> int:
    """Return the optimizer steps after which each window of `epochs` epochs has been used."""
    return math.ceil(epochs * windows_per_epoch / sequences_per_step)


def schedule_horizon(training: TrainingConfig, windows_per_epoch: int) -> int:
    """Return the step at which the learning rate reaches its minimum."""
    if training.lr_decay_steps is not None:
        return training.lr_decay_steps
    if training.max_steps is not None:
        return training.max_steps
    assert training.epochs is not None  # the configuration makes sure
    return steps_of_epochs(training.epochs, windows_per_epoch, training.sequences_per_step)


def last_step(training: TrainingConfig, windows_per_epoch: int) -> int | None:
    """Return the step at which `epochs` or `max_steps` ends the run, whichever is first; None: only time ends it."""
    ends = []
    if training.max_steps is not None:
        ends.append(training.max_steps)
    if training.epochs is not None:
        ends.append(steps_of_epochs(training.epochs, windows_per_epoch, training.sequences_per_step))
    return min(ends, default=None)
