"""A run's curves as pictures: loss; learning rate, gradient norm, speed, memory, and what else changed."""

import io
from typing import Any

import numpy as np

from chatgot.report.run_record import Event, Row

POINTS = 600  # of one line: about one for each two pixels
SMOOTHED_FROM = 60  # rows; below that the plain line is readable
NOISY = ("gradient norm before clipping", "speed")
WIDE = 30.0  # largest over smallest value from which on an axis is logarithmic
MARKS = {
    "resume": "#0891b2",
    "rewind": "#dc2626",
    "precision": "#d97706",
}  # events drawn as vertical lines
TRAIN, VAL, GREY = "#2563eb", "#e11d48", "#64748b"
Curve = tuple[np.ndarray, np.ndarray]  # steps and values, NaN where there is none; both (N,)


def column(rows: list[Row], name: str, gaps: bool = False) -> Curve:
    """Return one number of the rows that have it; with `gaps` a row that was not finite is NaN where it has none."""
    taken = [
        row
        for row in rows
        if row.get(name) is not None or (gaps and name in row and row["nonfinite"])
    ]
    values = [np.nan if row[name] is None else row[name] for row in taken]
    return np.array([row["step"] for row in taken], float), np.array(values, float)


def thinned(curve: Curve) -> Curve:
    """Return at most 2 x POINTS points of a curve: of each stretch its lowest and its highest one."""
    x, y = curve
    if len(x) <= 2 * POINTS:
        return curve
    missing, kept = np.isnan(y), set()
    for part in np.array_split(np.arange(len(x)), POINTS):
        kept |= {part[np.where(missing[part], np.inf, y[part]).argmin()]}
        kept |= {part[np.where(missing[part], -np.inf, y[part]).argmax()]}
    indices = sorted(kept)
    return x[indices], y[indices]


