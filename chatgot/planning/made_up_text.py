"""A text that nobody wrote, to time the steps of a configuration whose text is not here."""

import numpy as np

from chatgot.config import Config
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import END_OF_TEXT, Characters

FIRST_CHARACTER = 0x20
SURROGATES = range(0xD800, 0xE000)  # no characters
MOST_CHARACTERS = 1_000_000
STEPS = 8  # for which there is text
HELD_OUT = 0.5  # of it


def made_up_tokens(config: Config, V: int) -> Tokens:
    """Return random ids of a vocabulary of V tokens; half of them are held out."""
    points = (p for p in range(FIRST_CHARACTER, 0x110000) if p not in SURROGATES)
    characters = "".join(chr(point) for point, _ in zip(points, range(V - 1), strict=False))
    T = config.model.max_seq_length
    count = 2 * (STEPS * config.training.sequences_per_step * T + T + 1)
    ids = np.random.default_rng(0).integers(1, V, count, dtype=np.uint32)
    vocabulary = Characters.from_tokens([END_OF_TEXT, *characters])
    return Tokens(ids, vocabulary, "0" * 64, "utf-8", n_train=count // 2)
