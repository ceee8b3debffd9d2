"""Training windows from shards: in the order that (seed, position) gives, fetched when needed.

Letters: S sequences of one optimizer step, T `max_seq_length`.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from chatgot.data.shards.order import WindowOrder
from chatgot.data.shards.reading import BlockReader
from chatgot.data.vocabulary import Ids
from chatgot.data.windows import Starts, TrainingWindows, Windows


class ShardWindows(TrainingWindows):
    """Training windows of a text that is larger than this machine; see order.py for their order.

    `ids` is only the head of the training part, for what has to look at some of the text.

    sequences: S.
    """

    outside_vocabulary = "a shard holds ids outside its vocabulary: make the shards again"

    def __init__(  # noqa: PLR0913 what windows are made of
        self,
        reader: BlockReader,
        head: Ids,
        *,
        T: int,
        vocab_size: int,
        device: torch.device,
        seed: int,
        sequences: int,
    ) -> None:
        # not TrainingWindows' own: its epochs have an order that is stored
        Windows.__init__(self, head, T, vocab_size, device)
        self.seed = seed
        self._reader = reader
        blocks = reader.blocks
        self._window_order = WindowOrder(blocks.tokens, blocks.block_tokens, T, sequences, seed)
        self.per_epoch = self._window_order.per_epoch

    @property
    def n_tokens(self) -> int:
        return self._reader.blocks.tokens

    def starts(self, position: int, sequences: int) -> Starts:
        """Return the starts of the step at `position`; blocks of earlier rounds are let go."""
        self._reader.begin(self._window_order.round_of(position * sequences))
        return super().starts(position, sequences)

    def starts_of(self, index: NDArray[np.int64]) -> Starts:
        return self._window_order.starts_of(index)

    def _windows_at(self, starts: Starts, length: int) -> NDArray[np.int64]:
        return self._reader.windows(starts, length)
