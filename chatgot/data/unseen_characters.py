"""Which characters of the held-out part the training part lacks: no model can predict those."""

import numpy as np

from chatgot.data.vocabulary import Ids

IDS_AT_ONCE = 1 << 20
LEAST_SHARE = 0.001  # of the held-out part; fewer of them hardly move the loss


def unseen(train: Ids, held_out: Ids) -> dict[int, int]:
    """Return {id: count} of the held-out tokens that the training part lacks, by id.

    Empty where they are fewer than LEAST_SHARE of the held-out part.
    """
    ids, counts = np.unique(held_out, return_counts=True)
    missing = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    for start in range(0, len(train), IDS_AT_ONCE):
        if not missing:  # the usual case: the first piece has them all
            break
        for found in np.unique(train[start : start + IDS_AT_ONCE]).tolist():
            missing.pop(found, None)
    is_many = sum(missing.values()) >= LEAST_SHARE * len(held_out)
    return missing if is_many else {}
