"""Text -> token ids -> (x, y), as a pure function of (seed, position).

Letters: S sequences of one optimizer step, B sequences at once, T `max_seq_length`, N tokens of the
training part.

The training text is cut into windows of T inputs (and the T targets one further on). Each epoch
draws one offset in [0, T), lays a grid of starts `offset + i * T` over the text, and visits each
start once, in a random order. An epoch has (N - 1) // T - 1 windows, which fit at every offset:
every epoch has the same number, and the stream of sequences is the plain concatenation of the
epochs' orders. Offset and order are drawn from (seed, epoch) alone, so step k needs no state and no
worker: position k takes sequences [k * S, (k + 1) * S).

With `data.learn_from`, only windows with a target to learn from are visited. How many there are
differs a little from offset to offset: each epoch takes as many as the poorest offset has, and
leaves the last few of its order out. So no micro-batch is without such a target.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatgot.config import Config
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.lengths import is_long_enough, least_length, parts_are_long_enough
from chatgot.data.lengths import split_index as split_index
from chatgot.data.vocabulary import Ids, Kind, Vocabulary
from chatgot.errors import ConfigError

Batch = tuple[Tensor, Tensor]  # x (B, T) and y (B, T), int64
Starts = NDArray[np.int64]  # where windows begin in the text

PROMPT_TOKENS = 1 << 16  # where in a text a prompt is looked for
NOT_LEARNED = -100  # such a target is left out of the loss: cross_entropy's ignore_index
MOST_OFFSETS = 256  # of an epoch's grid, with `data.learn_from`: each one's windows are counted


def check_length(
    n_tokens: int,
    config: Config,
    text_path: Path,
    kind: Kind = "characters",
    n_train: int | None = None,
) -> None:
    """Refuse a text that does not hold one batch of training windows and one validation window.

    n_train: the tokens of the training part; None: `data.test_split` says.
    Raises: ConfigError with the tokens found and needed.
    """
    T = config.model.max_seq_length
    batch_size = config.training.batch_size
    test_split = config.data.test_split
    train = split_index(n_tokens, test_split) if n_train is None else n_train
    if parts_are_long_enough(train, n_tokens - train, T, batch_size):
        return
    advice = "use a longer text or lower those"
    if config.data.tokenizer == "bpe":
        advice += ", or set data.tokenizer=char"
    if is_long_enough(n_tokens, T, batch_size, test_split):  # but its parts are other ones
        raise ConfigError(
            f"{text_path}: its parts for training and validation have {train} and "
            f"{n_tokens - train} {kind}, at least {(batch_size + 1) * T + 1} and {T + 1} are "
            f"needed for one batch (batch_size {batch_size}, max_seq_length {T}); {advice}"
        )
    needed = least_length(T, batch_size, test_split)
    raise ConfigError(
        f"{text_path}: {n_tokens} {kind}, at least {needed} are needed for one batch "
        f"(batch_size {batch_size}, max_seq_length {T}, test_split {test_split}); {advice}"
    )


class Windows:
    """The (x, y) windows of one part of a text; its only state is a stop-watch.

    learned: the tokens to learn from; None: all.
    """

    outside_vocabulary: ClassVar[str] = (
        "the token cache holds ids outside the vocabulary: delete the folder of paths.cache"
    )

    def __init__(
        self,
        ids: Ids,
        T: int,
        vocab_size: int,
        device: torch.device,
        learned: LearnedTokens | None = None,
    ) -> None:
        self.ids = ids
        self.T = T
        self.vocab_size = vocab_size
        self.device = device
        self.learned = learned
        self.seconds = 0.0  # that making batches took since `take_s`

    @property
    def n_tokens(self) -> int:
        """Return how many tokens the part has."""
        return len(self.ids)

    def batch(self, starts: Starts, length: int | None = None) -> Batch:
        """Return x, y, both (len(starts), length or T), for the windows that begin at `starts`.

        A target that is not learned from is NOT_LEARNED.
        """
        started = time.perf_counter()
        span = np.arange((length or self.T) + 1)
        window = torch.from_numpy(self._windows_at(starts, len(span)))  # (B, T + 1)
        if int(window.max()) >= self.vocab_size:
            raise ConfigError(self.outside_vocabulary)
        window = self._send(window)
        x = window[:, :-1]
        y = window[:, 1:]
        if self.learned is not None:
            left_out = ~self.learned.contain(starts[:, None] + span[1:])
            y = y.masked_fill(self._send(torch.from_numpy(left_out)), NOT_LEARNED)
        self.seconds += time.perf_counter() - started
        return x, y

    def _windows_at(self, starts: Starts, length: int) -> NDArray[np.int64]:
        """Return the ids from each start on, (len(starts), length)."""
        ids: NDArray[np.int64] = self.ids[starts[:, None] + np.arange(length)].astype(np.int64)
        return ids

    def _send(self, host: Tensor) -> Tensor:
        """Return a tensor of the host on the device; a card's copy goes on after the return.

        Only pinned memory is copied without waiting. Each batch has a block of its own: torch
        gives it to no other tensor before the copy has ended, even if nothing refers to it.
        Source: torch's CachingHostAllocator, which records an event for each copy.
        """
        if self.device.type == "cuda":
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)

    def targets(self, starts: Starts) -> NDArray[np.int64]:
        """Return how many targets of each window are learned from, (len(starts),)."""
        if self.learned is None:
            return np.full(len(starts), self.T)
        return self.learned.in_windows(starts, self.T)

    def take_s(self) -> float:
        """Return the seconds that making batches took since the last call."""
        seconds = self.seconds
        self.seconds = 0.0
        return seconds


class TrainingWindows(Windows):
    """Training windows in the order that (seed, position) gives; see the top of this file."""

    def __init__(
        self,
        ids: Ids,
        T: int,
        vocab_size: int,
        device: torch.device,
        seed: int,
        learned: LearnedTokens | None = None,
    ) -> None:
        super().__init__(ids, T, vocab_size, device, learned)
        self.seed = seed
        self.per_epoch = (len(ids) - 1) // T - 1
        self._offsets = np.arange(T)
        if learned is not None:
            self._offsets, self.per_epoch = self._learned_epochs()
        # Two: a step may reach over the edge of an epoch
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> Starts:
        """Return the starts of one epoch's windows in the order of their use, (per_epoch,)."""
        generator = np.random.default_rng([self.seed, epoch])
        offset = int(self._offsets[generator.integers(len(self._offsets))])
        if self.learned is None:
            return generator.permutation(self.per_epoch) * self.T + offset
        return generator.permutation(self._learned_grid(offset))[: self.per_epoch]

    def _learned_grid(self, offset: int) -> Starts:
        """Return the starts of a grid's windows in which there is something to learn."""
        starts = np.arange(offset, len(self.ids) - self.T, self.T)
        return starts[self.targets(starts) > 0]

    def _learned_epochs(self) -> tuple[NDArray[np.int64], int]:
        """Return the offsets that epochs may draw, and how many windows each epoch has."""
        offsets = np.linspace(0, self.T - 1, min(self.T, MOST_OFFSETS)).round().astype(np.int64)
        # The first and the last target of the text are on the grid of one of these
        offsets = np.union1d(offsets, [0, (len(self.ids) - 1) % self.T])
        counts = np.array([len(self._learned_grid(int(offset))) for offset in offsets])
        return offsets[counts > 0], int(counts[counts > 0].min())

    def starts(self, position: int, sequences: int) -> Starts:
        """Return the starts of the windows that form the step at `position`, (sequences,)."""
        return self.starts_of(np.arange(position * sequences, (position + 1) * sequences))

    def starts_of(self, index: NDArray[np.int64]) -> Starts:
        """Return the starts of some sequences of the stream, which are counted from 0."""
        epochs = index // self.per_epoch
        places = index % self.per_epoch
        return np.array([self._order(int(e))[p] for e, p in zip(epochs, places, strict=True)])

    def epoch(self, position: int, sequences: int) -> int:
        return position * sequences // self.per_epoch


