"""Which blocks recompute their activations in backward: less memory, more time, not one other bit.

That it changes no bit is proven before it is switched on.
"""

import logging

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.device import preserved_generators, seed_generators
from chatgot.model.gpt import GPT

logger = logging.getLogger(__name__)

MAX_NOISE = 1e-3  # of two plain passes, relative to a tensor's largest element
# The proof's batch is small, and all kinds of operations occur in it.
PROOF_SEQUENCES = 2
PROOF_TOKENS = 64  # of each sequence


def enable_gradient_checkpointing(model: nn.Module, every: int = 1) -> bool:
    """Recompute every `every`-th block in backward, once that is proven to change nothing.

    The model's own layer loop calls torch.utils.checkpoint (non-reentrant, generators restored).
    The proof runs in the mode in force (autocast, compile) on made-up ids. A model without such a
    loop, or a proof that fails: one warning, and False.

    Raises: ValueError when `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, found {every}")
    if not isinstance(model, GPT):
        _warn_off(f"{type(model).__name__} has no layer loop that could recompute")
        return False
    difference = recomputation_differs(model, every)
    if difference:
        _warn_off(difference)
        return False
    model.recompute_every = every
    reason = "proven on a small batch to change no bit of loss and gradients"
    logger.info(
        "gradient checkpointing: %s",
        reason,
        extra=event("gradient_checkpointing", on=True, reason=reason, every=every),
    )
    return True


def _warn_off(reason: str) -> None:
    logger.warning(
        "gradient checkpointing stays off: %s",
        reason,
        extra=event("gradient_checkpointing", on=False, reason=reason),
    )


def disable_gradient_checkpointing(model: nn.Module) -> bool:
    """Switch recomputation off; return whether it was on."""
    if not isinstance(model, GPT) or not model.recompute_every:
        return False
    model.recompute_every = None
    return True


def recomputation_differs(model: GPT, every: int) -> str | None:
    """Return how recomputation changes loss or gradients of one small batch; None: in no bit.

    Dropout is on. Where two plain passes already differ from each other (atomics on GPUs), that
    difference is the tolerance. On a CPU they must not differ, and on a GPU by no more than
    MAX_NOISE: a larger difference is in the masks, not in the rounding.
    Gradients, modes, generators and the setting itself are left as they were. An error inside a
    block is raised.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    setting = model.recompute_every
    gradients = [p.grad for p in model.parameters()]
    device = next(model.parameters()).device
    model.train()
    try:
        with preserved_generators(device), waiting("proving gradient checkpointing"):
            plain = _loss_and_gradients(model, None)
            again = _loss_and_gradients(model, None)
            recomputed = _loss_and_gradients(model, every)
    except CheckpointError as error:
        return f"a recomputation differed ({str(error).strip().splitlines()[0]})"
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        model.recompute_every = setting
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    noise = {name: _difference(plain[name], again[name]) for name in plain}
    worst = max(noise, key=lambda name: noise[name])
    if noise[worst] > 0:
        logger.info(
            "two plain passes differ by %.3g in %s: that is the tolerance of the proof",
            noise[worst],
            worst,
        )
        largest = plain[worst].abs().max().item()
        # `not <=`: true for NaN as well
        if device.type == "cpu" or not noise[worst] <= MAX_NOISE * largest:
            return f"two plain passes already differ in {worst}, so nothing can be proven"
    for name, expected in plain.items():
        if name not in recomputed or not _difference(expected, recomputed[name]) <= noise[name]:
            return f"with recomputation {name} differs"
    return None


def _loss_and_gradients(model: GPT, every: int | None) -> dict[str, Tensor]:
    """Return the loss and all gradients of the proof's batch, recomputing every `every`-th block.

    Changes the global generators, the model's gradients and its setting.
    """
    device = next(model.parameters()).device
    tokens = min(PROOF_TOKENS, model.cfg.max_seq_length)
    generator = torch.Generator().manual_seed(0)
    shape = (PROOF_SEQUENCES, tokens + 1)
    ids = torch.randint(model.vocab_size, shape, generator=generator).to(device)
    model.recompute_every = every
    model.zero_grad(set_to_none=True)
    seed_generators(device, 0)
    _, loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"the loss": loss.detach(), **gradients}


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors, 0 when all their bits are equal."""
    return 0.0 if torch.equal(a, b) else (a - b).abs().max().item()
