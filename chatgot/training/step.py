"""What one optimizer step computes: the gradient of the mean loss over all its tokens, checked before it is used."""

import logging
import math
import statistics

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import CheckpointError

from chatgot.config import Config
from chatgot.data.windows import TrainingWindows
from chatgot.errors import OutOfMemory
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.numerics.accumulation import add_gradients
from chatgot.numerics.grad_scaler import SafeGradScaler
from chatgot.numerics.precision import autocast
from chatgot.run.modes import give_up_recomputation
from chatgot.run.run_state import RunState
from chatgot.training.batch_size import shrink

logger = logging.getLogger(__name__)

DIVERGED_FACTOR = (
    3.0  # a loss above this many times that of guessing, or the best so far, is no noise any more
)


def accumulate_gradients(
    model: nn.Module,
    windows: TrainingWindows,
    run: RunState,
    config: Config,
    scaler: SafeGradScaler,
) -> Tensor | None:
    """Add up the gradients of this step's micro-batches; return the step's loss, () on the device, not synchronised.

    Returns None when the step is to be done again, and nothing is left of the attempt: a recomputation differed, and
    gradient checkpointing is off now; or memory ran out, and `run.micro_batch_size` is smaller now.
    Raises: OutOfMemory when it cannot get smaller.
    """
    key, out_of_memory = (config.seed, run.position), False
    try:
        starts = windows.starts(run.position, config.training.sequences_per_step)
        with autocast(windows.device, run.precision):
            return add_gradients(model, windows, starts, run.micro_batch_size, key, scaler.scale)
    except CheckpointError as error:
        give_up_recomputation(model, run, error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    model.zero_grad(
        set_to_none=True
    )  # from here on: the error, which held what the attempt held, is gone
    scaler.begin()
    if out_of_memory:
        release_memory(windows.device)
        shrink(run, config, model)
    return None


def apply_gradients(
    total: Tensor,
    model: nn.Module,
    optimizer: Optimizer,
    run: RunState,
    config: Config,
    scaler: SafeGradScaler,
) -> bool:
    """Clip the gradients and update the weights, unless loss or norm is not finite; return whether it was done.

    Counts the step either way: the data of a skipped step is not used again. One synchronisation with the device.
    Raises: OutOfMemory, before the step is counted.
    """
    training = config.training
    try:
        scaler.unscale_(optimizer)
        norm_value, loss_value = scaler.read(total)
        healthy, calibrating = scaler.healthy, scaler.calibrating
        if healthy and training.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(
                model.parameters(), training.grad_clip, scaler.gradient_norm()
            )
        scaler.step(optimizer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        updates = (
            run.global_step - run.skipped_steps
        )  # the optimizer counts each parameter's before it changes it
        unchanged = all(int(state["step"]) == updates for state in optimizer.state.values())
        what = (
            ""
            if unchanged
            else ", and the weights are half updated: resume from the newest checkpoint"
        )
        message = f"step {run.global_step + 1}: out of memory in the update of the weights{what}"
        raise OutOfMemory(
            f"{message}\nfree some memory, or use a smaller model", unchanged
        ) from error
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


def judge(
    run: RunState, loss: float, norm: float, healthy: bool, config: Config, vocab_size: int
) -> None:
    """Count the step just done as good, or as one more bad one in a row: not finite, far too high, or a spike."""
    guessing = math.log(vocab_size)  # the loss of knowing nothing, in nats
    limit = DIVERGED_FACTOR * max(
        guessing, run.best_train_loss if math.isfinite(run.best_train_loss) else loss
    )
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
        logger.warning(
            "step %d: loss %g is far too high, data position %d",
            run.global_step,
            loss,
            run.position,
        )


def is_spike(loss: float, recent: list[float], config: Config) -> bool:
    """Return whether a loss stands out of the recent ones, by their median and its absolute deviation."""
    spike = config.training.spike
    if not spike.enabled or len(recent) < spike.window:
        return False
    median = statistics.median(recent)
    deviation = 1.4826 * statistics.median(
        abs(value - median) for value in recent
    )  # sigma, for normal noise
    return loss > median + spike.threshold * max(deviation, 1e-3 * median)
