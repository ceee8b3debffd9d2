"""What one optimizer step computes: the gradient of the mean loss over its tokens, then the update.

Gradients are checked before they are used. A step that runs out of memory, or whose recomputation
differs, is done again.
"""

import logging
import math
import statistics

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from chatgot.config import SpikeConfig
from chatgot.errors import OutOfMemory
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.optim import lr_at, set_lr
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.run.modes import give_up_gradient_checkpointing
from chatgot.run.run_state import BadStep
from chatgot.training.batch_size import shrink

logger = logging.getLogger(__name__)

# a loss is bad above this many times the larger of ln V and the best step's loss
DIVERGED_FACTOR = 3.0
NORMAL_DEVIATION = 1.4826  # sigma over the median absolute deviation, for normal noise
LEAST_DEVIATION = 1e-3  # of the median: below it a spike would be no more than noise


def set_learning_rate(run: Run) -> None:
    """Set the learning rate of the step to come; it depends on the step alone."""
    settings = run.config.training
    progress = run.state.progress
    progress.lr = lr_at(progress.global_step, settings, run.decay_steps)
    set_lr(run.optimizer, progress.lr, settings)


def compute_gradients(run: Run) -> Tensor:
    """Run forward and backward of all micro-batches; return the step's loss, () on the device.

    The loss is not synchronised. An attempt that runs out of memory is made again with a smaller
    micro-batch; one in which a recomputation differs, without gradient checkpointing. Nothing is
    left of the failed attempt.
    Raises: OutOfMemory when the micro-batch cannot get smaller.
    """
    run.steps_here += 1
    loss = None
    while loss is None:
        with run.times.of("forward_backward"):
            loss = _attempt(run)
    return loss


def _attempt(run: Run) -> Tensor | None:
    """Add up the gradients of the step's micro-batches; return None when it is to be done again."""
    state = run.state
    windows = run.train_windows
    position = state.progress.position
    out_of_memory = False
    try:
        starts = windows.starts(position, run.config.training.sequences_per_step)
        key = (run.config.seed, position)
        with autocast(run.device, state.modes.precision):
            return add_gradients(
                run.model, windows, starts, state.micro_batch.size, key, run.scaler.scale
            )
    except CheckpointError as error:
        give_up_gradient_checkpointing(run.model, state, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    # only now: inside the handler, the exception's traceback keeps the tensors alive
    run.model.zero_grad(set_to_none=True)
    run.scaler.begin()
    if out_of_memory:
        release_memory(windows.device)
        shrink(run)
    return None


def update_weights(run: Run, loss: Tensor) -> bool:
    """Clip the gradients and update the weights; skip that where loss or norm is not finite.

    Counts the step either way: a skipped step uses up its data as well. Synchronises with the
    device once. Returns whether the weights were updated.
    Raises: OutOfMemory, before the step is counted.
    """
    with run.times.of("update"):
        return _update(run, loss)


def _update(run: Run, loss: Tensor) -> bool:
    settings = run.config.training
    scaler = run.scaler
    progress = run.state.progress
    try:
        scaler.unscale_(run.optimizer)
        norm_value, loss_value = scaler.read(loss)
        healthy = bool(scaler.healthy)
        calibrating = scaler.calibrating
        if healthy and settings.grad_clip is not None:
            norm = scaler.gradient_norm()
            nn.utils.clip_grads_with_norm_(run.model.parameters(), settings.grad_clip, norm)
        scaler.step(run.optimizer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _out_of_memory_in_update(run) from error
    if not healthy:
        progress.skipped_steps += 1
        run.state.health.skips += 1
        _log_skip(run, loss_value, norm_value, calibrating)
    scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    progress.global_step += 1
    if not calibrating:
        judge_step(run, loss_value, norm_value, healthy)
    progress.advance()
    progress.tokens += settings.tokens_per_step(run.config.model)
    progress.train_loss = loss_value
    progress.grad_norm = norm_value
    return healthy


def _out_of_memory_in_update(run: Run) -> OutOfMemory:
    """Return the error; it says whether a weight has been changed already.

    The optimizer counts each parameter's updates before it changes the parameter.
    """
    progress = run.state.progress
    updates = progress.global_step - progress.skipped_steps
    unchanged = all(int(state["step"]) == updates for state in run.optimizer.state.values())
    damage = "" if unchanged else ", and the weights are half updated: resume from a checkpoint"
    return OutOfMemory(
        f"step {progress.global_step + 1}: out of memory in the update of the weights{damage}\n"
        "free some memory, or use a smaller model",
        unchanged,
    )


def _log_skip(run: Run, loss: float, norm: float, calibrating: bool) -> None:
    progress = run.state.progress
    precision = run.state.modes.precision
    scale = run.scaler.get_scale()
    logger.warning(
        "step %d skipped: loss %g, gradient norm %g, data position %d, %s, loss scale %g%s",
        progress.global_step + 1,
        loss,
        norm,
        progress.position,
        precision,
        scale,
        ", which is still being calibrated" if calibrating else "",
        extra=event(
            "skip",
            step=progress.global_step + 1,
            position=progress.position,
            loss=loss,
            grad_norm=norm,
            precision=precision,
            loss_scale=scale,
            calibrating=calibrating,
        ),
    )


def judge_step(run: Run, loss: float, norm: float, healthy: bool) -> None:
    """Count the step just done as good, or as one more bad one in a row.

    Bad is what is not finite, far too high, or a spike.
    """
    health = run.state.health
    progress = run.state.progress
    spike = run.config.training.safety.spike
    problem = "not finite"
    if healthy:
        problem = _problem_of_loss(run, loss)
    if not problem:
        health.bad_steps = []
        health.bad_before_rung = 0
        health.good_steps += 1
        health.best_train_loss = min(health.best_train_loss, loss)
        if spike.enabled:
            health.recent_losses = [*health.recent_losses, loss][-spike.window :]
        return
    health.good_steps = 0
    bad_step = BadStep(
        step=progress.global_step, position=progress.position, loss=loss, grad_norm=norm
    )
    health.bad_steps = [*health.bad_steps, bad_step]
    if healthy:
        logger.warning(
            "step %d: loss %g is %s, data position %d",
            progress.global_step,
            loss,
            problem,
            progress.position,
            extra=event("warning", loss=loss, position=progress.position),
        )


def _problem_of_loss(run: Run, loss: float) -> str:
    """Return what is wrong with a finite loss; empty: nothing."""
    health = run.state.health
    guessing = math.log(run.model.vocab_size)  # the loss of knowing nothing, in nats
    best = loss
    if math.isfinite(health.best_train_loss):
        best = health.best_train_loss
    if loss > DIVERGED_FACTOR * max(guessing, best):
        return "far too high"
    if is_spike(loss, health.recent_losses, run.config.training.safety.spike):
        return "a spike, far above the recent ones"
    return ""


def is_spike(loss: float, recent: list[float], spike: SpikeConfig) -> bool:
    """Return whether a loss is far above the recent ones, by their median absolute deviation."""
    if not spike.enabled or len(recent) < spike.window:
        return False
    median = statistics.median(recent)
    deviation = NORMAL_DEVIATION * statistics.median(abs(value - median) for value in recent)
    return loss > median + spike.threshold * max(deviation, LEAST_DEVIATION * median)
