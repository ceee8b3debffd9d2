"""The story of a run, from its events: its status, what changed, and the table of events."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chatgot.report.run_record import Curves, Event, number

GROUP_FROM = 4  # from this many events of one kind between two turning points, one line for all
BEGINNINGS = ("start", "resume")  # of a session of training
ENDS = ("done", "stop", "crash")
TURNING_POINTS = (
    *BEGINNINGS,
    *ENDS,
    "rewind",
    "precision",
    "decay",
)  # events that change the run's course
PRECISIONS = ("fp32", "bf16", "fp16")  # the values 0, 1, 2 of TensorBoard's curve amp/precision
COLORS = {
    "best": "good",
    "done": "good",
    "skip": "warn",
    "rewind": "warn",
    "warning": "warn",
    "contention": "warn",
    "error": "bad",
    "critical": "bad",
    "crash": "bad",
}


@dataclass(frozen=True)
class Status:
    """A run's status in words, and its colour."""

    words: str
    color: str


@dataclass(frozen=True)
class Line:
    """One line of the table of events.

    until: for several events, the time of the last one; without the date if it is the same day.
    count: for several events, their number and steps; empty for one event.
    """

    time: str
    label: str
    color: str
    text: str
    until: str = ""
    count: str = ""


# --------------------------------------------------------------------------------------------------
# The run as a whole


def last_of(events: Iterable[Event], kinds: Iterable[str]) -> Event | None:
    """Return the last event of one of these kinds."""
    wanted = set(kinds)
    return next((event for event in reversed(list(events)) if event.kind in wanted), None)


def end_of(events: list[Event]) -> Event | None:
    """Return the event that ended the run; None: it is still running, or it was killed."""
    last = last_of(events, (*BEGINNINGS, *ENDS))
    return last if last is not None and last.kind in ENDS else None


def status(events: list[Event]) -> Status:
    """Return the run's status."""
    if last_of(events, (*BEGINNINGS, *ENDS)) is None:
        return Status("it is not known how the run ended", "warn")
    end = end_of(events)
    if end is None:
        return Status("still running, or killed", "warn")
    if end.kind == "done":
        return Status("done", "good")
    if end.kind == "stop":
        return Status(f"stopped by {end.word('signal') or 'a signal'}", "calm")
    return Status("ended by an error", "bad")


def begin_and_end(events: list[Event]) -> tuple[str, str] | None:
    """Return the times of the first and the last event."""
    times = [event.time for event in events if event.time]
    return (times[0], times[-1]) if times else None


def about(events: list[Event]) -> list[str]:
    """Return the run's model, text, device and software, one line each."""
    beginning = last_of(events, BEGINNINGS)
    if beginning is None:
        return []
    software = [
        f"{title} {beginning.word(name)}"
        for title, name in (("ChatGoT", "version"), ("torch", "torch"))
        if beginning.word(name)
    ]
    facts = {
        "model": beginning.word("model"),
        "text": beginning.text,  # in these events, the training text
        "device": beginning.word("device"),
        "software": ", ".join(software),
    }
    return [f"{name}: {fact}" for name, fact in facts.items() if fact]


def resume_command(events: list[Event]) -> str:
    """Return the command that resumes the run from its end; empty: there is none."""
    end = end_of(events)
    return "" if end is None else end.word("resume_command")


def precisions(events: list[Event], board: Curves) -> list[str]:
    """Return the precisions that the run used, in order.

    board: TensorBoard's curves, used if the run wrote no events.
    """
    names = [name for name in map(_precision_from, events) if name]
    if not names:
        values = [int(value) for _, value in board.get("amp/precision", [])]
        names = [PRECISIONS[value] for value in values if 0 <= value < len(PRECISIONS)]
    before = ["", *names]
    return [name for name, last in zip(names, before, strict=False) if name != last]


def _precision_from(event: Event) -> str:
    """Return the precision that the run uses after an event; empty: the event does not say."""
    if event.kind in BEGINNINGS:
        return event.word("precision")
    return event.word("new") if event.kind == "precision" else ""


def prediction(events: list[Event]) -> tuple[float, float, float] | None:
    """Return the least, the likely and the highest held-out loss predicted for the run, if any."""
    for event in events:
        if event.kind != "choice" or event.word("what") != "prediction":
            continue
        bar = event.fields.get("measured")
        if not isinstance(bar, Mapping):
            continue
        low = number(bar.get("low"))
        loss = event.number("chosen")
        high = number(bar.get("high"))
        if low is not None and loss is not None and high is not None:
            return low, loss, high
    return None


def contended_s(events: list[Event]) -> float:
    """Return for how many seconds other programs took the cores, over all sessions of training.

    Each event has the seconds of its session so far. A session that was killed lacks its last ones.
    """
    total = 0.0
    session = 0.0
    for event in events:
        if event.kind in BEGINNINGS:
            total += session
            session = 0.0
        elif event.kind == "contention":
            session = max(session, event.number("seconds") or 0.0)
    return total + session


