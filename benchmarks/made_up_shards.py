"""Shards of any size that are nowhere: a storage computes each block when it is asked for.

The ids of a block are numbers that its place in the text gives, so that whoever reads them can tell
where they are from. The storage counts requests and bytes.
"""

import threading
import time
from hashlib import sha256
from typing import Any

import fsspec
import numpy as np

from chatgot.data.shards.index import DIGEST_BYTES, INDEX, Part, Shard, ShardIndex, block_digest

PROTOCOL = "madeup"
BLOCK_TOKENS = 1 << 19  # 1 MiB
HELD_OUT_TOKENS = 1 << 20
VOCABULARY = 1 << 15
LATENCY_S = 0.02  # of a request, about that of an object storage in the same region


def made_up_index(total_bytes: int, shard_bytes: int) -> ShardIndex:
    """Return the index of so many bytes of tokens that train."""
    blocks = max(1, shard_bytes // (2 * BLOCK_TOKENS))
    tokens = total_bytes // 2
    train = _part("train", tokens, blocks * BLOCK_TOKENS)
    held_out = _part("held_out", HELD_OUT_TOKENS, blocks * BLOCK_TOKENS)
    characters = map(chr, range(0x100, 0x100 + VOCABULARY - 1))
    return ShardIndex(
        format=1,
        token_bytes=2,
        block_tokens=BLOCK_TOKENS,
        vocabulary=["<|endoftext|>", *characters],
        duplicates=0,
        train=train,
        held_out=held_out,
    )


def _part(name: str, tokens: int, shard_tokens: int) -> Part:
    digest = sha256(name.encode()).hexdigest()
    shards = []
    for number, begin in enumerate(range(0, tokens, shard_tokens)):
        here = min(shard_tokens, tokens - begin)
        blocks = -(-here // BLOCK_TOKENS)
        shards.append(
            Shard(
                name=f"{name}-{number:06d}-{number:016x}.tokens",
                tokens=here,
                bytes=2 * here + blocks * DIGEST_BYTES,
                sha256=digest,
                text_sha256=digest,
            )
        )
    return Part(documents=1, tokens=tokens, shards=shards)


class MadeUpStorage(fsspec.AbstractFileSystem):  # type: ignore[misc] # fsspec has no types
    """Answers requests for blocks of made-up shards, and counts them."""

    protocol = PROTOCOL
    cachable = True  # one for the process: whoever opens it sees the same counts
    index: ShardIndex
    blocks_of_shard: int
    latency_s = LATENCY_S

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests = 0
        self.bytes = 0
        self._lock = threading.Lock()

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Return the bytes of one block."""
        name = path.rpartition("/")[2]
        if name == INDEX:
            return self.index.to_json()
        assert start is not None
        assert end is not None
        time.sleep(self.latency_s)
        number = start // (2 * BLOCK_TOKENS + DIGEST_BYTES)
        part = 0 if name.startswith("train") else 1 << 20
        shard = int(name.split("-")[1])
        tokens = (end - start - DIGEST_BYTES) // 2
        block = ids_of(part + shard * self.blocks_of_shard + number, tokens).tobytes()
        with self._lock:
            self.requests += 1
            self.bytes += end - start
        return block + block_digest(number, block)


def ids_of(block: int, tokens: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return the ids of a block."""
    first = np.uint32(block * 40_503 & 0xFFFF_FFFF)
    numbers = np.arange(tokens, dtype=np.uint32) * np.uint32(2_654_435_761) + first
    return (numbers >> np.uint32(17)).astype("<u2")


def open_storage(total_bytes: int, shard_bytes: int) -> MadeUpStorage:
    """Return a storage of so many bytes; `madeup://shards` is its folder."""
    fsspec.register_implementation(PROTOCOL, MadeUpStorage, clobber=True)
    MadeUpStorage.index = made_up_index(total_bytes, shard_bytes)
    MadeUpStorage.blocks_of_shard = max(1, shard_bytes // (2 * BLOCK_TOKENS))
    storage: MadeUpStorage = fsspec.filesystem(PROTOCOL)
    return storage
