"""How hard is a text? The bits per byte that a counted model of its characters needs, no training.

The model is an interpolated n-gram model with Kneser-Ney smoothing. What it needs for the held-out
part says beforehand about how far a trained model will get, since both learn from the same text.

Letters: N characters of a text, V different characters in the part that is learned from.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from chatgot.data.vocabulary import Ids, Vocabulary

ORDER = 6  # characters of the longest n-gram: more hardly lower the loss of a text of some MB
BITS_OF_A_KEY = 64  # an n-gram is one number: of many different characters, fewer fit into it
# Of a longer text, pieces are looked at that are spread evenly over the part.
MOST_LEARNED = 4_000_000  # characters to count
MOST_HELD_OUT = 200_000  # characters to predict
PIECES = 20
# The estimate of a discount is 0 where every n-gram comes often, and 1 where none comes twice: then
# nothing, or all, would be left to the shorter n-grams.
LEAST_DISCOUNT = 0.1
MOST_DISCOUNT = 0.9
# Stands for the end-of-text token, which has no byte; no text has this character
DOCUMENT_END = "\uffff"

Codes = NDArray[np.uint32]  # (N,) Unicode code points
Keys = NDArray[np.uint64]  # packed n-grams


@dataclass(frozen=True)
class Difficulty:
    """How hard a text is for a counted model.

    bits_per_byte: of the held-out part, in UTF-8.
    characters_per_byte: of the held-out part.
    learned: how many characters were counted.
    """

    bits_per_byte: float
    characters_per_byte: float
    learned: int


def difficulty(ids: Ids, n_train: int, vocabulary: Vocabulary) -> Difficulty:
    """Return how hard the held-out part of a text is, for what its training part teaches.

    It takes about a second and 200 MB for some megabytes; a longer text takes no more than one of
    MOST_LEARNED characters.

    ids: of the whole text; the first `n_train` are the training part.
    Raises: ValueError where a part has no character with a byte.
    """
    learned = _spread(ids[:n_train], vocabulary, MOST_LEARNED)
    held_out = _spread(ids[n_train:], vocabulary, MOST_HELD_OUT)
    bytes_held_out = _utf8_bytes(held_out)
    if not len(learned) or not bytes_held_out:
        raise ValueError("a part of the text has no character")
    bits = float(ngram_bits(learned, held_out).sum())
    per_byte = len(held_out) / bytes_held_out
    return Difficulty(bits / bytes_held_out, per_byte, len(learned))


def ngram_bits(learned: Codes, held_out: Codes, order: int = ORDER) -> NDArray[np.float64]:
    """Return what each held-out character costs in bits, (N,), by an n-gram model of `learned`.

    With h the n - 1 characters before c, and h' the same without the first of them:

        P(c | h) = (count(h c) - D) / count(h .) + D kinds(h .) / count(h .) P(c | h')

    count: how often the longest n-grams come; of a shorter one, how many different characters come
    before it. kinds: how many different characters come after h. D: n1 / (n1 + 2 n2), from the
    n-grams of this length that have the counts 1 and 2. An h that never came is left out. Below the
    single characters, each of the V characters is equally likely, and so is any unknown one.

    order: of the longest n-grams; they are shorter where V is so large that 64 bits hold fewer.
    Source: Kneser & Ney 1995, "Improved backing-off for m-gram language modeling"; interpolated, as
    in Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling"
    (Harvard TR-10-98), section 2.7.
    """
    alphabet = np.unique(learned)  # (V,)
    V = len(alphabet)
    bits = V.bit_length()  # the number V is that of an unknown character
    order = max(1, min(order, BITS_OF_A_KEY // bits, len(learned)))
    places = np.minimum(np.searchsorted(alphabet, held_out), V - 1)
    symbols = np.where(alphabet[places] == held_out, places, V)
    probability = np.full(len(held_out), 1 / (V + 1))
    for n, keys, counts in _levels(np.searchsorted(alphabet, learned), order, bits):
        if n <= len(held_out):
            wanted = _packed(symbols, n, bits)
            shorter = probability[n - 1 :]
            probability[n - 1 :] = _interpolated(keys, counts, wanted, shorter, bits)
    costs: NDArray[np.float64] = -np.log2(probability)
    return costs


def _levels(
    symbols: NDArray[np.int64], order: int, bits: int
) -> Iterator[tuple[int, Keys, NDArray[np.int64]]]:
    """Yield length, keys (ascending) and counts of the n-grams, the single characters first."""
    levels = [_counted(_packed(symbols, order, bits))]
    for n in range(order - 1, 0, -1):
        longer, _ = levels[-1]
        # each longer one once: so many different characters come before the shorter one
        levels.append(_counted(longer & np.uint64((1 << bits * n) - 1)))
    for n, (keys, counts) in enumerate(reversed(levels), start=1):
        yield n, keys, counts


def _interpolated(
    keys: Keys,
    counts: NDArray[np.int64],
    wanted: Keys,
    shorter: NDArray[np.float64],
    bits: int,
) -> NDArray[np.float64]:
    """Return the probability of the last character of each wanted n-gram.

    keys, counts: of the n-grams of this length. shorter: what those of one character less say.
    """
    once = int((counts == 1).sum())
    twice = int((counts == 2).sum())
    estimate = once / max(1, once + 2 * twice)
    discount = min(max(estimate, LEAST_DISCOUNT), MOST_DISCOUNT)
    contexts, first = _distinct(keys >> np.uint64(bits))
    after = np.add.reduceat(counts, first)
    kinds = np.diff(np.append(first, len(keys)))
    place, has_come = _find(contexts, wanted >> np.uint64(bits))
    own, is_known = _find(keys, wanted)
    discounted = np.where(is_known, counts[own] - discount, 0.0)
    mixed = (discounted + discount * kinds[place] * shorter) / after[place]
    return np.where(has_come, mixed, shorter)


def _packed(symbols: NDArray[np.int64], n: int, bits: int) -> Keys:
    """Return each n-gram as one number, its first character in the highest bits."""
    count = len(symbols) - n + 1
    keys = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        keys = keys << np.uint64(bits) | symbols[place : place + count].astype(np.uint64)
    return keys


def _counted(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """Return the different keys, ascending, and how often each of them comes."""
    ordered = np.sort(keys)
    distinct, first = _distinct(ordered)
    return distinct, np.diff(np.append(first, len(ordered)))


def _distinct(ordered: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """Return the different ones of ordered keys, and where each of them begins."""
    is_new = np.append([True], ordered[1:] != ordered[:-1])
    first = np.flatnonzero(is_new)
    return ordered[first], first


def _find(keys: Keys, wanted: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return a place in the ascending keys for each wanted key, and whether it is that key's."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _spread(ids: Ids, vocabulary: Vocabulary, most: int) -> Codes:
    """Return the characters of a part of a text; of a long part pieces, evenly spread over it."""
    each = most // PIECES
    starts = np.linspace(0, len(ids), PIECES + 1).astype(int).tolist()
    # a token has about one character or more
    pieces = [ids[start : min(end, start + each)] for start, end in pairwise(starts)]
    return np.concatenate([_characters(piece, vocabulary, each) for piece in pieces])


def _characters(ids: Ids, vocabulary: Vocabulary, most: int) -> Codes:
    """Return the first characters of tokens as code points."""
    text = "".join(_first(vocabulary.chunks_of_text(ids, DOCUMENT_END), most))
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _first(chunks: Iterable[str], most: int) -> Iterator[str]:
    """Yield a text up to so many characters."""
    left = most
    for chunk in chunks:
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


def _utf8_bytes(codes: Codes) -> int:
    """Return how many bytes characters have in UTF-8; the end of a document has none."""
    lengths = 1 + np.searchsorted(np.array([0x80, 0x800, 0x10000]), codes, side="right")
    return int(lengths[codes != ord(DOCUMENT_END)].sum())
