"""How many bits does a model need for each byte of a text? That is comparable between vocabularies.

A loss in nats per token is not: a subword stands for more text than a character.
"""

import math

import numpy as np

from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.vocabulary import CHUNK, Ids, Vocabulary


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """Return a loss in nats per token as bits per byte."""
    return loss * tokens_per_byte / math.log(2)


def tokens_per_byte(
    ids: Ids, vocabulary: Vocabulary, learned: LearnedTokens | None = None
) -> float:
    """Return how many targets a part of a text has for each byte of theirs in UTF-8.

    The first token is no target, as nothing is before it. An end-of-text token has no byte.

    learned: the tokens that are learned from; None: all.
    """
    bytes_of = np.array([len(vocabulary.bytes_of(token)) for token in range(len(vocabulary))])
    targets = 0
    their_bytes = 0
    for start in range(1, len(ids), CHUNK):
        some = ids[start : start + CHUNK]
        if learned is not None:
            some = some[learned.contain(np.arange(start, start + len(some)))]
        targets += len(some)
        their_bytes += int(bytes_of[some].sum())
    return targets / max(1, their_bytes)
