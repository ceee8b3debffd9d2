"""Windows of shards are those of the text, in the order of (seed, position), for any rank."""

import numpy as np
import pytest
import torch
from harness import TINY, merged

from chatgot.config import Config
from chatgot.data.configured_text import load_text, text_path, text_places
from chatgot.data.shards import configured, order
from chatgot.data.shards.windows import ShardWindows
from chatgot.data.token_cache import Tokens
from chatgot.errors import ConfigError

CPU = torch.device("cpu")


def config_of(shards: object, **changes: object) -> Config:
    data = {"path": None, "shards": str(shards)}
    return Config.model_validate(merged(TINY, {"data": data, **changes}))


@pytest.fixture
def tokens(make) -> Tokens:
    config = config_of(make())
    return load_text(config, text_path(config))


def windows_of(tokens: Tokens, **changes: object) -> ShardWindows:
    assert tokens.shards is not None
    return tokens.shards.windows(tokens, config_of("x", **changes), len(tokens.vocabulary), CPU)


def test_a_batch_has_each_target_one_token_further_on(tokens):
    windows = windows_of(tokens)
    starts = windows.starts(0, 12)
    x, y = windows.batch(starts)
    assert x.shape == y.shape == (12, 16)
    assert x.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])
    text = tokens.ids[: tokens.n_train]  # this text is short enough to be its own head
    for row, start in zip(x.numpy(), starts, strict=True):
        assert row.tolist() == text[start : start + 16].tolist()
    assert windows.targets(starts).tolist() == [16] * 12
    assert windows.take_s() > 0


def test_steps_go_on_from_epoch_to_epoch(tokens):
    windows = windows_of(tokens)
    steps = 3 * windows.per_epoch // 12
    stream = np.concatenate([windows.starts(position, 12) for position in range(steps)])
    assert np.array_equal(stream, windows.starts_of(np.arange(steps * 12)))
    for epoch in range(2):
        first = epoch * windows.per_epoch
        assert len(set(stream[first : first + windows.per_epoch].tolist())) == windows.per_epoch
    assert windows.epoch(steps - 1, 12) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 12])
def test_the_ranks_shares_together_are_the_step(tokens, ranks):
    """Each rank opens the shards by itself, at any position: nothing is handed over."""
    whole = windows_of(tokens).batch(windows_of(tokens).starts(41, 12))[0]
    shares = []
    for rank in range(ranks):
        windows = windows_of(tokens)
        shares.append(windows.batch(np.split(windows.starts(41, 12), ranks)[rank])[0])
    assert torch.equal(torch.cat(shares), whole)


def test_blocks_of_an_earlier_round_are_let_go(tokens, monkeypatch):
    monkeypatch.setattr(order, "POOL", 4)
    windows = windows_of(tokens, training={"batch_size": 4, "accumulate_grad_batches": 1})
    per_round = 255 // 16
    most = 0
    for position in range(3 * per_round):
        windows.batch(windows.starts(position, 4))
        most = max(most, len(windows._reader._kept))
    assert most == 4


def test_another_seed_gives_another_order(tokens):
    one = windows_of(tokens).starts(0, 12)
    other = windows_of(tokens, seed=8).starts(0, 12)
    assert one.tolist() != other.tolist()


def test_the_tokens_say_how_long_the_whole_text_is(tokens, make, monkeypatch):
    monkeypatch.setattr(configured, "HEAD", 300)
    monkeypatch.setattr(configured, "MOST_HELD_OUT", 100)
    config = config_of(make("again"))
    short = load_text(config, text_path(config))
    assert (short.n_train, len(short.ids)) == (300, 400)
    assert short.shards.n_tokens == tokens.n_train
    assert short.n_tokens == tokens.n_train + 100
    assert short.ids[:300].tolist() == tokens.ids[:300].tolist()
    assert short.ids[300:].tolist() == tokens.ids[tokens.n_train :][:100].tolist()
    windows = windows_of(short)
    assert windows.n_tokens == tokens.n_train
    assert torch.equal(windows.batch(windows.starts(5, 12))[0], batch_of(tokens, 5))
    assert short.text_sha256 == tokens.text_sha256


def batch_of(tokens: Tokens, position: int) -> torch.Tensor:
    windows = windows_of(tokens)
    return windows.batch(windows.starts(position, 12))[0]


def test_ids_outside_the_vocabulary_are_refused(tokens):
    windows = windows_of(tokens)
    windows.vocab_size = 3
    with pytest.raises(ConfigError, match="make the shards again"):
        windows.batch(windows.starts(0, 12))


def test_a_folder_without_an_index_is_refused_in_one_line(tmp_path, make):
    unfinished = make()
    (unfinished / "index.json").unlink()
    for folder in (tmp_path / "nothing", unfinished, "memory://nothing"):
        config = config_of(folder)
        with pytest.raises(ConfigError, match=r"found no index\.json.*--shards") as caught:
            load_text(config, text_path(config))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"max_seq_length": 300}}, "blocks have 256 tokens, at least 301"),
        ({"model": {"max_seq_length": 255}, "training": {"batch_size": 500}}, "at least 500"),
    ],
)
def test_shards_without_one_batch_are_refused(make, changes, words):
    config = config_of(make(), **changes)
    with pytest.raises(ConfigError, match=words):
        load_text(config, text_path(config))


def test_other_tokens_than_the_models_are_refused(make, tokens):
    config = config_of(make("subwords", tokenizer="bpe", vocab_size=300))
    with pytest.raises(ConfigError, match=r"has 300 subwords, the model has \d+ characters"):
        load_text(config, text_path(config), tokens.vocabulary)
    load_text(config, text_path(config), load_text(config, text_path(config)).vocabulary)


@pytest.mark.parametrize(
    ("beside", "value"),
    [
        ("path", "a.txt"),
        ("encoding", "latin1"),
        ("mixture", {"a": 1}),
        ("learn_from", ["ANN"]),
        ("replay", 0.0),
    ],
)
def test_shards_beside_another_text_are_refused_by_name(beside, value):
    with pytest.raises(ValueError, match=rf"set data\.{beside}=null or data\.shards=null"):
        config_of("x", data={"path": None, "shards": "x", beside: value})


def test_the_place_of_shards_is_their_address():
    config = config_of("s3://bucket/folder")
    assert text_places(config, text_path(config)) == ["shards of s3://bucket/folder"]
