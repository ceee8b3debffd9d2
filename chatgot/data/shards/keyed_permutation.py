"""A random order of [0, n) that is computed place by place: nothing of it is stored.

A Feistel network permutes the numbers of the fewest bits that hold n. What lands outside [0, n) is
permuted again until it lands inside (cycle walking), which takes less than two turns on average.
Source: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".
"""

from hashlib import sha512

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]

LARGEST = 1 << 62  # numbers that can be permuted: int64 holds them, and sums of two
ROUNDS = 8  # of the network; each takes 8 bytes of a SHA-512
# The finaliser of SplitMix64: each bit of the result depends on each bit of the number.
# Source: Steele, Lea, Flood 2014; constants of Stafford's variant 13
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers that look random, a different one for each; for keys, not for secrets."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _FIRST_FACTOR
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _SECOND_FACTOR
    return numbers ^ (numbers >> np.uint64(31))


def keys_of(*key: int | str) -> NDArray[np.uint64]:
    """Return ROUNDS numbers that depend on the whole key; the same on every machine."""
    digest = sha512("\0".join(map(str, key)).encode()).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


class KeyedPermutation:
    """A bijection of [0, n) that a key gives.

    Memory and time do not depend on n.

    n: 1 to 2**62. key: numbers and texts; another key gives another order.
    """

    def __init__(self, n: int, *key: int | str) -> None:
        assert 1 <= n <= LARGEST
        bits = (n - 1).bit_length()
        self.n = n
        self._keys = keys_of(*key)
        self._low_bits = np.uint64(bits - bits // 2)
        self._low_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits // 2)) - 1)

    def __call__(self, places: Places, tweaks: Places | None = None) -> Places:
        """Return where the places go, in the shape of `places`.

        places: each in [0, n).
        tweaks: (the same shape); places with another tweak go by another permutation.
        """
        numbers = places.astype(np.uint64).ravel()
        assert not numbers.size or int(numbers.max()) < self.n
        tweak = np.zeros_like(numbers)
        if tweaks is not None:
            tweak = mixed(tweaks.astype(np.uint64).ravel() + self._keys[0])
        numbers = self._permuted(numbers, tweak)
        (outside,) = np.nonzero(numbers >= self.n)
        while outside.size:
            numbers[outside] = self._permuted(numbers[outside], tweak[outside])
            outside = outside[numbers[outside] >= self.n]
        return numbers.astype(np.int64).reshape(places.shape)

    def _permuted(
        self, numbers: NDArray[np.uint64], tweak: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        """Return each number's image among all numbers of that many bits."""
        low = numbers & self._low_mask
        high = numbers >> self._low_bits
        for turn, key in enumerate(self._keys):
            if turn % 2:
                low ^= mixed(high + (tweak ^ key)) & self._low_mask
            else:
                high ^= mixed(low + (tweak ^ key)) & self._high_mask
        return (high << self._low_bits) | low
