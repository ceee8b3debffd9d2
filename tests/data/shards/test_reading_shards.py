"""Blocks are fetched by ranges, checked, tried again, and kept within bounds."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from chatgot.data.shards import reading
from chatgot.data.shards.index import INDEX, read_index
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.storage import Folder
from chatgot.errors import StorageError

PLACE = "/unreliable/shards"


class Unreliable(MemoryFileSystem):
    """A storage that counts requests, and fails as it is told."""

    protocol = "unreliable"
    store: dict = {}
    pseudo_dirs = [""]
    requests: list[tuple[str, int | None, int | None]] = []
    failures: list[Exception] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("unreliable://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.requests.append((path.rpartition("/")[2], start, end))
        if self.failures:
            raise self.failures.pop()
        return super().cat_file(path, start=start, end=end, **kwargs)


@pytest.fixture
def stored(make) -> tuple[Folder, Path]:
    """Return a folder of shards in a storage that fails on demand, and the local copy of it."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    local = make()
    storage = fsspec.filesystem("unreliable")
    storage.store.clear()
    for path in local.iterdir():
        storage.pipe_file(f"{PLACE}/{path.name}", path.read_bytes())
    Unreliable.failures.clear()
    folder = Folder("unreliable://unreliable/shards")
    Unreliable.requests.clear()
    return folder, local


def reader_of(folder: Folder, local: Path, **more) -> BlockReader:
    index = read_index((local / INDEX).read_bytes(), "")
    return BlockReader(folder, index, index.train, **more)


def test_a_window_is_what_the_shards_files_have_there(stored):
    folder, local = stored
    reader = reader_of(folder, local)
    index = read_index((local / INDEX).read_bytes(), "")
    plain = []
    for shard in index.train.shards:
        content = (local / shard.name).read_bytes()
        for begin in range(0, len(content), 512 + 32):
            block = content[begin : begin + 512 + 32]
            plain.append(np.frombuffer(block[:-32], "<u2"))
    ids = np.concatenate(plain)
    rng = np.random.default_rng(0)
    starts = rng.integers(reader.blocks.count - 1, size=100) * 256 + rng.integers(
        256 - 17, size=100
    )
    windows = reader.windows(starts, 17)
    assert windows.dtype == np.int64
    assert np.array_equal(windows, ids[starts[:, None] + np.arange(17)])
    assert np.array_equal(reader.head(700), ids[:700])
    assert np.array_equal(reader.head(10**9), ids)


def test_each_block_is_one_request_for_its_range(stored):
    folder, local = stored
    reader = reader_of(folder, local)
    starts = np.array([0, 5, 256, 4 * 256, 4 * 256 + 9])
    for _ in range(3):
        reader.windows(starts, 16)
    sizes = {(start, end) for _, start, end in Unreliable.requests}
    assert sizes == {(0, 544), (544, 1088)}
    assert len(Unreliable.requests) == 3


