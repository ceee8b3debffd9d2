"""The report of a run: numbers, curves, samples, events and settings, in one HTML file.

The file needs no other files. This module collects the content; page.html.j2 has the layout.
"""

import base64
import os
import re
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from chatgot.atomic_file import atomic_file
from chatgot.errors import ConfigError, StorageError
from chatgot.logs.logging_setup import LINK, escape_controls
from chatgot.logs.timing import human_time
from chatgot.logs.waiting import waiting
from chatgot.report import copied, ending, story
from chatgot.report.run_record import Event, Row, RunRecord, Sample, read_run

if TYPE_CHECKING:
    from jinja2 import Template

NAME = "report.html"
DOCTYPE = b"<!doctype html>"  # only the report begins with this, no other file of a run
SOURCES = ("metrics.jsonl", "events.jsonl", LINK)  # a run's folder has at least one of them
# at most this many samples for each prompt, and this many prompts
SAMPLE_STEPS = 6
PROMPTS = 8
SOURCE_SHOWN = 40  # characters of a source's name
# of a longer table of events, only the first and the last lines are shown
FIRST_EVENTS = 20
LAST_EVENTS = 60
PARTS = {  # parts of a run's time, and their colours
    "forward_backward": "#2563eb",
    "update": "#0891b2",
    "data": "#059669",
    "evaluation": "#d97706",
    "sampling": "#7c3aed",
    "saving": "#e11d48",
}


@dataclass(frozen=True)
class Part:
    """The content of one part of the page, and messages about what is missing."""

    content: object = None
    problems: tuple[str, ...] = ()


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write `run_dir`/report.html, or `output`, from the files in `run_dir`; return its path.

    The run may still be training. If a file is missing or damaged, the page says so.
    Raises: ConfigError if the folder is not a run's, StorageError if the page cannot be written.
    """
    refuse_other_folder(run_dir)
    if output is not None:
        refuse_foreign(output)
    with waiting("writing the report"):
        page = render(run_dir)
    path = run_dir / NAME if output is None else output
    try:
        with atomic_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: the report cannot be written: {error.strerror or error}"
        ) from error
    return path


def refuse_other_folder(run_dir: Path) -> None:
    """Make sure that a folder is a run's. Raises: ConfigError."""
    if not run_dir.is_dir():
        raise ConfigError(
            f"{run_dir}: is not a folder, expected the folder of a run: logs/tensorboard/RUN"
        )
    if not any((run_dir / name).is_file() for name in SOURCES):
        raise ConfigError(
            f"{run_dir}: is not the folder of a run, expected a file {' or '.join(SOURCES)} in it"
        )


def refuse_foreign(output: Path) -> None:
    """Refuse to replace anything but an older report: a run's files, a device, a folder.

    Raises: ConfigError.
    """
    if not os.path.lexists(output):
        return
    if os.path.isfile(output):  # noqa: PTH113 Path's own raises for a loop of links
        with suppress(OSError), output.open("rb") as file:
            if file.read(len(DOCTYPE)) == DOCTYPE:
                return
    raise ConfigError(
        f"{output}: exists and is not a report, expected a new name or an older report"
    )


def render(run_dir: Path) -> str:
    """Return the page of a run."""
    record = read_run(run_dir)
    return load_template().render(
        name=run_dir.resolve().name,
        summary=part_of_page(lambda: summary(record)),
        end=part_of_page(lambda: end_of_run(record)),
        loss=part_of_page(lambda: loss(record)),
        health=part_of_page(lambda: health(record)),
        time=part_of_page(lambda: time_split(record)),
        samples=part_of_page(lambda: samples(record)),
        events=part_of_page(lambda: event_table(record)),
        configuration=part_of_page(lambda: configuration(run_dir)),
    )


def load_template(layout: str = "page.html.j2") -> "Template":
    """Return a page's template; it escapes markup and control characters in its values.

    The values of a run's page are `name` and one `Part` for each part of the page.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def without_controls(value: object) -> object:
        if isinstance(value, str) and not isinstance(value, Markup):
            return escape_controls(value, newline="\n")
        return value

    def breakable(name: str) -> Markup:
        """Let a long name break after a dot or an underscore."""
        parts = re.split(r"(?<=[._])", escape_controls(name, newline="\n"))
        return Markup("<wbr>").join(escape(part) for part in parts)

    files = resources.files("chatgot.report")
    environment = Environment(
        autoescape=True,
        finalize=without_controls,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["cut"] = cut
    environment.filters["breakable"] = breakable
    # the only unescaped text: our own style sheet
    style = (files / "style.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(style)
    return environment.from_string((files / layout).read_text(encoding="utf-8"))


def cut(text: str, length: int) -> str:
    """Return a text, or its first `length` characters and "..."."""
    return text if len(text) <= length else f"{text[:length]} ..."


def part_of_page(make: Callable[[], Part]) -> Part:
    """Return one part of the page; if it cannot be made, return the error as its problem."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 whatever is wrong with one source, the others are worth a page
        return Part(problems=(f"this part could not be made: {error!r}",))


