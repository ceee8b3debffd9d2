"""What a run left in its folder: rows of metrics, events of the log, TensorBoard's curves and samples.

Nothing that is read is trusted: what is damaged or missing is passed over, and said where it would have been shown.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatgot.logs.logging_setup import LINK

Row = dict[
    str, float | None
]  # by the names of metrics.jsonl; None: null, missing, or no sensible number

LARGEST = (
    1e30  # a number beyond it is as good as infinite, and no chart could show it beside others
)
LONGEST_RECORD = 2000  # bytes of a log record that are read
ROTATED_PARTS = 99  # training.log.1 and so on: more than any setting keeps

RECORD = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) - (INFO|WARNING|ERROR|CRITICAL) - (.*)", re.DOTALL
)
STEP = re.compile(r"_step_(\d+)\.pt|\bstep (\d+)")
EVENTS = tuple(  # what the log says of events, by the wording; of these the first that fits, else warnings and errors
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("begin", r"run \S+_\d{8}-\d{6}$"),
        ("resume", r"resumed from .* at step \d+$"),
        (
            "resume",
            r"left behind, set aside as \.superseded: |the schedule changes from here: |init_from: \d+ of ",
        ),
        ("save", r"saved .*_step_\d+\.pt \(|.*_step_\d+\.pt is there already and whole"),
        ("best", r"step \d+ \| val_loss .* \| best so far$"),
        ("skip", r"step \d+ skipped: "),
        ("high loss", r"step \d+: loss \S+ is far too high"),
        ("rewind", r"diverged at step \d+ .*: rewinding to step \d+"),
        ("precision", r"precision (falls back|climbs back|stays) |mixed precision: "),
        ("batch size", r"micro_batch_size |step \d+: out of memory: micro_batch_size "),
        (
            "recompute",
            r"gradient checkpointing( is off from|: proven| stays off)|step \d+ is done again without grad",
        ),
        ("end", r"(done|stopped by \w+): [\d,]+ steps, "),
    )
)
TURNING_POINTS = (
    "begin",
    "resume",
    "rewind",
    "precision",
    "end",
    "error",
    "critical",
)  # where a run's story turns
SAMPLE = re.compile(  # as chatgot.metrics writes it: each fence is longer than any run of backticks inside
    r"\*\*prompt\*\*\n\n(`{3,})\n(.*?)\n\1\n\n\*\*continuation\*\*\n\n(`{3,})\n(.*)\n\3", re.DOTALL
)


@dataclass(frozen=True)
class Event:
    time: str
    level: str
    kind: str
    text: str

    @property
    def step(self) -> int | None:
        """The last step that the text names as the one it happened at: of a saved file its own."""
        found = STEP.search(self.text)
        return int((found[1] or found[2])[:15]) if found else None


@dataclass
class Log:
    """The events of a log, when it begins and ends, and what its last lines `name: value` say, by their names."""

    events: list[Event] = field(default_factory=list)
    begins: str = ""
    ends: str = ""
    says: dict[str, str] = field(default_factory=dict)

    @property
    def turning_point(self) -> Event | None:
        """The last event that decides how the run stands."""
        return next(
            (event for event in reversed(self.events) if event.kind in TURNING_POINTS), None
        )


@dataclass
class Board:
    """TensorBoard's curves by tag, [(step, number)], and samples by name, [(step, prompt, continuation)]."""

    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    samples: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    problem: str = ""

    @property
    def precisions(self) -> list[str]:
        """The precisions that were in force, in their order."""
        names = {0: "fp32", 1: "bf16", 2: "fp16"}
        seen = [names[value] for _, value in self.curves.get("amp/precision", []) if value in names]
        return [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]


def number(value: Any) -> float | None:
    """Return a value of JSON as a number that can be drawn, else None."""
    fits = (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    )  # false for NaN
    return float(value) if fits else None


