"""Draw weighted F1 against training time, trainable parameters and peak memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import Bbox

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.run_plots import (
    BEHIND_TEXT,
    COLOURS,
    GREY,
    INK,
    literal,
    new_figure,
    tidy,
)
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.metrics import HEADLINE

# Sizes in inches.
WIDTH, NARROW_WIDTH, PANEL_HEIGHT = 8.0, 4.4, 3.6
# A panel with more rows is higher, to leave room for labels.
ROWS_IN_PANEL, ROWS_IN_NARROW_PANEL = 8, 5
FONT = 9.5
# Diameter of a marker in points.
MARKER = 8.0
# Space around a marker that labels must not overlap, in pixels.
MARGIN = 2.0
# Settings of adjustText as (horizontal, vertical): factor that enlarges label boxes, and force
# between labels.
EXPAND, FORCE = (1.08, 1.3), (0.2, 0.4)
ITERATIONS = 500
# A line connects a label to its point if the distance in pixels is larger than this.
FAR = 12.0
# Ticks within a decade. The first tuple that gives enough ticks is used.
STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7))
ENOUGH_TICKS = 3
# Fraction of the logarithmic axis that is reserved for zero.
ZERO_SHARE = 0.14
SHAPES = "osD^vPX"
COSTS = ("train_seconds", "trainable_parameters", "peak_memory_mb")


@dataclass(frozen=True)
class Point:
    """One approach in a panel.

    `std` is the standard deviation of F1 over seeds, or 0 for one seed.
    """

    name: str
    colour: str
    shape: str
    x: float
    y: float
    std: float


def draw(table: Table, locale: Locale) -> Figure:
    """Draw one panel per measured cost."""
    height = PANEL_HEIGHT * max(1.0, len(table.rows) / ROWS_IN_PANEL)
    columns = measured(table)
    figure = new_figure(WIDTH, len(columns) * height)
    panels = list(figure.subplots(len(columns), 1, squeeze=False)[:, 0])
    drawn = _panels(panels, table, columns, locale)
    title = [literal(data_line(table, locale), max_length=80)]
    if HEADLINE in table.majority:
        title.append(locale("majority_line", f1=locale.score(table.majority[HEADLINE])))
    panels[0].set_title("\n".join(title), fontsize=FONT, color=INK, loc="left")
    _place_labels(figure, panels, drawn)
    return figure


def draw_one(table: Table, column: str, locale: Locale) -> Figure:
    """Draw weighted F1 against one cost in a narrow figure, for the HTML page."""
    height = PANEL_HEIGHT * max(1.0, len(table.rows) / ROWS_IN_NARROW_PANEL)
    figure = new_figure(NARROW_WIDTH, height)
    axes = figure.add_subplot()
    drawn = _panels([axes], table, [column], locale)
    _place_labels(figure, [axes], drawn)
    return figure


def measured(table: Table) -> list[str]:
    """Return the columns of costs, such as training time, that are not empty.

    If all are empty, return the training time, because a figure needs at least one panel.
    """
    known = [cost for cost in COSTS if any(cost in row.values for row in table.rows)]
    return known or [COSTS[0]]


def _panels(
    panels: list[Axes], table: Table, columns: list[str], locale: Locale
) -> list[list[Point]]:
    look = _looks(table.rows)
    return [
        _panel(axes, table, column, look, locale)
        for axes, column in zip(panels, columns, strict=True)
    ]


def _place_labels(figure: Figure, panels: list[Axes], drawn: list[list[Point]]) -> None:
    # Labels are placed in pixels, so the layout must be computed before and then stay fixed.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, points in zip(panels, drawn, strict=True):
        _label(axes, points)


def _looks(rows: tuple[Row, ...]) -> dict[str, tuple[str, str]]:
    adapters = sorted({row.first.adapter for row in rows})
    models = sorted({row.first.model for row in rows})
    return {
        row.name: (
            COLOURS[adapters.index(row.first.adapter) % len(COLOURS)],
            SHAPES[models.index(row.first.model) % len(SHAPES)],
        )
        for row in rows
    }


def _panel(
    axes: Axes, table: Table, column: str, look: dict[str, tuple[str, str]], locale: Locale
) -> list[Point]:
    rows = [row for row in table.rows if column in row.values]
    number = locale.short if column.endswith("parameters") else locale.plain
    positions = _log_axis(axes, [row.values[column].mean for row in rows], number)
    points = []
    for row, x in zip(rows, positions, strict=True):
        f1 = row.values[HEADLINE]
        points.append(Point(row.name, *look[row.name], x, f1.mean, f1.std or 0.0))
    for p in points:
        axes.errorbar(
            p.x,
            p.y,
            yerr=p.std or None,
            color=p.colour,
            marker=p.shape,
            markersize=MARKER,
            markeredgecolor="white",
            capsize=4,
            linewidth=1.4,
            zorder=3,
        )
    _front(axes, points)
    tidy(axes)
    low = min((p.y - p.std for p in points), default=0.0)
    high = max((p.y + p.std for p in points), default=1.0)
    pad = max(0.18 * (high - low), 0.004)
    axes.set_ylim(low - pad, high + pad)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: locale.number(value, 3)))
    axes.set_ylabel(locale("axis_f1"))
    axes.set_xlabel(locale(f"axis_{column}"))
    return points


def _front(axes: Axes, points: list[Point]) -> None:
    kept = [points[i] for i in pareto_front([(p.x, p.y) for p in points])]
    x, y = [p.x for p in kept], [p.y for p in kept]
    axes.step(x, y, where="post", color=GREY, linewidth=1.2, linestyle="--", zorder=1)


def _log_axis(axes: Axes, values: list[float], number: Callable[[float], str]) -> list[float]:
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.8, max(positive) * 1.8
    ticks = _ticks(low, high)
    labels = [number(tick) for tick in ticks]
    axes.set_xscale("log")
    zero = low
    # Zero has no logarithm, so it is drawn at the left end of the axis.
    if min(values, default=1.0) <= 0:
        share = (high / low) ** ZERO_SHARE
        zero = low / share**0.5
        axes.axvline(low, color=GREY, linestyle=":", linewidth=1)
        low /= share
        ticks, labels = [zero, *ticks], ["0", *labels]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    return [value if value > 0 else zero for value in values]


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in STEPS:
        ticks = [step * 10.0**d for d in decades for step in steps if low <= step * 10.0**d <= high]
        if len(ticks) >= ENOUGH_TICKS:
            break
    return ticks


def _label(axes: Axes, points: list[Point]) -> None:
    # Half the size of a marker in pixels. MARKER is in points of 1/72 inch.
    half = MARKER / 2 * axes.figure.dpi / 72 + MARGIN
    texts, marks = [], []
    for point in points:
        name = literal(point.name)
        label = axes.text(point.x, point.y, name, va="center", fontsize=FONT, color=INK)
        label.set_bbox(BEHIND_TEXT)
        texts.append(label)
        x, top = axes.transData.transform((point.x, point.y + point.std))
        _, bottom = axes.transData.transform((point.x, point.y - point.std))
        box = Bbox.from_extents(x - half, bottom - half, x + half, top + half)
        marks.append(box.transformed(axes.transData.inverted()))
    adjust_text(
        texts,
        objects=marks,
        ax=axes,
        expand=EXPAND,
        force_text=FORCE,
        # An iteration limit is reproducible, unlike the default time limit.
        iter_lim=ITERATIONS,
        min_arrow_len=FAR,
        arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8},
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the Pareto front, cheapest first.

    Points are (cost, score). A low cost and a high score are better.
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
