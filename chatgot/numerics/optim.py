"""The optimizer, its parameter groups, and the learning rate of each step."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from chatgot.config import MAX_STEPS, TrainingConfig
from chatgot.machine.device import DTYPES
from chatgot.model.gpt import Attention
from chatgot.numerics.eager_optimizers import AdamW
from chatgot.numerics.muon import Muon, MuonWithAdamW

# Weights that stack several matrices, and how many; Muon handles each of these matrices alone.
PIECES = {"qkv.weight": 3, "gate_up.weight": 2}
# The number of stacked matrices of equal height, or the number of rows of each.
Pieces = int | tuple[int, ...]

# One of an optimizer's `param_groups`: parameters and their settings.
Group = dict[str, Any]


def build_optimizer(
    model: nn.Module,
    settings: TrainingConfig,
    muon_precision: str = "fp32",
    muon_class: Callable[..., Muon] = Muon,
) -> Optimizer:
    """Make AdamW for all weights, or Muon for the hidden matrices and AdamW for the rest.

    Frozen weights are in no group: they have no state.
    Weight decay is on matrices only: the weights of Linear and Embedding.

    muon_precision: fp32 or bf16, for the matrix products in Muon's updates.
    muon_class: makes Muon; another one shares its work out among ranks.
    Source: Loshchilov & Hutter, arXiv:1711.05101; decay on matrices only: GPT-3, arXiv:2005.14165,
    appendix B.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not settings.uses_muon:
        return _build_adamw(list(named.values()), settings)
    hidden = {n: p for n, p in named.items() if n.startswith("layers.") and p.dim() == 2}
    by_pieces: dict[Pieces, list[Tensor]] = {1: [], 2: [], 3: []}
    for name, p in hidden.items():
        by_pieces.setdefault(_pieces(name, model), []).append(p)
    muon = muon_class(
        [{"params": params, "pieces": pieces} for pieces, params in by_pieces.items() if params],
        DTYPES[muon_precision],
        lr=settings.muon_learning_rate,
        momentum=settings.muon_momentum,
        weight_decay=settings.weight_decay,
        beta2=settings.muon_beta2,
    )
    rest = [p for name, p in named.items() if name not in hidden]
    return MuonWithAdamW(muon, _build_adamw(rest, settings))


def _build_adamw(parameters: list[nn.Parameter], settings: TrainingConfig) -> AdamW:
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups: list[Group] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.adam_eps,
        fused=parameters[0].device.type in ("cpu", "cuda", "mps"),
    )


def _pieces(name: str, model: nn.Module) -> Pieces:
    """Return how many matrices the parameter of this name stacks, or the rows of each."""
    owner = model.get_submodule(name.rsplit(".", 2)[0])
    if isinstance(owner, Attention) and name.endswith("qkv.weight") and len(set(owner.sizes)) > 1:
        return owner.sizes
    return next((count for suffix, count in PIECES.items() if name.endswith(suffix)), 1)


def is_muon(group: Group) -> bool:
    """Return whether Muon updates this group."""
    return "momentum" in group


def state_shapes(group: Group, parameter: Tensor) -> dict[str, torch.Size]:
    """Return the name and the shape of each state tensor of a parameter, but for its counter."""
    whole = parameter.shape
    if not is_muon(group):
        return {"exp_avg": whole, "exp_avg_sq": whole}
    if "beta2" not in group:
        return {"momentum_buffer": whole}
    return {"momentum_buffer": whole, "second_moment": torch.Size([whole[0], 1])}


def zeros_for(p: Tensor, shape: torch.Size) -> Tensor:
    """Return zeros like a weight, of another shape."""
    return p.new_zeros(shape)


