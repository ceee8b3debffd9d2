"""Which blocks recompute their activations in backward: less memory, more time; proven to change no bit."""

import logging

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from chatgot.machine.device import preserved_generators, seed_generators

logger = logging.getLogger(__name__)

MAX_NOISE = 1e-3  # of two plain passes, relative to a tensor's largest element
PROOF_BATCH, PROOF_LENGTH = (
    2,
    64,
)  # sequences and tokens of the proof: small, and all kinds of operations occur


def enable_gradient_checkpointing(model: nn.Module, every: int = 1) -> bool:
    """Let the model's layer loop recompute every `every`-th block in backward, once that is proven to change nothing.

    The loop itself calls torch.utils.checkpoint (non-reentrant, generators restored). The proof runs in the mode in
    force (autocast, compile) on made-up ids. A model without such a loop, or a proof that fails: one warning, False.
    Raises: ValueError when `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, found {every}")
    if not hasattr(model, "layers") or not hasattr(model, "recompute_every"):
        logger.warning(
            "gradient checkpointing stays off: %s has no layer loop that could recompute",
            type(model).__name__,
        )
        return False
    if why := recomputation_differs(model, every):
        logger.warning("gradient checkpointing stays off: %s", why)
        return False
    model.recompute_every = every
    logger.info(
        "gradient checkpointing: proven on a small batch to change no bit of loss and gradients"
    )
    return True


def disable_gradient_checkpointing(model: nn.Module) -> bool:
    """Switch recomputation off; return whether it was on."""
    was_on = bool(getattr(model, "recompute_every", None))
    if was_on:
        model.recompute_every = None
    return was_on


def recomputation_differs(model: nn.Module, every: int) -> str | None:
    """Return how loss or gradients differ with recomputation on one small batch, dropout on; None: in no bit.

    Where two plain passes differ from each other already (atomics on GPUs) that difference is the tolerance; on a CPU
    they may not, and by more than MAX_NOISE nowhere: such a difference is in the masks, not in the rounding.
    Gradients, mode, generators and the setting itself are left as they were. An error inside a block is raised.
    """
    modes, was_every = (
        [(module, module.training) for module in model.modules()],
        model.recompute_every,
    )
    gradients = [p.grad for p in model.parameters()]
    device = next(model.parameters()).device
    ids = torch.randint(
        model.vocab_size, (PROOF_BATCH, min(PROOF_LENGTH, model.cfg.max_seq_length) + 1),
        generator=torch.Generator().manual_seed(0),
    ).to(device)  # fmt: skip

    def run(setting: int | None) -> dict[str, Tensor]:
        model.recompute_every = setting
        model.zero_grad(set_to_none=True)
        seed_generators(device, 0)
        _, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"the loss": loss.detach(), **found}

    model.train()
    try:
        with preserved_generators(device):
            plain, again, recomputed = run(None), run(None), run(every)
    except CheckpointError as error:
        return f"a recomputation differed ({str(error).strip().splitlines()[0]})"
    finally:
        for module, mode in modes:
            module.training = mode
        model.recompute_every = was_every
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    noise = {name: _difference(plain[name], again[name]) for name in plain}
    worst = max(noise, key=noise.get)
    if noise[worst] > 0:
        logger.info(
            "two plain passes differ by %.3g in %s: that is the tolerance of the proof",
            noise[worst],
            worst,
        )
        if device.type == "cpu" or not noise[worst] <= MAX_NOISE * plain[worst].abs().max().item():
            return f"two plain passes already differ in {worst}, so nothing can be proven"
    for name, expected in plain.items():
        if (
            name not in recomputed or not _difference(expected, recomputed[name]) <= noise[name]
        ):  # also for NaN
            return f"with recomputation {name} differs"
    return None


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors, 0 when all their bits are equal."""
    return 0.0 if torch.equal(a, b) else (a - b).abs().max().item()
