"""What `index.json` says of a folder of token shards: which there are, and what their numbers mean.

A shard is a file of blocks. A block has `block_tokens` ids, 2 or 4 bytes each, the lowest first,
and then the SHA-256 of its number in the shard and its ids, 32 bytes. All shards but the last of a
part have whole blocks. The name of a shard has the first digits of the SHA-256 of all its bytes:
another content has another name, so a folder that is written anew never mixes two texts.
"""

from hashlib import sha256
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chatgot.data.subwords import Subwords
from chatgot.data.vocabulary import Characters, Vocabulary
from chatgot.errors import ConfigError

INDEX = "index.json"
FORMAT = 1
MOST_TOKENS = 1 << 60  # of a part: window starts are int64
DIGEST_BYTES = 32
NAME_DIGITS = 16  # of the SHA-256, in a shard's name
SHARD_NAME = r"(train|held_out)-\d{6,12}-[0-9a-f]{16}\.tokens"
WIDTHS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}  # of an id, in bytes

Count = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Strict):
    """One file of tokens.

    bytes: of the file, digests included. sha256: of the file.
    text_sha256: of the documents that begin in it, each as a line feed, its text, a line feed and
        <|endoftext|>, in UTF-8.
    """

    name: Annotated[str, Field(pattern=rf"^{SHARD_NAME}$")]
    tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    bytes: Count
    sha256: Hash
    text_sha256: Hash


class Part(_Strict):
    """The part that trains, or the one that is held out."""

    documents: Count
    tokens: Count
    shards: list[Shard]


class ShardIndex(_Strict):
    """All that is known of a folder of shards.

    token_bytes: of one id. vocabulary, tokenizer, end_of_text: as a checkpoint has them.
    duplicates: documents that were left out, because the same text had come before.
    """

    format: Literal[1]
    token_bytes: Literal[2, 4]
    block_tokens: Annotated[int, Field(ge=2, le=1 << 30)]
    vocabulary: Annotated[list[str], Field(min_length=2)]
    tokenizer: str | None = None
    end_of_text: str | None = None
    duplicates: Count
    train: Part
    held_out: Part

    @model_validator(mode="after")
    def _numbers_fit(self) -> "ShardIndex":
        if len(self.vocabulary) > 1 << (8 * self.token_bytes):
            raise ValueError(
                f"vocabulary: {len(self.vocabulary):,} tokens, too many for {self.token_bytes} "
                "bytes a token"
            )
        for part in (self.train, self.held_out):
            if part.tokens != sum(shard.tokens for shard in part.shards):
                raise ValueError(f"tokens: {part.tokens:,}, but its shards have another sum")
            for shard in part.shards:
                self._check_shard(shard, is_last=shard is part.shards[-1])
        return self

    def _check_shard(self, shard: Shard, *, is_last: bool) -> None:
        if shard.tokens % self.block_tokens and not is_last:
            raise ValueError(f"{shard.name}: {shard.tokens:,} tokens, which are no whole blocks")
        blocks = -(-shard.tokens // self.block_tokens)
        expected = shard.tokens * self.token_bytes + blocks * DIGEST_BYTES
        if shard.bytes != expected:
            raise ValueError(
                f"{shard.name}: {shard.bytes:,} bytes, but its tokens take {expected:,}"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of the ids in a block."""
        return WIDTHS[self.token_bytes]

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a whole block, its digest included."""
        return self.block_tokens * self.token_bytes + DIGEST_BYTES

    def to_json(self) -> bytes:
        """Return the content of the file; the same index gives the same bytes."""
        return self.model_dump_json(exclude_none=True, indent=0).encode() + b"\n"


class Blocks:
    """The blocks of a part, counted from 0 over all of its shards.

    It holds the names, and 16 bytes for each shard.
    """

    def __init__(self, index: ShardIndex, part: Part) -> None:
        tokens = np.array([shard.tokens for shard in part.shards], dtype=np.int64)
        blocks = -(-tokens // index.block_tokens)
        self._names = [shard.name for shard in part.shards]
        self._first: NDArray[np.int64] = np.cumsum(blocks) - blocks  # block of each shard
        self.block_tokens = index.block_tokens
        self.block_bytes = index.block_bytes
        self._token_bytes = index.token_bytes
        self.tokens = int(tokens.sum())
        self.count = int(blocks.sum())

    def place(self, block: int) -> tuple[str, int, int]:
        """Return a block's shard, its number in there, and how many bytes it has."""
        assert 0 <= block < self.count
        shard = int(np.searchsorted(self._first, block, side="right")) - 1
        tokens = min(self.block_tokens, self.tokens - block * self.block_tokens)
        size = tokens * self._token_bytes + DIGEST_BYTES
        return self._names[shard], block - int(self._first[shard]), size


def block_digest(number: int, ids: bytes) -> bytes:
    """Return what stands behind the ids of a block. number: of the block in its shard."""
    return sha256(b"%d\n" % number + ids).digest()


def read_index(content: bytes, where: str) -> ShardIndex:
    """Return what an index says. where: the folder, for the messages.

    Raises: ConfigError for what is damaged, contradicts itself, or is of another format.
    """
    try:
        return ShardIndex.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{where}/{INDEX}: {f'{place}: ' if place else ''}{problem}; expected the index of "
            f"token shards, format {FORMAT}: make them again with prepare_data.py --shards"
        ) from error


def vocabulary_of(index: ShardIndex, where: str) -> Vocabulary:
    """Return the vocabulary of the tokens. Raises: ConfigError."""
    try:
        if index.tokenizer is None:
            return Characters.from_tokens(index.vocabulary)
        vocabulary = Subwords.from_json(index.tokenizer, index.end_of_text)
        if vocabulary.tokens != index.vocabulary:
            raise ValueError("its tokenizer has other tokens than its vocabulary")
    except ValueError as error:
        raise ConfigError(
            f"{where}/{INDEX}: {error}; make the shards again with prepare_data.py --shards"
        ) from error
    return vocabulary
