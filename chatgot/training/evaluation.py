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
from chatgot.run.assembly import Training

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stopped: Callable[[], bool],
) -> float | None:
    """Return the mean loss in nats per token over all tokens of `batches`; None when `stopped` says so in between.

    Leaves the training's generators, mode and gradients as they are.
    """
    total, tokens = 0.0, 0
    with evaluating(model), autocast(device, precision):
        for x, y in batches:
            if stopped():
                return None
            _, loss = model(x, y)
            total += loss.item() * y.numel()
            tokens += y.numel()
    return total / tokens


def validation_losses(
    training: Training, stopped: Callable[[], bool]
) -> tuple[float | None, float | None]:
    """Return the loss on the configuration's batches, and that over every token where it is due: at the end of a run.

    Both are of no use once `stopped` says so.
    """
    windows, settings = training.val_windows, training.config.training
    everything = settings.eval_batches == "all"
    full = (
        _in_memory(training, windows.every_token, stopped)
        if training.ended() or everything
        else None
    )
    if everything:
        return full, full if training.ended() else None
    spread = partial(windows.spread, settings.eval_batches * settings.batch_size)
    return _in_memory(training, spread, stopped), full


def _in_memory(
    training: Training, batches: Callable[[int], Iterable[Batch]], stopped: Callable[[], bool]
) -> float | None:
    """Return what `evaluate` finds, with batches that fit: halved when memory runs out, and kept so from then on.

    batches: gives the same windows in batches of the size it is asked for. NaN when not even one sequence fits; the
    training's micro-batch is left alone, since it is another matter what fits there.
    """
    run = training.run
    while True:
        try:
            return evaluate(
                training.model,
                batches(run.eval_batch_size),
                training.device,
                run.precision,
                stopped,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(
            training.device
        )  # here: in the handler the error still holds what the attempt held
        if run.eval_batch_size == 1:
            logger.warning(
                "evaluation at step %d: out of memory at one sequence, training goes on",
                run.global_step,
            )
            return math.nan
        logger.warning(
            "evaluation at step %d: out of memory at %d sequences, %d are taken from now on",
            run.global_step, run.eval_batch_size, run.eval_batch_size // 2,
        )  # fmt: skip
        run.eval_batch_size //= 2
