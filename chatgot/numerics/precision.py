"""Which precision computes forward and loss: proven before it is trusted, lowered when it fails, raised again once."""

import logging
import math
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn

from chatgot.config import Config
from chatgot.data.windows import Batch, TrainingWindows
from chatgot.machine.device import DTYPES, preserved_generators, seed_generators
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.run.run_state import RunState

logger = logging.getLogger(__name__)

MAX_LOSS_DIFFERENCE, MIN_COSINE = 0.01, 0.99  # against fp32: of the loss, relative; of the gradients
PROOF_SCALE = 1024.0  # of the loss, so that small fp16 gradients do not vanish


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which forward and loss run: autocast for bf16 and fp16, nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def prove_mixed_precision(model: nn.Module, batch: Batch, precision: str) -> str | None:
    """Return what is wrong with this precision on one micro-batch, dropout off, against fp32; None: it is as good.

    Gradients, mode and generators are left as they were. What does not fit into memory is proven on half of it.
    """
    try:
        return _compare_with_fp32(model, batch, precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(batch[0]) == 1:
            raise
    release_memory(batch[0].device)  # here: in the handler the error still holds what the attempt held
    half = len(batch[0]) // 2
    return prove_mixed_precision(model, (batch[0][:half], batch[1][:half]), precision)


def _compare_with_fp32(model: nn.Module, batch: Batch, precision: str) -> str | None:
    modes, before = [(module, module.training) for module in model.modules()], [p.grad for p in model.parameters()]
    device = next(model.parameters()).device
    results = []
    model.eval()
    try:
        with preserved_generators(device):
            for name, scale in (("fp32", 1.0), (precision, PROOF_SCALE if precision == "fp16" else 1.0)):
                model.zero_grad(set_to_none=True)
                with autocast(device, name):
                    _, loss = model(*batch)
                    (loss * scale).backward()
                gradients = [p.grad / scale for p in model.parameters() if p.grad is not None]
                results.append((loss.item(), gradients))
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in zip(model.parameters(), before, strict=True):
            parameter.grad = gradient
    (loss, expected), (found_loss, found) = results
    difference = abs(found_loss - loss) / max(abs(loss), 1e-12)
    cosine = _cosine(expected, found)
    if difference <= MAX_LOSS_DIFFERENCE and cosine >= MIN_COSINE:  # false for NaN
        logger.info(
            "mixed precision: %s is close to fp32: loss %.2g %% off, cosine of the gradients %.5f",
            precision, 100 * difference, cosine,
        )  # fmt: skip
        return None
    return f"loss {found_loss:g}, in fp32 {loss:g}; cosine of the gradients {cosine:.4f}"


def _cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the cosine of the angle between two vectors in pieces: torch's own is 0.3 % off over 14 M numbers."""

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))

    return dot(a, b) / math.sqrt(max(dot(a, a) * dot(b, b), 1e-300))


def next_lower(precision: str, device: torch.device) -> str:
    """Return the rung below: fp16 -> bf16 (where the device has it) -> fp32."""
    has_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    return "bf16" if precision == "fp16" and has_bf16 else "fp32"


def change_precision(run: RunState, scaler: SafeGradScaler, precision: str) -> None:
    """Go on in another precision from the next step; fp16 alone needs its loss scaled."""
    run.precision, run.good_steps, run.bad_before_rung = precision, 0, len(run.bad_steps)
    scaler.set_rung(enabled=precision == "fp16")


def describe_numbers(model: nn.Module, windows: TrainingWindows, run: RunState, config: Config) -> str:
    """Return where the numbers of the step in hand went wrong: its logits, and the first output that is not finite.

    Computes the step's micro-batches once more, up to the first that is not finite; changes nothing.
    """
    first: list[str] = []

    def look(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            tensors = [t for t in (output if isinstance(output, tuple) else (output,)) if isinstance(t, Tensor)]
            if not first and not all(torch.isfinite(t).all() for t in tensors):
                first.append(name)

        return hook

    S = config.training.sequences_per_step
    starts = windows.starts(run.position, S)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and name.count(".") <= 1:  # layers.3, not what is inside; norm, head, the embeddings
                stack.callback(module.register_forward_hook(look(name)).remove)
        stack.enter_context(preserved_generators(windows.device))
        stack.enter_context(torch.no_grad())
        stack.enter_context(autocast(windows.device, run.precision))
        for at in range(0, S, run.micro_batch_size):
            x, y = windows.batch(starts[at : at + run.micro_batch_size])
            seed_generators(windows.device, config.seed, run.position, at)
            logits, loss = model(x, y)
            if first or not torch.isfinite(loss):
                break
        seen = [v.item() for v in (loss, logits.min(), logits.max(), logits.float().mean(), logits.float().std())]
    where = f"first output that is not finite: {first[0]}" if first else "all outputs finite"
    loss_seen, low, high, mean, std = seen
    return (
        f"step {run.global_step + 1}, data position {run.position}, {run.precision}: loss {loss_seen:g}, "
        f"logits {low:g} to {high:g}, mean {mean:g}, std {std:g}, {where}"
    )
