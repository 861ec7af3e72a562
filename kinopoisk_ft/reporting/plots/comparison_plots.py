"""Draw forest plots, reliability diagrams, and curves of weighted F1 by number of labels."""

from __future__ import annotations

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from kinopoisk_ft.reporting.label_curves import LabelCurves
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import (
    FONT,
    GREY,
    INK,
    NARROW_WIDTH,
    WIDTH,
    add_legend,
    literal,
    new_figure,
    tidy,
)
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.calibration import CALIBRATED, Bin
from kinopoisk_ft.statistics.equivalence import MARGIN
from kinopoisk_ft.statistics.metrics import HEADLINE, shown_in

# Height of a row of the forest plot, side of a reliability diagram, and height of a figure of label
# curves, in inches.
ROW_HEIGHT, SIDE, CURVES_HEIGHT = 0.34, 2.9, 4.0
(ERROR,) = (metric.name for metric in shown_in("reliability"))
# Number of reliability diagrams side by side, and of characters in a line of their titles.
IN_A_LINE, TITLE_WIDTH = 3, 28
# Bins with fewer reviews are not drawn, because their accuracy is too uncertain.
FEWEST = 10
# Upper limit of the accuracy axis, which leaves space for the legend above the curves.
HEADROOM = 1.2
# Marker area of the bin with the most reviews, in square points.
LARGEST = 120.0


def draw_differences(table: Table, locale: Locale, looks: Looks) -> Figure:
    """Draw the differences from the best approach, with intervals, verdicts and the margin."""
    found = table.against_best()
    figure = new_figure(WIDTH, 1.3 + ROW_HEIGHT * len(found))
    axes = figure.add_subplot()
    # In this transform, x is a fraction of the width of the axes, and y is a data coordinate.
    right = axes.get_yaxis_transform()
    for place, one in enumerate(found):
        look, ends = looks[one.name], one.interval
        axes.plot([ends.low, ends.high], [place, place], color=look.colour, linewidth=2.2)
        axes.plot(ends.mean, place, color=look.colour, marker=look.marker, markersize=7,
                  markeredgecolor="white")  # fmt: skip
        axes.text(1.01, place, locale(one.verdict), va="center", fontsize=FONT, color=INK,
                  transform=right)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.08, linewidth=0)
    tidy(axes)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(found)), [literal(one.name) for one in found], fontsize=FONT)
    # Long names leave the axes less room than these texts need, so they belong to the figure.
    figure.suptitle(literal(data_line(table, locale), 80), fontsize=FONT, color=INK)
    # The axis is inverted, so that the first row is at the top.
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda v, _: locale.number(v, 3, signed=True))
    best, margin = literal(table.rows[0].name), locale.number(MARGIN, 2)
    figure.supxlabel(locale("axis_difference", best=best, margin=margin), fontsize=FONT)
    return figure


def draw_calibration(table: Table, locale: Locale, looks: Looks, only: str | None = None) -> Figure:
    """Draw a reliability diagram for each approach, or only for the approach `only`.

    The curve before temperature scaling is grey with squares. The curve after it has the approach's
    colour and circles.
    """
    known = table.comparison.reliability
    rows = [row for row in table.rows if row.name in known and only in (None, row.name)]
    columns = min(IN_A_LINE, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(SIDE * columns + 0.4, (SIDE + 0.55) * lines + 0.3)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    # Include the bins of all approaches, so that all diagrams have the same horizontal axis.
    bins = [one for pair in known.values() for part in pair for one in part]
    low = min(one.confidence for one in bins)
    # There may be more panels than approaches. The empty ones are removed below.
    for axes, row in zip(panels.flat, rows, strict=False):
        axes.plot([low, 1], [low, 1], color=GREY, linewidth=1, linestyle="--")
        before, after = table.comparison.reliability[row.name]
        # An approach may be grey, too.
        _curve(axes, before, GREY, "s", _label("before", row, ERROR, locale))
        label = _label("after", row, f"{ERROR}{CALIBRATED}", locale)
        _curve(axes, after, looks[row.name].colour, "o", label)
        if only is None:
            # `textwrap` could separate the backslash of an escaped $, so it comes first.
            title = literal(textwrap.fill(row.name, TITLE_WIDTH), len(row.name) + 1)
            axes.set_title(title, fontsize=FONT + 1, color=INK, loc="left")
        axes.legend(frameon=False, fontsize=FONT - 1, loc="upper left", handletextpad=0.3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: locale.percent(value, digits=0))
        axes.tick_params(labelsize=FONT, labelbottom=True)
        tidy(axes)
    first = panels.flat[0]
    first.set_ylim(top=HEADROOM)
    # There are no ticks above 1, in the space for the legend, because an accuracy is at most 1.
    first.set_yticks([tick for tick in first.get_yticks() if first.get_ylim()[0] <= tick <= 1])
    for axes in list(panels.flat)[len(rows) :]:
        axes.remove()
    figure.supxlabel(locale("axis_confidence"), fontsize=FONT + 1)
    figure.supylabel(locale("axis_right"), fontsize=FONT + 1)
    return figure


def _curve(axes: Axes, bins: list[Bin], colour: str, marker: str, label: str) -> None:
    kept = [one for one in bins if one.count >= FEWEST]
    fullest = max((one.count for one in kept), default=1)
    x, y = [one.confidence for one in kept], [one.accuracy for one in kept]
    # The constant keeps markers of small bins visible.
    areas = [12 + LARGEST * one.count / fullest for one in kept]
    axes.plot(x, y, color=colour, linewidth=1, alpha=0.7)
    axes.scatter(
        x, y, areas, color=colour, marker=marker, alpha=0.7, edgecolors="white", label=label
    )


def _label(key: str, row: Row, column: str, locale: Locale) -> str:
    temperature = locale.number(row.mean("temperature"), 3)
    return locale(key, ece=locale.number(row.mean(column), 3), temperature=temperature)


def draw_label_curves(
    found: LabelCurves, locale: Locale, looks: Looks, *, legend: bool = True
) -> Figure:
    """Draw weighted F1 by number of labels: for each approach, a line with a 95% band.

    The HTML page uses a narrower figure without a legend, because the page has its own legend.
    """
    figure = new_figure(WIDTH if legend else NARROW_WIDTH, CURVES_HEIGHT)
    axes = figure.add_subplot()
    for curve in found.curves:
        look, intervals = looks[curve.name], curve.intervals
        x = [point.labels for point in curve.points]
        mean = [one.mean for one in intervals]
        low, high = [one.low for one in intervals], [one.high for one in intervals]
        axes.plot(x, mean, color=look.colour, marker=look.marker, markersize=5)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.08, linewidth=0)
    if (floor := found.tables[0].majority.get(HEADLINE)) is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle="--")
        axes.text(1, floor, locale("majority"), color=GREY, fontsize=FONT, ha="right", va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
    ticks = sorted({round(point.labels) for curve in found.curves for point in curve.points})
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    # If a logarithmic axis is short, Matplotlib would also label its minor ticks.
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda v, _: locale.number(v, 0))
    axes.yaxis.set_major_formatter(lambda v, _: locale.number(v, 2))
    axes.tick_params(labelsize=FONT)
    axes.set_xlabel(locale("axis_labels"), fontsize=FONT)
    axes.set_ylabel(locale("axis_f1"), fontsize=FONT)
    tidy(axes)
    if legend:
        add_legend(figure, [curve.name for curve in found.curves], looks)
    return figure
