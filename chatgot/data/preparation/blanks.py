"""Which characters are blanks, many at a time: as `str.isspace` says."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

LAST_BLANK = 0x3000  # the highest code point of a blank
Codes = NDArray[np.unsignedinteger]


def is_blank(codes: Codes) -> NDArray[np.bool_]:
    """Return whether each code point is that of a blank."""
    return np.take(_blanks(), np.minimum(codes, np.uint32(LAST_BLANK + 1)))


@cache
def _blanks() -> NDArray[np.bool_]:
    return np.array([chr(code).isspace() for code in range(LAST_BLANK + 2)])
