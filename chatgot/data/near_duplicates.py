"""Which documents say nearly the same: a new scan of a book, an episode with other credits.

Two documents are as similar as the sets of their shingles are (Jaccard: common ones / all). A
shingle is SHINGLE words in a row, without case and punctuation. What is found depends on the
contents alone.

A document becomes a signature: each shingle has a hash; its first bits choose one of BINS bins, and
each bin keeps its least hash. Two documents agree in about as many bins as they are similar. The
standard error is 0.025 at most, so documents of similarity 0.8 are found 97 times in 100, those of
0.85 practically always, those of 0.7 once in 40, and those of 0.65 practically never.
Source: one permutation hashing, Li, Owen, Zhang 2012 (arXiv:1208.1259); empty bins, Shrivastava
2017 (arXiv:1703.04664); bands, Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

SIMILAR = 0.8  # shared shingles / all shingles; such documents are near-duplicates
SHINGLE = 3  # words
BINS = 256  # of a signature, one byte each
ROWS = 8  # bins of a band: as bytes they are one 64-bit number
BANDS = BINS // ROWS  # documents of similarity 0.8 share one of them 997 times in 1,000
LEAST_EQUAL = 192  # bins that near-duplicates share: two standard errors below SIMILAR
BLOCK = 1 << 16  # characters that are hashed at a time; a word across two blocks counts as two
FIRST_CAPACITY = 256  # documents
HASH_BYTES = 16
# Thai, Lao, Burmese, Khmer, Chinese, Japanese: no spaces, so each character counts as a word
WITHOUT_SPACES = (
    (0x0E00, 0x0F00),
    (0x1000, 0x10A0),
    (0x1780, 0x1800),
    (0x2E80, 0xA000),
    (0xF900, 0xFB00),
)
BEYOND = 0x10000  # from here on too: rare Chinese characters, emoji
ALONE = np.uint32(1 << 21)  # above all code points

Signature = NDArray[np.uint8]  # (BINS,)
Hashes = NDArray[np.uint64]  # (N,)
Key = TypeVar("Key")


def content_hash(text: str | Iterable[str]) -> bytes:
    """Return a hash of a document's exact text, HASH_BYTES long, for exact duplicates.

    text: whole or in chunks, cut anywhere.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for chunk in [text] if isinstance(text, str) else text:
        digest.update(chunk.encode("utf-8", "surrogatepass"))
    return digest.digest()


def signature(text: str | Iterable[str]) -> Signature:
    """Return the signature of a document, all zeros if it has no word.

    text: whole or in chunks, cut anywhere; memory does not grow with it.
    """
    signing = Signing()
    for chunk in [text] if isinstance(text, str) else text:
        signing.add(chunk)
    return signing.signature()


class Signing:
    """Makes the signature of a document that comes in chunks, cut anywhere."""

    def __init__(self) -> None:
        self._least = np.full(BINS, NO_HASH)
        self._before = np.empty(0, np.uint64)  # the last words of the block before
        self._any_shingle = False
        self._parts: list[str] = []
        self._length = 0  # of the parts

    def add(self, chunk: str) -> None:
        """Add what comes next."""
        self._parts.append(chunk)
        self._length += len(chunk)
        if self._length < BLOCK:
            return
        text = "".join(self._parts)
        whole = self._length - self._length % BLOCK
        for start in range(0, whole, BLOCK):
            self._add_block(text[start : start + BLOCK])
        self._parts = [text[whole:]]
        self._length -= whole

    def signature(self) -> Signature:
        """Return the signature of the whole document; nothing can be added any more."""
        self._add_block("".join(self._parts))
        if not self._any_shingle:
            if not len(self._before):
                return np.zeros(BINS, np.uint8)
            padding = np.zeros(SHINGLE - len(self._before), np.uint64)
            words = np.concatenate([self._before, padding])
            self._least = _least_of_bins(_shingle_hashes(words), self._least)
        return _as_bytes(self._least)

    def _add_block(self, block: str) -> None:
        words = np.concatenate([self._before, _word_hashes(block)])
        self._before = words[max(0, len(words) - SHINGLE + 1) :]
        if len(words) >= SHINGLE:
            self._any_shingle = True
            self._least = _least_of_bins(_shingle_hashes(words), self._least)


