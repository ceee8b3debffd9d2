"""The keys and values that finished texts leave behind, for prompts that begin in the same way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MOST_TEXTS = 128  # each prompt is compared with all of them, which takes time between two tokens


@dataclass(eq=False)
class KeptText:
    """The tokens of a row, and its keys and values as `KeyValueCache.saved` gives them."""

    ids: NDArray[np.int64]
    saved: list[Tensor]


class KeptPrefixes:
    """Texts that may be the beginning of a later prompt; the ones unused for longest go first.

    most: how many tokens are kept altogether.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._texts: list[KeptText] = []  # the last used last

    def longest(self, ids: NDArray[np.int64]) -> tuple[int, KeptText | None]:
        """Return how many tokens of `ids` are kept, and the text that has them."""
        best: tuple[int, KeptText | None] = (0, None)
        for text in self._texts:
            length = common_length(text.ids, ids)
            if length > best[0]:
                best = (length, text)
        return best

    def use(self, text: KeptText) -> None:
        """Note that a text was used now."""
        self._texts.remove(text)
        self._texts.append(text)

    def has(self, ids: NDArray[np.int64]) -> bool:
        """Return whether all of `ids` are kept already."""
        return self.longest(ids)[0] == len(ids)

    def keep(self, ids: NDArray[np.int64], saved: list[Tensor]) -> None:
        """Keep a text; its own beginnings go, and the oldest ones where there are too many."""
        self._texts = [text for text in self._texts if common_length(text.ids, ids) < len(text.ids)]
        self._texts.append(KeptText(ids, saved))
        del self._texts[:-MOST_TEXTS]
        while self._texts and sum(len(text.ids) for text in self._texts) > self.most:
            del self._texts[0]


def common_length(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return how many tokens two texts have in common at their beginnings."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n


def as_ids(ids: Sequence[int]) -> NDArray[np.int64]:
    """Return ids as an array, (N,)."""
    return np.array(ids, dtype=np.int64)