# --------------------------------------------------------------------------------------------------
# The run in numbers


@dataclass(frozen=True)
class Fact:
    """One of the run's main numbers; value None: not known."""

    name: str
    value: str | None
    unit: str = ""


@dataclass(frozen=True)
class Summary:
    """The top of the page."""

    status: story.Status
    times: tuple[str, str] | None
    facts: list[Fact]
    about: list[str]
    resume_command: str


def summary(record: RunRecord) -> Part:
    """Return the run's status, its main numbers, and how to resume it."""
    events = record.events
    content = Summary(
        status=story.status(events),
        times=story.begin_and_end(events),
        facts=facts(record),
        about=story.about(events),
        resume_command=story.resume_command(events),
    )
    if record.rows:
        return Part(content)
    return Part(content, ("metrics.jsonl is missing or has no readable row",))


def facts(record: RunRecord) -> list[Fact]:
    """Return the run's main numbers."""
    last = last_numbers(record.rows)
    rates = column(record.rows, "tokens_per_s")
    memory = [value for _, value in record.board.curves.get("perf/memory_mib", [])]
    precisions = story.precisions(record.events, record.board.curves)
    return [
        Fact("optimizer steps", steps_done(record)),
        Fact("tokens trained on", f"{last['tokens']:,.0f}" if "tokens" in last else None),
        best_loss(record.rows),
        *full_losses(record.events, last.get("val_loss_full")),
        *predicted(record.events),
        Fact("bits per byte", *bits_per_byte(record.events, record.rows)),
        Fact("wall time without pauses", human_time(last["time_s"]) if "time_s" in last else None),
        Fact("speed, median", f"{statistics.median(rates):,.0f}" if rates else None, "tokens/s"),
        Fact("peak memory", f"{max(memory):,.0f}" if memory else None, "MiB at a row"),
        Fact("precision", ", then ".join(precisions)),
        *copied_share(record.events),
        *contended(record.events, last.get("time_s")),
        *losses_of_sources(record.rows),
    ]


def full_losses(events: list[Event], last: float | None) -> list[Fact]:
    """Return the loss over every held-out token: of the last step, and of the best, if another."""
    step = ending.best_step(events)
    best = ending.best_full_loss(events)
    if step is None or best is None or step == _last_step(events):
        return [Fact("val_loss_full", None if last is None else f"{last:.4f}", "nats per token")]
    return [
        Fact("val_loss_full, best", f"{best:.4f}", f"nats, step {step:,}"),
        Fact("val_loss_full, last", None if last is None else f"{last:.4f}", "nats, last step"),
    ]


def _last_step(events: list[Event]) -> float | None:
    """Return the last step of a run that has ended."""
    end = story.end_of(events)
    return None if end is None else end.number("global_step")


def copied_share(events: list[Event]) -> list[Fact]:
    """Return how much of the last samples is copied, beside the held-out text, if measured."""
    measured = copied.last_measured(events)
    share = None if measured is None else measured.number("copied_share")
    if measured is None or share is None:
        return []
    held_out = measured.number("held_out_share")
    beside = "" if held_out is None else f"; {held_out:.1%} of held-out text"
    return [Fact("copied from the training text", f"{share:.1%}", f"of the last samples{beside}")]


def predicted(events: list[Event]) -> list[Fact]:
    """Return the held-out loss that was predicted, and how far off it was, if either is known."""
    facts = []
    prediction = story.prediction(events)
    if prediction is not None:
        low, loss, high = prediction
        facts.append(Fact("predicted val_loss_full", f"{loss:.3g}", f"{low:.3g} to {high:.3g}"))
    outcome = story.last_of(ending.last_session(events), ["outcome"])
    came_out = None if outcome is None else outcome.number("val_loss_full")
    if outcome is not None and came_out is not None:
        where = "inside" if outcome.holds("inside") else "outside"
        facts.append(Fact("came out", f"{came_out:.4f}", f"{where} the error bar"))
    return facts


