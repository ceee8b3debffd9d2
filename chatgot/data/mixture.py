"""Training windows from several sources, in given shares, as a pure function of (seed, position).

The stream of sequences is cut into blocks of BLOCK. In each block every source has the same number
of seats: its share, rounded by largest remainders. The seats of a source are spread evenly over the
block, each at a random place of its stretch, so that every step has about the shares of the whole.

Each source has a stream of its own, with epochs over its own part of the text (see windows.py), and
gives its windows in that order. So a source is seen as often as its share says, however long it is.

An epoch of the whole is as many sequences as it takes until the sources of `data.path` have given
as many windows as they have together; what is replayed comes on top.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from chatgot.config import DataConfig
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.token_cache import Part, Tokens
from chatgot.data.vocabulary import Ids
from chatgot.data.windows import Starts, TrainingWindows, Windows
from chatgot.errors import ConfigError

BLOCK = 1000  # sequences
MOST_NAMED = 5  # sources in one message


@dataclass(frozen=True)
class Source:
    """A stretch of the training part, [begin, end), and its share of the training windows.

    replayed: it is the text of an earlier run.
    """

    name: str
    begin: int
    end: int
    share: float
    replayed: bool = False


def own_parts(tokens: Tokens, data: DataConfig) -> tuple[Part, ...]:
    """Return the parts of the run's own text; with `data.replay`, the last part is the old text."""
    return tokens.parts if data.replay is None else tokens.parts[:-1]


def training_sources(tokens: Tokens, data: DataConfig) -> list[Source]:
    """Return the sources that training windows come from; empty: the text is one whole.

    Raises: ConfigError for weights that do not fit the sources.
    """
    own = own_parts(tokens, data)
    replay = data.replay or 0.0
    if data.mixture is not None:
        shares = _shares(data.mixture, own)
        sources = [Source(part.name, *part.train, shares[part.name]) for part in own]
    elif replay:
        name = own[0].name if len(own) == 1 else "the new text"
        sources = [Source(name, own[0].train[0], own[-1].train[1], 1.0)]
    else:
        return []
    if replay:
        sources = [
            Source(source.name, source.begin, source.end, source.share * (1 - replay))
            for source in sources
        ]
        old = tokens.parts[-1]
        sources.append(Source(old.name, *old.train, replay, replayed=True))
    return sources


