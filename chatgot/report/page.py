"""The report of a run: its numbers, curves, samples, events and settings as one HTML page that needs nothing else."""

import base64
import html
import os
import re
import statistics
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.logging_setup import escape_controls
from chatgot.logs.timing import human_time
from chatgot.report.run_record import (
    TURNING_POINTS,
    Board,
    Event,
    Log,
    Row,
    log_parts,
    read_board,
    read_log,
    read_rows,
)
from chatgot.report.style import CSS, PAGE, PART_COLORS

NAME = "report.html"
SAMPLE_STEPS, PROMPTS, SAMPLE_LENGTH = (
    6,
    8,
    1500,
)  # shown at most: steps of a prompt, prompts, characters of a sample
GROUP_FROM = 4  # so many events of one kind between two turning points become one line
FIRST_EVENTS, LAST_EVENTS = 20, 60  # lines of the table that are shown when it is longer
TEXT_LENGTH, CONFIG_LENGTH = 300, 20_000  # characters shown of an event, of the configuration
PARTS = (
    "forward_backward",
    "update",
    "data",
    "evaluation",
    "sampling",
    "saving",
)  # of the time, by their tags


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write `run_dir`/report.html, or `output`, from what lies in `run_dir` now, finished or not; return its path.

    A part whose source is missing or damaged says so on the page.
    Raises: ConfigError when the folder holds no run, StorageError when the page cannot be written.
    """
    if not run_dir.is_dir():
        raise ConfigError(
            f"{run_dir}: is no folder; expected the folder of a run: logs/tensorboard/RUN"
        )
    if not (run_dir / "metrics.jsonl").is_file() and not log_parts(run_dir):
        raise ConfigError(
            f"{run_dir}: holds no run: neither metrics.jsonl nor training.log; expected both"
        )
    if output is not None:
        _refuse_foreign(output)
    rows, log, board = read_rows(run_dir), read_log(run_dir), read_board(run_dir)
    body = _part("", lambda: header(run_dir.resolve().name, rows, log, board))
    body += _part("Loss", lambda: loss(rows, log))
    body += _part("Speed and health", lambda: health(rows, board))
    body += _part("Time", lambda: time_split(board))
    body += _part("Samples over time", lambda: samples(board))
    body += _part("Events", lambda: event_table(log))
    body += _part("Configuration", lambda: configuration(run_dir))
    page = PAGE.format(title=shown(f"ChatGoT: {run_dir.resolve().name}"), css=CSS, body=body)
    path = run_dir / NAME if output is None else output
    try:
        with atomic_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: the report cannot be written: {error.strerror or error}"
        ) from error
    return path


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace what is no page like this one: a run's own files, a device, a folder. Raises: ConfigError."""
    if not os.path.lexists(output):
        return
    if os.path.isfile(output):  # noqa: PTH113 Path's own raises for a loop of links
        with suppress(OSError), output.open("rb") as file:
            if file.read(64).startswith(PAGE[:15].encode()):
                return
    raise ConfigError(
        f"{output}: is there already and no report; expected a new name, or an older report"
    )


def _part(title: str, make: Callable[[], str]) -> str:
    """Return one part of the page; where it cannot be made, the page says why and has all others."""
    try:
        content = make()
    except Exception as error:  # noqa: BLE001 whatever is wrong with one source, the others are worth a page
        content = missing(f"this part could not be made: {error!r}")
    return f"<section><h2>{title}</h2>\n{content}\n</section>\n" if title else content


def shown(text: str, length: int | None = None) -> str:
    """Return a text as HTML that shows it: no markup in it works, no control character acts; cut after `length`."""
    cut = "" if length is None or len(text) <= length else " ..."
    return html.escape(escape_controls(text[:length], newline="\n")) + cut


def missing(text: str) -> str:
    return f'<p class="missing">{shown(text, TEXT_LENGTH)}</p>'


# ---------------------------------------------------------------------------------------------------------------------
# The run in numbers


