"""Which precision computes forward and loss: proven before it is trusted, lowered when it fails, raised again once."""

import logging
import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from chatgot.config import Config
from chatgot.data.windows import Batch
from chatgot.machine.device import DTYPES, preserved_generators
from chatgot.machine.measured import bf16_gain
from chatgot.machine.memory import is_out_of_memory, release_memory

logger = logging.getLogger(__name__)

MAX_LOSS_DIFFERENCE, MIN_COSINE = (
    0.01,
    0.99,
)  # against fp32: of the loss, relative; of the gradients
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
    release_memory(
        batch[0].device
    )  # here: in the handler the error still holds what the attempt held
    half = len(batch[0]) // 2
    return prove_mixed_precision(model, (batch[0][:half], batch[1][:half]), precision)


def _compare_with_fp32(model: nn.Module, batch: Batch, precision: str) -> str | None:
    modes, before = (
        [(module, module.training) for module in model.modules()],
        [p.grad for p in model.parameters()],
    )
    device = next(model.parameters()).device
    results = []
    model.eval()
    try:
        with preserved_generators(device):
            for name, scale in (
                ("fp32", 1.0),
                (precision, PROOF_SCALE if precision == "fp16" else 1.0),
            ):
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


def pick_precision(config: Config, device: torch.device) -> str:
    """Return fp32, bf16 or fp16: what `mixed_precision` and `precision_dtype` mean on this machine."""
    settings = config.training
    if not settings.mixed_precision:
        return "fp32"
    if settings.precision_dtype != "auto":
        if settings.precision_dtype == "fp16" and device.type == "cpu":
            logger.warning(
                "precision_dtype fp16 on a CPU is about 1000 times slower than fp32; bf16 is the CPU's fast type"
            )
        return settings.precision_dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "fp16"
    d_hid = config.model.d_hid or 4 * config.model.d_model
    gain = bf16_gain(config.model.d_model, d_hid)
    if gain < 1:
        logger.warning(
            "mixed precision is off: bf16 runs at %.2g x the speed of fp32 on this CPU, so fp32 is used",
            gain,
        )
        return "fp32"
    logger.info(
        "mixed precision: bf16 matrix products run at %.1f x the speed of fp32 on this CPU", gain
    )
    return "bf16"
