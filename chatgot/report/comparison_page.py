"""Several runs side by side in one HTML file: table, curves, settings, noise of seeds, samples.

The file needs no other files and no network. This module collects the content; comparison.html.j2
has the layout, and it looks like the report of one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chatgot.atomic_file import atomic_file
from chatgot.errors import StorageError
from chatgot.logs.waiting import waiting
from chatgot.report import copied, story
from chatgot.report.comparison_charts import (
    AXES,
    Across,
    can_be_drawn,
    colour,
    loss_picture,
    speed_picture,
)
from chatgot.report.page import (
    PROMPTS,
    SHOWN_CHARACTERS,
    Part,
    cut,
    image,
    load_template,
    part_of_page,
    refuse_foreign,
)
from chatgot.report.seed_noise import noise_lines, seed_noise
from chatgot.report.side_by_side import (
    ComparedRun,
    Difference,
    Measure,
    differences,
    measure_for,
    named,
    notes,
    other_differences,
    ranked,
)

LAYOUT = "comparison.html.j2"
NAME = "compare.html"
DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cells:
    """A run's line in the table; None: not known."""

    label: str
    run_id: str
    colour: str
    status: story.Status
    steps: str | None
    tokens: str | None
    minutes: str | None
    last_loss: str | None
    best_loss: str | None
    best_step: str | None
    best_full_loss: str | None
    full_loss: str | None
    bits: str | None
    tokens_per_s: str | None
    nonfinite_rows: int


def cells(run: ComparedRun, measure: Measure, number: int) -> Cells:
    """Return a run's line in the table; `number` chooses its colour."""
    return Cells(
        label=run.label,
        run_id=run.run_dir.resolve().name,
        colour=colour(number),
        status=run.status,
        steps=_whole(run.steps),
        tokens=_whole(run.last.get("tokens")),
        minutes=_in_form(run.minutes, ",.1f"),
        last_loss=_in_form(run.last_loss, ".4f"),
        best_loss=_in_form(None if run.best is None else run.best[1], ".4f"),
        best_step=_whole(None if run.best is None else run.best[0]),
        best_full_loss=_in_form(run.best_full_loss, ".4f"),
        full_loss=_in_form(run.full_loss, ".4f"),
        bits=_in_form(measure.bits(run), ".4f"),
        tokens_per_s=_whole(run.tokens_per_s),
        nonfinite_rows=run.nonfinite_rows,
    )


def _whole(number: float | None) -> str | None:
    return _in_form(number, ",.0f")


def _in_form(number: float | None, form: str) -> str | None:
    return None if number is None else format(number, form)


def default_path(runs: Sequence[ComparedRun]) -> Path:
    """Return where the page is written: beside the folder of the run that was named first."""
    return runs[0].run_dir.resolve().parent / NAME


def write_comparison(runs: Sequence[ComparedRun], path: Path) -> None:
    """Write the page of several runs.

    Raises: ConfigError if the path is of something else than a report, StorageError if the page
    cannot be written.
    """
    refuse_foreign(path)
    with waiting("writing the page"):
        page = render(runs)
    try:
        with atomic_file(path) as file:
            file.write(page.encode())
    except OSError as error:
        raise StorageError(
            f"{path}: the page cannot be written: {error.strerror or error}; "
            "give another place with --output"
        ) from error


def render(runs: Sequence[ComparedRun]) -> str:
    """Return the page of several runs."""
    measure = measure_for(runs)
    best_first = ranked(runs, measure)
    return load_template(LAYOUT).render(
        title=named(best_first),
        measure=measure,
        notes=notes(runs, measure),
        runs=[cells(run, measure, number) for number, run in enumerate(best_first)],
        losses=[(across.name, _losses_over(across, best_first, measure)) for across in AXES],
        speed=part_of_page(lambda: speed(best_first)),
        settings=part_of_page(lambda: settings(best_first)),
        noise=part_of_page(lambda: Part(noise_lines(seed_noise(runs, measure), runs, measure))),
        sources=part_of_page(lambda: losses_of_sources(best_first)),
        samples=part_of_page(lambda: samples(best_first)),
    )