def header(name: str, rows: list[Row], log: Log, board: Board) -> str:
    """Return the run's name, how it stands, and its main numbers."""
    last, vals = (
        _last(rows),
        [row for row in rows if row.get("val_loss") is not None and row["step"] > 0],
    )
    best = min(vals, key=lambda row: row["val_loss"], default=None)
    full = next(
        (row["val_loss_full"] for row in reversed(rows) if row.get("val_loss_full") is not None),
        None,
    )
    rates = [row["tokens_per_s"] for row in rows if row.get("tokens_per_s") is not None]
    memory = [value for _, value in board.curves.get("perf/memory_mib", [])]
    begun_in = log.says.get("precision", "").partition(";")[0]
    facts = [
        ("optimizer steps", steps_done(last, log)),
        ("tokens trained on", f"{last['tokens']:,.0f}" if "tokens" in last else None),
        (
            "best val_loss",
            best and f"{best['val_loss']:.4f} <small>nats, step {best['step']:,.0f}</small>",
        ),
        ("val_loss_full", None if full is None else f"{full:.4f} <small>nats per token</small>"),
        ("wall time without pauses", human_time(last["time_s"]) if "time_s" in last else None),
        (
            "speed, median",
            f"{statistics.median(rates):,.0f} <small>tokens/s</small>" if rates else None,
        ),
        ("peak memory", f"{max(memory):,.0f} <small>MiB at a row</small>" if memory else None),
        ("precision", shown(", then ".join(board.precisions) or begun_in, 60)),
    ]
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value or '&ndash;'}</dd></div>" for name, value in facts
    )
    about = [f"{key}: {log.says[key]}" for key in ("model", "text", "device") if key in log.says]
    state, color = status(log)
    lines = [
        f'<header><p class="kicker">ChatGoT run report</p><h1>{shown(name)}</h1>',
        f'<p class="when"><span class="badge {color}">{shown(state)}</span> '
        + (
            f"{log.begins} to {log.ends}"
            if log.begins
            else "no training.log: its times are not known"
        )
        + "</p></header>",
        f"<dl>{tiles}</dl>",
        f'<p class="about">{"<br>".join(shown(line, TEXT_LENGTH) for line in about)}</p>'
        if about
        else "",
        "" if rows else missing("metrics.jsonl is missing or has no row that can be read"),
    ]
    if "resume with" in log.says:
        lines.append(
            f'<p class="label">go on with</p><pre class="command">{shown(log.says["resume with"])}</pre>'
        )
    return "\n".join(filter(None, lines))


def _last(rows: list[Row]) -> dict[str, float]:
    """Return of each name the last number that the rows have."""
    return {key: value for row in rows for key, value in row.items() if value is not None}


def steps_done(last: dict[str, float], log: Log) -> str | None:
    """Return the steps that the log's end names; a run that has none (yet) is as far as its last row."""
    point = log.turning_point
    if point and point.kind == "end":
        return re.search(r"([\d,]+) steps", point.text)[1]
    return f"{last['step']:,.0f}" if "step" in last else None


def status(log: Log) -> tuple[str, str]:
    """Return how the run stands by its log's last turning point, and the colour of that."""
    point = log.turning_point
    if point and point.kind == "end":
        return point.text.partition(":")[0], "good" if point.text.startswith("done") else "calm"
    if point and point.level in ("ERROR", "CRITICAL"):
        return "ended by an error", "bad"
    return "the log has no end: still running, or killed", "warn"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures and the time


def _picture(png: bytes, alt: str) -> str:
    return f'<img alt="{shown(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def loss(rows: list[Row], log: Log) -> str:
    from chatgot.report.charts import loss_chart

    if not rows:
        return missing("no curve: metrics.jsonl has no row that can be read")
    last = _last(rows)
    values = [
        f"{key} {last[key]:.4f}"
        for key in ("train_loss", "val_loss", "val_loss_full")
        if key in last
    ]
    return _picture(
        loss_chart(rows, log.events),
        f"loss over {last['step']:,.0f} steps; last: {', '.join(values)}",
    )


def health(rows: list[Row], board: Board) -> str:
    from chatgot.report.charts import health_chart

    if not rows and not board.curves:
        return missing("no curve: metrics.jsonl has no row that can be read") + missing(
            board.problem
        )
    alt = "learning rate, gradient norm, tokens per second and memory over the steps"
    return _picture(health_chart(rows, board.curves), alt) + (
        missing(board.problem) if board.problem else ""
    )


def time_split(board: Board) -> str:
    """Return where the time went: a bar and its table."""
    sums = {
        name: sum(v for _, v in board.curves.get(f"time/{name}_s", []) if v > 0) for name in PARTS
    }
    whole = sum(sums.values())
    if not whole:
        return missing(board.problem or "the run did not measure where its time went")
    bar, lines = "", []
    for color, (name, seconds) in zip(PART_COLORS, sums.items(), strict=True):
        share = seconds / whole
        bar += f'<span style="width:{share:.3%};background:{color}"></span>'
        swatch = f'<i style="background:{color}"></i>{name.replace("_", " and ")}'
        lines.append((swatch, human_time(seconds), f"{share:.1%}"))
    lines.append(("together", human_time(whole), "100.0%"))
    return f'<div class="bar">{bar}</div>' + table(("part", "time", "share"), lines, "time")


