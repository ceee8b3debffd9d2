"""How well the model predicts held-out text."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from chatgot.data.windows import NOT_LEARNED, Batch
from chatgot.logs.waiting import Advance, waiting
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.model.gpt import evaluating
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.stopping import Stopped

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stopped: Stopped,
) -> float | None:
    """Return the mean loss in nats per token over all targets of `batches`; None when stopped.

    Targets that are not learned from do not count.

    Leaves the training's generators, mode and gradients as they are. Synchronises with the device
    once, at the end.
    """
    losses: list[Tensor] = []
    counts: list[Tensor] = []  # of targets
    with evaluating(model), autocast(device, precision):
        for x, y in batches:
            if stopped():
                return None
            _, loss = model(x, y)
            losses.append(loss)
            counts.append((y != NOT_LEARNED).sum())
        read_losses: list[float] = torch.stack(losses).tolist()
        read_counts: list[int] = torch.stack(counts).tolist()
    total = 0.0
    for mean_loss, targets in zip(read_losses, read_counts, strict=True):
        total += mean_loss * targets
    return total / sum(read_counts)


def validation_losses(run: Run, stopped: Stopped) -> tuple[float | None, float | None]:
    """Return (val_loss, val_loss_full): over eval_batches, and over every validation token.

    The second is computed at the end of the run, else None. When stopped: ignore both.
    """
    windows = run.val_windows
    settings = run.config.training
    full_loss = None
    if run.ended() or settings.eval_batches == "all":
        full_loss = _evaluate_halving_batches(
            run,
            windows.every_token,
            stopped,
            words="evaluating every validation token",
            tokens=len(windows.ids) - 1,
        )
    if settings.eval_batches == "all":
        shown_full_loss = full_loss if run.ended() else None
        return full_loss, shown_full_loss
    sequences = settings.eval_batches * settings.batch_size
    spread = partial(windows.spread, sequences)
    loss = _evaluate_halving_batches(
        run, spread, stopped, words="evaluating", tokens=sequences * windows.T
    )
    return loss, full_loss


def _evaluate_halving_batches(
    run: Run,
    batches: Callable[[int], Iterable[Batch]],
    stopped: Stopped,
    *,
    words: str,
    tokens: int,
) -> float | None:
    """Evaluate; halve the batches when memory runs out, for all later evaluations too.

    The training's micro-batch stays as it is: other sizes fit there.

    batches: returns the same windows in batches of a given size.
    words, tokens: what a wait shows, and how many tokens there are at most.
    Returns NaN when not even one sequence fits, None when stopped.
    """
    micro_batch = run.state.micro_batch
    step = run.state.progress.global_step
    while True:
        try:
            with waiting(words, tokens) as advance:
                return evaluate(
                    run.model,
                    _counted(batches(micro_batch.eval_size), advance),
                    run.device,
                    run.state.modes.precision,
                    stopped,
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # only now: inside the handler, the exception's traceback keeps the tensors alive
        release_memory(run.device)
        if micro_batch.eval_size == 1:
            logger.warning(
                "evaluation at step %d: out of memory with one sequence, training goes on", step
            )
            return math.nan
        smaller = micro_batch.eval_size // 2
        logger.warning(
            "evaluation at step %d: out of memory with %d sequences at once; using %d from now on",
            step,
            micro_batch.eval_size,
            smaller,
        )
        micro_batch.eval_size = smaller


def _counted(batches: Iterable[Batch], advance: Advance) -> Iterator[Batch]:
    """Yield the batches; tell `advance` the tokens of each one when the next is asked for."""
    for x, y in batches:
        yield x, y
        advance(y.numel())
