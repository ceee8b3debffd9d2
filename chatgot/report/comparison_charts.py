"""Draw several runs into the same charts: their losses, learning rates and speeds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from chatgot.logs.logging_setup import escape_controls
from chatgot.report.charts import (
    DOTTED_BELOW,
    GREY,
    MOST_CROSSES,
    SMOOTHED_FROM,
    Curve,
    as_png,
    closed_style,
    is_wide,
    new_figure,
    smoothed,
    style_axes,
    thinned,
)
from chatgot.report.run_record import Row
from chatgot.report.side_by_side import ComparedRun, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One for each run; they stay apart in the dark scheme, too, which keeps hues.
COLOURS = (
    "#2563eb",
    "#e11d48",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#0891b2",
    "#db2777",
    "#65a30d",
    "#92400e",
    "#475569",
)
DASHED_FROM = 5  # runs: from here on lines are dashed, for eyes that mix colours up
OF_PALETTE = 160  # colours of a picture with so many hues
LABEL = 44  # characters of a run's name in a legend
LEGEND = 110  # characters of names in one line of a legend
SHORT_MINUTES = 5.0  # a shorter axis of minutes has fractions
ENLARGED = 0.5  # the share of a run's evaluations, its last ones, that is enlarged


@dataclass(frozen=True)
class Across:
    """What the x axis counts: a column of metrics.jsonl, and its unit."""

    name: str
    words: str
    column: str
    divisor: float = 1.0


STEPS = Across("steps", "optimizer step", "step")
TOKENS = Across("tokens", "tokens trained on, in millions", "tokens", 1e6)
MINUTES = Across("minutes", "minutes of training", "time_s", 60.0)
AXES = (STEPS, TOKENS, MINUTES)


def colour(number: int) -> str:
    """Return the colour of a run."""
    return COLOURS[number % len(COLOURS)]


def curve_of(rows: Sequence[Row], name: str, across: Across, factor: float = 1.0) -> Curve:
    """Return a column over another one; rows with non-finite numbers leave a gap (NaN)."""
    points = []
    for row in rows:
        x = row.numbers.get(across.column)
        y = row.numbers.get(name)
        if x is not None and (y is not None or (row.nonfinite and name in row.numbers)):
            points.append((x / across.divisor, np.nan if y is None else factor * y))
    x_y = np.array(points, np.float64).reshape(-1, 2)
    return x_y[:, 0], x_y[:, 1]


def without_gaps(curve: Curve) -> Curve:
    """Return a curve without its missing values: a line through the others."""
    there = ~np.isnan(curve[1])
    return curve[0][there], curve[1][there]


def can_be_drawn(run: ComparedRun, across: Across) -> bool:
    """Return whether a run has any number of what the x axis counts."""
    return any(row.numbers.get(across.column) is not None for row in run.rows)


# --------------------------------------------------------------------------------------------------
# The pictures


def loss_picture(runs: Sequence[ComparedRun], measure: Measure, across: Across) -> bytes:
    """Draw the losses of all runs over steps, tokens or minutes; return a PNG.

    At the left all of them: on training text thin, held-out thick. At the right the later half of
    the held-out losses, enlarged.
    """
    trained = []
    held_out = []
    for run in runs:
        factor = measure.converted(1.0, run)
        rows = run.rows if factor is not None else []
        trained.append(curve_of(rows, "train_loss", across, factor or 1.0))
        held_out.append(without_gaps(curve_of(rows, "val_loss", across, factor or 1.0)))
    with closed_style():
        figure = new_figure(9.6, 4.2)
        whole, enlarged = figure.subplots(1, 2)
        for number, curve in enumerate(trained):
            _draw_thin(whole, curve, number)
        for number, curve in enumerate(held_out):
            for axes in (whole, enlarged):
                _draw_line(axes, curve, number, width=1.8)
        _mark_nonfinite(whole, runs, across)
        log = is_wide(*(y for _, y in (*trained, *held_out)))
        unit = f"{measure.unit}, log scale" if log else measure.unit
        title = "training text (thin), held-out text (thick)"
        style_axes(whole, unit, title, log, across.words)
        style_axes(enlarged, measure.unit, "held-out text, enlarged", False, across.words)
        _enlarge(enlarged, held_out)
        return _finished(figure, runs, across)


def speed_picture(runs: Sequence[ComparedRun]) -> bytes:
    """Draw learning rate and tokens per second of all runs over the steps; return a PNG."""
    with closed_style():
        figure = new_figure(9.6, 3.4)
        rate, speed = figure.subplots(1, 2)
        for number, run in enumerate(runs):
            _draw_line(rate, without_gaps(curve_of(run.rows, "lr", STEPS)), number, marked=False)
            _draw_thin(speed, curve_of(run.rows, "tokens_per_s", STEPS), number)
        for axes, title, unit in (
            (rate, "learning rate", ""),
            (speed, "speed", "tokens per second"),
        ):
            axes.set_ylim(bottom=0)
            style_axes(axes, unit, title, False)
            _say_if_empty(axes)
        return _finished(figure, runs, STEPS)


# --------------------------------------------------------------------------------------------------
# Lines and axes


def _style_of(number: int) -> Literal["-", "--"]:
    return "--" if number >= DASHED_FROM else "-"


def _draw_line(
    axes: "Axes", curve: Curve, number: int, *, width: float = 1.5, marked: bool = True
) -> None:
    """Draw a curve of the run `number`; one of few points gets a marker for each."""
    if len(curve[0]):
        axes.plot(
            *thinned(curve),
            color=colour(number),
            linestyle=_style_of(number),
            linewidth=width,
            marker="o" if marked and len(curve[0]) < DOTTED_BELOW else None,
            markersize=3.5,
        )


def _draw_thin(axes: "Axes", curve: Curve, number: int) -> None:
    """Draw a noisy curve thinly; of a long one its moving average, so that no run hides another."""
    if not len(curve[0]):
        return
    if len(curve[0]) >= SMOOTHED_FROM:
        curve = smoothed(curve)
    marker = "." if len(curve[0]) < DOTTED_BELOW else None
    axes.plot(
        *thinned(curve),
        color=colour(number),
        linestyle=_style_of(number),
        linewidth=0.9,
        marker=marker,
        markersize=3,
        alpha=0.75,
    )


def _mark_nonfinite(axes: "Axes", runs: Sequence[ComparedRun], across: Across) -> None:
    """Mark the rows with non-finite numbers by crosses of the run's colour at the bottom."""
    for number, run in enumerate(runs):
        places = [
            x / across.divisor
            for row in run.rows
            if row.nonfinite and (x := row.numbers.get(across.column)) is not None
        ]
        shown = places[:: len(places) // MOST_CROSSES + 1]
        if shown:
            heights = [0.03 + 0.02 * number] * len(shown)
            transform = axes.get_xaxis_transform()
            axes.plot(shown, heights, "x", color=colour(number), ms=4.5, transform=transform)


def _enlarge(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Let the y axis show the later half of each curve."""
    later = [y[int(len(y) * (1 - ENLARGED)) :] for _, y in curves if len(y)]
    if not later:
        _say_if_empty(axes)
        return
    values = np.concatenate(later)
    pad = 0.06 * max(values.max() - values.min(), 1e-3)
    axes.set_ylim(values.min() - pad, values.max() + pad)


def _say_if_empty(axes: "Axes") -> None:
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axes.get_lines()]
    if not any(np.isfinite(values).any() for values in drawn):
        axes.text(0.5, 0.5, "no numbers", ha="center", color=GREY, transform=axes.transAxes)


def _finished(figure: "Figure", runs: Sequence[ComparedRun], across: Across) -> bytes:
    """Add the legend, and scales that all charts of the picture share; return a PNG."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    last = max(
        (float(np.max(line.get_xdata(), initial=0)) for axes in figure.axes for line in axes.lines),
        default=0.0,
    )
    for axes in figure.axes:
        axes.set_xlim(-0.02 * max(last, 1e-6), 1.02 * max(last, 1e-6))
        if across is not STEPS and last < SHORT_MINUTES:
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    # a dollar would begin a formula
    names = [escape_controls(run.label[-LABEL:]).replace("$", r"\$") for run in runs]
    lines = [
        Line2D([], [], color=colour(number), linestyle=_style_of(number), linewidth=1.8)
        for number in range(len(runs))
    ]
    columns = max(1, min(len(runs), LEGEND // (max(map(len, names)) + 6)))
    figure.legend(
        lines, names, loc="outside upper left", fontsize=8.5, frameon=False, ncols=columns
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name's characters that the font lacks
        return as_png(figure, OF_PALETTE)
