"""Texts larger than a machine: what a rank's share of the steps costs, simulated at 10 TB."""

import argparse
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made_up_shards import BLOCK_TOKENS, PROTOCOL, open_storage
from benchmarks.one_shard_rank import SEED, T, windows_of
from benchmarks.script_runs import ROOT, Figures
from chatgot.data.shards.order import WindowOrder
from chatgot.data.shards.reading import BlockReader
from chatgot.data.shards.storage import Folder

PROGRAM = ROOT / "benchmarks" / "one_shard_rank.py"
SHAPES = ((512, 8), (4096, 8), (512, 512), (4096, 512))  # sequences of a step, ranks
STRETCH = 300  # steps that are looked at for a sequence that comes twice
SAMPLED = 2000  # steps, evenly spread over an epoch, for the same
RESUMED = 5  # steps that other numbers of ranks take again
RESUMED_AT = 10**6  # the first of them
RESUMED_SEQUENCES = 96
RESUMED_ON = (1, 8, 5, 96)  # ranks; 5 have shares of different sizes


def shards(args: argparse.Namespace, folder: Path) -> Figures:
    """Measure ranks of several shapes, look for doubles, and resume on other numbers of ranks."""
    figures: Figures = {
        "terabytes": args.terabytes,
        "shard_mib": args.shard_mib,
        "block_mib": 2 * BLOCK_TOKENS / 2**20,
        "T": T,
        "steps": args.steps,
    }
    for sequences, ranks in SHAPES:
        found = measured_rank(args, sequences, ranks)
        name = f"S{sequences}_ranks{ranks}"
        share = sequences // ranks * T * 2 / 2**20  # MiB of ids that a step trains on
        figures |= {
            f"{name}_requests_per_step": round(found["requests"] / args.steps, 3),
            f"{name}_most_requests_of_a_step": found["most_requests_of_a_step"],
            f"{name}_mib_per_step": round(found["mib_read"] / args.steps, 3),
            f"{name}_read_over_trained": round(found["mib_read"] / args.steps / share, 3),
            f"{name}_order_ms": found["order_ms"],
            f"{name}_batch_ms": found["batch_ms"],
            f"{name}_peak_mib": found["peak_mib"],
        }
        figures |= {
            key: found[key] for key in ("index_json_mib", "open_index_s", "index_memory_mib")
        }
        figures |= {f"{name}_doubles": doubles(args.terabytes, sequences)}
    figures["same_on_other_ranks"] = resumed(args)
    return figures


def measured_rank(args: argparse.Namespace, sequences: int, ranks: int) -> dict[str, Any]:
    """Return what the middle rank, in a process of its own, has measured of the first steps."""
    numbers = (args.terabytes, args.shard_mib, sequences, ranks, ranks // 2, 0, args.steps)
    command = [sys.executable, str(PROGRAM), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def doubles(terabytes: float, sequences: int) -> int:
    """Return how many sequences come twice, in a stretch of an epoch and in steps all over it."""
    order = WindowOrder(int(terabytes * 1e12) // 2, BLOCK_TOKENS, T, sequences, SEED)
    steps = order.per_epoch // sequences
    middle = steps // 2
    positions = {
        *range(middle, middle + STRETCH),
        *np.linspace(0, steps - 1, SAMPLED).astype(int).tolist(),
    }
    starts = np.concatenate(
        [
            order.starts_of(np.arange(position * sequences, (position + 1) * sequences))
            for position in sorted(positions)
        ]
    )
    starts.sort()
    return int((np.diff(starts) < T).sum())  # also those that only overlap


def resumed(args: argparse.Namespace) -> bool:
    """Return whether other numbers of ranks take the same sequences, from a step in the middle."""
    storage = open_storage(int(args.terabytes * 1e12), args.shard_mib << 20)
    storage.latency_s = 0.0
    index = storage.index
    folder = Folder(f"{PROTOCOL}://shards")
    found = set()
    for ranks in RESUMED_ON:
        digest = sha256()
        shares: list[list[bytes]] = [[] for _ in range(RESUMED)]
        for rank in range(ranks):
            windows = windows_of(BlockReader(folder, index, index.train), RESUMED_SEQUENCES)
            for step in range(RESUMED):
                starts = windows.starts(RESUMED_AT + step, RESUMED_SEQUENCES)
                x, _ = windows.batch(np.array_split(starts, ranks)[rank])
                shares[step].append(x.numpy().tobytes())
        for parts in shares:
            digest.update(b"".join(parts))
        found.add(digest.hexdigest())
    return len(found) == 1