def similarity(one: Signature, other: Signature) -> float:
    """Return about how similar two documents are, from 0 to 1, by their signatures."""
    equal = int((one == other).sum())
    by_chance = BINS / 256  # a byte has 256 values
    return max(0.0, (equal - by_chance) / (BINS - by_chance))


class NearDuplicates(Generic[Key]):
    """Documents by their signatures, to find near-duplicates among them.

    Memory: 512 to 1,024 bytes for each document, and the keys.
    """

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._signatures = np.empty((FIRST_CAPACITY, BINS), np.uint8)
        self._table = _empty_table(2 * FIRST_CAPACITY)

    def __len__(self) -> int:
        """Return how many different signatures there are."""
        return len(self._keys)

    def find(self, signature: Signature) -> Key | None:
        """Return the key of the document that is most similar, if it is a near-duplicate."""
        if not signature.any():
            return None
        _, holders = self._places(_bands_of(signature))
        index = self._most_similar(signature, holders)
        return None if index is None else self._keys[index]

    def add(self, key: Key, signature: Signature) -> Key | None:
        """Add a document; return the key of an earlier near-duplicate, the most similar one.

        A document without words has no near-duplicates and is not added.
        """
        if not signature.any():
            return None
        if len(self._keys) == len(self._signatures):
            self._grow()
        slots, holders = self._places(_bands_of(signature))
        index = self._most_similar(signature, holders)
        is_known = index is not None and np.array_equal(self._signatures[index], signature)
        if not is_known:
            self._signatures[len(self._keys)] = signature
            self._put(len(self._keys), slots, holders)
            self._keys.append(key)
        return None if index is None else self._keys[index]

    def _most_similar(self, signature: Signature, holders: NDArray[np.int32]) -> int | None:
        candidates = np.unique(holders[holders >= 0])
        if not len(candidates):
            return None
        equal = (self._signatures[candidates] == signature).sum(axis=1)
        best = int(equal.argmax())
        return int(candidates[best]) if equal[best] >= LEAST_EQUAL else None

    def _places(self, bands: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return, for each band, its slot, and the first document that has it; -1: none."""
        mask = self._table.shape[1] - 1
        stored = self._signatures.view(np.uint64)  # (N, BANDS)
        slots = (bands & np.uint64(mask)).astype(np.int64)
        holders = self._table[EACH_BAND, slots]
        while True:
            is_other = (holders >= 0) & (stored[holders, EACH_BAND] != bands)
            if not is_other.any():
                return slots, holders
            slots[is_other] = (slots[is_other] + 1) & mask
            holders = self._table[EACH_BAND, slots]

    def _put(self, index: int, slots: NDArray[np.int64], holders: NDArray[np.int32]) -> None:
        """Enter a document under each band that no earlier one has."""
        free = holders < 0
        self._table[EACH_BAND[free], slots[free]] = index

    def _grow(self) -> None:
        signatures = np.empty((2 * len(self._signatures), BINS), np.uint8)
        signatures[: len(self._keys)] = self._signatures
        self._signatures = signatures
        self._table = _empty_table(2 * len(signatures))
        for index in range(len(self._keys)):
            self._put(index, *self._places(_bands_of(signatures[index])))


def _bands_of(signature: Signature) -> Hashes:
    return signature.view(np.uint64)


def _empty_table(slots: int) -> NDArray[np.int32]:
    return np.full((BANDS, slots), -1, np.int32)


# --------------------------------------------------------------------------------------------------
# Hashes: all numbers are of 64 bits, and what overflows is dropped


def _powers(base: int) -> Hashes:
    powers = np.full(BLOCK, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


NO_HASH = np.uint64(2**64 - 1)
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 2**64 / the golden ratio
POWERS = _powers(BASE)
INVERSE_POWERS = _powers(pow(BASE, -1, 2**64))
EACH_BAND = np.arange(BANDS)
BIN_BITS = np.uint64(64 - (BINS - 1).bit_length())
FIRST_HASHES = np.arange(BINS, dtype=np.uint64) << BIN_BITS  # the least possible hash of each bin


def _mixed(hashes: Hashes) -> Hashes:
    """Return hashes in which each bit depends on all bits of the old ones; changes the old ones.

    Source: splitmix64, Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195.
    """
    hashes ^= hashes >> np.uint64(30)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(27)
    hashes *= np.uint64(0x94D049BB133111EB)
    hashes ^= hashes >> np.uint64(31)
    return hashes


# what a bin's hash is multiplied by, so that a hash that fills many bins gives many bytes
BIN_FACTORS = _mixed(np.arange(1, BINS + 1, dtype=np.uint64)) | np.uint64(1)
# in which order an empty bin asks the others for a hash
BORROWED_FROM = _mixed(np.arange(BINS * BINS, dtype=np.uint64)).reshape(BINS, BINS).argsort(axis=1)


@cache
def _folded() -> NDArray[np.uint32]:
    """Return, for each code point below BEYOND, that of its small letter; 0: no part of a word.

    What counts as a word of its own has ALONE added.
    """
    folded = np.zeros(BEYOND, np.uint32)
    for code in range(BEYOND):
        character = chr(code)
        if character.isalnum() or unicodedata.category(character)[0] == "M":
            folded[code] = ord(character.lower()[0])
    for first, end in WITHOUT_SPACES:
        part = folded[first:end]
        part[part != 0] += ALONE
    return folded


def _word_hashes(block: str) -> Hashes:
    """Return the hash of each word of a block."""
    codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), np.uint32)
    if not len(codes):
        return np.empty(0, np.uint64)
    if codes.max() < BEYOND:
        folded = np.take(_folded(), codes)
    else:
        is_beyond = codes >= BEYOND
        folded = np.take(_folded(), np.where(is_beyond, 0, codes))
        folded = np.where(is_beyond, codes + ALONE, folded)
    is_word = folded != 0
    starts = is_word.copy()
    np.greater(is_word[1:], is_word[:-1], out=starts[1:])
    if folded.max() >= ALONE:
        is_alone = folded >= ALONE
        starts[1:] |= is_word[1:] & (is_alone[1:] | is_alone[:-1])
    places = np.flatnonzero(starts)
    if not len(places):
        return np.empty(0, np.uint64)
    # what is no part of a word adds nothing, so that a word ends where the next one begins
    sums = np.cumsum(folded * POWERS[: len(folded)])
    ends = np.append(sums[places[1:] - 1], sums[-1])
    words = np.diff(ends, prepend=np.uint64(0))
    return _mixed(words * INVERSE_POWERS[places])


def _shingle_hashes(words: Hashes) -> Hashes:
    """Return the hash of each SHINGLE words in a row."""
    count = len(words) - SHINGLE + 1
    sums = words[:count].copy()
    for place in range(1, SHINGLE):
        sums += words[place : place + count] * POWERS[place]
    return _mixed(sums)


def _least_of_bins(hashes: Hashes, least: Hashes) -> Hashes:
    """Return the least hash of each bin, (BINS,); NO_HASH: an empty one.

    least: those of earlier hashes.
    """
    # few hashes are less than those of a long text before them, so that few are sorted
    hashes = hashes[hashes < least[hashes >> BIN_BITS]]
    hashes.sort()
    places = np.searchsorted(hashes, FIRST_HASHES)
    found = np.append(hashes, NO_HASH)[places]
    found = np.where(found >> BIN_BITS == FIRST_HASHES >> BIN_BITS, found, NO_HASH)
    return np.minimum(found, least)


def _as_bytes(least: Hashes) -> Signature:
    """Return a byte for each bin; an empty bin borrows the hash of another one."""
    is_empty = least == NO_HASH
    if is_empty.any():
        order = BORROWED_FROM[is_empty]
        lender = order[np.arange(len(order)), (~is_empty)[order].argmax(axis=1)]
        least[is_empty] = least[lender]
    return ((least * BIN_FACTORS) >> np.uint64(56)).astype(np.uint8)
