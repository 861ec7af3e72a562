"""Draw weighted F1 against training time, trainable parameters and peak memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from kinopoisk_ft.reporting.columns import COSTS, TIME, TRAINABLE
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import (
    GREY,
    INK,
    NARROW_WIDTH,
    WIDTH,
    add_legend,
    literal,
    log_ticks,
    new_figure,
    tidy,
)
from kinopoisk_ft.reporting.run_rows import Row, with_cost
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.metrics import HEADLINE

# Sizes in inches.
PANEL_HEIGHT, LEGEND_HEIGHT = 3.0, 0.2
FONT = 9.5
# Diameter of a marker in points.
MARKER = 8.0
# Fraction of the logarithmic axis that is reserved for zero.
ZERO_SHARE = 0.14


def draw(table: Table, locale: Locale, looks: Looks) -> Figure:
    """Draw weighted F1 against each measured cost, one panel per cost, with a legend."""
    columns, names = measured(table), [row.name for row in table.rows]
    # The legend has two columns.
    height = PANEL_HEIGHT * len(columns) + 0.4 + LEGEND_HEIGHT * math.ceil(len(names) / 2)
    figure = new_figure(WIDTH, height)
    panels = list(figure.subplots(len(columns), 1, squeeze=False)[:, 0])
    for axes, column in zip(panels, columns, strict=True):
        _panel(axes, table, column, looks, locale)
    title = [literal(data_line(table, locale), max_length=80)]
    if HEADLINE in table.majority:
        title.append(locale("majority_line", f1=locale.score(table.majority[HEADLINE])))
    panels[0].set_title("\n".join(title), fontsize=FONT, color=INK, loc="left")
    add_legend(figure, names, looks)
    return figure


def draw_one(table: Table, column: str, locale: Locale, looks: Looks) -> Figure:
    """Draw weighted F1 against one cost without a legend, which the HTML page adds."""
    figure = new_figure(NARROW_WIDTH, PANEL_HEIGHT)
    _panel(figure.add_subplot(), table, column, looks, locale)
    return figure


def measured(table: Table) -> list[str]:
    """Return the costs that can be compared, such as the training time.

    If there are none, return the training time, because a figure needs at least one panel.
    """
    known = [cost for cost in COSTS if with_cost(table.rows, cost)]
    return known or [TIME]


def name_point(row: Row, table: Table) -> str:
    """Return the SVG id of the point of a row."""
    # The page finds the point by this id, and shows its values under the pointer.
    return f"point-{table.rows.index(row)}"


def _panel(axes: Axes, table: Table, column: str, looks: Looks, locale: Locale) -> None:
    rows = with_cost(table.rows, column)
    positions = _log_axis(axes, [row.values[column].mean for row in rows], column, locale)
    points = []
    for row, x in zip(rows, positions, strict=True):
        f1 = row.values[HEADLINE].mean
        found = table.interval(row, HEADLINE) or Interval(f1, f1, f1)
        points.append((x, f1))
        look = looks[row.name]
        axes.plot([x, x], [found.low, found.high], color=look.colour, linewidth=1.4, zorder=2)
        axes.plot(x, f1, color=look.colour, marker=look.marker, markersize=MARKER, linestyle="",
                  markeredgecolor="white", zorder=3, gid=name_point(row, table))  # fmt: skip
    front = [points[i] for i in pareto_front(points)]
    # The last point has the highest score, so the line goes on to the most expensive approach.
    front += [(max(positions), f1) for _, f1 in front[-1:]]
    # Up to the next point of the front, the score of the cheaper approach is the highest.
    axes.step([x for x, _ in front], [f1 for _, f1 in front], where="post", color=GREY,
              linewidth=1.2, linestyle="--", zorder=1)  # fmt: skip
    tidy(axes)
    axes.margins(y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(lambda value, _: locale.number(value, 3))
    axes.set_ylabel(locale("axis_f1_interval"), fontsize=FONT)
    axes.set_xlabel(locale(f"axis_{column}"), fontsize=FONT)


def _log_axis(axes: Axes, values: list[float], column: str, locale: Locale) -> list[float]:
    """Set up a logarithmic x axis that may contain 0, and return the x coordinate of each value."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive) / 1.8, max(positive) * 1.8
    ticks = log_ticks(low, high)
    labels = [*map(locale.short, ticks)] if column == TRAINABLE else locale.ticks(ticks)
    axes.set_xscale("log")
    zero = low
    # Zero has no logarithm, so it is drawn at the left end of the axis.
    if min(values, default=1.0) <= 0:
        # On a logarithmic scale, a division by `share` adds ZERO_SHARE of the width on the left.
        share = (high / low) ** ZERO_SHARE
        # The square root puts zero in the middle of the added part.
        zero = low / share**0.5
        axes.axvline(low, color=GREY, linestyle=":", linewidth=1)
        low /= share
        ticks, labels = [zero, *ticks], ["0", *labels]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, labels)
    # If a logarithmic axis is short, Matplotlib would also label its minor ticks.
    axes.xaxis.set_minor_locator(NullLocator())
    return [value if value > 0 else zero for value in values]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points on the Pareto front, cheapest first.

    Points are (cost, score). A low cost and a high score are better.
    """
    kept: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        # Equal points do not dominate each other, so all of them are on the front.
        if not kept or points[i][1] > points[kept[-1]][1] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept
