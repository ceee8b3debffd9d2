"""From logits to tokens: each control against a plain reference, the noise, the extremes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatgot.sampling.controls import Controls
from chatgot.sampling.drawing import WINDOW, Drawer, draw, logprobs, top

NEWLINE = 1
LOGITS = [0.3, 2.0, -1.0, 1.2, 0.0, 1.9, -3.0, 0.8]


def drawer(controls: Controls | None = None, prompt: Sequence[int] = (), choice: int = 0) -> Drawer:
    return Drawer(controls or Controls(), prompt, choice, breakers=frozenset({NEWLINE}))


def draw_one(logits: Sequence[float], drawer: Drawer) -> int:
    return int(draw(np.array([logits], np.float32), [drawer])[0])


def draw_many(logits: Sequence[float], controls: Controls, n: int) -> torch.Tensor:
    """Return how often each token was drawn with n seeds."""
    batch = np.tile(np.array(logits, np.float32), (n, 1))
    drawers = [drawer(replace(controls, seed=seed)) for seed in range(n)]
    tokens = torch.from_numpy(draw(batch, drawers))
    return tokens.bincount(minlength=len(logits)).double()


# The plain reference: one row, one control after the other, as one reads it in its definition


def plain_repeats(history: Sequence[int], vocab_size: int) -> list[int]:
    """Return the length of the longest repeat that each token would make longer."""
    recent = list(history)[-WINDOW:]
    longest = [0] * vocab_size
    for i in range(len(recent) - 1):  # the earlier copy ends at i
        n = 0
        while n <= i and recent[i - n] == recent[-1 - n] != NEWLINE:
            n += 1
        if recent[i + 1] != NEWLINE:
            longest[recent[i + 1]] = max(longest[recent[i + 1]], n)
    return longest


def plain_probabilities(
    logits: Sequence[float], c: Controls, prompt: Sequence[int], drawn: Sequence[int]
) -> torch.Tensor:
    """Return the probability of each token after all controls, in their order."""
    x = torch.tensor(logits, dtype=torch.float32).double()
    for token, bias in c.logit_bias.items():
        x[token] += bias
    for token in set(drawn):
        x[token] -= c.presence_penalty + c.frequency_penalty * list(drawn).count(token)
    if c.dry_multiplier > 0:
        for token, n in enumerate(plain_repeats([*prompt, *drawn], len(x))):
            if n >= max(c.dry_allowed_length, 1):
                x[token] -= c.dry_multiplier * c.dry_base ** (n - c.dry_allowed_length)
    if c.temperature == 0:
        return torch.nn.functional.one_hot(x.argmax(), len(x)).double()
    p = (x / c.temperature).softmax(-1)
    order = x.argsort(descending=True, stable=True)
    if c.top_k is not None:
        p[order[c.top_k :]] = 0
        p /= p.sum()
    if c.top_p is not None:
        enough = p[order].cumsum(-1) >= c.top_p
        p[order[1:][enough[:-1]]] = 0
        p /= p.sum()
    if c.min_p is not None:
        p[p < c.min_p * p.max()] = 0
        p /= p.sum()
    return p


ALONE = {
    "nothing": Controls(),
    "low temperature": Controls(temperature=0.4),
    "high temperature": Controls(temperature=3.0),
    "logit_bias": Controls(logit_bias={2: 2.5, 5: -1.5}),
    "top_k": Controls(top_k=3),
    "top_p": Controls(top_p=0.7),
    "min_p": Controls(min_p=0.3),
    "all": Controls(temperature=1.5, logit_bias={0: 2.0}, top_k=6, top_p=0.9, min_p=0.25),
}


@pytest.mark.parametrize("name", ALONE)
def test_draws_are_distributed_as_the_controls_say(name):
    """Pearson's test; the seeds are fixed. The limit is four standard deviations up."""
    n = 4000
    counts = draw_many(LOGITS, ALONE[name], n)
    expected = n * plain_probabilities(LOGITS, ALONE[name], [], [])
    assert float(counts[expected == 0].sum()) == 0
    often = expected > 5  # the test is not made for less
    chi_square = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    degrees = int(often.sum()) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)