# --------------------------------------------------------------------------------------------------
# Curves


def curves(events: list[Event], last_step: float) -> Curves:
    """Return precision, micro-batch size and skipped steps as curves, by TensorBoard's tags.

    A curve without any event is left out. last_step: where each curve ends.
    """
    precision: list[tuple[float, float]] = []
    micro_batch: list[tuple[float, float]] = []
    skips: list[tuple[float, float]] = []
    for event in events:
        step = 0.0 if event.step is None else float(event.step)
        name = _precision_from(event)
        if event.kind == "rewind":
            back_to = event.number("to")
            for curve in (precision, micro_batch, skips):
                _remove_undone(curve, step if back_to is None else back_to)
        elif event.kind == "micro_batch":
            if not micro_batch:
                _add(micro_batch, 0.0, event.number("old"))
            _add(micro_batch, step, event.number("new"))
        elif event.kind == "skip":
            skips.append((step, 1.0 + (skips[-1][1] if skips else 0.0)))
        elif name in PRECISIONS:
            precision.append((step, float(PRECISIONS.index(name))))
    if skips:
        skips.insert(0, (0.0, 0.0))
    tags = {
        "amp/precision": precision,
        "batch/micro_batch_size": micro_batch,
        "amp/skipped_steps": skips,
    }
    for curve in tags.values():
        if curve and curve[-1][0] < last_step:
            curve.append((last_step, curve[-1][1]))
    return {tag: curve for tag, curve in tags.items() if curve}


def _add(curve: list[tuple[float, float]], step: float, value: float | None) -> None:
    if value is not None:
        curve.append((step, value))


def _remove_undone(curve: list[tuple[float, float]], step: float) -> None:
    """Remove the points that a rewind to `step` has undone; the current value stays."""
    if curve and curve[-1][0] > step:
        value = curve[-1][1]
        curve[:] = [point for point in curve if point[0] < step]
        curve.append((step, value))


# --------------------------------------------------------------------------------------------------
# The table of events


def label(event: Event) -> str:
    """Return an event's label in the table."""
    if event.kind == "warning":
        return event.word("level").lower() or "warning"
    if event.kind == "evaluation" and event.holds("best"):
        return "best"
    return event.kind.replace("_", " ")


def color(event: Event) -> str:
    """Return the colour of an event's label."""
    if event.kind == "micro_batch" and event.word("reason") == "oom":
        return "warn"
    return COLORS.get(label(event), "calm")


def text_of(event: Event) -> str:
    """Return an event's text in the table: the log's, or a short one for `start` and `resume`."""
    if event.kind == "start":
        return f"run {event.word('run_id')}"
    if event.kind == "resume":
        return f"resumed from {event.word('resumed_from')}"
    return event.text


def is_turning_point(event: Event) -> bool:
    return event.kind in TURNING_POINTS or label(event) in ("error", "critical")


def table(events: list[Event]) -> list[Line]:
    """Return the table's lines; between turning points, many events of one kind become one line."""
    lines: list[Line] = []
    stretch: list[Event] = []
    for event in events:
        if event.kind == "evaluation" and not event.holds("best"):
            continue  # the loss chart shows all evaluations
        if event.kind == "originality":
            continue  # a chart of its own shows them
        if is_turning_point(event):
            lines += _collapsed(stretch)
            lines.append(_line([event]))
            stretch = []
        else:
            stretch.append(event)
    return lines + _collapsed(stretch)


def _collapsed(stretch: list[Event]) -> list[Line]:
    """Return the lines for events without a turning point; a group is at its first event."""
    groups: dict[str, list[Event]] = {}
    for event in stretch:
        groups.setdefault(_group_key(event), []).append(event)
    lines = []
    for event in stretch:
        group = groups[_group_key(event)]
        if len(group) < GROUP_FROM:
            lines.append(_line([event]))
        elif event is group[0]:
            lines.append(_line(group))
    return lines


def _group_key(event: Event) -> str:
    """Return the key of an event's group: its label, and for warnings the text without numbers."""
    if event.kind != "warning":
        return label(event)
    return label(event) + re.sub(r"\d+", "#", event.text[:80])


def _line(group: list[Event]) -> Line:
    begin = group[0]
    end = group[-1]
    line = Line(begin.time, label(begin), color(begin), text_of(end))
    if len(group) == 1:
        return line
    day = begin.time[:11]
    until = "" if begin.time == end.time else end.time.removeprefix(day)
    steps = [event.step for event in group if event.step is not None]
    over = f", step {min(steps):,}" if steps else ""
    if steps and max(steps) > min(steps):
        over += f" to {max(steps):,}"
    count = f"{len(group):,} times{over}"
    return Line(line.time, line.label, line.color, line.text, until, count)
