"""What one optimizer step computes: the gradient of the mean loss over all its tokens, checked before it is used."""

import logging
import math
import statistics

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import CheckpointError

from chatgot.config import Config
from chatgot.data import TrainingWindows
from chatgot.device import seed_generators
from chatgot.grad_scaler import SafeGradScaler
from chatgot.gradient_checkpointing import disable_gradient_checkpointing
from chatgot.precision import autocast
from chatgot.run_state import RunState

logger = logging.getLogger(__name__)

DIVERGED_FACTOR = 3.0  # a loss above this many times that of guessing, or the best so far, is no noise any more


def accumulate_gradients(
    model: nn.Module, windows: TrainingWindows, run: RunState, config: Config, scaler: SafeGradScaler
) -> Tensor | None:
    """Add up the gradients of this step's micro-batches; return the step's loss, () on the device, not synchronised.

    Each micro-batch's loss counts by its share of the step's tokens, so the sum is the mean over all of them, however
    they are cut. The global generator is set for each micro-batch by (seed, position, first sequence) alone.
    Returns None when a recomputation differed: gradient checkpointing is off then, and the step is to be done again.
    """
    S = config.training.sequences_per_step
    starts = windows.starts(run.position, S)
    total = torch.zeros((), device=windows.device)
    try:
        with autocast(windows.device, run.precision):  # one context: weights are cast once for all micro-batches
            for first in range(0, S, run.micro_batch_size):
                x, y = windows.batch(starts[first : first + run.micro_batch_size])
                seed_generators(windows.device, config.seed, run.position, first)
                _, loss = model(x, y)
                share = loss * (len(x) / S)  # all sequences have T tokens
                scaler.scale(share).backward()
                total += share.detach()
    except CheckpointError as error:
        disable_gradient_checkpointing(model)
        run.recompute_off = True
        model.zero_grad(set_to_none=True)
        scaler.begin()
        logger.warning(
            "step %d is done again without gradient checkpointing, which stays off: a recomputation differed (%s)",
            run.global_step + 1, str(error).strip().splitlines()[0],
        )  # fmt: skip
        return None
    return total


def apply_gradients(
    total: Tensor, model: nn.Module, optimizer: Optimizer, run: RunState, config: Config, scaler: SafeGradScaler
) -> bool:
    """Clip the gradients and update the weights, unless loss or norm is not finite; return whether it was done.

    Counts the step either way: the data of a skipped step is not used again. One synchronisation with the device.
    """
    training = config.training
    scaler.unscale_(optimizer)
    norm_value, loss_value = scaler.read(total)
    healthy, calibrating = scaler.healthy, scaler.calibrating
    if healthy and training.grad_clip is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), training.grad_clip, scaler.gradient_norm())
    scaler.step(optimizer)
    if not healthy:
        run.skipped_steps += 1
        run.skips += 1
        logger.warning(
            "step %d skipped: loss %g, gradient norm %g, data position %d, %s, loss scale %g%s",
            run.global_step + 1, loss_value, norm_value, run.position, run.precision, scaler.get_scale(),
            ", which is still finding its height" if calibrating else "",
        )  # fmt: skip
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    run.global_step += 1
    if not calibrating:
        judge(run, loss_value, norm_value, healthy, config, model.vocab_size)
    run.advance()
    run.tokens += training.tokens_per_step(config.model)
    run.train_loss, run.grad_norm = loss_value, norm_value
    return healthy


def judge(run: RunState, loss: float, norm: float, healthy: bool, config: Config, vocab_size: int) -> None:
    """Count the step just done as good, or as one more bad one in a row: not finite, far too high, or a spike."""
    guessing = math.log(vocab_size)  # the loss of knowing nothing, in nats
    limit = DIVERGED_FACTOR * max(guessing, run.best_train_loss if math.isfinite(run.best_train_loss) else loss)
    bad = not healthy or loss > limit or is_spike(loss, run.recent_losses, config)
    if not bad:
        run.bad_steps, run.bad_before_rung = [], 0
        run.good_steps += 1
        run.best_train_loss = min(run.best_train_loss, loss)
        if config.training.spike.enabled:
            run.recent_losses = [*run.recent_losses, loss][-config.training.spike.window :]
        return
    run.good_steps = 0
    run.bad_steps = [*run.bad_steps, [run.global_step, run.position, loss, norm]]
    if healthy:
        logger.warning("step %d: loss %g is far too high, data position %d", run.global_step, loss, run.position)


def is_spike(loss: float, recent: list[float], config: Config) -> bool:
    """Return whether a loss stands out of the recent ones, by their median and its absolute deviation."""
    spike = config.training.spike
    if not spike.enabled or len(recent) < spike.window:
        return False
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in recent)  # sigma, for normal noise
    return loss > median + spike.threshold * max(deviation, 1e-3 * median)
