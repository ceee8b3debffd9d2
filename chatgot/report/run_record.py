"""Read a run's folder: rows of metrics, events, samples, TensorBoard's curves.

No file is trusted: damaged and missing parts are ignored, and the report says what is missing. The
log itself is not read, because its wording is for people and may change.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

MOST_SOURCES = 32  # of a text, in one row
LARGEST = 1e30  # larger numbers count as infinite: no chart could show them with others

Curves = dict[str, list[tuple[float, float]]]  # by TensorBoard's tag: (step, number)


@dataclass(frozen=True)
class Row:
    """One row of metrics.jsonl.

    numbers: {column: number}; None: null, or not a number that can be drawn.
    nonfinite: whether one of its numbers was NaN or infinite.
    by_source: the held-out loss of each source of the text, by its name.
    """

    step: float
    numbers: Mapping[str, float | None]
    nonfinite: bool = False
    by_source: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One event of events.jsonl.

    time: local time, "2025-01-02 03:04:05"; empty: no readable time.
    fields: the other fields of the event.
    """

    time: str
    step: int | None
    kind: str
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)

    def word(self, name: str) -> str:
        """Return a text field; empty if it is missing or not a text."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> float | None:
        """Return a field's number; None if it is missing or cannot be drawn."""
        return number(self.fields.get(name))

    def holds(self, name: str) -> bool:
        """Return whether a field exists and is true."""
        return self.fields.get(name) is True


@dataclass(frozen=True)
class Sample:
    """One sample of samples.jsonl: the model's `text` for the prompt number `index`."""

    step: int
    index: int
    prompt: str
    text: str


@dataclass
class Board:
    """TensorBoard's curves; `problem`: why there are none, or not all."""

    curves: Curves = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class RunRecord:
    """Everything read from a run's folder."""

    rows: list[Row]
    events: list[Event]
    samples: list[Sample]
    board: Board


def read_run(run_dir: Path) -> RunRecord:
    """Read a run's folder as it is now."""
    return RunRecord(
        rows=read_rows(run_dir),
        events=read_events(run_dir),
        samples=read_samples(run_dir),
        board=read_board(run_dir),
    )


def number(value: object) -> float | None:
    """Return a JSON value as a number that can be drawn, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= LARGEST:  # also true for NaN
        return None
    return float(value)


def read_objects(path: Path) -> Iterator[dict[str, object]]:
    """Yield the objects in a file of JSON lines; other and incomplete lines are ignored."""
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


def read_rows(run_dir: Path) -> list[Row]:
    """Return the rows of metrics.jsonl, sorted by step; for each step only its last row."""
    rows: dict[float, Row] = {}
    for columns in read_objects(run_dir / "metrics.jsonl"):
        step = number(columns.get("step"))
        if step is not None:
            numbers = {name: number(value) for name, value in columns.items()}
            losses = _by_source(columns.get("val_loss_by_source"))
            rows[step] = Row(step, numbers, columns.get("nonfinite") is True, losses)
    return [rows[step] for step in sorted(rows)]


def _by_source(value: object) -> dict[str, float]:
    """Return the numbers of a JSON object, at most MOST_SOURCES."""
    if not isinstance(value, dict):
        return {}
    losses = {name: number(loss) for name, loss in list(value.items())[:MOST_SOURCES]}
    return {name: loss for name, loss in losses.items() if loss is not None}


def read_events(run_dir: Path) -> list[Event]:
    """Return the events of events.jsonl in the order of the file."""
    own = ("time", "step", "kind", "text")
    events = []
    for line in read_objects(run_dir / "events.jsonl"):
        kind = line.get("kind")
        text = line.get("text")
        if isinstance(kind, str):
            event = Event(
                time=local_time(line.get("time")),
                step=whole(line.get("step")),
                kind=kind,
                text=text if isinstance(text, str) else "",
                fields={name: value for name, value in line.items() if name not in own},
            )
            events.append(event)
    return events


def read_samples(run_dir: Path) -> list[Sample]:
    """Return the samples of samples.jsonl, sorted by prompt and step; of duplicates the last."""
    samples: dict[tuple[int, int], Sample] = {}
    for line in read_objects(run_dir / "samples.jsonl"):
        step = whole(line.get("step"))
        index = whole(line.get("index"))
        prompt = line.get("prompt")
        text = line.get("text")
        if step is None or index is None:
            continue
        if isinstance(prompt, str) and isinstance(text, str):
            samples[index, step] = Sample(step, index, prompt, text)
    return [samples[key] for key in sorted(samples)]


def whole(value: object) -> int | None:
    """Return a JSON value as a whole number, else None."""
    as_number = number(value)
    return None if as_number is None else int(as_number)


def local_time(value: object) -> str:
    """Return an ISO 8601 time as local time to the second, as in the log; empty if unreadable."""
    if not isinstance(value, str):
        return ""
    try:
        time = datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError, OSError):  # not a time, or out of range
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def read_board(run_dir: Path) -> Board:
    """Return TensorBoard's curves, without points that a resume or a rewind has undone.

    An error (TensorBoard is not installed, a file is damaged) becomes the `problem`; curves read
    before it are kept.
    """
    board = Board()
    if not any(run_dir.glob("*tfevents*")):
        board.problem = "there are no TensorBoard event files"
        return board
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        # 0: all of them
        points = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
        try:
            with _quiet("tensorboard"):  # it warns about the points that it rightly leaves out
                points.Reload()
        finally:
            for tag in points.Tags()["scalars"]:
                curve = [(float(point.step), number(point.value)) for point in points.Scalars(tag)]
                board.curves[tag] = [(step, value) for step, value in curve if value is not None]
    except Exception as error:  # noqa: BLE001 whatever it is, the other parts do not need it
        board.problem = f"TensorBoard's event files could not be read: {error!r}"
    return board


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Switch another library's logger off while the block runs."""
    foreign = logging.getLogger(name)
    before = foreign.disabled
    foreign.disabled = True
    try:
        yield
    finally:
        foreign.disabled = before
