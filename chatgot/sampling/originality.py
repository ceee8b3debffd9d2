"""Is it original? How much of what a model writes is copied from its training text.

A copy is a run of at least LEAST_COPY characters that stands in the training text word for word.
Any two texts of one author share such runs: a number means something only beside what the
held-out text itself shares with the training text.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chatgot.data.token_cache import Tokens
from chatgot.sampling.suffix_index import SuffixIndex

LEAST_COPY = 30  # characters
TAIL = 64  # characters at the end of a piece
HELD_OUT_WINDOWS = 200  # of held-out text that are looked at
MOST_HELD_OUT = 40_000  # their tokens together

Span = tuple[int, int]  # of characters in a text, up to before the second


@dataclass(frozen=True)
class Originality:
    """What of some texts is copied from the training text.

    longest: characters of the longest run that is in both, however short.
    share: of all characters, those inside copies; 0 to 1.
    characters: of all texts.
    copies: of each text, the stretches that are copies, in order.
    """

    longest: int
    share: float
    characters: int
    copies: tuple[tuple[Span, ...], ...] = field(repr=False)


def longest_matches(text: str, index: SuffixIndex) -> list[int]:
    """Return for each character of a text how long a piece from there on is in the indexed text.

    Lengths are in characters. The piece from the next character on is at most one shorter, and
    where a piece was found, the text behind it is compared at once: so few pieces are looked up.
    """
    encoded = [character.encode("utf-8", "surrogatepass") for character in text]
    data = b"".join(encoded)
    ends = [0, *np.cumsum([len(part) for part in encoded]).tolist()]
    lengths = []
    length = 0
    for place in range(len(text)):
        length = max(0, length - 1)
        while place + length < len(text):
            end = place + length + 1
            # if its last characters occur nowhere, a long piece need not be looked up
            if length >= TAIL and index.find(data[ends[end - TAIL] : ends[end]]) is None:
                break
            found = index.find(data[ends[place] : ends[end]])
            if found is None:
                break
            known = ends[end] - ends[place]
            common = index.common_length(found, data, ends[place], known)
            length = bisect_right(ends, ends[place] + common) - 1 - place
        lengths.append(length)
    return lengths


def copies_in(lengths: Sequence[int], least: int = LEAST_COPY) -> tuple[Span, ...]:
    """Return the stretches of a text that are in runs of at least `least` characters.

    lengths: as `longest_matches` returns them. Runs that overlap or touch are one stretch.
    """
    spans: list[Span] = []
    for place, length in enumerate(lengths):
        if length < least:
            continue
        if spans and place <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], place + length))
        else:
            spans.append((place, place + length))
    return tuple(spans)


def originality_of(texts: Iterable[str], index: SuffixIndex) -> Originality:
    """Return what of some texts is copied from the indexed text."""
    longest = 0
    characters = 0
    copies = []
    for text in texts:
        lengths = longest_matches(text, index)
        longest = max([longest, *lengths])
        characters += len(text)
        copies.append(copies_in(lengths))
    copied = sum(end - start for spans in copies for start, end in spans)
    return Originality(longest, copied / max(1, characters), characters, tuple(copies))


def originality_of_held_out(
    tokens: Tokens, n_train: int, length: int, index: SuffixIndex
) -> Originality:
    """Return the same for held-out text, in evenly spread windows as long as a sample.

    length: of a sample, in tokens.
    """
    ids = tokens.ids[n_train:]
    length = max(1, min(length, len(ids), MOST_HELD_OUT))
    windows = min(HELD_OUT_WINDOWS, MOST_HELD_OUT // length, len(ids) // length)
    starts = np.linspace(0, len(ids) - length, max(1, windows)).astype(np.int64)
    texts = (tokens.vocabulary.decode(ids[start : start + length].tolist()) for start in starts)
    return originality_of(texts, index)


def in_words(measured: Originality) -> str:
    """Return how much is copied, to stand behind what it is that was measured."""
    return f"{100 * measured.share:.1f} % copied, longest run {measured.longest}"