def read_rows(run_dir: Path) -> list[Row]:
    """Return the rows of metrics.jsonl in the order of their steps; `nonfinite` is 1 where a number was not finite."""
    rows: dict[float, Row] = {}
    with suppress(OSError), (run_dir / "metrics.jsonl").open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):  # a torn or foreign line
                row = json.loads(line)
                step = number(row.get("step")) if isinstance(row, dict) else None
                if step is not None:
                    rows[step] = {key: number(value) for key, value in row.items()}
                    rows[step]["nonfinite"] = float(row.get("nonfinite") is True)
    return [rows[step] for step in sorted(rows)]


def log_parts(run_dir: Path) -> list[Path]:
    """Return the parts of the log that are there, the oldest first."""
    names = [f"{LINK}.{n}" for n in range(ROTATED_PARTS, 0, -1)] + [LINK]
    return [run_dir / name for name in names if (run_dir / name).is_file()]


def read_log(run_dir: Path) -> Log:
    """Return what the log tells; lines that continue a record (samples, tracebacks) are indented and no records."""
    log = Log()
    for part in log_parts(run_dir):
        with suppress(OSError), part.open("rb") as file:
            for line in file:
                record = RECORD.match(
                    line[:LONGEST_RECORD].decode("utf-8", "replace").rstrip("\r\n")
                )
                if record:
                    log.begins, log.ends = log.begins or record[1], record[1]
                    _note(log, Event(record[1], record[2], "", record[3]))
    return log


def _note(log: Log, record: Event) -> None:
    """Keep a record that tells of an event, or of the run as a whole."""
    kind = next((kind for kind, pattern in EVENTS if pattern.match(record.text)), "")
    if kind or record.level != "INFO":
        log.events.append(
            Event(record.time, record.level, kind or record.level.lower(), record.text)
        )
    name, colon, value = record.text.partition(": ")
    if colon and record.level == "INFO" and re.fullmatch(r"[a-z]+( [a-z]+)?", name):
        log.says[name] = value


def read_board(run_dir: Path) -> Board:
    """Return what TensorBoard's event files hold, without what a resumed or rewound run left behind.

    Whatever fails (no TensorBoard here, a damaged file) is the `problem`; what was read before it stays.
    """
    board = Board()
    if not any(run_dir.glob("*tfevents*")):
        board.problem = "there are no TensorBoard event files"
        return board
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(
            str(run_dir), size_guidance={"scalars": 0, "tensors": 0}
        )  # 0: all of them
        # what a restart purges: texts are tensors, which it would keep; a run has no audio, in whose place they stand
        events.accumulated_attrs = (
            "scalars",
            "histograms",
            "compressed_histograms",
            "images",
            "tensors",
        )
        try:
            with _quiet("tensorboard"):  # it warns of what it rightly leaves out
                events.Reload()
        finally:
            _take(board, events)
    except Exception as error:  # noqa: BLE001 whatever it is, the other parts of the report do not need it
        board.problem = f"TensorBoard's event files could not be read: {error!r}"
    return board


def _take(board: Board, events: Any) -> None:
    for tag in events.Tags()["scalars"]:
        board.curves[tag] = [
            (e.step, e.value) for e in events.Scalars(tag) if number(e.value) is not None
        ]
    for tag in sorted(
        events.Tags()["tensors"], key=lambda tag: (len(tag), tag)
    ):  # prompt_2 before prompt_10
        if tag.startswith("samples/"):
            name = tag.removeprefix("samples/").removesuffix("/text_summary")
            board.samples[name] = [
                (e.step, *_parted(b"\n".join(e.tensor_proto.string_val).decode("utf-8", "replace")))
                for e in events.Tensors(tag)
            ]


def _parted(markdown: str) -> tuple[str, str]:
    """Return prompt and continuation of a sample; of a text that is none, nothing and all of it."""
    sample = SAMPLE.fullmatch(markdown)
    return (sample[2], sample[4]) if sample else ("", markdown)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Switch a foreign logger off for the time of the block."""
    foreign = logging.getLogger(name)
    before, foreign.disabled = foreign.disabled, True
    try:
        yield
    finally:
        foreign.disabled = before
