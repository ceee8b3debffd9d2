"""From logits to tokens: the controls of a request, its noise, and log-probabilities.

B: rows, one per completion. V: vocab_size. R: those rows that a control is for.
"""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from chatgot.sampling.controls import Controls

Floats = NDArray[np.float64]

WINDOW = 1024  # tokens: DRY looks no further back
MOST_PENALTY = 1e30  # base ** length grows beyond any float
MOST_TEMPERATURE = 1e100  # all tokens are equally likely long before
NOISE_BLOCK = 64  # numbers made at once
FEW = 1024  # tokens that are sorted for top_k and top_p, unless more are kept


class Drawer:
    """The controls of one completion, its noise, and what was drawn so far.

    The noise is a pure function of the seed, `choice` and the index of the token.

    breakers: the ids that end a repeat for DRY: those with a line feed. They are never penalized.
    speaker_lines: the ids of each speaker's line, the breaker at its end; DRY lets them repeat.
    """

    def __init__(
        self,
        controls: Controls,
        prompt: Sequence[int],
        choice: int,
        *,
        breakers: frozenset[int] = frozenset(),
        speaker_lines: Collection[tuple[int, ...]] = frozenset(),
    ) -> None:
        self.controls = controls
        self.choice = choice
        self.drawn: list[int] = []
        self._distinct: set[int] = set()
        self._noise: list[float] = []
        self._bits: np.random.Philox | None = None
        self._offsets: Floats | None = None  # (V,), bias and OpenAI's penalties
        self._has_offsets = bool(
            controls.logit_bias or controls.presence_penalty or controls.frequency_penalty
        )
        self._repeats: Repeats | None = None
        if controls.dry_multiplier > 0:
            self._repeats = Repeats(prompt, breakers, speaker_lines)

    def adjust(self, scores: Floats) -> None:
        """Apply what is added to the logits (V,), in place: bias, OpenAI's penalties, DRY."""
        if self._has_offsets:
            if self._offsets is None:
                self._offsets = self._first_offsets(len(scores))
            scores += self._offsets
        if self._repeats is not None:
            self._repeats.penalize(scores, self.controls)

    def append(self, token: int) -> None:
        """Take the token that comes next."""
        if self._offsets is not None:
            if token not in self._distinct:
                self._offsets[token] -= self.controls.presence_penalty
            self._offsets[token] -= self.controls.frequency_penalty
        if self._repeats is not None:
            self._repeats.append(token)
        self.drawn.append(token)
        self._distinct.add(token)

    def noise(self) -> float:
        """Return the number in [0, 1) for the token that comes next."""
        while len(self._noise) <= len(self.drawn):
            if self._bits is None:
                # Hexadecimal: Python writes no decimals for an int of more than 4,300 digits
                name = f"{self.controls.seed:x} {self.choice:x}"
                key = hashlib.sha256(name.encode()).digest()[:16]
                self._bits = np.random.Philox(key=int.from_bytes(key, "little"))
            # The raw stream is the same in each version of NumPy; 53 bits are what a double has
            raw = self._bits.random_raw(NOISE_BLOCK)
            self._noise += ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return self._noise[len(self.drawn)]

    def _first_offsets(self, vocab_size: int) -> Floats:
        """Return what is added to each logit (V,); ids outside the vocabulary have no effect.

        Source: https://platform.openai.com/docs/api-reference/completions/create
        """
        offsets = np.zeros(vocab_size)
        for token, bias in self.controls.logit_bias.items():
            if 0 <= token < vocab_size:
                offsets[token] = bias
        for token in self.drawn:
            offsets[token] -= self.controls.frequency_penalty
        for token in self._distinct:
            offsets[token] -= self.controls.presence_penalty
        return offsets


