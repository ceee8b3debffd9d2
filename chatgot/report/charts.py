"""Draw a run's curves: the loss; then learning rate, gradient norm, speed, memory and others."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from chatgot.logs.logging_setup import escape_controls
from chatgot.report import copied, ending, story
from chatgot.report.run_record import Curves, Event, Row
from chatgot.report.story import PRECISIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 600  # of one line: about one for every two pixels
SMOOTHED_FROM = 60  # points; a line with fewer is readable as it is
DOTTED_BELOW = 20  # points; with fewer, each point gets a marker
WIDE = 30.0  # largest / smallest value; above it an axis is logarithmic
MOST_MARKS = 30  # vertical lines for events; older events get none
MOST_CROSSES = 200  # about the most crosses for rows with non-finite numbers
DPI = 200  # two pixels of a picture for each of the page, at its full width
COLOURS = 64  # of a picture: a few, and their way to white
PAD = 0.08  # inches around each chart
# the last one is set where the user's folder cannot be written
MPL_VARIABLES = ("MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR")
MARKS = {"resume": "#0891b2", "rewind": "#dc2626", "precision": "#d97706"}
TRAIN = "#2563eb"
VAL = "#e11d48"
FULL = "#7c3aed"
BEST = "#b45309"
DECAY = "#059669"
DECAY_LABEL = "decay begins"
GREY = "#64748b"
SOURCES = ("#059669", "#d97706", "#0891b2", "#db2777", "#65a30d", "#475569")
SOURCE_SHOWN = 30  # characters of a source's name

Values = NDArray[np.float64]  # (N,)
Curve = tuple[Values, Values]  # steps and values; NaN: no value


@dataclass(frozen=True)
class Panel:
    """One small chart.

    noisy: also draw it smoothed. stepped: a value stays until the next one. may_be_log: use a
    logarithmic axis if the values differ much.
    """

    title: str
    unit: str
    color: str
    curve: Curve
    noisy: bool = False
    stepped: bool = False
    may_be_log: bool = False
    mark: float | None = None  # the step at which the learning rate begins to decay


@contextmanager
def closed_style() -> Iterator[None]:
    """Draw in matplotlib's default style, whatever settings are around."""
    if "matplotlib" not in sys.modules:
        _import_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _import_matplotlib() -> None:
    """Import matplotlib so that no setting of the user can make that fail.

    It reads MPLBACKEND, and a matplotlibrc of the current folder, of MATPLOTLIBRC or of the user.
    """
    before = {name: os.environ.get(name) for name in MPL_VARIABLES}
    os.environ.pop("MPLBACKEND", None)
    os.environ["MATPLOTLIBRC"] = os.devnull
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns where there is no home
    try:
        with ExitStack() as elsewhere:
            if os.path.lexists("matplotlibrc"):  # it would come first
                elsewhere.enter_context(chdir(Path(__file__).parent))
            import matplotlib.figure

            matplotlib.get_cachedir()  # each keeps what it found
            matplotlib.get_configdir()
    finally:
        log.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# --------------------------------------------------------------------------------------------------
# Curves


def column(rows: list[Row], name: str, gaps: bool = False) -> Curve:
    """Return one column of the rows, without the rows that lack it.

    gaps: keep rows with non-finite numbers, with NaN in place of a missing number.
    """
    taken = [
        row
        for row in rows
        if row.numbers.get(name) is not None or (gaps and row.nonfinite and name in row.numbers)
    ]
    steps = np.array([row.step for row in taken], np.float64)
    return steps, np.array([row.numbers[name] for row in taken], np.float64)  # None becomes NaN


def as_curve(points: Sequence[tuple[float, float]]) -> Curve:
    steps = np.array([step for step, _ in points], np.float64)
    return steps, np.array([value for _, value in points], np.float64)


def thinned(curve: Curve) -> Curve:
    """Return at most 2 x POINTS points of a curve: the lowest and highest of each section."""
    x, y = curve
    if len(x) <= 2 * POINTS:
        return curve
    missing = np.isnan(y)
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(x)), POINTS):
        kept.add(int(part[np.where(missing[part], np.inf, y[part]).argmin()]))
        kept.add(int(part[np.where(missing[part], -np.inf, y[part]).argmax()]))
    indices = sorted(kept)
    return x[indices], y[indices]


