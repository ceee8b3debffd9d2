"""How much do a run's samples copy from the training text? Measured after each sampling."""

import logging
from collections.abc import Sequence

from chatgot.logs.events import event
from chatgot.run.assembly import Run
from chatgot.sampling.originality import (
    LEAST_COPY,
    Originality,
    in_words,
    originality_of,
    originality_of_held_out,
)
from chatgot.sampling.suffix_index import SuffixIndex, index_of

logger = logging.getLogger(__name__)

MOST_BYTES = 32_000_000  # of the training text: its index is made while training waits, in 2 s


class CopiesInSamples:
    """Compares the samples with the training text. Best effort: training goes on if it fails.

    The text is indexed when there is something to compare: fresh weights copy nothing.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._index: SuffixIndex | None = None
        self._held_out: Originality | None = None
        self._failed = False

    def measure(self, texts: Sequence[str]) -> dict[str, float]:
        """Log what of the samples is copied; return the points of TensorBoard's curves."""
        run = self._run
        # of a text in shards only a little is at hand, which would say nothing of the rest
        can_be = run.config.sampling.originality and run.tokens.shards is None
        is_asked = can_be and run.state.progress.global_step > 0
        if not is_asked or self._failed or not any(texts):
            return {}
        try:
            index, held_out = self._prepared()
            measured = originality_of(texts, index)
        except Exception as error:  # noqa: BLE001 best effort: whatever fails, training goes on
            self._failed = True
            logger.warning("originality cannot be measured, training goes on: %r", error)
            return {}
        step = run.state.progress.global_step
        parts = "" if index.share == 1 else f", of which {100 * index.share:.0f} % is looked at"
        logger.info(
            "step %d | originality: samples: %s; held-out text: %s (copied: at least %d characters "
            "in a row of the training text%s)",
            step,
            in_words(measured),
            in_words(held_out),
            LEAST_COPY,
            parts,
            extra=event(
                "originality",
                copied_share=measured.share,
                longest_copy=measured.longest,
                copies=measured.copies,  # of each sample, in characters
                held_out_share=held_out.share,
                held_out_longest=held_out.longest,
                compared_share=index.share,
            ),
        )
        return {
            "samples/copied_share": measured.share,
            "samples/longest_copy": measured.longest,
        }

    def _prepared(self) -> tuple[SuffixIndex, Originality]:
        """Return the index of the training text, and what held-out text shares with that text."""
        if self._index is None or self._held_out is None:
            run = self._run
            n_train = run.tokens.training_length(run.config.data.test_split)
            index = index_of(run.tokens, n_train, MOST_BYTES)
            length = run.config.sampling.max_new_tokens
            self._held_out = originality_of_held_out(run.tokens, n_train, length, index)
            self._index = index
        return self._index, self._held_out