V = 6
# Multiples of 1/8: their sums are exact, so that what is equal stays equal
a_logit = st.integers(-64, 64).map(lambda eighths: eighths / 8)
some_ids = st.lists(st.integers(0, V - 1), max_size=30)
some_controls = st.builds(
    Controls,
    logit_bias=st.dictionaries(st.integers(0, V - 1), a_logit, max_size=2),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    dry_multiplier=st.sampled_from([0.0, 0.75]),
    dry_base=st.just(1.5),
    dry_allowed_length=st.integers(0, 4),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 2, 4, 100]),
    top_p=st.sampled_from([None, 0.0, 0.33, 0.81, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.07, 1.0]),
    seed=st.integers(-3, 2**70),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(a_logit, min_size=V, max_size=V), some_controls, some_ids, some_ids)
def test_each_draw_inverts_the_plain_distribution(logits, controls, prompt, drawn):
    row = drawer(controls, prompt)
    for token in drawn:
        row.append(token)
    noise = row.noise()
    sums = plain_probabilities(logits, controls, prompt, drawn).cumsum(-1)
    token = draw_one(logits, row)
    # Where sums are equal but for rounding, either neighbour is right
    lower = float(sums[token - 1]) if token else 0.0
    assert lower - 1e-9 <= noise < float(sums[token]) + 1e-9
    assert float(sums[token]) > lower
    assert row.drawn == [*drawn, token]


def test_penalties_grow_with_each_drawn_token():
    """Offsets that are kept from draw to draw equal those of a drawer that starts with them."""
    controls = Controls(
        presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 1.0}, seed=4, top_k=4
    )
    row = drawer(controls, [2, 2, 2])
    for _ in range(40):
        noise = row.noise()
        sums = plain_probabilities(LOGITS, controls, [2, 2, 2], row.drawn).cumsum(-1)
        assert draw_one(LOGITS, row) == int((sums <= noise).sum())


# Noise


