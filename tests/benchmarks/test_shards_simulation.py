"""The simulation of a text larger than a machine says what it should, on a small one."""

import argparse

import numpy as np

from benchmarks import shards
from benchmarks.made_up_shards import ids_of, open_storage
from benchmarks.one_shard_rank import windows_of
from chatgot.data.shards.order import WindowOrder
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.storage import Folder

SMALL = argparse.Namespace(terabytes=3e-4, shard_mib=4, steps=3)  # 286 blocks


def test_a_rank_reads_made_up_blocks_as_the_index_says():
    storage = open_storage(300 * 2**20, 4 << 20)
    storage.latency_s = 0.0
    reader = BlockReader(Folder("madeup://shards"), storage.index, storage.index.train)
    windows = windows_of(reader, 8)
    starts = windows.starts(3, 8)
    x, _ = windows.batch(starts)
    begin = int(starts[0]) % (1 << 19)
    expected = ids_of(int(starts[0]) >> 19, 1 << 19)[begin : begin + 1024]
    assert x[0].tolist() == expected.tolist()
    assert storage.requests == len(set((starts >> 19).tolist()))


def test_doubles_are_counted(monkeypatch):
    assert shards.doubles(SMALL.terabytes, 8) == 0

    def repeating(self: WindowOrder, index: np.ndarray) -> np.ndarray:
        return index // 2 * 1024

    monkeypatch.setattr(WindowOrder, "starts_of", repeating)
    assert shards.doubles(SMALL.terabytes, 8) > 0


def test_other_numbers_of_ranks_are_compared(monkeypatch):
    monkeypatch.setattr(shards, "RESUMED_AT", 100)
    monkeypatch.setattr(shards, "RESUMED_SEQUENCES", 6)
    monkeypatch.setattr(shards, "RESUMED_ON", (1, 2, 5))
    assert shards.resumed(SMALL)
