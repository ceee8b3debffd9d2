"""The data order is a pure function of (seed, position), and no validation token leaks."""

import numpy as np
import parts
import pytest
import torch

from chatgot.data.vocabulary import END_OF_TEXT, END_OF_TEXT_ID, Characters
from chatgot.data.windows import (
    TrainingWindows,
    ValidationWindows,
    Windows,
    check_length,
    line_start,
    split_index,
)
from chatgot.errors import ConfigError


def starts_of_epoch(windows: TrainingWindows, epoch: int) -> np.ndarray:
    """Return one epoch's starts in order, asked for in steps of one sequence."""
    first = epoch * windows.per_epoch
    return np.array([int(windows.starts(first + i, 1)[0]) for i in range(windows.per_epoch)])


# The order of the training windows


@pytest.mark.parametrize(
    ("N", "T"), [(1000, 8), (1001, 8), (1008, 8), (57, 5), (50, 1), (33, 16), (34, 16)]
)
def test_an_epoch_visits_each_start_of_its_grid_exactly_once(N, T):
    windows = parts.windows(T, N)
    for epoch in range(4):
        starts = np.sort(starts_of_epoch(windows, epoch))
        offset = starts[0]
        assert 0 <= offset < T
        assert starts.tolist() == [offset + i * T for i in range(windows.per_epoch)]
        assert starts[-1] + T < N  # its last target is a token of the text


@pytest.mark.parametrize("T", [7, 16])
def test_a_grid_leaves_out_less_than_two_windows_of_the_text(T):
    for N in range(3 * T, 5 * T):
        assert N - 1 - parts.windows(T, N).per_epoch * T < 2 * T


