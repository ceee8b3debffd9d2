"""One optimizer step: compute the gradient of the mean loss over its tokens, then update.

Gradients are checked before they are used. A step is repeated if it runs out of memory, or if
gradient checkpointing recomputes something else.
"""

import enum
import logging
import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from chatgot.config import SpikeConfig
from chatgot.errors import OutOfMemory, UserError
from chatgot.logs.events import event
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.optim import lr_at, set_lr
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.run.modes import give_up_gradient_checkpointing
from chatgot.run.run_state import BadStep
from chatgot.training.batch_size import memory_advice, shrink

logger = logging.getLogger(__name__)

# a loss is bad if it is above this factor x max(ln V, lowest loss so far)
DIVERGED_FACTOR = 3.0
NORMAL_DEVIATION = 1.4826  # standard deviation / median absolute deviation, for normal noise
LEAST_DEVIATION = 1e-3  # x median; with a smaller deviation, ordinary noise would be a spike


def set_learning_rate(run: Run) -> None:
    """Set the learning rate of the next step; step, settings and the decay's begin decide it."""
    settings = run.config.training
    progress = run.state.progress
    progress.lr = lr_at(progress.global_step, settings, run.decay_steps, run.decay)
    set_lr(run.optimizer, progress.lr, settings)


def compute_gradients(run: Run) -> Tensor:
    """Run forward and backward of all micro-batches; return the step's loss, () on the device.

    With teachers it is (3,): what is trained on, but for the later tokens, then its parts on the
    text and against the teachers.

    Does not synchronise with the device. After out of memory, the step is tried again with a
    smaller micro-batch. If a recomputation differs, it is tried again without gradient
    checkpointing. A failed attempt leaves nothing behind.
    Raises: OutOfMemory if the micro-batch cannot be made smaller; UserError where ranks keep parts
    of the weights and a recomputation differs.
    """
    run.steps_here += 1
    loss = None
    while loss is None:
        with run.times.of("forward_backward"):
            loss = _attempt(run)
    return loss


class _Failure(enum.IntEnum):
    """Why an attempt at a step failed; of those of several ranks, the largest one counts."""

    NONE = 0
    OTHER_RECOMPUTATION = 1
    OUT_OF_MEMORY = 2


def _attempt(run: Run) -> Tensor | None:
    """Add up the gradients of the step's micro-batches; return the loss, or None: try again.

    Each rank computes its share of the micro-batches. All ranks know that every share is whole
    before the gradients are added up: if one has failed, all try again.
    """
    loss, failure, reason = _add_own_share(run)
    if failure is not _Failure.NONE and run.ranks.is_sharded:
        raise _failure_of_parts(run, failure, reason)
    worst = _Failure(run.ranks.largest(failure))
    if worst is _Failure.NONE:
        assert loss is not None
        return _add_up_ranks(run, loss)
    # not inside a handler, where the exception's traceback would still hold the tensors
    run.model.zero_grad(set_to_none=True)
    run.scaler.begin()
    if worst is _Failure.OTHER_RECOMPUTATION:
        give_up_gradient_checkpointing(run.model, run.state, reason or "on another rank")
        return None
    if run.graphed is not None:
        run.graphed.release()
    release_memory(run.device)
    shrink(run)
    return None


def _failure_of_parts(run: Run, failure: _Failure, reason: str) -> UserError:
    """Return the error of a rank in whose pass the others wait for its parts of the weights.

    They cannot try the step again together: this rank ends, and the others with it.
    """
    if failure is _Failure.OUT_OF_MEMORY:
        return OutOfMemory(memory_advice(run), unchanged=True, of_one_rank=True)
    return UserError(
        f"step {run.state.progress.global_step + 1}: gradient checkpointing recomputes something "
        f"else on this rank: {reason}\nset training.gradient_checkpointing=false"
    )


def _add_own_share(run: Run) -> tuple[Tensor | None, _Failure, str]:
    """Add up the gradients of this rank's micro-batches.

    Returns the loss, or why there is none, and the error's words.
    """
    S = run.config.training.sequences_per_step
    firsts = run.ranks.share(range(0, S, run.state.micro_batch.size))
    try:
        loss = _add_parts(run, firsts) if run.ranks.is_sharded else _add(run, firsts)
    except CheckpointError as error:
        return None, _Failure.OTHER_RECOMPUTATION, str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, _Failure.OUT_OF_MEMORY, ""
    return loss, _Failure.NONE, ""