def allocate_state(
    optimizer: Optimizer, zeros: Callable[[Tensor, torch.Size], Tensor] = zeros_for
) -> None:
    """Create the state that the optimizer would create in its first step.

    So the first step needs no more memory than the later ones.
    zeros: makes a state tensor for a weight; another one is for weights of which a rank has a part.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if optimizer.state[p]:
                continue
            device = p.device if group.get("fused") else "cpu"
            optimizer.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name, shape in state_shapes(group, p).items():
                optimizer.state[p][name] = zeros(p, shape)


def set_lr(optimizer: Optimizer, lr: float, settings: TrainingConfig) -> None:
    """Set AdamW's learning rate to `lr`, and Muon's to the same share of its own peak."""
    muon_lr = lr * settings.muon_learning_rate / settings.learning_rate
    for group in optimizer.param_groups:
        group["lr"] = muon_lr if is_muon(group) else lr


class Decay(NamedTuple):
    """The linear decay of `lr_schedule: wsd`: the step at which it begins, and how many it takes.

    The update at step `began` still has the learning rate that was in force before.
    """

    began: int
    steps: int


def lr_at(
    step: int, settings: TrainingConfig, decay_steps: int | None, decay: Decay | None = None
) -> float:
    """Return the learning rate of one optimizer step, from the arguments alone.

    Linear warmup, then decay to `min_learning_rate`; with wsd it is constant between the two.

    step: number of steps already done; the first update, step 0, has lr > 0.
    decay_steps: the step at which the decay ends (`schedule_horizon`); later steps keep
        `min_learning_rate`. None, with wsd alone: not known yet.
    decay: with wsd, the decay that began before the planned one; None: the planned one.
    Source: cosine annealing, Loshchilov & Hutter, arXiv:1608.03983; wsd, Hu et al.,
    arXiv:2404.06395, section 4.
    """
    warmup = settings.warmup_steps
    if decay_steps is not None:
        warmup = min(warmup, decay_steps)
    begin, _ = _decay_of(settings, decay_steps, decay)
    if step < min(warmup, begin):
        return settings.learning_rate * (step + 1) / warmup
    if step < begin:
        return settings.learning_rate
    done = share_of_decay(step, settings, decay_steps, decay)
    if done == 1:
        return settings.min_learning_rate
    high = settings.learning_rate
    if begin < warmup:  # it began before the warmup was over
        high = settings.learning_rate * (begin + 1) / warmup
    left = 0.5 * (1 + math.cos(math.pi * done)) if settings.lr_schedule == "cosine" else 1 - done
    return settings.min_learning_rate + left * (high - settings.min_learning_rate)


def share_of_decay(
    step: int, settings: TrainingConfig, decay_steps: int | None, decay: Decay | None = None
) -> float:
    """Return how much of the learning rate's decay is over at a step, 0 to 1; 1: there is none.

    The arguments are those of `lr_at`.
    """
    begin, length = _decay_of(settings, decay_steps, decay)
    if step >= begin + length or length == 0:
        return 1.0
    if step < begin:
        return 0.0
    return (step - begin) / length


def _decay_of(
    settings: TrainingConfig, decay_steps: int | None, decay: Decay | None
) -> tuple[float, float]:
    """Return at which step the decay begins, and how many it takes; inf: it is not known yet."""
    if settings.lr_schedule == "wsd":
        return decay or planned_decay(settings, decay_steps) or (math.inf, math.inf)
    assert decay_steps is not None  # config.py checks that
    warmup = min(settings.warmup_steps, decay_steps)
    return warmup, decay_steps - warmup


def planned_decay(settings: TrainingConfig, decay_steps: int | None) -> Decay | None:
    """Return the decay of wsd that ends at `decay_steps`, its share of them long, after the warmup.

    None: another schedule, or it is not known yet where it ends.
    """
    if settings.lr_schedule != "wsd" or decay_steps is None:
        return None
    warmup = min(settings.warmup_steps, decay_steps)
    begin = max(warmup, decay_steps - round(settings.decay_share * decay_steps))
    return Decay(begin, decay_steps - begin)


def decay_from(step: int, settings: TrainingConfig, last: int | None) -> Decay:
    """Return the decay of wsd that begins after `step` steps, so that it is its share of all steps.

    last: the step that it must not pass; None: there is none.
    """
    share = settings.decay_share
    # a share of 1 begins at the first step, where the last one is known
    steps = MAX_STEPS if share == 1 else round(min(MAX_STEPS, step * share / (1 - share)))
    if last is not None:
        steps = min(steps, last - step)
    return Decay(step, max(1, steps))


def steps_of_epochs(epochs: int, windows_per_epoch: int, sequences_per_step: int) -> int:
    """Return how many optimizer steps use every window of `epochs` epochs."""
    # whole numbers: a float would round above 2^53 sequences
    return -(-epochs * windows_per_epoch // sequences_per_step)


def epochs_beyond(steps: int, windows_per_epoch: int, sequences_per_step: int) -> int:
    """Return the fewest epochs that take more than `steps` optimizer steps."""
    return steps * sequences_per_step // windows_per_epoch + 1


def schedule_horizon(settings: TrainingConfig, windows_per_epoch: int) -> int | None:
    """Return the step at which the learning rate reaches its minimum; None: nobody knows yet."""
    if settings.lr_decay_steps is not None:
        return settings.lr_decay_steps
    if settings.max_steps is not None:
        return settings.max_steps
    if settings.epochs is None:
        return None
    return steps_of_epochs(settings.epochs, windows_per_epoch, settings.sequences_per_step)


def last_step(settings: TrainingConfig, windows_per_epoch: int) -> int | None:
    """Return the step at which `epochs` or `max_steps` ends the run, whichever comes first.

    None: neither does.
    """
    ends = []
    if settings.max_steps is not None:
        ends.append(settings.max_steps)
    if settings.epochs is not None:
        ends.append(
            steps_of_epochs(settings.epochs, windows_per_epoch, settings.sequences_per_step)
        )
    return min(ends, default=None)
