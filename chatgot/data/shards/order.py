"""Which window comes when, among blocks of tokens: a pure function of (seed, place in the stream).

Letters: S sequences of one optimizer step, B tokens of a block, T `max_seq_length`, F whole blocks.

The training part is F blocks of B tokens, and a shorter one at its end. A window lies within its
block, so reading a block gives all of its windows: (B - 1) // T. What they leave over, less than T
tokens of each block, lies before and behind them; each epoch draws how much of it for each block.

An epoch visits each window once. The blocks have a random order (see keyed_permutation.py), and are
dealt to the S slots of a step like cards, so many at a time that all slots together have at least
POOL of them: that is a round. In a round, a slot shuffles the windows of its own blocks. So each
step has windows from S blocks or more, and who computes some slots of each step, a rank, reads
only their blocks, each one once. It does not matter how many ranks there are.

When fewer blocks are left than a round has, each slot gets fewer of them; what is left when they
are fewer than S, and the short block, are shuffled as one whole at the end of the epoch. A text of
fewer than S blocks is just that: shuffled as one whole.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from chatgot.data.shards.keyed_permutation import KeyedPermutation, keys_of, mixed

Places = NDArray[np.int64]

POOL = 256  # blocks of a round, at least: with blocks of 1 MiB, 256 MiB over all ranks


class WindowOrder:
    """The order of the training windows; it holds nothing that grows with the text.

    tokens: of the training part. block_tokens: B. sequences: S.
    """

    def __init__(self, tokens: int, block_tokens: int, T: int, sequences: int, seed: int) -> None:
        self.T = T
        self.seed = seed
        self.block_tokens = block_tokens
        self.sequences = sequences
        self.whole_blocks = tokens // block_tokens
        self.last_tokens = tokens % block_tokens
        self.per_block = (block_tokens - 1) // T
        self.in_last = max(0, self.last_tokens - 1) // T
        self.per_epoch = self.whole_blocks * self.per_block + self.in_last
        self.per_slot = -(-POOL // sequences)  # blocks of a slot in a round
        in_round = sequences * self.per_slot
        self.rounds = self.whole_blocks // in_round
        self.short = self.whole_blocks % in_round // sequences  # blocks of a slot in the short one
        self.dealt = self.rounds * in_round + self.short * sequences  # blocks in all rounds
        # Two: a step may reach over the edge of an epoch
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def starts_of(self, index: Places) -> Places:
        """Return where some sequences of the stream begin in the training part, counted from 0."""
        starts = np.empty(len(index), np.int64)
        epochs = index // self.per_epoch
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            places = index[chosen] - epoch * self.per_epoch
            starts[chosen] = self._epoch(epoch).starts(places)
        return starts

    def round_of(self, index: int) -> tuple[int, int]:
        """Return the epoch and the round of a sequence; what is left over is a round, too."""
        epoch, place = divmod(index, self.per_epoch)
        if place >= self.dealt * self.per_block:
            return epoch, self.rounds + 1
        return epoch, place // (self.sequences * self.per_slot * self.per_block)

    def _draw_epoch(self, epoch: int) -> "_Epoch":
        return _Epoch(self, epoch)


class _Epoch:
    """The order of one epoch."""

    def __init__(self, order: WindowOrder, epoch: int) -> None:
        self._order = order
        self._key = (order.seed, epoch)
        self._offset_key = keys_of("offsets", *self._key)[0]
        self._blocks = KeyedPermutation(max(1, order.whole_blocks), "blocks", *self._key)
        left = order.per_epoch - order.dealt * order.per_block  # windows
        self._left = KeyedPermutation(max(1, left), "left", *self._key)

    def starts(self, places: Places) -> Places:
        """Return the starts of windows. places: in the epoch."""
        order = self._order
        numbers = np.empty(len(places), np.int64)  # of the block in the epoch's order
        windows = np.empty(len(places), np.int64)  # in the block
        in_rounds = order.rounds * order.sequences * order.per_slot * order.per_block
        dealt = order.dealt * order.per_block
        long_rounds = places < in_rounds
        short_round = (places >= in_rounds) & (places < dealt)
        left = places >= dealt
        for chosen, begin, per_slot in (
            (long_rounds, 0, order.per_slot),
            (short_round, in_rounds, order.short),
        ):
            if chosen.any():
                numbers[chosen], windows[chosen] = self._in_round(
                    places[chosen] - begin, begin // order.per_block, per_slot
                )
        if left.any():
            drawn = self._left(places[left] - dealt)
            numbers[left] = order.dealt + drawn // order.per_block
            windows[left] = drawn % order.per_block
        return self._starts_in(numbers, windows)

    def _in_round(self, places: Places, blocks_before: int, per_slot: int) -> tuple[Places, Places]:
        """Return block, by its place in the epoch's order, and window of some places in rounds.

        per_slot: blocks of a slot in each of these rounds.
        """
        order = self._order
        # a round is a whole number of steps, so a slot's place in its step moves from epoch to
        # epoch alone
        slots = places % order.sequences
        windows = per_slot * order.per_block  # of a slot in a round
        rounds = places // (windows * order.sequences)
        turns = places % (windows * order.sequences) // order.sequences  # of the slot
        shuffle = KeyedPermutation(windows, "slots", per_slot, *self._key)
        drawn = shuffle(turns, rounds * order.sequences + slots)
        dealt = (rounds * per_slot + drawn // order.per_block) * order.sequences + slots
        return blocks_before + dealt, drawn % order.per_block

    def _starts_in(self, numbers: Places, windows: Places) -> Places:
        """Return the starts of windows in blocks, which are named by their place in the order."""
        order = self._order
        blocks = numbers.copy()
        is_whole = numbers < order.whole_blocks
        blocks[is_whole] = self._blocks(numbers[is_whole])
        room = np.where(
            is_whole,
            order.block_tokens - 1 - order.per_block * order.T,
            order.last_tokens - 1 - order.in_last * order.T,
        )
        drawn = mixed(blocks.astype(np.uint64) + self._offset_key)
        offsets = (drawn % (room + 1).astype(np.uint64)).astype(np.int64)
        return blocks * order.block_tokens + offsets + windows * order.T
