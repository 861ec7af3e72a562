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
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.statistics.metrics import HEADLINE

INK = "#222222"
GREY = "#8a8a8a"
# The Okabe-Ito palette, which colour-blind readers can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
# A white box behind a name, so that no line crosses the name.
BEHIND_TEXT = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.4}
DPI = 200
# With more classes, the cells of a confusion matrix have no room for numbers.
MOST_LABELLED_CLASSES = 12
VAL_SCORE = f"val_{HEADLINE}"
CURVES = {
    "train_loss": ("curve_training", COLOURS[0]),
    "val_loss": ("curve_validation", COLOURS[1]),
    VAL_SCORE: ("curve_validation", COLOURS[1]),
}
PANELS = {"axis_loss": ("train_loss", "val_loss"), "axis_f1": (VAL_SCORE,)}
FONT = 9
FEW_POINTS = 30
LONGEST_NAME = 40
CONFUSION_NAMES = ("true", "predicted", "share of the true class")
HistoryRow = Mapping[str, float | None]


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

    The file is written atomically. Equal figures give equal files.
    """
    form = path.suffix.removeprefix(".")
    part = path.with_name(f".{path.name}.part")
    metadata = {"Date": None} if form == "svg" else {}
    try:
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):
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
    """Truncate a name to `max_length` characters, and escape $.

    Matplotlib would read $ as the start of a formula.
    """
    cut = name if len(name) <= max_length else f"{name[: max_length - 1].rstrip()}…"
    return cut.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """Remove the top and right spines, and add a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)


def plot_confusion(
    matrix: np.ndarray | Sequence[Sequence[int]], class_names: Sequence[str], path: str | Path
) -> None:
    """Save a plot of a confusion matrix (true, predicted)."""
    save(draw_confusion(np.asarray(matrix), class_names), Path(path))


def draw_confusion(
    counts: np.ndarray,
    class_names: Sequence[str],
    names: tuple[str, str, str] = CONFUSION_NAMES,
) -> Figure:
    """Draw a confusion matrix.

    Args:
        counts: (true class, predicted class).
        names: the label of the vertical axis, of the horizontal axis and of the colour bar.
    """
    size = len(class_names)
    if counts.shape != (size, size):
        raise ValueError(f"confusion matrix of shape {counts.shape} for {size} class names")
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
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
    axes.set_ylabel(names[0])
    axes.set_xlabel(names[1])
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
                color="white" if share > 0.5 else INK,
                fontsize=12 if size <= 4 else 9,
            )
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.0%}")
    bar.set_label(names[2])
    bar.outline.set_visible(False)
    return figure


def plot_learning_curve(history: Sequence[HistoryRow], path: str | Path) -> None:
    """Save a plot of the losses and the validation F1 of one run.

    Each row of `history` has `step` (optimizer steps) and some of `train_loss`, `val_loss` and
    `val_f1_weighted`. Values that are missing or None are skipped.
    """
    figure = draw_curves([history], Locale("en"), width=8.0, panel_height=2.6)
    if _points(history, VAL_SCORE):
        _mark_best(figure.axes[-1], history)
    save(figure, Path(path))


def draw_curves(
    histories: Sequence[Sequence[HistoryRow]],
    locale: Locale,
    width: float = 4.4,
    panel_height: float = 1.9,
) -> Figure:
    """Draw the learning curves of several runs.

    The upper panel shows losses, and the lower panel shows validation F1. Sizes are in inches.
    """
    panels = {
        title: keys
        for title, keys in PANELS.items()
        if any(_points(history, *keys) for history in histories)
    }
    figure = new_figure(width, 0.8 + panel_height * max(1, len(panels)))
    drawn = figure.subplots(max(1, len(panels)), 1, sharex=True, squeeze=False)[:, 0]
    if not panels:
        drawn[0].text(0.5, 0.5, "nothing was measured", ha="center", color=GREY)
    for axes, (title, keys) in zip(drawn, panels.items(), strict=False):
        for key in keys:
            _curves(axes, [_points(history, key) for history in histories], key, locale)
        axes.set_ylabel(locale(title), fontsize=FONT)
        axes.tick_params(labelsize=FONT)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: locale.number(value, 3)))
        if len(keys) > 1:
            axes.legend(frameon=False, fontsize=FONT)
        tidy(axes)
    steps = [step for history in histories for step, _ in _points(history, *CURVES)]
    drawn[-1].set_xlim(0, 1.03 * max([1.0, *steps]))
    drawn[-1].set_xlabel(locale("axis_step"), fontsize=FONT)
    drawn[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    drawn[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: locale.number(value, 0)))
    return figure


def _points(history: Sequence[HistoryRow], *keys: str) -> list[tuple[float, float]]:
    rows = [(row["step"], row.get(key)) for key in keys for row in history]
    return [(step, value) for step, value in rows if step is not None and value is not None]


def _curves(axes: Axes, runs: list[list[tuple[float, float]]], key: str, locale: Locale) -> None:
    label, colour = CURVES[key]
    for points in filter(None, runs):
        # Few points need markers to be recognized, and a single point has no line.
        marker = "o" if len(points) <= FEW_POINTS else ""
        look: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "lw": 1.2}
        axes.plot(*zip(*points, strict=True), **look, label=locale(label) if label else None)
        label = ""


def _mark_best(axes: Axes, history: Sequence[HistoryRow]) -> None:
    points = [p for p in _points(history, VAL_SCORE) if math.isfinite(p[1])]
    if points:
        step, value = max(points, key=lambda p: p[1])
        axes.plot(step, value, marker="o", markersize=11, fillstyle="none", color=INK, zorder=3)
        axes.set_title(f"best {value:.4f} at step {step:,.0f}", fontsize=10, loc="right")
