"""Whether held-out text is still predicted better: evaluations compared beyond their own noise.

Every evaluation measures the same batches, so what counts is the difference of each batch: most of
an evaluation's noise is in all of them and cancels out.
"""

import math
from collections.abc import Sequence

from chatgot.config import TrainingConfig
from chatgot.run.run_state import MOST_BLOCKS, Plateau, RunState

BlockLoss = tuple[float, int]  # loss in nats per token, number of targets


def blocks_of(batches: Sequence[BlockLoss]) -> list[BlockLoss]:
    """Return the losses of at most MOST_BLOCKS blocks of adjacent batches, about equally many."""
    blocks: list[BlockLoss] = []
    count = min(MOST_BLOCKS, len(batches))
    for i in range(count):
        first = i * len(batches) // count
        end = (i + 1) * len(batches) // count
        block = batches[first:end]
        targets = sum(n for _, n in block)
        blocks.append((sum(loss * n for loss, n in block) / targets, targets))
    return blocks


def mean_of(blocks: Sequence[BlockLoss]) -> float:
    """Return the loss of all blocks, in nats per token; NaN: there is none."""
    if not blocks:
        return math.nan
    return sum(loss * n for loss, n in blocks) / sum(n for _, n in blocks)


def difference(now: Sequence[BlockLoss], before: Sequence[BlockLoss]) -> tuple[float, float | None]:
    """Return by how much the loss differs, and the standard error of that; below 0: it is lower.

    The standard error is that of a mean of paired differences, weighted by the targets. None: one
    block alone tells nothing about noise.
    """
    weights = [n for _, n in before]
    total = sum(weights)
    each = [loss - old for (loss, _), (old, _) in zip(now, before, strict=True)]
    mean = sum(n * d for n, d in zip(weights, each, strict=True)) / total
    count = len(each)
    if count == 1:
        return mean, None
    squares = sum((n * (d - mean)) ** 2 for n, d in zip(weights, each, strict=True))
    return mean, math.sqrt(squares * count / (count - 1)) / total


def after_evaluation(
    settings: TrainingConfig, state: RunState, blocks: Sequence[BlockLoss]
) -> Plateau:
    """Return what the next evaluation is compared with, after one of the present weights.

    A better evaluation is the new reference. Many small gains add up against an older reference,
    so that a run which still gets better goes on. Losses that could not be measured are not better.
    Other batches than before cannot be compared: the count begins anew.
    """
    if settings.stop_when_no_better is None:
        return Plateau()
    step = state.progress.global_step
    before = state.plateau
    is_measured = bool(blocks) and all(math.isfinite(loss) for loss, _ in blocks)
    if not is_measured:
        trained = 1 if step else 0  # nothing can be learnt before the first step
        return before.model_copy(update={"no_better": before.no_better + trained})
    anew = Plateau(reference=list(blocks), reference_step=step)
    if [n for _, n in blocks] != [n for _, n in before.reference]:
        return anew
    mean, noise = difference(blocks, before.reference)
    if mean < -(noise or 0.0):
        return anew.model_copy(update={"noise": noise})
    return before.model_copy(update={"no_better": before.no_better + 1, "noise": noise})
