"""Blocks of tokens, fetched from shards by ranges of bytes and checked by their digests.

The blocks of a round (see order.py) stay in memory until the next one. Those that came over a
network are in a folder, too, so that a resumed run and other ranks on this machine find them. Both
are bounded.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chatgot.atomic_file import temporary_name
from chatgot.data.shards.index import DIGEST_BYTES, Blocks, Part, ShardIndex, block_digest
from chatgot.data.shards.storage import Folder
from chatgot.data.vocabulary import Ids
from chatgot.errors import StorageError
from chatgot.logs.waiting import address_space_is_limited

logger = logging.getLogger(__name__)

# Of blocks in memory, at most. A round goes through its blocks again and again in the same order:
# where they are too many, the first ones stay, and the others are fetched each time
MEMORY_BYTES = 1 << 30
DISK_BYTES = 1 << 33  # of blocks in the folder, about: it is looked at once in a while
LOOK_EVERY = 64  # blocks that are written into the folder between two looks
AT_ONCE = 16  # blocks that are fetched at the same time


class BlockReader:
    """The blocks of a part.

    cache: the folder for blocks that came over a network; None: memory alone.
    Raises: StorageError, from all that reads.
    """

    def __init__(
        self,
        folder: Folder,
        index: ShardIndex,
        part: Part,
        cache: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.blocks = Blocks(index, part)
        self._folder = folder
        self._dtype = index.dtype
        self._most = max(AT_ONCE, memory_bytes // index.block_bytes)
        self._kept: dict[int, Ids] = {}
        self._round: object = None
        self._pool: ThreadPoolExecutor | None = None
        self._disk = None if cache is None or folder.is_local else _BlockFolder(cache)

    def begin(self, some_round: object) -> None:
        """Forget the blocks of another round than this one."""
        if some_round != self._round:
            self._kept.clear()
            self._round = some_round

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the ids from each start on, (len(starts), length).

        starts: in the part. A window lies within its block.
        """
        numbers = starts // self.blocks.block_tokens
        inside = starts % self.blocks.block_tokens
        span = np.arange(length)
        result = np.empty((len(starts), length), np.int64)
        needed = np.unique(numbers).tolist()
        for first in range(0, len(needed), AT_ONCE):
            for number, ids in self._take(needed[first : first + AT_ONCE]):
                chosen = numbers == number
                result[chosen] = ids[inside[chosen, None] + span]
                if len(self._kept) < self._most:
                    self._kept[number] = ids
        return result

    def head(self, tokens: int) -> Ids:
        """Return the first tokens of the part; fewer where it has fewer."""
        tokens = min(tokens, self.blocks.tokens)
        last = -(-tokens // self.blocks.block_tokens)
        ids = np.empty(tokens, self._dtype)
        for first in range(0, last, AT_ONCE):
            for number, some in self._take(range(first, min(first + AT_ONCE, last))):
                begin = number * self.blocks.block_tokens
                ids[begin : begin + len(some)] = some[: tokens - begin]
        return ids

    def _take(self, numbers: Sequence[int]) -> list[tuple[int, Ids]]:
        """Return at most AT_ONCE blocks, those that are missing fetched side by side."""
        missing = [number for number in numbers if number not in self._kept]
        if len(missing) < 2 or address_space_is_limited():
            fetched = list(map(self._fetch, missing))
        else:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(AT_ONCE, "fetching")
            fetched = list(self._pool.map(self._fetch, missing))
        taken = dict(zip(missing, fetched, strict=True))
        return [
            (number, taken[number] if number in taken else self._kept[number]) for number in numbers
        ]

    def _fetch(self, block: int) -> Ids:
        """Return a block from the folder of the cache, else from the storage."""
        name, number, size = self.blocks.place(block)
        kept_name = f"{name}.{number}"
        if self._disk is not None:
            ids = self._checked(self._disk.read(kept_name), number, size)
            if ids is not None:
                return ids
        begin = number * self.blocks.block_bytes
        content = b""
        for _ in range(2):  # what was damaged on its way comes whole the next time
            try:
                content = self._folder.read(name, begin, begin + size)
            except FileNotFoundError as error:
                raise StorageError(
                    f"{self._folder.url}/{name}: is not there, though the index names it; "
                    "put the shard back, or make the shards again"
                ) from error
            ids = self._checked(content, number, size)
            if ids is not None:
                if self._disk is not None:
                    self._disk.write(kept_name, content)
                return ids
        found = "another SHA-256 than when it was written"
        if len(content) != size:
            found = f"{len(content):,} bytes of {size:,}"
        raise StorageError(
            f"{self._folder.url}/{name}: block {number} (from byte {begin:,} on) is damaged: "
            f"found {found}; put the shard back, or make the shards again"
        )

    def _checked(self, content: bytes | None, number: int, size: int) -> Ids | None:
        """Return the ids of a block; None: it is not as it was written."""
        if content is None or len(content) != size:
            return None
        if block_digest(number, content[:-DIGEST_BYTES]) != content[-DIGEST_BYTES:]:
            return None
        return np.frombuffer(content[:-DIGEST_BYTES], self._dtype)


class _BlockFolder:
    """Blocks in a folder of this machine, for several processes; best effort.

    The oldest go first when there are more than DISK_BYTES.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0
        self._works = True

    def read(self, name: str) -> bytes | None:
        """Return a block as it was written; None: it is not here."""
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Keep a block; threads may do so side by side."""
        if not self._works:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # no fsync: what a power cut leaves torn is fetched again
            path = temporary_name(self._folder / name)
            path.write_bytes(content)
            path.replace(self._folder / name)
        except OSError as error:
            self._works = False
            logger.warning(
                "%s: blocks are not kept on this disk: %s", self._folder, error.strerror or error
            )
            return
        self._written += 1
        if self._written % LOOK_EVERY == 0:
            self._make_room()

    def _make_room(self) -> None:
        with suppress(OSError):
            kept = []
            for path in self._folder.iterdir():
                with suppress(OSError):  # another process has removed it
                    status = path.stat()
                    kept.append((status.st_mtime_ns, status.st_size, path))
            too_many = sum(size for _, size, _ in kept) - DISK_BYTES
            for _, size, path in sorted(kept):
                if too_many <= 0:
                    return
                path.unlink(missing_ok=True)
                too_many -= size