class Repeats:
    """DRY: how long the repeats are with which a text ends, and what would make them longer.

    For each distance d below WINDOW, it counts how many tokens at the end of the text are the same
    as those d tokens earlier. The token that came next there would make this repeat longer. It is
    penalized where the repeat has at least the allowed length. A repeat ends at a breaker.

    The newest token comes first in both buffers, so that the index of a token is its distance.

    Source: https://github.com/oobabooga/textgen/pull/5677 (the idea and the formula)
    """

    def __init__(
        self,
        prompt: Sequence[int],
        breakers: frozenset[int],
        speaker_lines: Collection[tuple[int, ...]],
    ) -> None:
        self._breakers = breakers
        self._speaker_lines = speaker_lines
        self._line: list[int] = []  # the ids since the last breaker
        self._tokens = np.full(4 * WINDOW, -1, np.int64)
        self._may_repeat = np.zeros(4 * WINDOW, np.bool_)
        self._newest = 3 * WINDOW  # index in the two buffers
        self._lengths = np.zeros(WINDOW - 1, np.int32)  # of distance 1, 2, ...

        recent = prompt[-WINDOW:]
        line_start = max((i + 1 for i, t in enumerate(recent) if t in breakers), default=0)
        for token in recent[:line_start]:
            self._put(token)
        for token in recent[line_start:]:
            self.append(token)

    def append(self, token: int) -> None:
        """Take the token that comes next."""
        earlier = self._tokens[self._newest : self._newest + WINDOW - 1]
        self._lengths += 1
        self._lengths *= earlier == token
        self._put(token)
        if token in self._breakers:
            self._lengths[:] = 0

    def penalize(self, scores: Floats, controls: Controls) -> None:
        """Penalize in the logits (V,), in place, what would make a repeat longer."""
        allowed_length = max(controls.dry_allowed_length, 1)
        places = (self._lengths >= allowed_length).nonzero()[0]
        if not len(places):
            return
        # Both copies must be within the window
        lengths = np.minimum(self._lengths[places], WINDOW - 1 - places)
        penalized = (lengths >= allowed_length) & ~self._may_repeat[self._newest + places]
        places = places[penalized]
        lengths = lengths[penalized]
        # Of several repeats that one token would make longer, the longest counts: it comes last,
        # and NumPy keeps what is assigned last
        order = lengths.argsort(kind="stable")
        places = places[order]
        excess = lengths[order] - controls.dry_allowed_length
        with np.errstate(over="ignore"):
            penalties = controls.dry_multiplier * np.power(controls.dry_base, excess, dtype=float)
        tokens = self._tokens[self._newest + places]
        scores[tokens] = scores[tokens] - np.minimum(penalties, MOST_PENALTY)

    def _put(self, token: int) -> None:
        """Put a token in front of the buffers, and find the end of a speaker's line."""
        if self._newest == 0:
            self._newest = 3 * WINDOW
            self._tokens[self._newest :] = self._tokens[:WINDOW]
            self._may_repeat[self._newest :] = self._may_repeat[:WINDOW]
        self._newest -= 1
        self._tokens[self._newest] = token
        is_breaker = token in self._breakers
        self._may_repeat[self._newest] = is_breaker
        self._line.append(token)
        if not is_breaker:
            return
        if tuple(self._line) in self._speaker_lines:
            self._may_repeat[self._newest :][: len(self._line)] = True
        self._line.clear()


def draw(logits: NDArray[np.float32], drawers: Sequence[Drawer]) -> NDArray[np.int64]:
    """Draw a token for each row of logits (B, V) and append it to the row's drawer; return (B,).

    A row depends on its logits and its drawer only, not on the rest of the batch. With equal
    logits, the lower id counts as the likelier one. A logit that is NaN counts as -inf; where all
    are -inf, all tokens are equally likely.
    """
    scores = logits.astype(np.float64)  # (B, V), a copy
    for row, drawer in zip(scores, drawers, strict=True):
        drawer.adjust(row)
    _make_finite(scores)
    tokens: NDArray[np.int64] = scores.argmax(-1)  # (B,)
    rows = [i for i, drawer in enumerate(drawers) if drawer.controls.temperature > 0]
    if rows:
        tokens[rows] = _draw_rows(scores[rows], [drawers[i] for i in rows])
    for token, drawer in zip(tokens.tolist(), drawers, strict=True):
        drawer.append(token)
    return tokens


def logprobs(logits: NDArray[np.float32]) -> Floats:
    """Return the log-probabilities (B, V) in nats of logits (B, V), before any control."""
    scores = logits.astype(np.float64)
    _make_finite(scores)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores


def top(logprobs: Floats, k: int) -> tuple[tuple[int, float], ...]:
    """Return the k likeliest ids of a row (V,) with their log-probabilities, likeliest first."""
    k = min(k, len(logprobs))
    if k <= 0:
        return ()
    least = np.partition(logprobs, -k)[-k]
    candidates = (logprobs >= least).nonzero()[0]  # more than k where several equal the least
    ids = candidates[np.argsort(-logprobs[candidates], kind="stable")[:k]]
    return tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))


def _make_finite(scores: Floats) -> None:
    """Give each row of (B, V) a finite maximum, in place: NaN becomes -inf, +inf a large number."""
    best = scores.max(-1)
    if np.isfinite(best).all():
        return
    np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=MOST_PENALTY, neginf=-np.inf)
    scores[np.isneginf(scores).all(-1)] = 0