def _add(run: Run, firsts: Sequence[int]) -> Tensor:
    """Add up the gradients of the micro-batches that begin at these sequences."""
    state = run.state
    windows = run.train_windows
    position = state.progress.position
    starts = windows.starts(position, run.config.training.sequences_per_step)
    with autocast(run.device, state.modes.precision):
        return add_gradients(
            run.model,
            windows,
            starts,
            state.micro_batch.size,
            (run.config.seed, position),
            run.scaler.scale,
            run.graphed,
            run.teaching,
            firsts,
            run.config.training.input_noise,
            run.multi_token_weights,
        )


def _add_parts(run: Run, firsts: Sequence[int]) -> Tensor:
    """Add up gradients of which each rank keeps a part; the last backward pass sends them."""
    from chatgot.distributed.strategies import add_up_in_backward  # one process needs none of it

    loss = None
    run.ranks.begin_exchange()
    add_up_in_backward(run.model, False)
    if len(firsts) > 1:
        loss = _add(run, firsts[:-1])
    add_up_in_backward(run.model, True)
    last = _add(run, firsts[-1:])
    return last if loss is None else loss + last


def _add_up_ranks(run: Run, loss: Tensor) -> Tensor:
    """Add up the shares of all ranks; return the step's loss, which all ranks have then.

    A step is the smallest thing that is sent: until here no rank has waited for another.
    """
    if run.ranks.is_alone:
        return loss
    losses = torch.cat([loss.flatten(), run.scaler.bad_losses().to(loss.device).view(1)])
    gradients: list[Tensor] = []  # those of parts were added up in the last backward pass
    if not run.ranks.is_sharded:
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
    run.ranks.add_up([*gradients, losses])
    run.scaler.take_bad_losses(losses[-1])
    return losses[:-1].view_as(loss)


def update_weights(run: Run, loss: Tensor) -> bool:
    """Clip the gradients and update the weights; return whether the weights were updated.

    If the loss or the norm is not finite, the update is skipped. A skipped step counts, too: its
    data is used up. Synchronises with the device once.

    loss: as `compute_gradients` returns it.
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
        norm_value, loss_value, *parts = scaler.read(*loss.flatten())
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
    # with teachers: on the text alone, as the held-out loss is
    progress.train_loss = parts[0] if parts else loss_value
    progress.distillation_loss = parts[1] if parts else None
    progress.grad_norm = norm_value
    return healthy


def _out_of_memory_in_update(run: Run) -> OutOfMemory:
    """Return the error, which says whether weights have been changed already.

    The optimizer counts a parameter's update before it changes the parameter.
    """
    progress = run.state.progress
    updates = progress.global_step - progress.skipped_steps
    unchanged = all(int(state["step"]) == updates for state in run.optimizer.state.values())
    damage = "" if unchanged else ", and the weights are half updated: resume from a checkpoint"
    return OutOfMemory(
        f"step {progress.global_step + 1}: out of memory while updating the weights{damage}\n"
        "free some memory, or use a smaller model",
        unchanged,
        of_one_rank=True,
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
        " (still being calibrated)" if calibrating else "",
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
    """Count the last step as good, or as one more bad step in a row.

    A step is bad if it is not finite, or if its loss is far too high or a spike.
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
            "step %d: loss %g is %s; data position %d",
            progress.global_step,
            loss,
            problem,
            progress.position,
            extra=event("warning", loss=loss, position=progress.position),
        )


def _problem_of_loss(run: Run, loss: float) -> str:
    """Return the problem of a finite loss; empty: none."""
    health = run.state.health
    guessing = math.log(run.model.vocab_size)  # loss of a uniform guess, in nats
    if run.teaching is not None:
        guessing *= run.teaching.loss_scale
    best = loss
    if math.isfinite(health.best_train_loss):
        best = health.best_train_loss
    if loss > DIVERGED_FACTOR * max(guessing, best):
        return "far too high"
    if is_spike(loss, health.recent_losses, run.config.training.safety.spike):
        return "a spike, far above the recent losses"
    return ""


def is_spike(loss: float, recent: list[float], spike: SpikeConfig) -> bool:
    """Return whether a loss is far above the recent ones, in median absolute deviations."""
    if not spike.enabled or len(recent) < spike.window:
        return False
    median = statistics.median(recent)
    deviation = NORMAL_DEVIATION * statistics.median(abs(value - median) for value in recent)
    return loss > median + spike.threshold * max(deviation, LEAST_DEVIATION * median)
