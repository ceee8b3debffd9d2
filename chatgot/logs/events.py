"""What happened in a run, for programs: events.jsonl, one JSON object per line.

The log is for people, and its wording may change. A program's facts are attached to the log record:

    logger.info("saved %s", path, extra=event("save", path=str(path), best=False))
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from chatgot.logs.json_lines import JsonLines
from chatgot.logs.logging_setup import LOGGERS, Steady, take_early_records

NAME = "events.jsonl"
KINDS = frozenset(
    (
        "start",
        "resume",
        "choice",
        "save",
        "skip",
        "precision",
        "rewind",
        "micro_batch",
        "gradient_checkpointing",
        "compile",
        "contention",
        "evaluation",
        "decay",
        "plateau",
        "best",
        "originality",
        "distillation",
        "warning",
        "outcome",
        "stop",
        "done",
        "crash",
    )
)


def event(kind: str, step: int | None = None, **fields: object) -> dict[str, object]:
    """Return the argument `extra` of a logging call that makes its record an event.

    step: the optimizer step that the event belongs to; None: the run's current step.
    fields: the facts of the event. A field `text` replaces the record's message.
    """
    assert kind in KINDS, f"{kind!r} is no kind of event; expected one of {sorted(KINDS)}"
    assert "time" not in fields, "an event's time is the time of its log record"
    return {"event": {"step": step, "kind": kind, **fields}}


class EventLog(Steady):
    """Write the events of a run to `run_dir`/events.jsonl while the `with` block runs.

    An event is a log record made with `event(...)`, or any record of level WARNING or above.
    Records from before the block, when the run had no folder yet, come first.
    Best effort: if a line cannot be written there is one warning, and training continues.

    step: returns the run's current step.
    keep_up_to: in a resumed run, the last step whose events stay. Later events and an incomplete
        last line are removed before the first new event. None: a fresh run.
    """

    def __init__(
        self, run_dir: Path, *, step: Callable[[], int], keep_up_to: int | None = None
    ) -> None:
        super().__init__()
        self._file = JsonLines(run_dir / NAME, keep_up_to)
        self._step = step

    @property
    def target(self) -> str:
        return str(self._file.path)

    def __enter__(self) -> Self:
        self.share_lock()
        early = take_early_records()
        for target in LOGGERS:
            target.addHandler(self)
        for record in early:
            self.handle(record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for target in LOGGERS:
            target.removeHandler(self)
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        fields = fields_of(record)
        if fields is None:
            return
        try:
            own_step = fields.pop("step")
            line = {
                "time": utc_time(record.created),
                "step": self._step() if own_step is None else own_step,
                "kind": fields.pop("kind"),
                "text": record.getMessage().removesuffix("\n"),
            }
            if record.exc_info and record.exc_info[1] is not None:
                line["exception"] = repr(record.exc_info[1])
            self._file.append(line | fields)
        except Exception:  # noqa: BLE001 as logging does: handleError says whatever went wrong
            self.handleError(record)


def fields_of(record: logging.LogRecord) -> dict[str, object] | None:
    """Return a record's event fields, including step and kind; None: it is not an event."""
    fields: dict[str, object] | None = getattr(record, "event", None)
    if fields is not None:
        return dict(fields)
    if record.levelno >= logging.WARNING:
        return {"step": None, "kind": "warning", "level": record.levelname}
    return None


def utc_time(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
