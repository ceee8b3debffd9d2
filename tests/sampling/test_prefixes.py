"""What finished texts leave behind stays bounded, in memory and in the time to look through it."""

import numpy as np

from chatgot.sampling.prefixes import MOST_TEXTS, KeptPrefixes


def text(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def test_many_short_texts_leave_only_the_newest():
    kept = KeptPrefixes(10**6)
    for first in range(2 * MOST_TEXTS):
        kept.keep(text(first, 1), [])
    assert not kept.has(text(MOST_TEXTS - 1, 1))
    assert all(kept.has(text(first, 1)) for first in range(MOST_TEXTS, 2 * MOST_TEXTS))


def test_few_long_texts_leave_no_more_tokens_than_allowed():
    kept = KeptPrefixes(10)
    for first in range(4):
        kept.keep(text(first, 1, 2, 3), [])
    assert [kept.has(text(first, 1, 2, 3)) for first in range(4)] == [False, False, True, True]
    kept.keep(text(*range(50, 61)), [])
    assert kept.longest(text(*range(50, 61))) == (0, None)
