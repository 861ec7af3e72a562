"""Draw the figures of a run, and define helpers for all figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from kinopoisk_ft.files import temporary_path
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.statistics.metrics import HEADLINE

INK = "#222222"
GREY = "#8a8a8a"
# Colours of the curves on the train split and on the validation split.
TRAINING, VALIDATION = "#0072b2", "#d55e00"
# Dots per inch of PNG files.
DPI = 200
# With more classes, the cells of a confusion matrix have no room for numbers.
MOST_LABELLED_CLASSES = 12
VAL_SCORE = f"val_{HEADLINE}"
# Metrics of a training run, with the label and the colour of their curves.
CURVES = {
    "train_loss": ("curve_training", TRAINING),
    "val_loss": ("curve_validation", VALIDATION),
    VAL_SCORE: ("curve_validation", VALIDATION),
}
PANELS = {"axis_loss": ("train_loss", "val_loss"), "axis_f1": (VAL_SCORE,)}
# Font size in points.
FONT = 9
# Of a curve with more points than `FEW_POINTS`, about `MARKED_POINTS` have a marker.
FEW_POINTS, MARKED_POINTS = 30, 8
# Ticks within a decade. The first tuple that gives enough ticks is used.
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
ENOUGH_TICKS = 3
# Maximum number of characters of a name in a figure.
LONGEST_NAME = 40
# Widths in inches of a separate figure, and of a figure that the HTML page shows next to others.
WIDTH, NARROW_WIDTH = 8.0, 4.6
HistoryRow = Mapping[str, float | None]
Histories = Mapping[str, Sequence[Sequence[HistoryRow]]]


def new_figure(
    width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> Figure:
    """Create an empty figure, with width and height in inches."""
    # The global state of pyplot is not thread-safe, so pyplot is not used.
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG or SVG, depending on the suffix.

    The file is written atomically. The same figure always gives the same bytes.
    """
    form = path.suffix.removeprefix(".")
    part = temporary_path(path)
    # By default, Matplotlib writes the date and random ids into SVG files.
    metadata = {"Date": None} if form == "svg" else {}
    try:
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):
            # The temporary name does not end in the format, so the format is an argument.
            figure.savefig(part, format=form, dpi=DPI, metadata=metadata)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_both(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Save a figure as PNG and SVG, and return both paths."""
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    for path in paths:
        save(figure, path)
    return paths


def literal(name: str, max_length: int = LONGEST_NAME) -> str:
    """Truncate a name to `max_length` characters, and escape $, which would start a formula."""
    cut = name if len(name) <= max_length else f"{name[: max_length - 1].rstrip()}…"
    return cut.replace("$", r"\$")


def add_legend(figure: Figure, names: Sequence[str], looks: Looks) -> None:
    """Add a legend of the approaches in two columns below the axes of a figure."""
    handles = [
        Line2D([], [], color=looks[name].colour, marker=looks[name].marker, linestyle="",
               markersize=7, label=literal(name))
        for name in names
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=FONT
    )


def tidy(axes: Axes) -> None:
    """Remove the top and right spines, and add a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def log_ticks(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in STEPS:
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= ENOUGH_TICKS:
            break
    return ticks


def plot_confusion(counts: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Save a plot of a confusion matrix (true class, predicted class)."""
    size = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    # A class without test reviews has shares of 0 instead of NaN.
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    # The side is in inches.
    side = min(3.2 + 0.8 * size, 14)
    figure = new_figure(side + 1, side, layout="compressed")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [literal(name) for name in class_names]
    axes.set_xticks(range(size), labels)
    if size > 3:
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), labels)
    axes.set_ylabel("true")
    axes.set_xlabel("predicted")
    axes.spines[:].set_visible(False)
    if size <= MOST_LABELLED_CLASSES:
        for row, column in np.ndindex(size, size):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}\n{share:.1%}",
                ha="center",
                va="center",
                # Black text would be hard to read on a dark blue cell.
                color="white" if share > 0.5 else INK,
                fontsize=12 if size <= 4 else 9,
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.0%}")
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    save(figure, path)


def plot_learning_curve(history: Sequence[HistoryRow], path: Path) -> None:
    """Save a plot of the losses and the validation F1 of one run.

    Each row of `history` has `step` (optimizer steps) and some of `train_loss`, `val_loss` and
    `val_f1_weighted`. Values that are missing or None are skipped.
    """
    locale = Locale("en")
    panels = {title: keys for title, keys in PANELS.items() if points_of(history, *keys)}
    count = max(1, len(panels))
    figure = new_figure(WIDTH, 0.8 + 2.6 * count)
    drawn = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    if not panels:
        drawn[0].text(0.5, 0.5, "nothing was measured", ha="center", color=GREY)
    for axes, (title, keys) in zip(drawn, panels.items(), strict=False):
        for key in keys:
            label, colour = CURVES[key]
            if points := points_of(history, key):
                _draw_line(axes, points, color=colour, label=locale(label))
        axes.set_ylabel(locale(title), fontsize=FONT)
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=FONT)
    bottom = drawn[-1]
    # Without any points, the axis still needs a width.
    bottom.set_xlim(0, 1.03 * max([1.0, *(step for step, _ in points_of(history, *CURVES))]))
    bottom.set_xlabel(locale("axis_step"), fontsize=FONT)
    bottom.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    bottom.xaxis.set_major_formatter(lambda value, _: locale.number(value, 0))
    for axes in drawn:
        _format_values(axes, locale)
    # Comparisons with NaN are false, so `max` could return a wrong point.
    if scores := [p for p in points_of(history, VAL_SCORE) if math.isfinite(p[1])]:
        step, value = max(scores, key=lambda p: p[1])
        bottom.plot(step, value, marker="o", markersize=11, fillstyle="none", color=INK, zorder=3)
        bottom.set_title(f"best {value:.4f} at step {step:,.0f}", fontsize=10, loc="right")
    save(figure, path)


def measured_curves(histories: Histories) -> list[str]:
    """Return the metrics that at least one run has recorded more than once."""
    runs = [run for found in histories.values() for run in found]
    return [key for key in CURVES if any(len(points_of(run, key)) > 1 for run in runs)]


def draw_learning_curves(histories: Histories, key: str, locale: Locale, looks: Looks) -> Figure:
    """Draw one metric of all approaches, with one line per run.

    Figures of different metrics have the same horizontal axis.

    Args:
        histories: the histories of the runs of each approach.
        key: name of the metric.
    """
    figure = new_figure(NARROW_WIDTH, 2.9)
    axes = figure.add_subplot()
    steps: list[float] = []
    for name, runs in histories.items():
        for run in runs:
            # A logarithmic axis has no step 0.
            steps += [step for step, _ in points_of(run, *CURVES) if step > 0]
            if points := points_of(run, key):
                look = looks[name]
                _draw_line(axes, points, color=look.colour, marker=look.marker, alpha=0.8)
    axes.set_ylabel(locale(f"axis_{key}"), fontsize=FONT)
    # On a linear axis, the approach with the most steps leaves no room for the others.
    axes.set_xscale("log")
    # Neighbouring ticks differ by a factor of at most 2, so at least one is on the axis.
    low, high = min(steps, default=1.0) / 1.5, 1.5 * max(steps, default=1.0)
    axes.set_xlim(low, high)
    axes.set_xlabel(locale("axis_log_step"), fontsize=FONT)
    # There is no step 1.5.
    axes.set_xticks([tick for tick in log_ticks(low, high) if tick.is_integer()])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: locale.number(value, 0))
    _format_values(axes, locale)
    return figure


def points_of(history: Sequence[HistoryRow], *keys: str) -> list[tuple[float, float]]:
    """Return a (step, value) pair for each value of the metrics `keys` in `history`."""
    rows = [(row["step"], row.get(key)) for key in keys for row in history]
    return [(step, value) for step, value in rows if step is not None and value is not None]


def _draw_line(
    axes: Axes, points: list[tuple[float, float]], marker: str = "o", **look: Any
) -> None:
    # A few points are hard to see without markers, and a single point has no line. Markers on all
    # points of a long curve would hide it.
    every = 1 if len(points) <= FEW_POINTS else len(points) // MARKED_POINTS
    x, y = [step for step, _ in points], [value for _, value in points]
    axes.plot(x, y, marker=marker, markevery=every, ms=4, lw=1.2, **look)


def _format_values(axes: Axes, locale: Locale) -> None:
    axes.tick_params(labelsize=FONT)
    axes.yaxis.set_major_formatter(lambda value, _: locale.number(value, 3))
    tidy(axes)
