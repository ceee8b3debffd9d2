"""Which numbers may an answer be drawn with?"""

import math
from dataclasses import dataclass

from chatgot.errors import ConfigError

LARGEST_SEED = 2**53  # below it every number is exact in JSON
MOST_COMPLETIONS = 100_000
MOST_NEW_TOKENS = 1_000_000
MOST_PICKED = 20  # answers to choose from
MOST_WATCHED = 10_000  # turns
DEFAULT_DRY = 0.8  # in a conversation; a small model repeats itself
DEFAULT_NEW_TOKENS = 400  # in a conversation


@dataclass(frozen=True)
class Limits:
    """The range of a number. zero: 0 is allowed below `least`."""

    least: float
    most: float
    whole: bool = False
    zero: bool = False

    def words(self) -> str:
        """Return the range in words."""
        kind = "a whole number" if self.whole else "a number"
        zero = "0 or " if self.zero else ""
        return f"{zero}{kind} from {self._shown(self.least)} to {self._shown(self.most)}"

    def _shown(self, number: float) -> str:
        return str(int(number)) if self.whole else f"{number:g}"

    def contain(self, number: float) -> bool:
        """Return whether a number is in the range."""
        return self.least <= number <= self.most or (self.zero and number == 0)


LIMITS = {
    "temperature": Limits(0.001, 100, zero=True),  # 0: the likeliest token
    "top_k": Limits(1, 1_000_000_000, whole=True),
    "top_p": Limits(0.000_001, 1),
    "min_p": Limits(0, 1),
    "dry_multiplier": Limits(0, 100),
    "seed": Limits(0, LARGEST_SEED - 1, whole=True),
    "max_new_tokens": Limits(1, MOST_NEW_TOKENS, whole=True),
    "n": Limits(1, MOST_COMPLETIONS, whole=True),
    "pick": Limits(1, MOST_PICKED, whole=True),
    "watch": Limits(1, MOST_WATCHED, whole=True),
}


def read_number(name: str, typed: str, shown: str) -> float:
    """Return the number that was typed; a whole one is an int.

    name: a key of LIMITS. shown: what the message calls it.
    Raises: ConfigError.
    """
    limits = LIMITS[name]
    try:
        number = int(typed) if limits.whole else float(typed)
    except ValueError:
        number = math.nan
    if not limits.contain(number):
        raise ConfigError(f"{shown}: found {typed!r}, expected {limits.words()}")
    return number


def read_whole_number(name: str, typed: str, shown: str) -> int:
    """Return the whole number that was typed, as `read_number` does."""
    return int(read_number(name, typed, shown))