def table(names: Iterable[str], lines: Iterable[Iterable[str]], kind: str) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'


# ---------------------------------------------------------------------------------------------------------------------
# Samples, events, configuration


def spread(n: int, most: int) -> list[int]:
    """Return at most `most` of the indices below n, the first, the last, and evenly between."""
    return list(range(n)) if n <= most else [round(i * (n - 1) / (most - 1)) for i in range(most)]


def samples(board: Board) -> str:
    """Return for each prompt what the model made of it, from the first sample to the last."""
    if not board.samples:
        return missing(board.problem or "the run made no samples")
    parts = []
    for name, made in list(board.samples.items())[:PROMPTS]:
        cards = []
        for step, prompt, text in (made[i] for i in spread(len(made), SAMPLE_STEPS)):
            whole = f"<b>{shown(prompt, SAMPLE_LENGTH)}</b>{shown(text, SAMPLE_LENGTH)}"
            cards.append(
                f"<figure><figcaption>step {step:,}</figcaption>\n<pre>{whole}</pre></figure>"
            )
        title = f"{shown(name.replace('_', ' '), 60)} <small>{len(cards)} of {len(made):,} samples</small>"
        parts.append(f'<h3>{title}</h3>\n<div class="samples">{"".join(cards)}</div>')
    if len(board.samples) > PROMPTS:
        parts.append(missing(f"{len(board.samples) - PROMPTS:,} more prompts are left out"))
    return "\n".join(parts)


def collapsed(events: list[Event]) -> list[tuple[str, str, Event]]:
    """Return (time, text, event) for each line of the table: between turning points many of a kind become one line."""
    lines: list[tuple[str, str, Event]] = []
    stretch: dict[str, list[Event]] = {}

    def flush() -> None:
        groups = sorted(
            (many for many in stretch.values() if len(many) >= GROUP_FROM),
            key=lambda many: many[0].time,
        )
        singles = [event for many in stretch.values() if len(many) < GROUP_FROM for event in many]
        made = [(event.time, shown(event.text, TEXT_LENGTH), event) for event in singles]
        for many in groups:
            steps = [event.step for event in many if event.step is not None]
            over = f", step {min(steps):,} to {max(steps):,}" if steps else ""
            text = f"<b>{len(many):,} times{over}</b>; the last one: {shown(many[-1].text, TEXT_LENGTH)}"
            begins, ends = many[0].time, many[-1].time
            until = (
                "" if begins == ends else f"<br>to {ends.removeprefix(begins[:11])}"
            )  # the day where it is another
            made.append((begins + until, text, many[0]))
        lines.extend(
            sorted(made, key=lambda line: line[0])
        )  # stable: as in the log within a second
        stretch.clear()

    first = next((event for event in events if event.kind == "begin"), None)
    for event in events:
        if event.kind == "begin" and event is not first:
            continue  # a resumed run logs its name again, and what it resumed from right after it
        if event.kind in TURNING_POINTS:
            flush()
            lines.append((event.time, shown(event.text, TEXT_LENGTH), event))
        else:
            alike = re.sub(r"\d+", "#", event.text[:80]) if event.kind == "warning" else ""
            stretch.setdefault(event.kind + alike, []).append(event)
    flush()
    return lines


def event_table(log: Log) -> str:
    """Return the table of what happened, in the order of the log."""
    if not log.begins:
        return missing("training.log is missing or has no record that can be read")
    lines = collapsed(log.events)
    if not lines:
        return missing("the log tells of no event")
    left_out = max(0, len(lines) - FIRST_EVENTS - LAST_EVENTS)
    cells = [
        (time, f'<span class="badge {_color(event)}">{event.kind}</span>', text)
        for time, text, event in lines
    ]
    if left_out:
        cells[FIRST_EVENTS:-LAST_EVENTS] = [
            ("", "", f"<i>{left_out:,} lines are left out here; the log has them</i>")
        ]
    return table(("time", "what", "in the log's words"), cells, "events")


def _color(event: Event) -> str:
    by_level = {"WARNING": "warn", "ERROR": "bad", "CRITICAL": "bad"}
    return by_level.get(event.level) or {"best": "good", "end": "good"}.get(event.kind, "calm")


def configuration(run_dir: Path) -> str:
    try:
        text = (run_dir / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return missing(f"config.yaml cannot be read: {error.strerror}")
    return f'<pre class="config">{shown(text, CONFIG_LENGTH)}</pre>'
