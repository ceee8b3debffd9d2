"""How well the model predicts held-out text."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from chatgot.data.windows import NOT_LEARNED, Batch
from chatgot.distributed.ranks import Ranks
from chatgot.errors import OutOfMemory
from chatgot.logs.waiting import Advance, waiting
from chatgot.machine.memory import is_out_of_memory, release_memory
from chatgot.model.gpt import evaluating
from chatgot.numerics.precision import autocast
from chatgot.run.assembly import Run
from chatgot.run.run_state import Plateau
from chatgot.stopping import Stopped
from chatgot.training.plateau import BlockLoss, after_evaluation, blocks_of
from chatgot.training.polling import FailedElsewhere, Polls

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


class Measured(NamedTuple):
    """A loss in nats per token, and (loss, targets) of each batch; empty: memory ran out."""

    loss: float
    batches: list[BlockLoss]


class Evaluation(NamedTuple):
    """What one evaluation has found; nothing of it is in the run's state yet.

    full_loss: over every validation token; None: the run goes on.
    plateau: what the next evaluation is compared with.
    by_source: the loss of each source; empty: the text is measured as one whole.
    """

    loss: float
    full_loss: float | None
    plateau: Plateau
    by_source: dict[str, float]


class Readings:
    """The numbers that each batch gives: read after the last one, so that a card is not waited for.

    On a CPU they are read at once. A small tensor, kept where the logits were, would leave too
    little room there for the next ones: memory would grow by them with every batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._reads_at_once = device.type == "cpu"
        self._read: list[float] = []
        self._on_card: list[Tensor] = []

    def add(self, number: Tensor) -> None:
        """Take a number of the next batch, ()."""
        if self._reads_at_once:
            self._read.append(number.item())
        else:
            self._on_card.append(number)

    def read(self) -> list[float]:
        """Return the numbers of all batches; synchronises with a card."""
        if self._on_card:
            self._read += torch.stack(self._on_card).tolist()
            self._on_card.clear()
        return self._read


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
    stopped: Stopped,
) -> Measured | None:
    """Return the mean loss in nats per token over all targets of `batches`; None when stopped.

    Targets that are not learned from do not count.

    Leaves the training's generators, mode and gradients as they are.
    """
    losses = Readings(device)
    targets = Readings(device)
    with evaluating(model), autocast(device, precision):
        for x, y in batches:
            if stopped():
                return None
            _, loss = model(x, y)
            losses.add(loss)
            targets.add((y != NOT_LEARNED).sum())
        return _mean(list(zip(losses.read(), map(int, targets.read()), strict=True)))


def _mean(batches: list[BlockLoss]) -> Measured:
    """Return the mean loss over all targets of batches, added up in their order."""
    total = 0.0
    for mean_loss, targets in batches:
        total += mean_loss * targets
    return Measured(total / sum(targets for _, targets in batches), batches)


