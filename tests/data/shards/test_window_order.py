"""Each window comes once in an epoch, at a place that (seed, position) gives, on any rank.

Letters: S sequences of a step, B tokens of a block, T of a window, N of the training part.
"""

import itertools

import numpy as np
import pytest

from chatgot.data.shards.order import POOL, WindowOrder

SIZES = [
    # N, B, T, S
    (50_000, 64, 8, 3),  # many blocks: rounds of 86 blocks a slot
    (200_000, 64, 8, 300),  # one block a slot in a round
    (100_001, 100, 33, 7),
    (64 * 700, 64, 64 - 1, 5),  # one window a block, no short block
    (1_000, 4_096, 16, 4),  # the short block alone
    (64 * 10 + 2, 64, 8, 40),  # fewer blocks than slots
    (64 * 600, 64, 8, 1),
]


def epoch_of(order: WindowOrder, epoch: int) -> np.ndarray:
    first = epoch * order.per_epoch
    return order.starts_of(np.arange(first, first + order.per_epoch))


@pytest.mark.parametrize(("N", "B", "T", "S"), SIZES)
def test_an_epoch_visits_every_window_of_each_block_once(N, B, T, S):
    order = WindowOrder(N, B, T, S, seed=3)
    for epoch in range(3):
        starts = np.sort(epoch_of(order, epoch))
        assert np.all(np.diff(starts) >= T)  # none overlap, so none comes twice
        assert np.array_equal(starts // B, (starts + T) // B)  # targets are in the block, too
        assert starts[0] >= 0
        assert starts[-1] + T < N
        counts = np.bincount(starts // B, minlength=-(-N // B))
        whole = N // B
        assert set(counts[:whole].tolist()) <= {(B - 1) // T}
        assert counts[whole:].tolist() == ([max(0, N % B - 1) // T] if N % B else [])


@pytest.mark.parametrize(("N", "B", "T", "S"), SIZES)
def test_a_place_in_the_stream_does_not_depend_on_what_else_is_asked(N, B, T, S):
    order = WindowOrder(N, B, T, S, seed=3)
    stream = np.concatenate([epoch_of(order, epoch) for epoch in range(3)])
    some = np.random.default_rng(0).integers(len(stream), size=200)
    assert np.array_equal(WindowOrder(N, B, T, S, seed=3).starts_of(some), stream[some])


def test_each_seed_and_epoch_has_its_own_order_and_offsets():
    orders = [WindowOrder(5_000, 100, 7, 4, seed) for seed in (0, 1, 2**63 - 1)]
    epochs = [epoch_of(order, epoch) for order in orders for epoch in range(3)]
    assert len({tuple(starts.tolist()) for starts in epochs}) == 9
    first_of_block = [np.sort(starts[starts < 100])[0] for starts in epochs]
    assert len(set(first_of_block)) > 1
    assert all(0 <= first <= 99 - 14 * 7 for first in first_of_block)


def test_neighbours_in_the_stream_lie_far_apart_in_the_text():
    order = WindowOrder(10**9, 2**12, 32, 16, seed=1)
    starts = order.starts_of(np.arange(16 * 40)).reshape(40, 16)
    distances = np.abs(np.diff(starts, axis=1)) / 10**9
    assert abs(distances.mean() - 1 / 3) < 0.05


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("S", [4, 64, 512])
@pytest.mark.parametrize("ranks", [2, 4])
def test_each_rank_reads_blocks_that_no_other_rank_reads(S, ranks, epoch):
    """Over all whole steps of a round: each block is fetched once. Epoch 1 begins within a step."""
    B = 256
    T = 16
    order = WindowOrder(10**8, B, T, S, seed=5)
    assert order.per_epoch % S
    per_slot = -(-POOL // S)
    steps = per_slot * order.per_block - epoch
    first = -(-epoch * order.per_epoch // S) * S
    index = np.arange(first, first + steps * S)
    blocks = (order.starts_of(index) // B).reshape(steps, S)
    shares = np.split(blocks, ranks, axis=1)
    read = [set(share.ravel().tolist()) for share in shares]
    for one, other in itertools.combinations(read, 2):
        assert not one & other
    assert [len(each) for each in read] == [per_slot * S // ranks] * ranks
    assert len(set().union(*read)) >= POOL


def test_slots_and_rounds_shuffle_their_windows_differently():
    order = WindowOrder(10**8, 256, 16, 300, seed=5)
    per_round = 300 * order.per_block
    starts = order.starts_of(np.arange(2 * per_round)).reshape(2, order.per_block, 300)
    begins = starts.min(axis=1, keepdims=True)  # of each slot's only block
    orders = ((starts - begins) // 16).transpose(0, 2, 1).reshape(600, order.per_block)
    assert len({tuple(each.tolist()) for each in orders}) == 600


@pytest.mark.parametrize(("N", "B", "T", "S"), SIZES)
def test_a_block_has_all_its_windows_in_one_round(N, B, T, S):
    """So its reader can let it go with the round."""
    order = WindowOrder(N, B, T, S, seed=3)
    index = np.arange(2 * order.per_epoch)
    blocks = order.starts_of(index) // B
    found: dict[tuple[int, int], set] = {}
    for number, block in zip(index.tolist(), blocks.tolist(), strict=True):
        epoch, some_round = order.round_of(number)
        found.setdefault((epoch, block), set()).add(some_round)
    assert {len(rounds) for rounds in found.values()} == {1}


def test_an_order_that_ignores_the_slots_would_be_noticed():
    """The twin of the test above: one shuffle over all slots makes every rank read all blocks."""
    order = WindowOrder(10**8, 256, 16, 64, seed=5)
    index = np.random.default_rng(0).permutation(4 * order.per_block * 64)
    blocks = (order.starts_of(index) // 256).reshape(-1, 64)
    left, right = np.split(blocks, 2, axis=1)
    assert set(left.ravel().tolist()) & set(right.ravel().tolist())


def test_ten_terabytes_take_no_more_memory_than_ten_megabytes():
    small = WindowOrder(5 * 10**6, 2**19, 1024, 512, seed=1)
    large = WindowOrder(5 * 10**12, 2**19, 1024, 512, seed=1)
    last = large.per_epoch - 1
    starts = large.starts_of(np.array([0, last, last + 1]))
    assert starts.max() < 5 * 10**12
    assert small.starts_of(np.array([0])).shape == (1,)
    assert large.per_epoch * 1024 > 0.998 * 5 * 10**12  # what the ends of blocks leave out
