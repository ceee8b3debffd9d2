"""Text -> token ids -> (x, y), as a pure function of (seed, position).

Letters: S sequences of one optimizer step, B sequences at once, T `max_seq_length`, N tokens of the
training part.

The training text is cut into windows of T inputs (and the T targets one further on). Each epoch
draws one offset in [0, T), lays a grid of starts `offset + i * T` over the text, and visits each
start once, in a random order. An epoch has (N - 1) // T - 1 windows, which fit at every offset:
every epoch has the same number, and the stream of sequences is the plain concatenation of the
epochs' orders. Offset and order are drawn from (seed, epoch) alone, so step k needs no state and no
worker: position k takes sequences [k * S, (k + 1) * S).
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatgot.config import Config
from chatgot.data.lengths import is_long_enough, least_length
from chatgot.data.lengths import split_index as split_index
from chatgot.data.vocabulary import Ids, Kind, Vocabulary
from chatgot.errors import ConfigError

Batch = tuple[Tensor, Tensor]  # x (B, T) and y (B, T), int64
Starts = NDArray[np.int64]  # where windows begin in the text

PROMPT_TOKENS = 1 << 16  # where in a text a prompt is looked for


def check_length(n_tokens: int, config: Config, text_path: Path, kind: Kind = "characters") -> None:
    """Refuse a text that does not hold one batch of training windows and one validation window.

    Raises: ConfigError with the tokens found and needed.
    """
    T = config.model.max_seq_length
    batch_size = config.training.batch_size
    test_split = config.data.test_split
    if is_long_enough(n_tokens, T, batch_size, test_split):
        return
    needed = least_length(T, batch_size, test_split)
    raise ConfigError(
        f"{text_path}: {n_tokens} {kind}, at least {needed} are needed for one batch "
        f"(batch_size {batch_size}, max_seq_length {T}, test_split {test_split}); "
        "use a longer text or lower those"
    )


class Windows:
    """The (x, y) windows of one part of a text; its only state is a stop-watch."""

    def __init__(self, ids: Ids, T: int, vocab_size: int, device: torch.device) -> None:
        self.ids = ids
        self.T = T
        self.vocab_size = vocab_size
        self.device = device
        self.seconds = 0.0  # that making batches took since `take_s`

    def batch(self, starts: Starts, length: int | None = None) -> Batch:
        """Return x, y, both (len(starts), length or T), for the windows that begin at `starts`."""
        started = time.perf_counter()
        span = np.arange((length or self.T) + 1)
        window = torch.from_numpy(self.ids[starts[:, None] + span].astype(np.int64))  # (B, T + 1)
        if int(window.max()) >= self.vocab_size:
            raise ConfigError(
                "the token cache holds ids outside the vocabulary: delete the folder of paths.cache"
            )
        window = window.to(self.device, non_blocking=True)
        self.seconds += time.perf_counter() - started
        return window[:, :-1], window[:, 1:]

    def take_s(self) -> float:
        """Return the seconds that making batches took since the last call."""
        seconds = self.seconds
        self.seconds = 0.0
        return seconds


class TrainingWindows(Windows):
    """Training windows in the order that (seed, position) gives; see the top of this file."""

    def __init__(self, ids: Ids, T: int, vocab_size: int, device: torch.device, seed: int) -> None:
        super().__init__(ids, T, vocab_size, device)
        self.seed = seed
        self.per_epoch = (len(ids) - 1) // T - 1
        # Two: a step may reach over the edge of an epoch
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> Starts:
        """Return the starts of one epoch's windows in the order of their use, (per_epoch,)."""
        generator = np.random.default_rng([self.seed, epoch])
        offset = int(generator.integers(self.T))
        return generator.permutation(self.per_epoch) * self.T + offset

    def starts(self, position: int, sequences: int) -> Starts:
        """Return the starts of the windows that form the step at `position`, (sequences,)."""
        index = np.arange(position * sequences, (position + 1) * sequences)
        epochs = index // self.per_epoch
        places = index % self.per_epoch
        return np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def epoch(self, position: int, sequences: int) -> int:
        return position * sequences // self.per_epoch


class ValidationWindows(Windows):
    """Held-out windows, always the same ones in the same order."""

    def spread(self, windows: int, batch_size: int) -> Iterator[Batch]:
        """Yield at most `windows` windows, evenly spread, not overlapping, `batch_size` at once."""
        count = min(windows, (len(self.ids) - 1) // self.T)
        starts = np.linspace(0, len(self.ids) - 1 - self.T, count).round().astype(np.int64)
        for i in range(0, count, batch_size):
            yield self.batch(starts[i : i + batch_size])

    def every_token(self, batch_size: int) -> Iterator[Batch]:
        """Yield adjacent windows in which each token but the first is a target exactly once.

        The last window may be shorter than T.
        """
        whole, rest = divmod(len(self.ids) - 1, self.T)
        starts = np.arange(whole) * self.T
        for i in range(0, whole, batch_size):
            yield self.batch(starts[i : i + batch_size])
        if rest:
            yield self.batch(np.array([whole * self.T]), rest)


def line_start(ids: Ids, vocabulary: Vocabulary, seed: int, length: int = 64) -> str:
    """Return up to `length` characters of a text from the start of a line that `seed` picks.

    They end with a whole line where there is one, and with their document: the end-of-text token is
    neither shown nor passed.
    """
    head = ids[:PROMPT_TOKENS]
    ends = np.flatnonzero(head == vocabulary.end_of_text_id)
    documents = [vocabulary.decode(part.tolist()) for part in np.split(head, ends)]
    lines = [(text, start) for text in documents for start in _line_starts(text)]
    # Without such a line, the longest document: another may be empty
    text, start = lines[seed % len(lines)] if lines else (max(documents, key=len), 0)
    prompt = text[start : start + length]
    whole_lines = prompt.rfind("\n") + 1
    return prompt[:whole_lines] if whole_lines > 1 else prompt


def _line_starts(text: str) -> list[int]:
    """Return where each line of a text starts, but for the first line and empty ones."""
    return [i + 1 for i in range(len(text) - 1) if text[i] == "\n" and text[i + 1] != "\n"]