def smoothed(curve: Curve) -> Curve:
    """Return the mean of each point's neighbourhood, a hundredth of the curve wide; what is missing does not count."""
    x, y = curve
    there, window = ~np.isnan(y), np.ones(max(5, len(x) // 100))
    weight = np.convolve(there, window, "same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return x, np.convolve(np.where(there, y, 0.0), window, "same") / weight


def is_wide(*arrays: np.ndarray) -> bool:
    values = np.concatenate(arrays)
    values = values[~np.isnan(values)]
    return len(values) > 1 and values.min() > 0 and values.max() > WIDE * values.min()


def loss_chart(rows: list[Row], events: list[Event]) -> bytes:
    """Draw training and validation loss; return a PNG."""
    train = column(rows, "train_loss", gaps=True)
    val, full = column(rows, "val_loss"), column(rows, "val_loss_full")
    figure = _figure(9.6, 4.3)
    axes = figure.subplots()
    many = len(train[0]) >= SMOOTHED_FROM
    if len(train[0]):
        faint = {"alpha": 0.3, "linewidth": 0.8} if many else {"linewidth": 1.4}
        axes.plot(
            *thinned(train),
            color=TRAIN,
            label="train_loss",
            marker="." if len(train[0]) < 20 else None,
            **faint,
        )
    if many:
        axes.plot(
            *thinned(smoothed(train)), color=TRAIN, linewidth=1.6, label="train_loss, smoothed"
        )
    if len(val[0]):
        marker = {"marker": "o", "markersize": 4} if len(val[0]) <= 60 else {}
        axes.plot(*thinned(val), color=VAL, linewidth=1.6, label="val_loss", **marker)
    for step, loss in list(zip(*full, strict=True))[-1:]:
        axes.plot(
            [step],
            [loss],
            "D",
            color="#7c3aed",
            markersize=6,
            label=f"val_loss_full {loss:.4f}",
            clip_on=False,
        )
    _mark_nonfinite(axes, rows)
    _mark_events(axes, events)
    log = is_wide(train[1], val[1])
    _dress(axes, "nats per token" + (", log scale" if log else ""), "", log)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8.5, frameon=False, ncols=2, loc="upper right")  # a loss falls
    return _png(figure)


def health_chart(rows: list[Row], curves: dict[str, list[tuple[int, float]]]) -> bytes:
    """Draw learning rate, gradient norm, tokens/s and memory, and further numbers if they changed; return a PNG."""
    panels = [
        ("learning rate", "", column(rows, "lr"), "#059669"),
        ("gradient norm before clipping", "", column(rows, "grad_norm", gaps=True), "#d97706"),
        ("speed", "tokens per second", column(rows, "tokens_per_s"), TRAIN),
    ]
    for tag, title, unit, color in (
        ("perf/memory_mib", "memory in use", "MiB", "#7c3aed"),
        ("batch/micro_batch_size", "micro_batch_size", "sequences", "#0891b2"),
        ("amp/precision", "precision", "", GREY),
        ("amp/scale", "loss scale", "", GREY),
        ("amp/skipped_steps", "skipped steps so far", "steps", VAL),
    ):
        x, y = np.array(curves.get(tag, []), float).reshape(-1, 2).T
        if tag == "perf/memory_mib" or len(set(y)) > 1:
            panels.append((title, unit, (x, y), color))
    lines, last = (
        (len(panels) + 1) // 2,
        max([1, *(x.max(initial=0) for _, _, (x, _), _ in panels)]),
    )
    figure = _figure(9.6, 2.2 * lines)
    for axes, (title, unit, curve, color) in zip(
        figure.subplots(lines, 2).flat, panels, strict=False
    ):
        steps = (
            "steps-post"
            if title in ("micro_batch_size", "precision", "skipped steps so far")
            else "default"
        )
        many = title in NOISY and len(curve[0]) >= SMOOTHED_FROM
        faint = {"alpha": 0.3, "linewidth": 0.7} if many else {"linewidth": 1.3}
        axes.plot(
            *thinned(curve),
            color=color,
            marker="." if len(curve[0]) < 20 else None,
            ds=steps,
            **faint,
        )
        if many:
            axes.plot(*thinned(smoothed(curve)), color=color, linewidth=1.4)
        log = title in ("gradient norm before clipping", "loss scale") and is_wide(curve[1])
        _dress(axes, unit + (" (log scale)" if log else ""), title, log)
        if not log:
            axes.set_ylim(0, 1.1 * max(np.nan_to_num(curve[1]).max(initial=0), 1e-9))
        if title == "precision":
            axes.set_yticks([0, 1, 2], ["fp32", "bf16", "fp16"])
        axes.set_xlim(-0.02 * last, 1.02 * last)
        if not np.isfinite(curve[1]).any():
            axes.text(0.5, 0.5, "no numbers", ha="center", color=GREY, transform=axes.transAxes)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import (
        Figure,  # here: training does not need it; no pyplot, which keeps state of its own
    )

    return Figure(figsize=(width, height), layout="constrained")


def _mark_nonfinite(axes: Any, rows: list[Row]) -> None:
    steps = [row["step"] for row in rows if row["nonfinite"]]
    shown = steps[:: len(steps) // 200 + 1]
    if steps:
        label = f"not finite: {len(steps):,} rows"
        axes.plot(
            shown,
            [0.03] * len(shown),
            "x",
            color="#dc2626",
            label=label,
            transform=axes.get_xaxis_transform(),
        )


def _mark_events(axes: Any, events: list[Event]) -> None:
    named = set()
    for event in [event for event in events if event.kind in MARKS and event.step is not None][
        -30:
    ]:
        label = None if event.kind in named else event.kind
        named.add(event.kind)
        axes.axvline(event.step, color=MARKS[event.kind], linewidth=1, linestyle=":", label=label)


def _dress(axes: Any, unit: str, title: str, log: bool) -> None:
    from matplotlib.ticker import LogFormatter, MaxNLocator, StrMethodFormatter

    axes.set_title(title, fontsize=10, loc="left", color="#0f172a")
    axes.set_xlabel("optimizer step", fontsize=8.5, color=GREY)
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


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
