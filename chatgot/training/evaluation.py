"""How well the model predicts held-out text."""

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import nn

from chatgot.data.windows import Batch
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.model.gpt import evaluating
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run

logger = logging.getLogger(__name__)

Stopped = Callable[[], bool]  # whether a signal has asked the run to stop


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stopped: Stopped,
) -> float | None:
    """Return the mean loss in nats per token over all tokens of `batches`; None when stopped.

    Leaves the training's generators, mode and gradients as they are.
    """
    total = 0.0
    tokens = 0
    with evaluating(model), autocast(device, precision):
        for x, y in batches:
            if stopped():
                return None
            _, loss = model(x, y)
            total += loss.item() * y.numel()
            tokens += y.numel()
    return total / tokens


def validation_losses(run: Run, stopped: Stopped) -> tuple[float | None, float | None]:
    """Return the loss on the configuration's batches, and that over every token where it is due.

    The latter is due at the end of a run. Both are of no use once `stopped` says so.
    """
    windows = run.val_windows
    settings = run.config.training
    full_loss = None
    if run.ended() or settings.eval_batches == "all":
        full_loss = _evaluate_in_memory(run, windows.every_token, stopped)
    if settings.eval_batches == "all":
        return full_loss, full_loss if run.ended() else None
    spread = partial(windows.spread, settings.eval_batches * settings.batch_size)
    return _evaluate_in_memory(run, spread, stopped), full_loss


def _evaluate_in_memory(
    run: Run, batches: Callable[[int], Iterable[Batch]], stopped: Stopped
) -> float | None:
    """Evaluate with batches that fit: halved when memory runs out, and kept so from then on.

    batches: gives the same windows in batches of the size it is asked for. Returns NaN when not
    even one sequence fits. The training's micro-batch is left alone: what fits there is another
    matter.
    """
    micro_batch = run.state.micro_batch
    step = run.state.progress.global_step
    while True:
        try:
            return evaluate(
                run.model,
                batches(micro_batch.eval_size),
                run.device,
                run.state.modes.precision,
                stopped,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(run.device)  # only here: in the handler the error still holds memory
        if micro_batch.eval_size == 1:
            logger.warning(
                "evaluation at step %d: out of memory at one sequence, training goes on", step
            )
            return math.nan
        smaller = micro_batch.eval_size // 2
        logger.warning(
            "evaluation at step %d: out of memory at %d sequences, %d are taken from now on",
            step,
            micro_batch.eval_size,
            smaller,
        )
        micro_batch.eval_size = smaller