def test_memory_keeps_so_many_blocks_until_the_next_round(stored, monkeypatch):
    monkeypatch.setattr(reading, "AT_ONCE", 2)
    folder, local = stored
    reader = reader_of(folder, local, memory_bytes=4 * 544)
    reader.begin((0, 0))
    for block in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4):
        reader.begin((0, 0))
        reader.windows(np.array([block * 256]), 8)
    fetched = [start // 544 + 4 * int(name[6:12]) for name, start, _ in Unreliable.requests]
    assert fetched == [0, 1, 2, 3, 4, 4]
    reader.begin((0, 1))
    reader.windows(np.array([0]), 8)
    assert len(Unreliable.requests) == 7
    reader.head(256 * 9)  # is read once, and not kept
    before = len(Unreliable.requests)
    reader.windows(np.array([8 * 256]), 8)
    assert len(Unreliable.requests) == before + 1


def test_what_fails_for_a_moment_is_tried_again(stored):
    folder, local = stored
    Unreliable.failures += [TimeoutError("slow"), OSError("broken pipe")]
    reader_of(folder, local).windows(np.array([0]), 8)
    assert len(Unreliable.requests) == 3


def test_what_keeps_failing_is_one_line_with_the_shards_name(stored):
    folder, local = stored
    Unreliable.failures += [RuntimeError("gone")] * 9
    with pytest.raises(StorageError) as caught:
        reader_of(folder, local).windows(np.array([0]), 8)
    message = str(caught.value)
    assert "unreliable://unreliable/shards/train-000000-" in message
    assert "tried 3 times: RuntimeError: gone" in message
    assert "\n" not in message
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("error", [PermissionError("no"), FileNotFoundError("no")])
def test_what_no_try_can_change_is_not_tried_again(stored, error):
    folder, local = stored
    Unreliable.failures += [error]
    with pytest.raises(StorageError, match="train-000000-"):
        reader_of(folder, local).windows(np.array([0]), 8)
    assert len(Unreliable.requests) == 1


@pytest.mark.parametrize("place", [0, 300, 511, 512, 543])
def test_a_flipped_bit_in_a_block_is_refused(stored, place):
    folder, local = stored
    reader = reader_of(folder, local)
    name, _, _ = reader.blocks.place(0)
    storage = fsspec.filesystem("unreliable")
    content = bytearray((local / name).read_bytes())
    content[place] ^= 4
    storage.pipe_file(f"{PLACE}/{name}", bytes(content))
    with pytest.raises(StorageError, match=r"block 0 \(from byte 0 on\) is damaged: found another"):
        reader.windows(np.array([0]), 8)
    reader.windows(np.array([256]), 8)  # the other blocks are as they were


def test_a_block_from_another_place_is_refused(stored):
    folder, local = stored
    reader = reader_of(folder, local)
    name, _, _ = reader.blocks.place(0)
    content = (local / name).read_bytes()
    swapped = content[544:1088] + content[:544] + content[1088:]
    fsspec.filesystem("unreliable").pipe_file(f"{PLACE}/{name}", swapped)
    with pytest.raises(StorageError, match="damaged"):
        reader.windows(np.array([0]), 8)


def test_a_shard_that_is_cut_short_is_refused(stored):
    folder, local = stored
    reader = reader_of(folder, local)
    name, _, _ = reader.blocks.place(1)
    content = (local / name).read_bytes()
    fsspec.filesystem("unreliable").pipe_file(f"{PLACE}/{name}", content[:700])
    with pytest.raises(StorageError, match="found 156 bytes of 544"):
        reader.windows(np.array([256]), 8)


def test_blocks_of_a_network_stay_on_disk_for_the_next_run(stored, tmp_path):
    folder, local = stored
    cache = tmp_path / "cache"
    first = reader_of(folder, local, cache=cache).windows(np.array([0, 256, 600]), 8)
    requests = len(Unreliable.requests)
    second = reader_of(folder, local, cache=cache).windows(np.array([0, 256, 600]), 8)
    assert np.array_equal(first, second)
    assert len(Unreliable.requests) == requests
    damaged = next(iter(cache.iterdir()))
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    third = reader_of(folder, local, cache=cache).windows(np.array([0, 256, 600]), 8)
    assert np.array_equal(first, third)
    assert len(Unreliable.requests) == requests + 1


def test_blocks_of_a_local_folder_are_not_copied(make, tmp_path):
    local = make()
    cache = tmp_path / "cache"
    reader_of(Folder(str(local)), local, cache=cache).windows(np.array([0]), 8)
    assert not cache.exists()


def test_the_folder_of_blocks_is_bounded(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LOOK_EVERY", 4)
    monkeypatch.setattr(reading, "DISK_BYTES", 5 * 544)
    folder, local = stored
    cache = tmp_path / "cache"
    reader = reader_of(folder, local, cache=cache)
    for block in range(16):
        reader.windows(np.array([block * 256]), 8)
    assert len(list(cache.iterdir())) == 5


def test_a_disk_without_room_only_costs_a_warning(stored, tmp_path, caplog):
    folder, local = stored
    cache = tmp_path / "cache"
    cache.write_text("a file in its place")
    reader = reader_of(folder, local, cache=cache)
    for block in range(3):
        reader.windows(np.array([block * 256]), 8)
    assert caplog.text.count("blocks are not kept on this disk") == 1