def smoothed(curve: Curve) -> Curve:
    """Return the moving average of a curve, over a hundredth of its points.

    Missing values are ignored.
    """
    x, y = curve
    there = ~np.isnan(y)
    window = np.ones(max(5, len(x) // 100))
    weight = np.convolve(there, window, "same")
    total = np.convolve(np.where(there, y, 0.0), window, "same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return x, total / weight


def is_wide(*arrays: Values) -> bool:
    values = np.concatenate(arrays)
    values = values[~np.isnan(values)]
    return len(values) > 1 and values.min() > 0 and bool(values.max() > WIDE * values.min())


# --------------------------------------------------------------------------------------------------
# The two pictures


def loss_chart(rows: list[Row], events: list[Event]) -> bytes:
    """Draw training and validation loss; return a PNG."""
    train = column(rows, "train_loss", gaps=True)
    val = column(rows, "val_loss")
    with closed_style():
        figure = new_figure(9.6, 4.3)
        axes = figure.subplots()
        _draw(axes, train, TRAIN, noisy=True, label="train_loss")
        if len(val[0]):
            few = len(val[0]) <= SMOOTHED_FROM
            marker = "o" if few else None
            axes.plot(*thinned(val), color=VAL, lw=1.6, label="val_loss", marker=marker, ms=4)
        losses = [_draw_source(axes, rows, name, color) for name, color in _sources(rows)]
        _mark_prediction(axes, rows, events)
        _mark_full_loss(axes, rows)
        _mark_best(axes, events)
        _mark_nonfinite(axes, rows)
        _mark_events(axes, events)
        _mark_decay(axes, decay_step(rows, events))
        log = is_wide(train[1], val[1], *losses)
        style_axes(axes, "nats per token, log scale" if log else "nats per token", "", log)
        lines, names = axes.get_legend_handles_labels()
        if lines:
            # above the chart: a held-out loss may rise again, into any corner
            figure.legend(
                lines, names, fontsize=8.5, frameon=False, ncols=4, loc="outside upper left"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name's characters that the font lacks
            return as_png(figure)


def _sources(rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Yield each source whose loss was measured, with the colour of its curve."""
    names = dict.fromkeys(name for row in rows for name in row.by_source)
    yield from zip(names, cycle(SOURCES), strict=False)


def _draw_source(axes: "Axes", rows: list[Row], name: str, color: str) -> Values:
    """Draw the held-out loss of one source; return its values."""
    curve = as_curve([(row.step, row.by_source[name]) for row in rows if name in row.by_source])
    # a dollar would begin a formula
    label = f"val_loss of {escape_controls(name[:SOURCE_SHOWN])}".replace("$", r"\$")
    axes.plot(*thinned(curve), color=color, lw=1.1, ls="--", label=label)
    return curve[1]


def decay_step(rows: list[Row], events: list[Event]) -> float | None:
    """Return the step at which the learning rate begins to decay; None: it has no such step."""
    decay = ending.decay_of(events, rows)
    return None if decay is None else ending.began(decay)


def health_chart(rows: list[Row], curves: Curves, events: list[Event]) -> bytes:
    """Draw learning rate, gradient norm, tokens/s, memory, and other curves; return a PNG."""
    panels = health_panels(rows, curves, decay_step(rows, events))
    lines = (len(panels) + 1) // 2
    last = max([1.0, *(float(panel.curve[0].max(initial=0)) for panel in panels)])
    with closed_style():
        figure = new_figure(9.6, 2.3 * lines)
        grid = figure.subplots(lines, 2).flat
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel)
            axes.set_xlim(-0.02 * last, 1.02 * last)
        for axes in figure.axes[len(panels) :]:
            axes.remove()
        return as_png(figure)


def health_panels(rows: list[Row], curves: Curves, decay: float | None = None) -> list[Panel]:
    """Return the small charts: four always, the others only if their number changed.

    decay: the step at which the learning rate begins to decay.
    """
    norm = column(rows, "grad_norm", gaps=True)
    memory = as_curve(curves.get("perf/memory_mib", []))
    panels = [
        Panel("learning rate", "", "#059669", column(rows, "lr"), mark=decay),
        Panel("gradient norm before clipping", "", "#d97706", norm, noisy=True, may_be_log=True),
        Panel("speed", "tokens per second", TRAIN, column(rows, "tokens_per_s"), noisy=True),
        Panel("memory in use", "MiB", "#7c3aed", memory),
    ]
    micro_batch = as_curve(curves.get("batch/micro_batch_size", []))
    precision = as_curve(curves.get("amp/precision", []))
    scale = as_curve(curves.get("amp/scale", []))
    skips = as_curve(curves.get("amp/skipped_steps", []))
    others = [
        Panel("micro_batch_size", "sequences", "#0891b2", micro_batch, stepped=True),
        Panel("precision", "", GREY, precision, stepped=True),
        Panel("loss scale", "", GREY, scale, may_be_log=True),
        Panel("skipped steps so far", "steps", VAL, skips, stepped=True),
    ]
    if copied.OF_SAMPLES in curves:
        held_out = curves[copied.OF_HELD_OUT][-1][1]
        unit = f"% (held-out text {held_out:.1f})"
        shares = as_curve(curves[copied.OF_SAMPLES])
        others.append(Panel("copied from the training text", unit, "#be185d", shares))
    return panels + [panel for panel in others if len(set(panel.curve[1])) > 1]


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty picture of a size in inches, without matplotlib's global state."""
    from matplotlib.figure import Figure  # not pyplot
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=PAD, w_pad=PAD))


def _draw(
    axes: "Axes",
    curve: Curve,
    color: str,
    *,
    noisy: bool = False,
    stepped: bool = False,
    label: str = "",
) -> None:
    """Draw a curve; if it is noisy and long, draw it faintly, with its moving average on top."""
    if not len(curve[0]):
        return
    smooth = noisy and len(curve[0]) >= SMOOTHED_FROM
    dotted = len(curve[0]) < DOTTED_BELOW and not stepped
    axes.plot(
        *thinned(curve),
        color=color,
        label=label,
        marker="." if dotted else None,
        drawstyle="steps-post" if stepped else "default",
        alpha=0.3 if smooth else 1.0,
        linewidth=0.8 if smooth else 1.4,
    )
    if smooth:
        over = f"{label}, smoothed" if label else ""
        axes.plot(*thinned(smoothed(curve)), color=color, linewidth=1.6, label=over)


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    values = panel.curve[1]
    _draw(axes, panel.curve, panel.color, noisy=panel.noisy, stepped=panel.stepped)
    log = panel.may_be_log and is_wide(values)
    title = panel.title
    if panel.mark is not None:
        title += f" (dashes and dots: {DECAY_LABEL})"
    style_axes(axes, f"{panel.unit} (log scale)" if log else panel.unit, title, log)
    if not log:
        axes.set_ylim(0, 1.1 * max(np.nan_to_num(values).max(initial=0), 1e-9))
    if panel.title == "precision":
        axes.set_yticks(range(len(PRECISIONS)), PRECISIONS)
    if panel.mark is not None:
        _mark_decay(axes, panel.mark)
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "no numbers", ha="center", color=GREY, transform=axes.transAxes)


def _mark_decay(axes: "Axes", step: float | None) -> None:
    """Mark where the learning rate begins to decay."""
    if step is not None:
        axes.axvline(step, color=DECAY, linewidth=1.2, linestyle="-.", label=DECAY_LABEL)


def _mark_best(axes: "Axes", events: list[Event]) -> None:
    """Mark the best step of a run that has ended, by its loss over every held-out token if known.

    Where the best step is the last one, the mark of that loss is enough.
    """
    end = story.end_of(events)
    step = ending.best_step(events)
    if end is None or step is None or step == end.number("global_step"):
        return
    full = ending.best_full_loss(events)
    loss = end.number("best_val_loss") if full is None else full
    if loss is None:
        return
    what = "best" if full is None else "best, val_loss_full"
    axes.plot([step], [loss], "*", color=BEST, ms=11, label=f"{what} {loss:.4f}", clip_on=False)


def _mark_prediction(axes: "Axes", rows: list[Row], events: list[Event]) -> None:
    """Mark the predicted loss of a run that has ended, with its error bar, beside its last step."""
    predicted = story.prediction(events)
    if predicted is None or story.end_of(events) is None or not rows:
        return
    low, loss, high = predicted
    axes.errorbar(
        [1.02 * rows[-1].step],
        [loss],
        yerr=[[loss - low], [high - loss]],
        color=GREY,
        fmt="_",
        capsize=4,
        linewidth=1.2,
        label=f"predicted {loss:.3g}",
    )


def _mark_full_loss(axes: "Axes", rows: list[Row]) -> None:
    """Mark the last loss over the whole validation part."""
    steps, losses = column(rows, "val_loss_full")
    if len(steps):
        label = f"val_loss_full {losses[-1]:.4f}"
        axes.plot(steps[-1:], losses[-1:], "D", color=FULL, ms=6, label=label, clip_on=False)


def _mark_nonfinite(axes: "Axes", rows: list[Row]) -> None:
    steps = [row.step for row in rows if row.nonfinite]
    if not steps:
        return
    shown = steps[:: len(steps) // MOST_CROSSES + 1]
    axes.plot(
        shown,
        [0.03] * len(shown),
        "x",
        color="#dc2626",
        label=f"not finite: {len(steps):,} rows",
        transform=axes.get_xaxis_transform(),
    )


def _mark_events(axes: "Axes", events: list[Event]) -> None:
    named: set[str] = set()
    marked = [
        (event.step, event.kind)
        for event in events
        if event.kind in MARKS and event.step is not None
    ]
    for step, kind in marked[-MOST_MARKS:]:
        label = "" if kind in named else kind
        named.add(kind)
        axes.axvline(step, color=MARKS[kind], linewidth=1, linestyle=":", label=label)


def style_axes(
    axes: "Axes", unit: str, title: str, log: bool, across: str = "optimizer step"
) -> None:
    """Give a chart its title, its grid and its scales; `across` is what the x axis counts."""
    from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

    axes.set_title(title, fontsize=10, loc="left", color="#0f172a")
    axes.set_xlabel(across, fontsize=8.5, color=GREY)
    axes.set_ylabel(unit, fontsize=8.5, color=GREY)
    axes.grid(color="#e2e8f0", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cbd5e1")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(labelsize=8.5, colors="#334155", which="both")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
    elif axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def as_png(figure: "Figure", colours: int = COLOURS) -> bytes:
    """Return a chart as a PNG, sharp on a screen of high density and small by its palette."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    picture = Image.open(drawn).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, format="png", optimize=True)
    return file.getvalue()
