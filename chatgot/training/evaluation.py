"""How well the model predicts held-out text."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

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

Measured = TypeVar("Measured")


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
    Where each source has a loss of its own, both are the sum of those, weighted by the sources'
    shares. Side effect: those losses go into `run.state.marks`.
    """
    if run.held_out:
        return _losses_of_sources(run, stopped)
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


def _losses_of_sources(run: Run, stopped: Stopped) -> tuple[float | None, float | None]:
    """Return (val_loss, val_loss_full) of all sources, and note the loss of each."""
    settings = run.config.training
    is_full = settings.eval_batches == "all"
    some = full = None
    if not is_full:
        some = _by_source(run, stopped, every_token=False)
    if is_full or run.ended():
        full = _by_source(run, stopped, every_token=True)
    by_source = full if some is None else some
    if stopped() or by_source is None:
        return None, None
    marks = run.state.marks
    marks.loss_by_source = by_source
    marks.first_loss_by_source = marks.first_loss_by_source or by_source
    shown_full = _weighted(run, full) if full is not None and run.ended() else None
    return _weighted(run, by_source), shown_full


def _by_source(run: Run, stopped: Stopped, *, every_token: bool) -> dict[str, float] | None:
    """Return the loss of each source, NaN where not even one sequence fits; None when stopped."""
    settings = run.config.training
    losses = {}
    for source in run.held_out:
        windows = source.windows
        batches = windows.every_token
        tokens = len(windows.ids) - 1
        if not every_token:
            assert settings.eval_batches != "all"
            # evenly: each source's own loss is measured equally well
            each = -(-settings.eval_batches * settings.batch_size // len(run.held_out))
            batches = partial(windows.spread, each)
            tokens = each * windows.T
        words = f"evaluating {source.name}"
        loss = _evaluate_halving_batches(run, batches, stopped, words=words, tokens=tokens)
        if loss is None:
            return None
        losses[source.name] = loss
    return losses


def _weighted(run: Run, losses: Mapping[str, float]) -> float:
    """Return the loss of all sources; what has no share in training does not count."""
    parts = [source.weight * losses[source.name] for source in run.held_out if source.weight]
    return math.fsum(parts)


def _evaluate_halving_batches(
    run: Run,
    batches: Callable[[int], Iterable[Batch]],
    stopped: Stopped,
    *,
    words: str,
    tokens: int,
) -> float | None:
    """Evaluate the run's model (see halving_batches).

    Returns NaN when not even one sequence fits, None when stopped.
    """

    def measure(batches: Iterable[Batch]) -> float | None:
        return evaluate(run.model, batches, run.device, run.state.modes.precision, stopped)

    return halving_batches(run, batches, measure, math.nan, words=words, tokens=tokens)


def halving_batches(
    run: Run,
    batches: Callable[[int], Iterable[Batch]],
    measure: Callable[[Iterable[Batch]], Measured | None],
    nothing: Measured | None,
    *,
    words: str,
    tokens: int,
) -> Measured | None:
    """Return what `measure` does; halve the batches when memory runs out, from now on.

    The training's micro-batch stays as it is: other sizes fit there.

    batches: returns the same windows in batches of a given size.
    nothing: is returned when not even one sequence fits.
    words, tokens: what a wait shows, and how many tokens there are at most.
    """
    micro_batch = run.state.micro_batch
    step = run.state.progress.global_step
    while True:
        try:
            with waiting(words, tokens) as advance:
                return measure(_counted(batches(micro_batch.eval_size), advance))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # only now: inside the handler, the exception's traceback keeps the tensors alive
        release_memory(run.device)
        if micro_batch.eval_size == 1:
            logger.warning(
                "evaluation at step %d: out of memory with one sequence, training goes on", step
            )
            return nothing
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
