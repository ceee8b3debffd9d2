"""What one optimizer step computes: the gradient of the mean loss over all its tokens, checked before it is used."""

import logging
import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from chatgot.config import Config
from chatgot.data import TrainingWindows
from chatgot.device import DTYPES, seed_generators
from chatgot.optim import gradient_norm
from chatgot.run_state import RunState

logger = logging.getLogger(__name__)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Return the context in which forward and loss run: autocast for bf16 and fp16, nothing for fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def accumulate_gradients(
    model: nn.Module, windows: TrainingWindows, run: RunState, config: Config, scaler: GradScaler
) -> Tensor:
    """Add up the gradients of this step's micro-batches; return the step's loss, () on the device, not synchronised.

    Each micro-batch's loss counts by its share of the step's tokens, so the sum is the mean over all of them, however
    they are cut. The global generator is set for each micro-batch by (seed, position, first sequence) alone.
    """
    S = config.training.sequences_per_step
    starts = windows.starts(run.position, S)
    total = torch.zeros((), device=windows.device)
    with autocast(windows.device, run.precision):  # one context: weights are cast once for all micro-batches
        for first in range(0, S, run.micro_batch_size):
            x, y = windows.batch(starts[first : first + run.micro_batch_size])
            seed_generators(windows.device, config.seed, run.position, first)
            _, loss = model(x, y)
            share = loss * (len(x) / S)  # all sequences have T tokens
            scaler.scale(share).backward()
            total += share.detach()
    return total


def apply_gradients(
    total: Tensor, model: nn.Module, optimizer: Optimizer, run: RunState, config: Config, scaler: GradScaler
) -> bool:
    """Clip the gradients and update the weights, unless loss or norm is not finite; return whether it was done.

    Counts the step either way: the data of a skipped step is not used again. One synchronisation with the device.
    """
    scaler.unscale_(optimizer)
    norm = gradient_norm(model)
    loss_value, norm_value = torch.stack((total.float(), norm.float())).tolist()
    healthy = math.isfinite(loss_value) and math.isfinite(norm_value)
    if healthy:
        if config.training.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(model.parameters(), config.training.grad_clip, norm)
        scaler.step(optimizer)
        scaler.update()
        run.nan_counter = 0
    else:
        run.skipped_steps += 1
        scale = scaler.get_scale() if scaler.is_enabled() else 1.0
        if scaler.is_enabled():  # also for finite gradients whose norm overflows, which the scaler itself does not see
            scaler.update(scale * scaler.get_backoff_factor())
        if not (math.isfinite(loss_value) and scale > 1.0):  # else an fp16 scale that is still finding its height
            run.nan_counter += 1
        logger.warning(
            "step %d skipped: loss %g, gradient norm %g, data position %d, %s, %d in a row",
            run.global_step + 1, loss_value, norm_value, run.position, run.precision, run.nan_counter,
        )  # fmt: skip
    optimizer.zero_grad(set_to_none=True)
    run.global_step += 1
    run.position += 1
    run.tokens += config.training.tokens_per_step(config.model)
    run.train_loss, run.grad_norm = loss_value, norm_value
    return healthy