class ValidationWindows(Windows):
    """Held-out windows, always the same ones in the same order."""

    def spread(self, windows: int, batch_size: int) -> Iterator[Batch]:
        """Yield at most `windows` windows, evenly spread, not overlapping, `batch_size` at once."""
        if self.learned is not None:
            starts = self._starts_of_every_token()
            count = min(windows, len(starts))
            places = np.linspace(0, len(starts) - 1, count).round().astype(np.int64)
            yield from self._batches(starts[places], batch_size)
            return
        count = min(windows, (len(self.ids) - 1) // self.T)
        starts = np.linspace(0, len(self.ids) - 1 - self.T, count).round().astype(np.int64)
        yield from self._batches(starts, batch_size)

    def every_token(self, batch_size: int) -> Iterator[Batch]:
        """Yield adjacent windows in which each token but the first is a target exactly once.

        The last window may be shorter than T. Windows without a target to learn from are left out.
        """
        yield from self._batches(self._starts_of_every_token(), batch_size)

    def _starts_of_every_token(self) -> Starts:
        starts = np.arange(0, len(self.ids) - 1, self.T)
        return starts if self.learned is None else starts[self.targets(starts) > 0]

    def _batches(self, starts: Starts, batch_size: int) -> Iterator[Batch]:
        """Yield the windows at `starts`; the last may be shorter, and is then alone."""
        whole = int(np.searchsorted(starts, len(self.ids) - self.T))
        for i in range(0, whole, batch_size):
            yield self.batch(starts[i : min(i + batch_size, whole)])
        for start in starts[whole:]:
            yield self.batch(np.array([start]), len(self.ids) - 1 - int(start))


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
