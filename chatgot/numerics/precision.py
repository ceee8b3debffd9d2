"""Which precision computes forward and loss: proven before it is trusted, lowered when it fails."""

import logging
import math
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from chatgot.config import Config
from chatgot.data.windows import Batch
from chatgot.logs.events import event
from chatgot.logs.waiting import waiting
from chatgot.machine.device import DTYPES, preserved_generators
from chatgot.machine.measured import bf16_gain
from chatgot.machine.memory import is_out_of_memory, release_memory

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]

# How far the loss may be from fp32's, relative to it, and the least cosine of the gradients.
MAX_LOSS_DIFFERENCE = 0.01
MIN_COSINE = 0.99
# Largest difference of one gradient computed in two ways that is rounding, relative to the norm.
GRADIENT_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
PROOF_SCALE = 1024.0  # the loss times this, so that small fp16 gradients do not vanish


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which forward and loss run: autocast for bf16 and fp16, else none."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def prove_mixed_precision(model: nn.Module, batch: Batch, precision: str) -> str | None:
    """Compare this precision with fp32 on one micro-batch, dropout off; return what is wrong.

    None: it is as good as fp32. Gradients, modes and generators are left as they were. If memory
    runs out, half of the micro-batch is tried.
    """
    x, y = batch
    try:
        return _compare_with_fp32(model, batch, precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(x) == 1:
            raise
    # outside of the handler, where the error still holds the attempt's memory
    release_memory(x.device)
    half = len(x) // 2
    return prove_mixed_precision(model, (x[:half], y[:half]), precision)


def _compare_with_fp32(model: nn.Module, batch: Batch, precision: str) -> str | None:
    modules = list(model.modules())
    modes = [module.training for module in modules]
    gradients = [p.grad for p in model.parameters()]
    scale = PROOF_SCALE if precision == "fp16" else 1.0
    model.eval()
    try:
        with (
            preserved_generators(next(model.parameters()).device),
            waiting(f"proving that {precision} is close to fp32"),
        ):
            fp32_loss, expected = _loss_and_gradients(model, batch, "fp32", 1.0)
            loss, found = _loss_and_gradients(model, batch, precision, scale)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    difference = abs(loss - fp32_loss) / max(abs(fp32_loss), 1e-12)
    cosine = _cosine(expected, found)
    if difference <= MAX_LOSS_DIFFERENCE and cosine >= MIN_COSINE:  # false for NaN
        logger.info(
            "mixed precision: %s is close to fp32: loss %.2g %% off, cosine of the gradients %.5f",
            precision,
            100 * difference,
            cosine,
            extra=event(
                "choice",
                what="precision",
                chosen=precision,
                measured={"loss_difference": difference, "gradient_cosine": cosine},
            ),
        )
        return None
    return f"loss {loss:g}, in fp32 {fp32_loss:g}; cosine of the gradients {cosine:.4f}"


def _loss_and_gradients(
    model: nn.Module, batch: Batch, precision: str, scale: float
) -> tuple[float, list[Tensor]]:
    """Return the loss, and the gradients of all parameters that have one; changes the model's.

    They are on the host: a card would have to hold those of both passes at once.
    """
    model.zero_grad(set_to_none=True)
    with autocast(next(model.parameters()).device, precision):
        _, loss = model(*batch)
        (loss * scale).backward()
    return loss.item(), [(p.grad / scale).cpu() for p in model.parameters() if p.grad is not None]


def _cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the cosine of the angle between two vectors in pieces.

    Summed in Python floats: torch's own cosine is 0.3 % off over 14 M numbers.
    """

    def dot(a: list[Tensor], b: list[Tensor]) -> float:
        return sum((x * y).sum().item() for x, y in zip(a, b, strict=True))

    return dot(a, b) / math.sqrt(max(dot(a, a) * dot(b, b), 1e-300))


def next_lower(precision: str, device: torch.device) -> Precision:
    """Return the rung below: fp16 -> bf16 (where the device has it) -> fp32."""
    if precision != "fp16":
        return "fp32"
    has_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    return "bf16" if has_bf16 else "fp32"


def pick_precision(config: Config, device: torch.device) -> Precision:
    """Return fp32, bf16 or fp16: what the two precision keys mean on this machine."""
    settings = config.training
    if not settings.mixed_precision:
        return "fp32"
    if settings.precision_dtype != "auto":
        if settings.precision_dtype == "fp16" and device.type == "cpu":
            logger.warning(
                "precision_dtype fp16 on a CPU is about 1000 times slower than fp32; "
                "bf16 is the CPU's fast type"
            )
        return settings.precision_dtype
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "fp16"
    d_hid = config.model.d_hid or 4 * config.model.d_model
    with waiting("measuring how fast bf16 is"):
        gain = bf16_gain(config.model.d_model, d_hid)
    if gain < 1:
        logger.warning(
            "mixed precision is off: bf16 runs at %.2g x the speed of fp32 on this CPU, "
            "so fp32 is used",
            gain,
            extra=_choice("fp32", gain),
        )
        return "fp32"
    logger.info(
        "mixed precision: bf16 matrix products run at %.1f x the speed of fp32 on this CPU",
        gain,
        extra=_choice("bf16", gain),
    )
    return "bf16"


def _choice(precision: Precision, bf16_gain: float) -> dict[str, object]:
    return event("choice", what="precision", chosen=precision, measured={"bf16_gain": bf16_gain})
