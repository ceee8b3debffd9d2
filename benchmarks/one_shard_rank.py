"""Take one rank's share of some steps from made-up shards, and print as JSON what that took.

    python benchmarks/one_shard_rank.py TERABYTES SHARD_MIB SEQUENCES RANKS RANK FIRST STEPS

FIRST: the position of the first step. Nothing is kept on disk.
"""

import json
import resource
import sys
import time
from pathlib import Path

# started as a file, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil
import torch

from benchmarks.made_up_shards import PROTOCOL, VOCABULARY, open_storage
from chatgot.data.shards.index import INDEX, read_index
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.storage import Folder
from chatgot.data.shards.windows import ShardWindows

T = 1024
SEED = 1337


def mib(size: float) -> float:
    return round(size / 2**20, 1)


def windows_of(reader: BlockReader, sequences: int) -> ShardWindows:
    """Return the training windows of made-up shards."""
    return ShardWindows(
        reader,
        np.zeros(1, "<u2"),
        T=T,
        vocab_size=VOCABULARY,
        device=torch.device("cpu"),
        seed=SEED,
        sequences=sequences,
    )


def main() -> None:
    """Measure one rank."""
    terabytes, *numbers = sys.argv[1:]
    shard_mib, sequences, ranks, rank, first, steps = map(int, numbers)
    storage = open_storage(int(float(terabytes) * 1e12), shard_mib << 20)
    folder = Folder(f"{PROTOCOL}://shards")
    content = folder.read(INDEX)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    index = read_index(content, folder.url)
    reader = BlockReader(folder, index, index.train)
    opening_s = time.perf_counter() - started
    del index  # as a run does; the reader holds what it needs
    held = psutil.Process().memory_info().rss - before
    windows = windows_of(reader, sequences)
    order_s = []
    most_requests = 0
    for position in range(first, first + steps):
        requests = storage.requests
        started = time.perf_counter()
        starts = windows.starts(position, sequences)
        order_s.append(time.perf_counter() - started)
        windows.batch(np.array_split(starts, ranks)[rank])
        most_requests = max(most_requests, storage.requests - requests)
    print(
        json.dumps(
            {
                "index_json_mib": mib(len(content)),
                "open_index_s": round(opening_s, 2),
                "index_memory_mib": mib(held),
                "peak_mib": mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before),
                "requests": storage.requests,
                "mib_read": mib(storage.bytes),
                "most_requests_of_a_step": most_requests,
                "order_ms": round(1e3 * float(np.median(order_s)), 2),
                "batch_ms": round(1e3 * windows.take_s() / steps, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
