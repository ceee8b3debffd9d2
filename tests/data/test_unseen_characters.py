"""Characters that only the held-out part has are counted, unless they are too few to matter."""

import numpy as np
import pytest

from chatgot.data import unseen_characters
from chatgot.data.unseen_characters import unseen


def ids(*runs: tuple[int, int]) -> np.ndarray:
    """Return ids from (id, count)."""
    return np.concatenate([np.full(count, number, "<u2") for number, count in runs])


@pytest.mark.parametrize(
    ("train", "held_out", "expected"),
    [
        (((1, 90), (2, 10)), ((1, 5), (2, 5)), {}),
        (((1, 90),), ((1, 5), (7, 3), (3, 2)), {3: 2, 7: 3}),
        (((1, 90), (7, 1)), ((7, 10),), {}),
        (((1, 90),), ((1, 1999), (7, 1)), {}),
        (((1, 90),), ((1, 1998), (7, 2)), {7: 2}),
    ],
)
def test_only_characters_that_the_training_part_lacks_are_counted(train, held_out, expected):
    assert unseen(ids(*train), ids(*held_out)) == expected


def test_a_character_late_in_the_training_part_counts_as_seen(monkeypatch):
    monkeypatch.setattr(unseen_characters, "IDS_AT_ONCE", 7)
    assert unseen(ids((1, 20), (2, 1)), ids((2, 5), (3, 5))) == {3: 5}
