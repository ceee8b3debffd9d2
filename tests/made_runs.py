"""Write the folders of made-up runs, for tests of the report."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

RUN_ID = "made_up_20250102-030405"
BEGIN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def event(
    kind: str, step: int | None = 0, text: str = "", at: float = 0, **fields: object
) -> dict[str, object]:
    """Return an event as in events.jsonl, `at` seconds after the start of the run."""
    time = (BEGIN + timedelta(seconds=at)).isoformat(timespec="milliseconds")
    return {"time": time, "step": step, "kind": kind, "text": text, **fields}


def start(**changes: object) -> dict[str, object]:
    """Return the event that begins a run."""
    fields: dict[str, Any] = {
        "ranks": 1,
        "device": "cpu, 2 threads",
        "precision": "bf16",
        "torch": "2.13.0",
        "version": "1.0",
        "run_id": RUN_ID,
        "model": "gpt, 0.0 M parameters",
        "parameters": 9000,
        "text": "6,000 characters",
        "config_path": "tiny.yaml",
        "command": "train --config tiny.yaml",
    }
    return event("start", **(fields | changes))


def end(kind: str, step: int = 40, at: float = 90, **changes: object) -> dict[str, object]:
    """Return the event that ends a run or its present process."""
    fields: dict[str, Any] = {
        "global_step": step,
        "skips": 1,
        "rewinds": 0,
        "precision": "fp32",
        "best_step": 30,
        "best_val_loss": 2.5,
        "checkpoint": "a_step_40.pt",
        "resume_command": "train --resume_from a_step_40.pt",
        "text": f"{kind}: {step} steps",
    }
    return event(kind, step, at=at, **(fields | changes))


def json_lines(objects: Iterable[object]) -> bytes:
    """Return objects as JSON, one a line."""
    return b"".join(json.dumps(item).encode() + b"\n" for item in objects)


def write(
    parent: Path,
    *events: dict[str, object],
    rows: bytes | None = None,
    samples: Iterable[object] = (),
    name: str = RUN_ID,
) -> Path:
    """Write the folder of a run, without the files that get no lines; return the folder."""
    run_dir = parent / name
    run_dir.mkdir(parents=True)
    if rows is not None:
        (run_dir / "metrics.jsonl").write_bytes(rows)
    if events:
        (run_dir / "events.jsonl").write_bytes(json_lines(events))
    lines = json_lines(samples)
    if lines:
        (run_dir / "samples.jsonl").write_bytes(lines)
    return run_dir
