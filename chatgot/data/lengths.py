"""How long a text must be: for one batch of training windows and one window of held-out text.

Letters: T `max_seq_length`.
"""


def split_index(n_tokens: int, test_split: float) -> int:
    """Return where the validation part begins: it is the last `test_split` of the text."""
    return n_tokens - int(n_tokens * test_split)


def is_long_enough(n_tokens: int, T: int, batch_size: int, test_split: float) -> bool:
    """Return whether a text holds one batch of training windows and one validation window."""
    train = split_index(n_tokens, test_split)
    return parts_are_long_enough(train, n_tokens - train, T, batch_size)


def parts_are_long_enough(train: int, held_out: int, T: int, batch_size: int) -> bool:
    """Return whether parts of so many tokens hold a batch of windows, and a validation window."""
    return (train - 1) // T - 1 >= batch_size and held_out >= T + 1


def least_length(T: int, batch_size: int, test_split: float) -> int:
    """Return the number of tokens from which on a text is long enough."""
    # A lower bound, from which the exact length is counted up
    train = (batch_size + 1) * T + 1
    needed = max(
        train + T + 1, int((T + 1) / test_split) - 1, int((train - 1) / (1 - test_split)) - 1
    )
    while not is_long_enough(needed, T, batch_size, test_split):
        needed += 1
    return needed