# --------------------------------------------------------------------------------------------------
# The parts of the page


def losses(runs: Sequence[ComparedRun], measure: Measure, across: Across) -> Part:
    """Return the picture of all losses over steps, tokens or minutes."""
    drawn = [run for run in runs if can_be_drawn(run, across)]
    absent = [run for run in runs if run not in drawn]
    problems = [f"not drawn, since its rows have no {across.column}: {run.label}" for run in absent]
    if not drawn:
        return Part(problems=tuple(problems))
    if measure.in_bits:
        problems += [
            f"not drawn, since it has no bits per byte: {run.label}"
            for run in drawn
            if run.bits_per_nat is None
        ]
    best = ", ".join(
        f"{run.label} {loss:.4f}" for run in drawn if (loss := measure.of(run)) is not None
    )
    alt = f"losses over {across.name} in {measure.unit}; {measure.name}: {best or 'none'}"
    return Part(image(loss_picture(runs, measure, across), alt), tuple(problems))


def _losses_over(across: Across, runs: Sequence[ComparedRun], measure: Measure) -> Part:
    return part_of_page(lambda: losses(runs, measure, across))


def speed(runs: Sequence[ComparedRun]) -> Part:
    """Return the picture of learning rates and speeds."""
    if not any(run.rows for run in runs):
        return Part(problems=("no curve: no run has a readable row in metrics.jsonl",))
    alt = "learning rate and tokens per second over the steps"
    return Part(image(speed_picture(runs), alt))


@dataclass(frozen=True)
class Settings:
    """The table of what differs: in the settings, and elsewhere."""

    own: list[Difference]
    others: list[Difference]


def settings(runs: Sequence[ComparedRun]) -> Part:
    """Return what differs."""
    own = differences(runs)
    others = other_differences(runs)
    if own or others:
        return Part(Settings(own, others))
    return Part(problems=("nothing differs",))


def losses_of_sources(runs: Sequence[ComparedRun]) -> Part:
    """Return the last held-out loss of each source of a text, for each run."""
    last = [
        {name: loss for row in run.rows for name, loss in row.by_source.items()} for run in runs
    ]
    names = dict.fromkeys(name for losses_of_run in last for name in losses_of_run)
    return Part(
        [
            Difference(name, [f"{own[name]:.4f}" if name in own else DASH for own in last])
            for name in names
        ]
    )


@dataclass(frozen=True)
class LastSample:
    """The last sample of a run for a prompt; runs: its text, cut where something was copied."""

    label: str
    colour: str
    step: int
    runs: list[copied.Run]


@dataclass(frozen=True)
class PromptRow:
    """The samples of all runs for one prompt."""

    prompt: str
    samples: list[LastSample]
    silent: list[str]  # runs without a sample for it


def samples(runs: Sequence[ComparedRun]) -> Part:
    """Return the samples of each run's last step that has any, the same prompts in a row."""
    by_prompt: dict[str, list[LastSample]] = {}
    for number, run in enumerate(runs):
        last_step = max((sample.step for sample in run.samples), default=None)
        copies = copied.copies_by_sample(run.events)
        for sample in run.samples:
            if sample.step != last_step:
                continue
            spans = copies.get((sample.step, sample.index), [])
            parts = copied.runs(cut(sample.text, SHOWN_CHARACTERS), spans)
            shown = LastSample(run.label, colour(number), sample.step, parts)
            by_prompt.setdefault(sample.prompt, []).append(shown)
    if not by_prompt:
        return Part(problems=("no run has a readable sample in samples.jsonl",))
    # prompts that most runs have come first
    order = sorted(by_prompt, key=lambda prompt: -len(by_prompt[prompt]))
    rows = []
    for prompt in order[:PROMPTS]:
        there = {sample.label for sample in by_prompt[prompt]}
        silent = [run.label for run in runs if run.label not in there]
        rows.append(PromptRow(prompt, by_prompt[prompt], silent))
    if len(order) <= PROMPTS:
        return Part(rows)
    return Part(rows, (f"{len(order) - PROMPTS:,} more prompts are not shown",))