def contended(events: list[Event], time_s: float | None) -> list[Fact]:
    """Return the share of the time in which other programs took the cores, if they ever did."""
    if not time_s or not any(event.kind == "contention" for event in events):
        return []
    share = min(1.0, story.contended_s(events) / time_s)
    return [Fact("other programs took the cores", f"{share:.0%}", "of the time")]


def losses_of_sources(rows: list[Row]) -> list[Fact]:
    """Return how the held-out loss of each source has changed since the run began.

    For a run that has grown from another one, this shows what it has forgotten.
    """
    begin: dict[str, float] = {}
    end: dict[str, float] = {}
    for row in rows:
        begin = {**row.by_source, **begin}
        end |= row.by_source
    return [
        Fact(
            f"val_loss of {cut(name, SOURCE_SHOWN)}",
            f"{begin[name]:.4f} to {end[name]:.4f}",
            f"nats, {end[name] - begin[name]:+.4f}",
        )
        for name in end
    ]


def column(rows: list[Row], name: str) -> list[float]:
    """Return one column of the rows, without missing values."""
    values = [row.numbers.get(name) for row in rows]
    return [value for value in values if value is not None]


def last_numbers(rows: list[Row]) -> dict[str, float]:
    """Return the last number of each column."""
    return {name: value for row in rows for name, value in row.numbers.items() if value is not None}


def best_loss(rows: list[Row]) -> Fact:
    """Return the lowest validation loss, not counting step 0."""
    losses = [(row.numbers.get("val_loss"), row.step) for row in rows if row.step > 0]
    measured = [(loss, step) for loss, step in losses if loss is not None]
    if not measured:
        return Fact("best val_loss", None)
    lowest, step = min(measured)
    return Fact("best val_loss", f"{lowest:.4f}", f"nats, step {step:,.0f}")


def bits_per_byte(events: list[Event], rows: list[Row]) -> tuple[str | None, str]:
    """Return the best number of bits per byte, not counting step 0, and what it was measured on."""
    best = story.last_of(ending.last_session(events), ["best"])
    of_best = None if best is None else best.number("val_bits_per_byte_full")
    if of_best is not None:
        return f"{of_best:.4f}", "best step, all held-out text"
    full = last_numbers(rows).get("val_bits_per_byte_full")
    if full is not None:
        return f"{full:.4f}", "over all held-out text"
    lowest = min(column([row for row in rows if row.step > 0], "val_bits_per_byte"), default=None)
    return (None, "") if lowest is None else (f"{lowest:.4f}", "at the best val_loss")


def steps_done(record: RunRecord) -> str | None:
    """Return the steps from the run's end event, or from its last row if it has no end."""
    end = story.end_of(record.events)
    steps = None if end is None else end.number("global_step")
    if steps is None and record.rows:
        steps = record.rows[-1].step
    return None if steps is None else f"{steps:,.0f}"


# --------------------------------------------------------------------------------------------------
# How it ended


@dataclass(frozen=True)
class End:
    """How the run ended, what came of it, and what its best weights write."""

    said: list[ending.Said]
    best_step: int | None
    samples: list["ShownSample"]


def end_of_run(record: RunRecord) -> Part:
    """Return how the run ended; a part without content if there is nothing to say."""
    said = ending.ending(record.events, record.rows)
    if not said:
        return Part()
    step = ending.best_step(record.events)
    copies = copied.copies_by_sample(record.events)
    of_best = [sample for sample in record.samples if sample.step == step][:PROMPTS]
    return Part(End(said, step, [_shown(sample, copies) for sample in of_best]))


# --------------------------------------------------------------------------------------------------
# Pictures and the time


@dataclass(frozen=True)
class Image:
    """A PNG in base64, and its description in words."""

    alt: str
    base64: str


def image(png: bytes, alt: str) -> Image:
    return Image(alt, base64.b64encode(png).decode())


def loss(record: RunRecord) -> Part:
    """Return the picture of the losses."""
    if not record.rows:
        return Part(problems=("no curve: metrics.jsonl has no readable row",))
    from chatgot.report.charts import loss_chart

    last = last_numbers(record.rows)
    names = ("train_loss", "val_loss", "val_loss_full", "val_bits_per_byte")
    values = ", ".join(f"{name} {last[name]:.4f}" for name in names if name in last)
    sources = [f"{fact.name} {fact.value}" for fact in losses_of_sources(record.rows)]
    alt = f"loss over {last['step']:,.0f} steps; last: {', '.join([values, *sources])}"
    decay = ending.decay_of(record.events, record.rows)
    if decay is not None:
        alt += f"; the decay begins at step {ending.began(decay):,.0f}"
    return Part(image(loss_chart(record.rows, record.events), alt))


