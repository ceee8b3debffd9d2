"""The shards that a configuration names, as the tokens of a text."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from chatgot.config import Config
from chatgot.data.shards.index import INDEX, read_index, vocabulary_of
from chatgot.data.shards.order import WindowOrder
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.storage import Folder
from chatgot.data.shards.windows import ShardWindows
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import ConfigError

HEAD = 1 << 20  # tokens of the training part that are looked at: who speaks in it
MOST_HELD_OUT = 1 << 22  # tokens of the held-out part that are read and evaluated
HASH = 32  # hex digits of a hash in a folder's name


class ShardTokens:
    """The training part of a text in shards; the rest of it is in `Tokens.ids`."""

    def __init__(self, reader: BlockReader, head: int) -> None:
        self._reader = reader
        self._head = head

    @property
    def n_tokens(self) -> int:
        """Return how many tokens the training part has."""
        return self._reader.blocks.tokens

    def windows(
        self, tokens: Tokens, config: Config, vocab_size: int, device: torch.device
    ) -> ShardWindows:
        """Return the training windows. tokens: those that this is a part of."""
        return ShardWindows(
            self._reader,
            tokens.ids[: self._head],
            T=config.model.max_seq_length,
            vocab_size=vocab_size,
            device=device,
            seed=config.seed,
            sequences=config.training.sequences_per_step,
        )


def load_shards(config: Config, vocabulary: Vocabulary | None = None) -> Tokens:
    """Return the tokens of `data.shards`: the head of the training part, then what is held out.

    vocabulary: of the model that a run begins with or goes on with; None: any.
    Raises: ConfigError, StorageError.
    """
    url = config.data.shards
    assert url is not None
    folder = Folder(url)
    try:
        content = folder.read(INDEX)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data.shards: {folder.url}: found no {INDEX}, expected a folder of token shards; "
            f"make it, or finish it, with prepare_data.py INPUT --shards {folder.url}"
        ) from error
    index = read_index(content, folder.url)
    own = vocabulary_of(index, folder.url)
    if vocabulary is not None and vocabulary.tokens != own.tokens:
        raise ConfigError(
            f"data.shards: {folder.url}: has {len(own):,} {own.kind}, the model has "
            f"{len(vocabulary):,} {vocabulary.kind}; make the shards with the model's tokenizer: "
            "prepare_data.py INPUT --shards FOLDER --tokenizer tokenizer.json"
        )
    digest = sha256(content).hexdigest()
    cache = Path(config.paths.cache) / "shards" / digest[:HASH]
    train = BlockReader(folder, index, index.train, cache)
    held_out = BlockReader(folder, index, index.held_out, cache)
    _check_lengths(config, train, held_out, folder.url)
    head = train.head(HEAD)
    ids = np.concatenate([head, held_out.head(MOST_HELD_OUT)])
    return Tokens(
        ids, own, digest, "utf-8", n_train=len(head), shards=ShardTokens(train, len(head))
    )


def _check_lengths(config: Config, train: BlockReader, held_out: BlockReader, url: str) -> None:
    """Refuse shards without one batch of training windows, or one of held-out text.

    Raises: ConfigError.
    """
    T = config.model.max_seq_length
    blocks = train.blocks
    if blocks.tokens > T >= blocks.block_tokens:
        raise ConfigError(
            f"data.shards: {url}: its blocks have {blocks.block_tokens:,} tokens, at least "
            f"{T + 1:,} are needed (max_seq_length {T}); lower that, or make larger blocks"
        )
    S = config.training.sequences_per_step
    windows = WindowOrder(blocks.tokens, blocks.block_tokens, T, S, config.seed).per_epoch
    if windows < config.training.batch_size or held_out.blocks.tokens < T + 1:
        raise ConfigError(
            f"data.shards: {url}: holds {windows:,} training windows of {T} tokens and "
            f"{held_out.blocks.tokens:,} held-out tokens, at least "
            f"{config.training.batch_size:,} and {T + 1:,} are needed "
            f"(batch_size {config.training.batch_size}, max_seq_length {T}); "
            "make shards of a longer text or lower those"
        )