def _draw_rows(scores: Floats, drawers: Sequence[Drawer]) -> NDArray[np.int64]:
    """Draw a token of each row of (B, V); each temperature is above 0."""
    controls = [drawer.controls for drawer in drawers]
    temperatures = np.array([min(c.temperature, MOST_TEMPERATURE) for c in controls])
    with np.errstate(over="ignore"):
        # The logarithm of how likely each token is in proportion to the likeliest
        ratios = (scores - scores.max(-1, keepdims=True)) / temperatures[:, None]  # (B, V)
    weights = np.exp(ratios)  # (B, V), at most 1
    _keep_likeliest(ratios, weights, controls)
    _keep_min_p(ratios, weights, controls)

    sums = weights.cumsum(-1)  # (B, V)
    total = sums[:, -1:]
    noise = np.array([drawer.noise() for drawer in drawers])[:, None]
    # The first token whose sum is above the target: its own weight is above 0
    target = np.minimum(noise * total, np.nextafter(total, 0))
    drawn: NDArray[np.int64] = (sums <= target).sum(-1)
    return drawn


def _keep_likeliest(ratios: Floats, weights: Floats, controls: Sequence[Controls]) -> None:
    """Apply top_k, then top_p: the weights (B, V) of what is not kept become 0, in place."""
    rows = [i for i, c in enumerate(controls) if _has_top_k(c) or _has_top_p(c)]
    if not rows:
        return
    V = ratios.shape[-1]
    cut = [controls[i] for i in rows]
    top_k = np.array([min(c.top_k or V, V) if _has_top_k(c) else V for c in cut])[:, None]
    top_p = np.array([c.top_p if _has_top_p(c) else np.inf for c in cut], np.float64)[:, None]

    some = ratios[rows]  # (R, V)
    whole = weights[rows].sum(-1, keepdims=True)  # (R, 1)
    # Sorting all of a large vocabulary takes longer than the rest, and is rarely needed
    m = min(V, max(FEW, int(top_k.max(where=top_k < V, initial=1))))
    n, least = _find_least(some, whole, top_k, top_p, m)
    if (n > m).any():
        n, least = _find_least(some, whole, top_k, top_p, V)
    kept = some >= least
    excess = kept.sum(-1, keepdims=True) - n
    if excess.any():  # several tokens equal the least: those with the lowest ids are kept
        equal = some == least
        room = equal.sum(-1, keepdims=True) - excess
        kept &= ~equal | (equal.cumsum(-1) <= room)
    weights[rows] *= kept


def _find_least(
    ratios: Floats, whole: Floats, top_k: NDArray[np.int64], top_p: Floats, m: int
) -> tuple[NDArray[np.int64], Floats]:
    """Return how many tokens of each row (R, V) are kept, and the least ratio of these.

    Only the m likeliest are looked at; where more than m are kept, both numbers are wrong. Each
    top_k is V or at most m. whole: the sum of each row's weights. All but `ratios` are (R, 1).
    """
    V = ratios.shape[-1]
    likeliest = np.partition(ratios, V - m, axis=-1)[:, V - m :] if m < V else ratios  # (R, m)
    ordered = -np.sort(-likeliest, axis=-1)  # likeliest first
    sums = np.exp(ordered).cumsum(-1)
    of_top_k = np.take_along_axis(sums, np.minimum(top_k, m) - 1, -1)
    total = np.where(top_k < V, of_top_k, whole)
    # As many as are needed to reach top_p
    n = np.minimum(top_k, 1 + (sums < top_p * total).sum(-1, keepdims=True))
    return n, np.take_along_axis(ordered, np.minimum(n, m) - 1, -1)


def _keep_min_p(ratios: Floats, weights: Floats, controls: Sequence[Controls]) -> None:
    """Apply min_p: the weights (B, V) of what is not kept become 0, in place."""
    rows = [i for i, c in enumerate(controls) if c.min_p is not None and c.min_p > 0]
    if not rows:
        return
    least = np.log([min(controls[i].min_p or 0.0, 1.0) for i in rows])[:, None]  # (R, 1)
    weights[rows] *= ratios[rows] >= least


def _has_top_k(controls: Controls) -> bool:
    return controls.top_k is not None and controls.top_k > 0


def _has_top_p(controls: Controls) -> bool:
    return controls.top_p is not None and controls.top_p < 1
