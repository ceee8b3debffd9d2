"""Training windows of several sources: exact shares, a pure function of (seed, position)."""

from typing import Any

import numpy as np
import parts
import pytest

from chatgot.config import DataConfig, changes_on_resume
from chatgot.data.held_out_sources import HeldOutSource, held_out_sources
from chatgot.data.joined_tokens import join_tokens
from chatgot.data.learned_lines import LearnedTokens
from chatgot.data.mixture import BLOCK, MixedWindows, seats, training_windows
from chatgot.data.token_cache import Part, Tokens
from chatgot.data.vocabulary import Characters
from chatgot.data.windows import NOT_LEARNED, TrainingWindows, ValidationWindows
from chatgot.errors import ConfigError

T = 8
LENGTHS = {"plays/a.txt": 1500, "b.txt": 400, "c.txt": 3000}
MIXTURE = {"a.txt": 3.0, "b.txt": 5.0, "c.txt": 1.99}


def text_of(lengths: dict[str, int] = LENGTHS) -> Tokens:
    """Return a made-up text of several sources; a tenth of each is held out."""
    n_train = sum(lengths.values())
    found = []
    train = held_out = 0
    for name, length in lengths.items():
        tail = n_train + held_out
        part = Part(name, (train, train + length), (tail, tail + length // 10))
        found.append(part)
        train += length
        held_out += length // 10
    ids = parts.made_up_ids(n_train + held_out)
    return Tokens(ids, Characters(parts.ALPHABET), "0" * 64, "utf-8", None, n_train, tuple(found))


def windows_of(
    tokens: Tokens, learned: LearnedTokens | None = None, seed: int = 5, **data: Any
) -> TrainingWindows:
    n_train = tokens.training_length(0.1)
    return training_windows(
        tokens,
        DataConfig(**data),
        n_train=n_train,
        T=T,
        vocab_size=len(tokens.vocabulary),
        device=parts.CPU,
        seed=seed,
        learned=learned,
    )


def sources_of(windows: MixedWindows, starts: np.ndarray) -> np.ndarray:
    """Return the number of the source that each window lies in; none reaches into another."""
    numbers = np.full(len(starts), -1)
    for number, source in enumerate(windows.sources):
        numbers[(starts >= source.begin) & (starts + T < source.end)] = number
    assert (numbers >= 0).all()
    return numbers


def test_without_a_mixture_the_windows_are_those_of_one_text():
    tokens = text_of()
    plain = TrainingWindows(tokens.ids[: tokens.n_train], T, 18, parts.CPU, 5)
    windows = windows_of(tokens)
    assert type(windows) is TrainingWindows
    assert all((windows.starts(p, 7) == plain.starts(p, 7)).all() for p in range(200))


def test_each_block_has_the_exact_seats_of_each_source():
    windows = windows_of(text_of(), mixture=MIXTURE)
    assert windows.seats.tolist() == [300, 501, 199]
    for block in range(3):
        numbers = sources_of(windows, windows.starts(block, BLOCK))
        assert np.bincount(numbers).tolist() == windows.seats.tolist()


def test_every_stretch_of_a_block_has_about_the_shares_of_the_whole():
    windows = windows_of(text_of(), mixture=MIXTURE)
    for position in range(40):
        numbers = sources_of(windows, windows.starts(position, 50))
        assert abs(np.bincount(numbers, minlength=3) - [15, 25, 10]).max() <= 2


def test_seats_go_to_the_largest_remainders():
    assert seats([1, 1, 1], 10).tolist() == [4, 3, 3]
    assert seats([0.2, 0.3, 0.5], 4).tolist() == [1, 1, 2]
    assert seats([1e-9, 1]).tolist() == [0, BLOCK]


@pytest.mark.parametrize("S", [1, 7, 24, 2500])
def test_a_position_has_its_sequences_whatever_was_asked_before(S):
    stream = windows_of(text_of(), mixture=MIXTURE).starts(0, 5000)
    windows = windows_of(text_of(), mixture=MIXTURE)
    for position in (5000 // S - 1, 0, 2500 // S):
        if (position + 1) * S <= 5000:
            expected = stream[position * S : (position + 1) * S]
            assert (windows.starts(position, S) == expected).all()


def test_each_source_has_epochs_of_its_own():
    """The short one is seen again and again, each time in another order, from another offset."""
    windows = windows_of(text_of(), mixture=MIXTURE)
    starts = windows.starts(0, 2 * BLOCK)
    short = starts[sources_of(windows, starts) == 1]
    per_epoch = (400 - 1) // T - 1
    epochs = short[: len(short) // per_epoch * per_epoch].reshape(-1, per_epoch)
    for epoch in epochs:
        assert (np.diff(np.sort(epoch)) == T).all()
    assert len({int(epoch.min()) for epoch in epochs}) > 4
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_the_order_depends_on_the_seed():
    orders = {
        tuple(windows_of(text_of(), seed=seed, mixture=MIXTURE).starts(0, 50)) for seed in range(4)
    }
    assert len(orders) == 4


def test_sources_have_orders_of_their_own_which_the_seed_gives():
    orders = set()
    for seed in range(3):
        tokens = text_of({"a.txt": 800, "b.txt": 800})
        windows = windows_of(tokens, seed=seed, mixture={"a.txt": 1, "b.txt": 1})
        starts = windows.starts(0, 150)
        numbers = sources_of(windows, starts)
        orders |= {tuple(starts[numbers == n][:70] - 800 * n) for n in (0, 1)}
    assert len(orders) == 6


def test_an_epoch_has_as_many_sequences_as_all_sources_have_windows():
    windows = windows_of(text_of(), mixture=MIXTURE)
    assert windows.per_epoch == sum((length - 1) // T - 1 for length in LENGTHS.values())


def test_every_window_has_something_to_learn_from():
    tokens = text_of()
    begins = np.arange(5, tokens.n_train, 60)
    windows = windows_of(tokens, LearnedTokens(begins, begins + 4), mixture=MIXTURE)
    _, y = windows.batch(windows.starts(0, 300))
    assert ((y != NOT_LEARNED).sum(dim=1) > 0).all()
    assert (y == NOT_LEARNED).any()


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ({"a.txt": 1, "b.txt": 1, "d.txt": 1}, "d.txt is no source of data.path; did you mean"),
        ({"xyz": 1}, "xyz is no source of data.path; the sources are plays/a.txt, b.txt, c.txt"),
        ({"a.txt": 1, "b.txt": 1}, "no weight for c.txt"),
        ({"a.txt": 1, "plays/a.txt": 1, "b.txt": 1, "c.txt": 1}, "plays/a.txt is named twice"),
        ({"a.txt": 1e-6, "b.txt": 1, "c.txt": 1}, "less than one of 1000 windows"),
    ],
)
def test_weights_that_fit_no_source_are_refused(mixture, words):
    with pytest.raises(ConfigError) as caught:
        windows_of(text_of(), mixture=mixture)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [({"a.txt": 900}, "the text has one source"), ({"a.txt": 900, "b.txt": 16}, "b.txt: its tr")],
)
def test_a_text_that_cannot_be_mixed_is_refused(lengths, words):
    with pytest.raises(ConfigError) as caught:
        windows_of(text_of(lengths), mixture=dict.fromkeys(lengths, 1.0))
    assert words in str(caught.value)


def test_a_source_without_anything_to_learn_is_refused():
    learned = LearnedTokens(np.array([10]), np.array([40]))
    with pytest.raises(ConfigError) as caught:
        windows_of(text_of(), learned, mixture=MIXTURE)
    assert "none of its speakers speaks in b.txt" in str(caught.value)


# Held-out text


def held_out(tokens: Tokens, **data: Any) -> list[HeldOutSource]:
    n_train = tokens.training_length(0.1)
    whole = ValidationWindows(tokens.ids[n_train:], T, len(tokens.vocabulary), parts.CPU)
    return held_out_sources(tokens, DataConfig(**data), whole, n_train)


def test_each_source_is_measured_on_its_own_held_out_text():
    tokens = text_of()
    sources = held_out(tokens, mixture=MIXTURE)
    assert [source.name for source in sources] == list(LENGTHS)
    assert [source.weight for source in sources] == pytest.approx([3 / 9.99, 5 / 9.99, 1.99 / 9.99])
    for source, part in zip(sources, tokens.parts, strict=True):
        assert (source.windows.ids == tokens.ids[slice(*part.held_out)]).all()


def test_without_weights_a_source_counts_by_its_length():
    weights = [source.weight for source in held_out(text_of())]
    assert weights == pytest.approx([150 / 490, 40 / 490, 300 / 490])


def test_one_source_and_very_many_are_measured_as_one_whole():
    assert held_out(text_of({"a.txt": 900})) == []
    assert held_out(text_of({f"{i}.txt": 300 for i in range(20)})) == []


# A new text and an old one


def spoken(text: str, n_train: int | None = None) -> Tokens:
    """Return a text as characters of its own."""
    vocabulary = Characters("".join(sorted(set(text))))
    ids = np.array(vocabulary.encode(text), dtype="<u2")
    return Tokens(ids, vocabulary, "a" * 64, "utf-8", n_train=n_train)


def test_joined_texts_keep_their_characters_and_what_is_held_out(tmp_path):
    new = spoken("wxyé" * 50, n_train=120)
    old = spoken("abcx" * 30)
    joined = join_tokens(new, old, ("n.txt", "o.txt"), (0.5, 0.25), tmp_path)
    own_part, old_part = joined.parts

    def text(span: tuple[int, int]) -> str:
        return joined.vocabulary.decode(joined.ids[slice(*span)].tolist())

    assert (own_part.name, old_part.name) == ("n.txt", "old: o.txt")
    assert text(own_part.train) == ("wxyé" * 50)[:120]
    assert text(own_part.held_out) == ("wxyé" * 50)[120:]
    assert text(old_part.train) == ("abcx" * 30)[:90]
    assert text(old_part.held_out) == ("abcx" * 30)[90:]
    assert joined.n_train == old_part.train[1]
    assert joined.ids[120] == joined.vocabulary.end_of_text_id  # between the texts
    assert joined.vocabulary.tokens[1:] == sorted("abcwxyé")
    assert list(tmp_path.iterdir()) == []


def test_a_replayed_text_has_its_share_and_comes_on_top_of_an_epoch(tmp_path):
    names = ("n.txt", "o.txt")
    tokens = join_tokens(parts.tokens(2000), parts.tokens(9000), names, (0.1, 0.1), tmp_path)
    windows = windows_of(tokens, replay=0.25)
    assert [(s.name, s.share) for s in windows.sources] == [("n.txt", 0.75), ("old: o.txt", 0.25)]
    assert windows.per_epoch == -(-((1800 - 1) // T - 1) * 4 // 3)
    weights = {source.name: source.weight for source in held_out(tokens, replay=0.25)}
    assert weights == {"n.txt": 0.75, "old: o.txt": 0.25}


def test_a_replay_and_a_mixture_go_together(tmp_path):
    names = ("", "o.txt")
    tokens = join_tokens(text_of(), parts.tokens(9000), names, (0.1, 0.1), tmp_path)
    windows = windows_of(tokens, replay=0.5, mixture={"a.txt": 1, "b.txt": 2, "c.txt": 1})
    assert windows.seats.tolist() == [125, 250, 125, 500]
    assert [source.name for source in windows.sources] == [*LENGTHS, "old: o.txt"]


def test_a_replay_of_0_trains_as_without_the_old_text(tmp_path):
    new = parts.tokens(2000)
    names = ("n.txt", "o.txt")
    tokens = join_tokens(new, parts.tokens(9000), names, (0.1, 0.1), tmp_path)
    windows = windows_of(tokens, replay=0)
    plain = windows_of(new)
    assert all((windows.starts(p, 7) == plain.starts(p, 7)).all() for p in range(100))
    assert (windows.ids == plain.ids).all()
    assert [source.weight for source in held_out(tokens, replay=0)] == [1.0, 0.0]


def test_a_resumed_run_may_not_change_its_mixture():
    stored = parts.config(data={"mixture": {"a.txt": 1, "b.txt": 2}}).model_dump(mode="json")
    same = parts.config(data={"mixture": {"a.txt": 1.0, "b.txt": 2.0}})
    assert changes_on_resume(stored, same, set()) == ([], [])
    other = parts.config(data={"mixture": {"a.txt": 1, "b.txt": 3}})
    _, (refused,) = changes_on_resume(stored, other, {"data.mixture"})
    assert "data.mixture: " in refused