def _shares(mixture: Mapping[str, float], parts: Sequence[Part]) -> dict[str, float]:
    """Return the share of each part by its name; all together are 1. Raises: ConfigError."""
    names = [part.name for part in parts]
    if len(names) < 2:
        raise ConfigError(
            "data.mixture: the text has one source; list several files in data.path, "
            "or leave data.mixture out"
        )
    weights: dict[str, float] = {}
    for given, weight in mixture.items():
        name = name_meant(given, names)
        if name in weights:
            raise ConfigError(f"data.mixture: {name} is named twice; give it one weight")
        weights[name] = weight
    missing = [name for name in names if name not in weights]
    if missing:
        raise ConfigError(
            f"data.mixture: no weight for {_listed(missing)}; name every source of data.path, "
            "or leave out of data.path what is not to be trained on"
        )
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def name_meant(given: str, names: Sequence[str]) -> str:
    """Return the source that a name in `data.mixture` means. Raises: ConfigError."""
    if given in names:
        return given
    # a path for a name, or a name for a path
    ends = [
        name for name in names if Path(given).parts[-len(Path(name).parts) :] == Path(name).parts
    ]
    if len(ends) == 1:
        return ends[0]
    same_file = [name for name in names if Path(name).name == Path(given).name]
    if len(same_file) == 1:
        return same_file[0]
    if same_file:
        raise ConfigError(f"data.mixture: {given} may be {_listed(same_file)}; write it like that")
    nearest = get_close_matches(given, names, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the sources are {_listed(names)}"
    raise ConfigError(f"data.mixture: {given} is no source of data.path; {hint}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def seats(shares: Sequence[float], total: int = BLOCK) -> NDArray[np.int64]:
    """Return how many of `total` seats each share has, by largest remainders, (len(shares),)."""
    exact = np.array(shares) * (total / math.fsum(shares))
    whole = np.floor(exact).astype(np.int64)
    largest_first = np.argsort(whole - exact, kind="stable")
    whole[largest_first[: total - int(whole.sum())]] += 1
    return whole


class MixedWindows(TrainingWindows):
    """Training windows of several sources; see the top of this file.

    ids: of the whole training part.
    Raises: ConfigError for a source that is too short, or has nothing to learn.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        whole: Windows,
        seed: int,
    ) -> None:
        # not TrainingWindows' own: its epochs are those of one source
        Windows.__init__(self, whole.ids, whole.T, whole.vocab_size, whole.device, whole.learned)
        self.seed = seed
        self.sources = tuple(sources)
        self.seats = seats([source.share for source in sources])
        self._streams = [self._stream(source) for source in sources]
        self._check_seats()
        own = [
            (stream.per_epoch, source.share)
            for stream, source in zip(self._streams, sources, strict=True)
            if not source.replayed
        ]
        windows = sum(per_epoch for per_epoch, _ in own)
        own_share = math.fsum(share for _, share in own)
        self.per_epoch = math.ceil(round(windows / own_share, 6))  # shares add up to 1 - 1e-16, too
        # Two: a step may reach over the edge of a block
        self._block = lru_cache(maxsize=2)(self._draw_block)

    def _stream(self, source: Source) -> TrainingWindows:
        ids = self.ids[source.begin : source.end]
        learned = None
        if self.learned is not None:
            learned = self.learned.part(source.begin, source.end)
            if not learned.targets(len(ids)):
                raise ConfigError(
                    f"data.learn_from: none of its speakers speaks in {source.name}; "
                    "leave that text or data.learn_from out"
                )
        if len(ids) < 2 * self.T + 1:
            raise ConfigError(
                f"{source.name}: its training part has {len(ids)} tokens, at least "
                f"{2 * self.T + 1} are needed (max_seq_length {self.T}); leave it out"
            )
        seed = _seed_of(self.seed, source.name)
        return TrainingWindows(ids, self.T, self.vocab_size, self.device, seed, learned)

    def _check_seats(self) -> None:
        for source, count in zip(self.sources, self.seats, strict=True):
            if count == 0:
                raise ConfigError(
                    f"data.mixture: the share of {source.name} is {source.share:.2g}, less than "
                    f"one of {BLOCK} windows; give it a larger weight, or leave it out"
                )

    def starts_of(self, index: NDArray[np.int64]) -> Starts:
        """Return the starts of some sequences of the stream, which are counted from 0."""
        blocks = index // BLOCK
        places = index % BLOCK
        return np.array([self._block(int(b))[p] for b, p in zip(blocks, places, strict=True)])

    def _draw_block(self, block: int) -> Starts:
        """Return the starts of one block's windows in the order of their use, (BLOCK,)."""
        generator = np.random.default_rng([self.seed, block])
        starts = []
        places = []  # in the block, from 0 to 1
        for source, stream, count in zip(self.sources, self._streams, self.seats, strict=True):
            seat = np.arange(count)
            starts.append(stream.starts_of(block * count + seat) + source.begin)
            places.append((seat + generator.random(count)) / count)
        return np.concatenate(starts)[np.argsort(np.concatenate(places), kind="stable")]


def _seed_of(seed: int, name: str) -> int:
    """Return the seed of a source's own order; other sources do not change it."""
    return int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:8], "little")


def training_windows(  # noqa: PLR0913 what windows are made of, by name
    tokens: Tokens,
    data: DataConfig,
    *,
    n_train: int,
    T: int,
    vocab_size: int,
    device: torch.device,
    seed: int,
    learned: LearnedTokens | None,
) -> TrainingWindows:
    """Return the training windows of a text: of one whole, or of its sources in their shares.

    Raises: ConfigError for weights that do not fit the sources, and for sources that are too short.
    """
    ids: Ids = tokens.ids[:n_train]
    sources = training_sources(tokens, data)
    if sources:
        return MixedWindows(sources, Windows(ids, T, vocab_size, device, learned), seed)
    if data.replay is not None:  # the old text is only looked at
        n_train = own_parts(tokens, data)[-1].train[1]
        ids = ids[:n_train]
        learned = None if learned is None else learned.part(0, n_train)
    return TrainingWindows(ids, T, vocab_size, device, seed, learned)
