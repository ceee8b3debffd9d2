"""Prepare or encode one text and print as JSON how fast that was, next to SHA-256.

    python benchmarks/one_preparation.py TASK FILE FOLDER

FOLDER: where the result goes; it is made. MB/s are those of the file.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# started as a file, from any folder
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chatgot.data.bpe import train_subwords
from chatgot.data.preparation.prepare import Preparation, prepare
from chatgot.data.text_file import text_chunks
from chatgot.data.token_cache import load_tokens

HASHED_BYTES = 1 << 20  # at a time, which the processor's cache holds
HASHED_TIMES = 100
VOCAB_SIZE = 4_096  # of the subwords
SAMPLE_BYTES = 1 << 21  # of the text, which the subwords are trained on

Figures = dict[str, object]
Task = Callable[[], str]  # returns in words what was made


def preparing(path: Path, folder: Path) -> Task:
    """Return what makes one text of a file."""

    def task() -> str:
        prepared = prepare(Preparation((str(path),)), folder / "text.txt")
        return ", ".join(file.kind for file in prepared.read)

    return task


def encoding_characters(path: Path, folder: Path) -> Task:
    """Return what makes ids of a text's characters."""

    def task() -> str:
        tokens = load_tokens(path, folder)
        return f"{len(tokens.vocabulary)} characters"

    return task


def encoding_subwords(path: Path, folder: Path) -> Task:
    """Return what makes ids of subwords, which are trained here."""
    sample = next(text_chunks(path, "utf-8", SAMPLE_BYTES))
    vocabulary = train_subwords([sample], VOCAB_SIZE)

    def task() -> str:
        tokens = load_tokens(path, folder, vocabulary)
        return f"{len(tokens.vocabulary):,} subwords"

    return task


TICK_S = 0.01  # of the clock that counts CPU time: a small text takes none

TASKS = {"prepare": preparing, "characters": encoding_characters, "bpe": encoding_subwords}


def measure(task_name: str, path: Path, folder: Path) -> Figures:
    """Return the speed of one of TASKS, and of SHA-256 before and after it."""
    folder.mkdir(parents=True)
    task = TASKS[task_name](path, folder)
    megabytes = path.stat().st_size / 1e6
    reference = sha256_mb_per_s()
    start = time.perf_counter()
    cpu_start_s = cpu_seconds()
    made = task()
    cpu_s = max(cpu_seconds() - cpu_start_s, TICK_S)
    wall_s = time.perf_counter() - start
    reference = (reference + sha256_mb_per_s()) / 2
    return {
        "made": made,
        "mb_per_cpu_s": megabytes / cpu_s,
        "mb_per_s": megabytes / wall_s,
        "sha256_mb_per_cpu_s": reference,
        "share_of_sha256": megabytes / cpu_s / reference,
    }


def cpu_seconds() -> float:
    """Return the CPU time of this process, and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sha256_mb_per_s() -> float:
    """Return the speed of SHA-256 in MB per second of CPU time."""
    content = bytes(HASHED_BYTES)
    start = time.process_time()
    for _ in range(HASHED_TIMES):
        hashlib.sha256(content)
    return HASHED_TIMES * len(content) / 1e6 / (time.process_time() - start)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
