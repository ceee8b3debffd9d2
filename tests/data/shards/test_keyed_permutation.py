"""A keyed permutation is a bijection, differs from key to key, and needs no memory for n."""

import tracemalloc

import numpy as np
import pytest

from chatgot.data.shards.keyed_permutation import LARGEST, KeyedPermutation


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 1000, 4095, 4096, 4097, 100_003])
def test_each_number_below_n_comes_exactly_once(n):
    order = KeyedPermutation(n, 7, "blocks")(np.arange(n))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_every_part_of_the_key_gives_another_order():
    keys = [(1,), (2,), (1, 0), (1, "a"), (1, "b"), ("1", "a", 0), (1, -1)]
    orders = {tuple(KeyedPermutation(1000, *key)(np.arange(1000)).tolist()) for key in keys}
    assert len(orders) == len(keys)


def test_each_tweak_is_a_bijection_of_its_own():
    n = 511
    permutation = KeyedPermutation(n, 3)
    places = np.tile(np.arange(n), 40)
    tweaks = np.repeat(np.arange(40), n)
    orders = permutation(places, tweaks).reshape(40, n)
    assert np.array_equal(np.sort(orders, axis=1), np.tile(np.arange(n), (40, 1)))
    assert len({tuple(order.tolist()) for order in orders}) == 40


def test_a_place_goes_to_the_same_number_in_any_chunk():
    permutation = KeyedPermutation(10_007, 5)
    whole = permutation(np.arange(10_007))
    parts = [permutation(np.arange(i, min(i + 997, 10_007))) for i in range(0, 10_007, 997)]
    assert np.array_equal(np.concatenate(parts), whole)
    some = np.array([[3, 9_999], [0, 3]])
    assert np.array_equal(permutation(some), whole[some])


def test_the_order_looks_random_to_the_usual_statistics():
    """Neither a trend, nor neighbours that stay near, nor a preferred place (chi-squared)."""
    n = 50_000
    order = KeyedPermutation(n, 11)(np.arange(n))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 5 / np.sqrt(n)
    assert abs(np.abs(np.diff(order)).mean() / n - 1 / 3) < 0.01
    table, _, _ = np.histogram2d(np.arange(n), order, bins=20)
    chi_squared = ((table - n / 400) ** 2 / (n / 400)).sum()
    assert abs(chi_squared - 361) < 5 * np.sqrt(2 * 361)


def test_all_orders_of_four_come_about_equally_often():
    """Also the smallest networks, of 2 bits, must not prefer an order."""
    counts: dict[tuple[int, ...], int] = {}
    for key in range(4800):
        order = tuple(KeyedPermutation(4, key)(np.arange(4)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert 140 < min(counts.values()) <= max(counts.values()) < 260


def test_the_largest_n_takes_no_more_memory_than_the_places():
    places = np.arange(LARGEST - 1000, LARGEST)
    tracemalloc.start()
    numbers = KeyedPermutation(LARGEST, 1)(places)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
    assert len(set(numbers.tolist())) == 1000
    assert numbers.min() >= 0
    assert numbers.max() < LARGEST
    assert numbers.max() > LARGEST // 2


def test_the_order_of_a_key_never_changes():
    """Else a resumed run would train on other windows."""
    assert KeyedPermutation(10, 1337, "blocks")(np.arange(10)).tolist() == [
        4,
        1,
        7,
        5,
        2,
        3,
        6,
        8,
        9,
        0,
    ]