class Turns:
    """Deals batches out to ranks: each gets as many, and takes one in each round.

    Where the last round has too few batches, its last one is taken by several ranks, and counts
    once.
    """

    def __init__(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        self._batches = batches
        self._ranks = ranks
        self._count = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's batches."""
        batches = iter(self._batches)
        while turn := list(islice(batches, self._ranks.size)):
            self._count += len(turn)
            yield turn[min(self._ranks.rank, len(turn) - 1)]

    def together(self, own: Measured) -> Measured:
        """Return the loss of all batches from this rank's: the numbers of one process alone.

        To be called after all own batches have been measured, by every rank.
        """
        rounds = zip(*self._ranks.all(own.batches), strict=True)
        return _mean([batch for turn in rounds for batch in turn][: self._count])


def measure_held_out(run: Run, stopped: Stopped) -> Evaluation | None:
    """Return the losses over eval_batches and, at the end of the run, over every validation token.

    None when stopped. An evaluation may itself end the run, if it is not better than those before.
    Where each source has a loss of its own, both losses are the sums of those, weighted by the
    sources' shares.
    """
    settings = run.config.training
    is_full = settings.eval_batches == "all"
    found = _every_token(run, run.model, stopped) if is_full else _some_batches(run, stopped)
    if found is None:
        return None
    plateau = after_evaluation(settings, run.state, _blocks(run, found))
    full_loss = None
    if run.end_reason(plateau) is not None:
        full = found if is_full else _every_token(run, run.model, stopped)
        if full is None:
            return None
        full_loss = full.loss
    return Evaluation(found.loss, full_loss, plateau, found.by_source)


def full_loss_of(run: Run, model: nn.Module, stopped: Stopped) -> float | None:
    """Return a model's loss over every validation token of a run; None when stopped."""
    found = _every_token(run, model, stopped)
    return None if found is None else found.loss


class _Losses(NamedTuple):
    """A loss, those of its batches where the text is one whole, and those of the sources."""

    loss: float
    batches: list[BlockLoss]
    by_source: dict[str, float]


def _blocks(run: Run, found: _Losses) -> list[BlockLoss]:
    """Return what is compared with other evaluations, block by block."""
    if run.held_out:  # the batches of the sources count for more or less than their targets
        return [(found.loss, 1)]
    return blocks_of(found.batches)


def _every_token(run: Run, model: nn.Module, stopped: Stopped) -> _Losses | None:
    if run.held_out:
        return _of_sources(run, model, stopped, every_token=True)
    windows = run.val_windows
    words = "evaluating every validation token"
    tokens = len(windows.ids) - 1
    return _whole(
        _evaluate_halving_batches(
            run, model, windows.every_token, stopped, words=words, tokens=tokens
        )
    )


def _some_batches(run: Run, stopped: Stopped) -> _Losses | None:
    if run.held_out:
        return _of_sources(run, run.model, stopped, every_token=False)
    settings = run.config.training
    assert settings.eval_batches != "all"
    windows = run.val_windows
    sequences = settings.eval_batches * settings.batch_size
    tokens = sequences * windows.T
    spread = partial(windows.spread, sequences)
    return _whole(
        _evaluate_halving_batches(
            run, run.model, spread, stopped, words="evaluating", tokens=tokens
        )
    )


def _whole(measured: Measured | None) -> _Losses | None:
    return None if measured is None else _Losses(*measured, {})


def _of_sources(
    run: Run, model: nn.Module, stopped: Stopped, *, every_token: bool
) -> _Losses | None:
    """Return the loss of all sources, and of each: NaN where not even one sequence fits."""
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
        found = _evaluate_halving_batches(run, model, batches, stopped, words=words, tokens=tokens)
        if found is None:
            return None
        losses[source.name] = found.loss
    return _Losses(_weighted(run, losses), [], losses)


def _weighted(run: Run, losses: Mapping[str, float]) -> float:
    """Return the loss of all sources; what has no share in training does not count."""
    parts = [source.weight * losses[source.name] for source in run.held_out if source.weight]
    return math.fsum(parts)


def _evaluate_halving_batches(
    run: Run,
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    stopped: Stopped,
    *,
    words: str,
    tokens: int,
) -> Measured | None:
    """Evaluate a model (see halving_batches).

    Returns a loss of NaN when not even one sequence fits, None when stopped.
    """
    turns = Turns((), run.ranks)

    def measure(batches: Iterable[Batch]) -> Measured | None:
        nonlocal turns
        turns = Turns(batches, run.ranks)
        return evaluate(model, turns, run.device, run.state.modes.precision, stopped)

    nothing = Measured(math.nan, [])
    own = halving_batches(run, batches, measure, nothing, words=words, tokens=tokens)
    if own is None or not own.batches:
        return own
    return turns.together(own)


def halving_batches(
    run: Run,
    batches: Callable[[int], Iterable[Batch]],
    measure: Callable[[Iterable[Batch]], Found | None],
    nothing: Found | None,
    *,
    words: str,
    tokens: int,
) -> Found | None:
    """Return what `measure` does; halve the batches when memory runs out, from now on.

    The training's micro-batch stays as it is: other sizes fit there. When one rank's memory runs
    out, all halve them. While they measure, the ranks of a group agree on a signal.

    batches: returns the same windows in batches of a given size.
    nothing: is returned when not even one sequence fits.
    words, tokens: what a wait shows, and how many tokens there are at most.
    Raises: OutOfMemory where ranks keep parts of the weights: the others wait for this one's part.
    """
    micro_batch = run.state.micro_batch
    step = run.state.progress.global_step
    while True:
        found = None
        failed = False
        polls = Polls(run.ranks)
        try:
            with waiting(words, tokens) as advance:
                found = measure(_counted(batches(micro_batch.eval_size), advance, polls))
        except FailedElsewhere:
            failed = True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed and run.ranks.is_sharded:
            raise _no_memory_for_parts(micro_batch.eval_size, step)
        if not polls.failed(failed):
            return found
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


def _no_memory_for_parts(size: int, step: int) -> OutOfMemory:
    """Return the error of a rank that the others wait for."""
    return OutOfMemory(
        f"evaluation at step {step}: out of memory with {size} sequences at once\n"
        "set a smaller training.batch_size (and raise accumulate_grad_batches)",
        unchanged=True,
        of_one_rank=True,
    )


def _counted(batches: Iterable[Batch], advance: Advance, polls: Polls) -> Iterator[Batch]:
    """Yield the batches; tell `advance` the tokens of each one when the next is asked for.

    Each rank asks for all of them, in the same order, so they may stop before the same one.
    """
    for x, y in batches:
        polls.before_piece()
        yield x, y
        advance(y.numel())