def health(record: RunRecord) -> Part:
    """Return the picture of learning rate, gradient norm, speed, memory and other curves."""
    problem = record.board.problem
    problems = (problem,) if problem else ()
    curves = record.board.curves
    if not record.rows and not curves:
        return Part(problems=("no curve: metrics.jsonl has no readable row", *problems))
    from chatgot.report.charts import health_chart

    if record.rows:
        # curves from events do not need TensorBoard
        curves = curves | story.curves(record.events, record.rows[-1].step)
        curves = curves | copied.curves(record.events)
    alt = "learning rate, gradient norm, tokens per second and memory over the steps"
    return Part(image(health_chart(record.rows, curves, record.events), alt), problems)


@dataclass(frozen=True)
class TimePart:
    """The time that one part of the run took."""

    name: str
    color: str
    time: str
    share: str
    percent: str


@dataclass(frozen=True)
class TimeSplit:
    """Where the time went."""

    parts: list[TimePart]
    whole: str


def time_split(record: RunRecord) -> Part:
    """Return where the time went."""
    board = record.board
    sums = {}
    for name in PARTS:
        points = board.curves.get(f"time/{name}_s", [])
        sums[name] = sum(seconds for _, seconds in points if seconds > 0)
    whole = sum(sums.values())
    if not whole:
        return Part(problems=(board.problem or "the run has no measurements of its time",))
    parts = [
        TimePart(
            name=name.replace("_", " and "),
            color=PARTS[name],
            time=human_time(seconds),
            share=f"{seconds / whole:.3%}",
            percent=f"{seconds / whole:.1%}",
        )
        for name, seconds in sums.items()
    ]
    return Part(TimeSplit(parts, human_time(whole)))


# --------------------------------------------------------------------------------------------------
# Samples, events, configuration


SHOWN_CHARACTERS = 1500  # of a sample


@dataclass(frozen=True)
class ShownSample:
    """A sample; `runs`: its text, cut where something copied begins or ends."""

    step: int
    prompt: str
    runs: list[copied.Run]


@dataclass(frozen=True)
class PromptSamples:
    """The samples of one prompt; `made`: how many there are, including those not shown."""

    index: int
    made: str
    samples: list[ShownSample]

    @property
    def has_copies(self) -> bool:
        return any(run.copied for sample in self.samples for run in sample.runs)


@dataclass(frozen=True)
class LeftOut:
    """A line in the table of events that replaces the lines that are not shown."""

    left_out: str


def spread(n: int, most: int) -> list[int]:
    """Return at most `most` indices below n, evenly spread, including the first and the last."""
    if n <= most:
        return list(range(n))
    return [round(i * (n - 1) / (most - 1)) for i in range(most)]


def samples(record: RunRecord) -> Part:
    """Return the samples of each prompt, from the first step to the last."""
    by_prompt: dict[int, list[Sample]] = {}
    for sample in record.samples:
        by_prompt.setdefault(sample.index, []).append(sample)
    if not by_prompt:
        return Part(problems=("samples.jsonl is missing or has no readable sample",))
    copies = copied.copies_by_sample(record.events)
    shown = []
    for index, made in list(by_prompt.items())[:PROMPTS]:
        some = [made[i] for i in spread(len(made), SAMPLE_STEPS)]
        shown.append(PromptSamples(index, f"{len(made):,}", [_shown(one, copies) for one in some]))
    if len(by_prompt) <= PROMPTS:
        return Part(shown)
    return Part(shown, (f"{len(by_prompt) - PROMPTS:,} more prompts are not shown",))


def _shown(sample: Sample, copies: dict[tuple[int, int], list[copied.Span]]) -> ShownSample:
    spans = copies.get((sample.step, sample.index), [])
    text = cut(sample.text, SHOWN_CHARACTERS)
    return ShownSample(sample.step, sample.prompt, copied.runs(text, spans))


def event_table(record: RunRecord) -> Part:
    """Return the table of events, in order."""
    lines: list[story.Line | LeftOut] = [*story.table(record.events)]
    if not lines:
        return Part(problems=("events.jsonl is missing or has no readable event",))
    left_out = len(lines) - FIRST_EVENTS - LAST_EVENTS
    if left_out > 0:
        lines[FIRST_EVENTS:-LAST_EVENTS] = [LeftOut(f"{left_out:,}")]
    return Part(lines)


def configuration(run_dir: Path) -> Part:
    """Return the run's effective configuration, config.yaml."""
    try:
        text = (run_dir / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return Part(problems=(f"config.yaml cannot be read: {error.strerror}",))
    return Part(text)