def test_each_epoch_has_its_own_offset_and_order():
    windows = parts.windows(T=16, n=2000)
    epochs = [starts_of_epoch(windows, epoch) for epoch in range(12)]
    assert len({int(starts.min()) for starts in epochs}) > 6
    orders = {tuple((starts - starts.min()) // 16) for starts in epochs}
    assert len(orders) == 12
    assert tuple(range(windows.per_epoch)) not in orders


def test_each_seed_has_its_own_order():
    orders = {
        tuple(starts_of_epoch(parts.windows(seed=seed), 0)) for seed in (0, 1, 2, 1337, 2**63 - 1)
    }
    assert len(orders) == 5


@pytest.mark.parametrize("S", [1, 3, 8, 123, 124, 200, 500])
def test_the_steps_go_through_one_epoch_after_the_other(S):
    windows = parts.windows()
    assert windows.per_epoch == 123
    stream = np.concatenate(
        [starts_of_epoch(windows, epoch) for epoch in range(1 + 6 * S // 123 + 1)]
    )
    for position in range(6):
        assert (
            windows.starts(position, S).tolist()
            == stream[position * S : (position + 1) * S].tolist()
        )
        assert windows.epoch(position, S) == position * S // 123


def test_the_windows_of_a_position_do_not_depend_on_earlier_calls():
    used = parts.windows()
    other = parts.windows()
    for position in (40, 3, 40, 17, 0, 39):
        used.starts(position, 8)
    torch.manual_seed(99)
    np.random.seed(99)
    assert used.starts(16, 8).tolist() == other.starts(16, 8).tolist()


def test_drawing_windows_does_not_touch_the_global_generators():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    windows = parts.windows()
    windows.batch(windows.starts(20, 8))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_target_is_the_next_token():
    windows = parts.windows()
    starts = windows.starts(2, 5)
    x, y = windows.batch(starts)
    assert x.dtype == y.dtype == torch.int64
    for row, start in enumerate(starts):
        assert x[row].tolist() == windows.ids[start : start + 8].tolist()
        assert y[row].tolist() == windows.ids[start + 1 : start + 9].tolist()


# Training and validation


@pytest.mark.parametrize("n", [10, 11, 999, 1000, 4_671_000])
@pytest.mark.parametrize("test_split", [0.001, 0.1, 0.29, 0.5, 0.9])
def test_the_validation_part_is_the_last_share_of_the_text(n, test_split):
    at = split_index(n, test_split)
    assert 0 < at <= n
    assert abs((n - at) - n * test_split) < 1


@pytest.mark.parametrize("seed", [0, 5, 1337])
@pytest.mark.parametrize(
    ("T", "test_split", "n"), [(8, 0.1, 1000), (5, 0.33, 777), (16, 0.5, 500), (1, 0.05, 400)]
)
def test_no_validation_token_is_ever_in_a_training_window(seed, T, test_split, n):
    ids = np.arange(n, dtype="<u2")  # each token is its own index
    at = split_index(n, test_split)
    run = TrainingWindows(ids[:at], T, n, parts.CPU, seed)
    validation = ValidationWindows(ids[at:], T, n, parts.CPU)
    for position in range(3 * run.per_epoch // 4):
        x, y = run.batch(run.starts(position, 4))
        assert max(int(x.max()), int(y.max())) < at
    for batches in (validation.spread(60, 3), validation.every_token(3)):
        assert all(min(int(x.min()), int(y.min())) >= at for x, y in batches)


@pytest.mark.parametrize("batch_size", [1, 12, 40])
@pytest.mark.parametrize("test_split", [0.01, 0.1, 0.29, 0.5, 0.9])
def test_the_needed_length_in_the_error_message_is_exact(batch_size, test_split, tmp_path):
    wrong = []
    for T in (1, 4, 11, 16):
        run = {"batch_size": batch_size}
        config = parts.config(
            model={"max_seq_length": T}, training=run, data={"test_split": test_split}
        )
        with pytest.raises(ConfigError, match="1 characters") as refused:
            check_length(1, config, tmp_path / "text.txt")
        needed = int(str(refused.value).split("at least ")[1].split()[0])
        if not passes(needed, config, tmp_path) or passes(needed - 1, config, tmp_path):
            wrong.append((T, needed))
    assert wrong == []


@pytest.mark.parametrize("batch_size", [1, 12])
@pytest.mark.parametrize("test_split", [0.1, 0.5])
def test_the_needed_length_gives_one_batch_and_one_validation_window(
    batch_size, test_split, tmp_path
):
    config = parts.config(training={"batch_size": batch_size}, data={"test_split": test_split})
    n = next(n for n in range(1, 9999) if passes(n, config, tmp_path))
    at = split_index(n, test_split)
    run = TrainingWindows(parts.made_up_ids(at), 8, 99, parts.CPU, 0)
    assert len(set(run.starts(0, batch_size).tolist())) == batch_size
    (batch, *_) = ValidationWindows(parts.made_up_ids(n - at), 8, 99, parts.CPU).spread(1, 1)
    assert batch[0].shape == (1, 8)


def test_a_text_too_short_in_subwords_may_have_enough_characters(tmp_path):
    in_subwords = parts.config(data={"tokenizer": "bpe"})
    with pytest.raises(ConfigError, match=r"lower those, or set data\.tokenizer=char$"):
        check_length(1, in_subwords, tmp_path, "subwords")
    with pytest.raises(ConfigError, match=r"use a longer text or lower those$"):
        check_length(1, parts.config(), tmp_path)


def passes(n, config, tmp_path) -> bool:
    try:
        check_length(n, config, tmp_path)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("n", [9, 10, 16, 17, 18, 200])
def test_every_token_but_the_first_is_a_target_exactly_once(n, batch_size):
    windows = ValidationWindows(np.arange(n, dtype="<u2"), 8, n, parts.CPU)
    targets = [int(t) for _, y in windows.every_token(batch_size) for t in y.flatten()]
    assert targets == list(range(1, n))
    assert all(torch.equal(y, x + 1) for x, y in windows.every_token(batch_size))
    assert all(len(x) <= batch_size for x, _ in windows.every_token(batch_size))


@pytest.mark.parametrize("batches", [1, 2, 5, 50])
@pytest.mark.parametrize("n", [9, 17, 18, 100, 333, 1000])
def test_spread_windows_are_evenly_spaced_and_do_not_overlap(n, batches):
    T = 8
    batch_size = 3
    windows = ValidationWindows(np.arange(n, dtype="<u2"), T, n, parts.CPU)
    found = list(windows.spread(batches * batch_size, batch_size))
    starts = [int(row[0]) for x, _ in found for row in x]
    assert len(starts) == min(batches * batch_size, (n - 1) // T)
    assert len(found) == -(-len(starts) // batch_size)
    gaps = np.diff(starts)
    assert (gaps >= T).all()
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    if len(starts) > 1:
        assert (starts[0], starts[-1]) == (0, n - 1 - T)  # from one end to the other


def test_validation_windows_are_the_same_at_every_evaluation():
    windows = ValidationWindows(parts.made_up_ids(500), 8, 99, parts.CPU)
    for batches in (lambda: windows.spread(20, 4), lambda: windows.every_token(4)):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(batches(), batches(), strict=True))


def test_an_id_outside_the_vocabulary_is_refused():
    ids = parts.made_up_ids(100)
    V = len(parts.ALPHABET) + 1
    ids[7] = V
    windows = Windows(ids, 8, V, parts.CPU)
    windows.batch(np.array([8, 20]))
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        windows.batch(np.array([20, 3]))


class OnTheHost:
    """A tensor that writes down how it is sent to a device."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def pin_memory(self) -> "OnTheHost":
        self.said.append("pinned")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "OnTheHost":
        self.said.append(f"to {device.type}, {'no ' if non_blocking else ''}wait")
        return self


@pytest.mark.parametrize(
    ("kind", "expected"), [("cuda", ["pinned", "to cuda, no wait"]), ("cpu", ["to cpu, no wait"])]
)
def test_batch_for_a_card_is_pinned_and_sent_without_a_wait(kind, expected):
    said: list[str] = []
    windows = Windows(parts.made_up_ids(100), 8, 99, torch.device(kind))
    windows._send(OnTheHost(said))
    assert said == expected


# The prompt from the text


@pytest.mark.parametrize("seed", range(12))
def test_the_prompt_from_the_text_consists_of_whole_lines(seed):
    text = "and so\nKING:\nGood morrow.\n\nFOOL:\nNo, never, my good lord.\n" * 5
    vocabulary = Characters("".join(sorted(set(text))))
    prompt = line_start(np.array(vocabulary.encode(text)), vocabulary, seed, length=40)
    assert 0 < len(prompt) <= 40
    assert prompt[0] != "\n"
    assert prompt[-1] == "\n"
    assert "\n" + prompt in text


@pytest.mark.parametrize("text", ["a", "\n", "\n\n\n", "ab" * 99, "a\n" + "b" * 99])
def test_a_text_without_whole_lines_still_gives_a_prompt(text):
    vocabulary = Characters("".join(sorted(set(text))))
    prompt = line_start(np.array(vocabulary.encode(text)), vocabulary, seed=3, length=10)
    assert 0 < len(prompt) <= 10
    assert prompt in text


@pytest.mark.parametrize("seed", range(12))
def test_the_prompt_from_the_text_neither_has_nor_crosses_the_token(seed):
    text = f"so\nKING:\nGood morrow.\n{END_OF_TEXT}\nFOOL:\nNo, my good lord.\n{END_OF_TEXT}\n" * 3
    vocabulary = Characters("".join(sorted(set(text))))
    ids = np.array(vocabulary.encode(text), dtype="<u2")
    assert np.count_nonzero(ids == END_OF_TEXT_ID) == 6
    prompt = line_start(ids, vocabulary, seed, length=40)
    assert END_OF_TEXT not in prompt
    assert "\n\n" not in prompt
    assert "\n" + prompt in text
    assert END_OF_TEXT_ID not in vocabulary.encode(prompt)


@pytest.mark.parametrize("text", [f"{END_OF_TEXT}\n", f"a\n{END_OF_TEXT}", f"{END_OF_TEXT}\n\n"])
def test_a_text_without_a_line_after_the_token_still_gives_a_prompt(text):
    vocabulary = Characters("\na")
    prompt = line_start(np.array(vocabulary.encode(text)), vocabulary, seed=3)
    assert prompt.strip("a\n") == ""
    assert prompt


def test_windows_contain_the_token_like_any_other():
    vocabulary = Characters("\na")
    ids = np.array(vocabulary.encode(f"a\n{END_OF_TEXT}\na" * 9), dtype="<u2")
    windows = ValidationWindows(ids, 4, len(vocabulary), parts.CPU)
    targets = [int(target) for _, y in windows.every_token(3) for target in y.flatten()]
    assert targets == ids[1:].tolist()
