"""How does a run go, as the page shows it: its curves and samples, while it goes on or after it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from chatgot.checkpointing.names import RUN_ID
from chatgot.checkpointing.run_lock import is_being_trained
from chatgot.report.run_record import Row, Sample, read_rows, read_samples
from chatgot.serving.models import KnownModel

MOST_RUNS = 100
MOST_ROWS = 2000
MOST_SAMPLES = 1000
LONGEST_SAMPLE = 5000  # characters
MOST_KEPT = 20  # runs whose files are remembered while they do not change
LOOK_AGAIN_S = 1.0
COLUMNS = ("train_loss", "val_loss", "val_bits_per_byte", "lr", "tokens_per_s")
T = TypeVar("T")
Stamp = tuple[tuple[int, int], ...]  # size and time of each file


class Watch:
    """Reads the runs' folders; several threads may use it."""

    def __init__(self, runs_dir: Path, checkpoint_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.checkpoint_dir = checkpoint_dir
        self._lock = threading.Lock()
        self._read: OrderedDict[str, tuple[Stamp, list[Row], list[Sample]]] = OrderedDict()
        self._live: dict[str, tuple[float, bool]] = {}

    def runs(self, models: Sequence[KnownModel]) -> list[dict[str, object]]:
        """Return the runs that can be watched, newest first."""
        with self._lock:
            return [self._summary(run_id, models) for run_id in self._run_ids()]

    def run(self, run_id: str) -> dict[str, object] | None:
        """Return a run with its rows and samples, thinned out; None: there is no such run."""
        with self._lock:
            if run_id not in self._run_ids():
                return None
            rows, samples = self._record(run_id)
            evaluated = [row for row in rows if row.numbers.get("val_loss") is not None]
            best = min(evaluated, key=lambda row: row.numbers["val_loss"] or 0.0, default=None)
            return {
                "run_id": run_id,
                "live": self._is_live(run_id),
                "rows": [_columns(row) for row in thinned_rows(rows)],
                "samples": [
                    {
                        "step": sample.step,
                        "index": sample.index,
                        "prompt": sample.prompt[:LONGEST_SAMPLE],
                        "text": sample.text[:LONGEST_SAMPLE],
                    }
                    for sample in thinned(samples, MOST_SAMPLES)
                ],
                "best_step": None if best is None else int(best.step),
            }

    def _run_ids(self) -> list[str]:
        try:
            names = [path.name for path in self.runs_dir.iterdir() if path.is_dir()]
        except OSError:
            return []
        names = [name for name in names if RUN_ID.fullmatch(name)]
        return sorted(names, key=lambda name: name.rpartition("_")[::-1], reverse=True)[:MOST_RUNS]

    def _summary(self, run_id: str, models: Sequence[KnownModel]) -> dict[str, object]:
        own = [model for model in models if model.about.run_id == run_id]
        steps = [model.about.step for model in own]
        rows, _ = self._record(run_id)
        if rows:
            steps.append(int(rows[-1].step))
        return {
            "run_id": run_id,
            "live": self._is_live(run_id),
            "step": max(steps, default=0),
            "models": [model.id for model in own],
        }

    def _record(self, run_id: str) -> tuple[list[Row], list[Sample]]:
        folder = self.runs_dir / run_id
        stamp = tuple(_stamp(folder / name) for name in ("metrics.jsonl", "samples.jsonl"))
        known = self._read.get(run_id)
        if known is None or known[0] != stamp:
            known = (stamp, read_rows(folder), read_samples(folder))
            self._read[run_id] = known
        self._read.move_to_end(run_id)
        while len(self._read) > MOST_KEPT:
            self._read.popitem(last=False)
        return known[1], known[2]

    def _is_live(self, run_id: str) -> bool:
        looked, is_live = self._live.get(run_id, (float("-inf"), False))
        if time.monotonic() - looked >= LOOK_AGAIN_S:
            is_live = is_being_trained(self.checkpoint_dir, run_id)
            self._live[run_id] = (time.monotonic(), is_live)
        return is_live


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _columns(row: Row) -> dict[str, object]:
    return {"step": int(row.step)} | {name: row.numbers.get(name) for name in COLUMNS}


def thinned(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly spread, the last one among them."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(i * last / (most - 1))] for i in range(most)]


def thinned_rows(rows: Sequence[Row]) -> list[Row]:
    """Return at most MOST_ROWS rows; up to half of them are those with an evaluation."""
    evaluated = [row for row in rows if row.numbers.get("val_loss") is not None]
    others = [row for row in rows if row.numbers.get("val_loss") is None]
    kept = thinned(evaluated, MOST_ROWS // 2)
    kept += thinned(others, MOST_ROWS - len(kept))
    return sorted(kept, key=lambda row: row.step)
