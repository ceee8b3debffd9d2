"""Which blocks recompute their activations in backward: less memory, more time, not one other bit.

That it changes no bit is proven before it is switched on. Compiled blocks on a card may round
differently when they recompute: there, the proof is within a tolerance.

Letters: B batch, T time (tokens), C `d_model`.
"""

import logging
import math
from typing import NamedTuple

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
LOSS = "the loss"
LEAST_SHARE = 0.01  # of the whole gradient's norm; a smaller gradient counts as this large
TINY = 1e-30  # instead of a norm of 0
# Bytes for each token and row of the vocabulary: logits, the same in fp32, their log-softmax and
# their gradient
LOGIT_BYTES = 14


class Proof(NamedTuple):
    """What the proof found: a problem (None: it succeeded), and the largest relative difference."""

    problem: str | None
    difference: float = 0.0


def enable_gradient_checkpointing(model: nn.Module, every: int = 1, tolerance: float = 0.0) -> bool:
    """Recompute every `every`-th block in backward, once that is proven to change nothing.

    The model's own layer loop calls torch.utils.checkpoint (non-reentrant, generators restored).
    The proof runs in the mode in force (autocast, compile) on made-up ids. A model without such a
    loop, or a proof that fails: one warning, and False.

    tolerance: how far loss and gradients may differ, relative to their norms; 0: in no bit.
    Raises: ValueError when `every` is below 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, found {every}")
    if not isinstance(model, GPT):
        _warn_off(f"{type(model).__name__} has no layer loop that could recompute")
        return False
    proof = recomputation_differs(model, every, tolerance)
    if proof.problem:
        _warn_off(proof.problem)
        return False
    model.recompute_every = every
    reason = "proven on a small batch to change no bit of loss and gradients"
    if tolerance:
        reason = (
            f"on a small batch, loss and gradient differ by {proof.difference:.2g} of themselves; "
            f"at most {tolerance:g} is rounding of compiled blocks"
        )
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


def recomputation_differs(model: GPT, every: int, tolerance: float = 0.0) -> Proof:
    """Return how recomputation changes loss or gradients of one small batch.

    Dropout is on. Where two plain passes already differ from each other (atomics on GPUs), that
    difference is the tolerance. On a CPU they must not differ, and on a GPU by no more than
    MAX_NOISE: a larger difference is in the masks, not in the rounding. With a tolerance, that
    alone counts.
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
        return Proof(f"a recomputation differed ({str(error).strip().splitlines()[0]})")
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        model.recompute_every = setting
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    if tolerance:
        return _within(tolerance, plain, recomputed)
    return Proof(_bits_differ(plain, again, recomputed, device))


def _within(tolerance: float, plain: dict[str, Tensor], recomputed: dict[str, Tensor]) -> Proof:
    """Compare loss and gradients with those of a plain pass, each relative to its norm.

    A parameter with a tiny gradient is judged by a share of the whole gradient's norm: that of a
    bias of keys is nothing but rounding.
    """
    if plain.keys() != recomputed.keys():
        return Proof("with recomputation other parameters have a gradient")
    norms = {name: tensor.norm().item() for name, tensor in plain.items()}
    whole = math.hypot(*(norm for name, norm in norms.items() if name != LOSS))
    largest = 0.0
    for name, norm in norms.items():
        distance = (plain[name] - recomputed[name]).norm().item()
        difference = distance / max(norm, LEAST_SHARE * whole, TINY)
        if not difference <= tolerance:  # true for NaN as well
            problem = (
                f"with recomputation {name} differs by {difference:.2g} of itself, "
                f"at most {tolerance:g} is rounding"
            )
            return Proof(problem, difference)
        largest = max(largest, difference)
    return Proof(None, largest)


def _bits_differ(
    plain: dict[str, Tensor],
    again: dict[str, Tensor],
    recomputed: dict[str, Tensor],
    device: torch.device,
) -> str | None:
    """Return how a recomputed pass differs from two plain ones; None: by no more than they do."""
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

    They are on the host: a card would have to hold those of three passes at once.
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
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    return {LOSS: loss.detach().cpu(), **gradients}


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference of two tensors, 0 when all their bits are equal."""
    return 0.0 if torch.equal(a, b) else (a - b).abs().max().item()


def bytes_for_backward(model: GPT, sequences: int) -> float:
    """Return about how many bytes forward keeps for backward, without recomputation.

    What one block keeps of one and of two sequences is counted, in the mode in force (autocast):
    their difference grows with the sequences, the rest (cast weights) does not. Generators are left
    as they were.

    sequences: of the model's full length, at once.
    """
    cfg = model.cfg
    device = next(model.parameters()).device
    was_training = model.training
    model.train()
    try:
        with preserved_generators(device):
            one = _bytes_kept_by_a_block(model, 1)
            two = _bytes_kept_by_a_block(model, 2)
    finally:
        model.train(was_training)
    blocks = cfg.n_layers * (2 * one - two + sequences * (two - one))
    return blocks + sequences * cfg.max_seq_length * model.vocab_size * LOGIT_BYTES


def _bytes_kept_by_a_block(model: GPT, sequences: int) -> int:
    """Return the bytes of all tensors that the first block's forward saves, but for its weights."""
    cfg = model.cfg
    device = next(model.parameters()).device
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()  # tensors may share one
        return tensor

    shape = (sequences, cfg.max_seq_length, cfg.d_model)
    x = torch.ones(shape, device=device, requires_grad=True)  # (B, T, C)
    rotated = model.rotation(torch.arange(cfg.max_seq_length, device=device))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # the result keeps all of it alive, so that no address is used twice
        result = model.run_block(model.blocks[0], x, rotated)  # (B, T, C)
    del result
    return sum(kept.values())