def test_a_row_alone_equals_the_row_in_a_batch():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(70, 16, 9)).astype(np.float32) * 2
    kinds = [
        Controls(),
        Controls(temperature=0),
        Controls(top_k=3, temperature=0.7),
        Controls(top_p=0.8, dry_multiplier=0.8, dry_allowed_length=2),
        Controls(min_p=0.1, presence_penalty=0.4, logit_bias={1: 1.0}),
    ]

    def drawers() -> list[Drawer]:
        return [drawer(replace(kinds[i % 5], seed=i // 2), [i % 9], i % 2) for i in range(16)]

    together = drawers()
    for logits in steps:
        draw(logits, together)
    for i, alone in enumerate(drawers()):
        for logits in steps:
            draw(logits[i : i + 1], [alone])
        assert alone.drawn == together[i].drawn


def noise_of(seed: int, choice: int, n: int) -> list[float]:
    row = drawer(Controls(seed=seed), (), choice)
    numbers = []
    for _ in range(n):
        numbers.append(row.noise())
        assert row.noise() == numbers[-1]
        row.append(0)
    return numbers


def test_noise_is_the_same_on_each_machine():
    """These numbers are a promise: a seed gives the same text tomorrow."""
    assert noise_of(0, 0, 3) == [0.5347402822175299, 0.45290315213989496, 0.4226648132547578]
    assert noise_of(-(10**5000), 3, 1) == [0.19953587256228467]


def test_each_seed_and_choice_has_its_own_noise():
    seeds = [0, 1, -1, 2**32, 2**64, -(2**64), 2**128, 2**128 + 1, 10**5000, 16, 0x11]
    first_numbers = {noise_of(seed, choice, 1)[0] for seed in seeds for choice in range(3)}
    assert len(first_numbers) == 3 * len(seeds)


def test_noise_of_neighbours_is_not_correlated():
    n = 200
    numbers = np.array([[noise_of(seed, choice, n) for choice in (0, 1)] for seed in range(40)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.01
    centred = numbers - 0.5
    for neighbours in (
        (centred[1:], centred[:-1]),  # seeds
        (centred[:, 1], centred[:, 0]),  # choices
        (centred[..., 1:], centred[..., :-1]),  # indices
        (centred[1:, :, 1:], centred[:-1, :, :-1]),  # the next index of the next seed
    ):
        left, right = neighbours
        correlation = (left * right).mean() * 12
        assert abs(correlation) < 4 / math.sqrt(left.size)


# Extremes


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-53, 1.0])
@pytest.mark.parametrize("logits", [[-1e4, 0.0, -1e4], [0.0, -1e4, -1e4], [-1e4, -1e4, 0.0]])
def test_no_noise_draws_what_has_no_probability(noise, logits, monkeypatch):
    monkeypatch.setattr(Drawer, "noise", lambda self: noise)
    assert draw_one(logits, drawer()) == logits.index(0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1.0, 1e30, 1.7e308, math.inf])
def test_extreme_controls_never_draw_an_excluded_token(temperature):
    for top_k, top_p, min_p in itertools.product(
        [None, 1, 1000], [None, 0.0, 1.0], [None, 0.0, 1.0]
    ):
        controls = Controls(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        one_is_left = temperature < 1 or top_k == 1 or top_p == 0.0 or min_p == 1.0
        for logits in ([-1e30, 0.25, 0.5, -math.inf], [-1e30, -2e30, 1e30, -math.inf]):
            batch = np.array([logits] * 3, np.float32)
            tokens = draw(batch, [drawer(replace(controls, seed=seed)) for seed in range(3)])
            assert (tokens == 2).all() if one_is_left else tokens.max() < 3


@pytest.mark.filterwarnings("error")
def test_logits_that_are_no_numbers_do_no_harm():
    assert draw_one([math.nan, -9.0, -math.inf], drawer()) == 1
    assert draw_one([0.0, math.inf, 5.0], drawer()) == 1
    nothing_left = draw_many([-math.inf] * 3, Controls(), 300)
    assert float(nothing_left.min()) > 50
    assert draw_one([math.nan, 1.0, 2.0], drawer(Controls(temperature=0))) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.0])
def test_a_bias_of_100_bans_and_forces(temperature):
    ban = Controls(temperature=temperature, logit_bias={1: -100.0, 5: -100.0})
    counts = draw_many(LOGITS, ban, 500)
    assert float(counts[1] + counts[5]) == 0
    force = Controls(temperature=temperature, logit_bias={6: 100.0})
    assert float(draw_many(LOGITS, force, 500)[6]) == 500


def test_a_bias_outside_the_vocabulary_has_no_effect():
    biased = Controls(logit_bias={-1: 50.0, len(LOGITS): 50.0})
    assert torch.equal(draw_many(LOGITS, biased, 100), draw_many(LOGITS, Controls(), 100))


def test_temperature_0_takes_the_lowest_id_of_equals():
    assert draw_one([0.0, 2.0, 2.0, 1.0], drawer(Controls(temperature=0))) == 1


def test_top_k_keeps_the_lowest_ids_of_equals():
    counts = draw_many([1.0, 2.0, 1.0, 1.0, 0.0], Controls(top_k=3), 200)
    assert (counts > 0).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    "controls",
    [
        Controls(top_k=1500, top_p=0.99),
        Controls(top_p=0.5),
        Controls(top_p=0.999),
        Controls(top_k=2),
    ],
)
def test_a_large_vocabulary_is_cut_as_a_small_one(controls):
    """Only a part of a large vocabulary is sorted, unless that is too little."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=5000).astype(np.float32).round(2)
    rows = [drawer(replace(controls, seed=seed)) for seed in range(20)]
    sums = plain_probabilities(logits.tolist(), controls, [], []).cumsum(-1)
    expected = [int((sums <= row.noise()).sum()) for row in rows]
    assert draw(np.tile(logits, (20, 1)), rows).tolist() == expected


# DRY


def penalties(row: Drawer, vocab_size: int = V) -> list[float]:
    scores = np.zeros(vocab_size)
    row.adjust(scores)
    return (-scores).tolist()


DRY = Controls(dry_multiplier=2.0, dry_base=1.5, dry_allowed_length=3)


def test_dry_penalizes_what_would_make_a_repeat_longer():
    assert penalties(drawer(DRY, [2, 3, 4, 5, 0, 3, 4])) == [0] * V
    assert penalties(drawer(DRY, [2, 3, 4, 5, 0, 2, 3, 4])) == [0, 0, 0, 0, 0, 2.0]
    assert penalties(drawer(DRY, [0, 2, 3, 4, 5, 0, 2, 3, 4])) == [0, 0, 0, 0, 0, 2.0 * 1.5]


def test_dry_takes_the_longest_of_several_repeats():
    prompt = [0, 2, 3, 4, 5, 3, 3, 2, 3, 4, 5, 0, 2, 3, 4]
    assert penalties(drawer(DRY, prompt))[5] == 2.0 * 1.5


def test_a_breaker_ends_a_repeat_and_is_never_penalized():
    assert penalties(drawer(DRY, [2, 3, NEWLINE, 4, 5, 2, 3, NEWLINE, 4])) == [0] * V
    assert penalties(drawer(DRY, [2, 3, 4, NEWLINE, 0, 2, 3, 4])) == [0] * V


def test_dry_lets_the_lines_of_speakers_repeat():
    """The name that ends an answer comes after other speeches, and that often."""
    line = (2, 3, 4, 5)
    prompt = [*line, NEWLINE, 0, 0, NEWLINE, NEWLINE, 2, 3, 4]
    row = Drawer(DRY, prompt, 0, breakers=frozenset({NEWLINE}), speaker_lines={(*line, NEWLINE)})
    assert penalties(row) == [0] * V
    assert penalties(drawer(DRY, prompt))[5] == 2.0
    for token in (5, NEWLINE, 0, 2, 2, 3, 4):
        row.append(token)
    assert penalties(row) == [0] * V


def test_a_long_history_equals_the_plain_definition():
    """The buffers are moved several times; older tokens than the window are forgotten."""
    rng = np.random.default_rng(2)
    history = rng.integers(NEWLINE, 4, 6 * WINDOW).tolist()
    history[5 * WINDOW :] = [2, 3, 3, 4] * (WINDOW // 4)
    controls = replace(DRY, dry_base=1.0005)
    row = drawer(controls, history[: WINDOW + 300])
    for i in range(WINDOW + 300, len(history) + 1):
        if i % 41 == 0 or i == len(history):
            lengths = plain_repeats(history[:i], V)
            expected = [2.0 * 1.0005 ** (n - 3) if n >= 3 else 0.0 for n in lengths]
            assert penalties(row) == pytest.approx(expected)
        if i < len(history):
            row.append(history[i])
    assert lengths[2] == WINDOW - 4


@pytest.mark.parametrize("length", [0, 1, 700, WINDOW, WINDOW + 1, 3000, 5 * WINDOW])
def test_a_prompt_counts_as_what_was_drawn(length):
    prompt = np.random.default_rng(3).integers(NEWLINE, 4, length).tolist()
    prompt[-5:] = [2, 3, 3, 2, 3]
    row = drawer(DRY)
    for token in prompt:
        row.append(token)
    assert penalties(drawer(DRY, prompt)) == penalties(row)
    assert length < 700 or max(penalties(row)) > 0


def test_an_allowed_length_of_0_penalizes_repeats_only():
    row = drawer(replace(DRY, dry_allowed_length=0), [2, 3, 4, 3])
    assert penalties(row) == [0, 0, 0, 0, 2.0 * 1.5, 0]


@pytest.mark.filterwarnings("error")
def test_the_penalty_of_a_very_long_repeat_stays_finite():
    row = drawer(replace(DRY, dry_base=10.0), [5] * WINDOW)
    assert penalties(row)[5] == 1e30
    assert draw_one([0.0] * 5 + [9.0], row) != 5


# Log-probabilities


def test_logprobs_are_the_log_softmax():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 5
    expected = logits.double().log_softmax(-1)
    assert torch.allclose(torch.from_numpy(logprobs(logits.numpy())), expected, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("error")
def test_logprobs_of_huge_logits_are_exact():
    found = logprobs(np.array([[1e30, -1e30, 1e30], [0.0, -np.inf, 0.0]], np.float32))
    assert found[0].tolist() == [-math.log(2), pytest.approx(-2e30), -math.log(2)]
    assert found[1].tolist() == [-math.log(2), -math.inf, -math.log(2)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(0, 15))
def test_top_takes_the_likeliest_and_of_equals_the_lowest_ids(row, k):
    expected = sorted(enumerate(map(float, row)), key=lambda pair: (-pair[1], pair[0]))[:k]
    assert top(np.array(row, np.float64), k) == tuple(expected)
