"""Draw reliability diagrams: accuracy against predicted probability."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import GREY, INK, literal, new_figure, tidy
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.calibration import CALIBRATED, Bin
from kinopoisk_ft.statistics.metrics import shown_in

(ERROR,) = (metric.name for metric in shown_in("reliability"))
# Number of panels side by side, and the size of a panel in inches.
IN_A_LINE = 3
SIDE = 2.9
FONT = 9
# Bins with fewer reviews are not drawn, because their accuracy is too uncertain.
FEWEST = 10
# Upper limit of the accuracy axis, which leaves space for the legend above the curves.
HEADROOM = 1.2
# Marker area of the bin with the most reviews, in square points.
LARGEST = 120.0


def draw(table: Table, locale: Locale, looks: Looks, only: str | None = None) -> Figure:
    """Draw one panel per approach, before (grey) and after scaling (in its colour).

    If `only` is the name of an approach, draw only this approach.
    """
    known = table.comparison.reliability
    rows = [row for row in table.rows if row.name in known and only in (None, row.name)]
    columns = min(IN_A_LINE, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = new_figure(SIDE * columns + 0.4, (SIDE + 0.55) * lines + 0.3)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    bins = [one for pair in known.values() for part in pair for one in part]
    low = min(one.confidence for one in bins)
    percent = FuncFormatter(lambda value, _: locale.percent(value, digits=0))
    for axes, row in zip(panels.flat, rows, strict=False):
        axes.plot([low, 1], [low, 1], color=GREY, linewidth=1, linestyle="--")
        before, after = table.comparison.reliability[row.name]
        _curve(axes, before, GREY, _label("before", row, ERROR, locale))
        _curve(
            axes,
            after,
            looks[row.name].colour,
            _label("after", row, f"{ERROR}{CALIBRATED}", locale),
        )
        if only is None:
            axes.set_title(literal(row.name), fontsize=FONT + 1, color=INK, loc="left")
        axes.legend(frameon=False, fontsize=FONT - 1, loc="upper left", handletextpad=0.3)
        axes.xaxis.set_major_formatter(percent)
        axes.yaxis.set_major_formatter(percent)
        axes.tick_params(labelsize=FONT, labelbottom=True)
        tidy(axes)
    first = panels.flat[0]
    first.set_ylim(top=HEADROOM)
    first.set_yticks([tick for tick in first.get_yticks() if first.get_ylim()[0] <= tick <= 1])
    for axes in list(panels.flat)[len(rows) :]:
        axes.remove()
    figure.supxlabel(locale("axis_confidence"), fontsize=FONT + 1)
    figure.supylabel(locale("axis_right"), fontsize=FONT + 1)
    return figure


def _curve(axes: Axes, bins: list[Bin], colour: str, label: str) -> None:
    kept = [one for one in bins if one.count >= FEWEST]
    fullest = max((one.count for one in kept), default=1)
    x, y = [one.confidence for one in kept], [one.accuracy for one in kept]
    areas = [12 + LARGEST * one.count / fullest for one in kept]
    axes.plot(x, y, color=colour, linewidth=1, alpha=0.7)
    axes.scatter(x, y, areas, color=colour, alpha=0.7, edgecolors="white", label=label)


def _label(key: str, row: Row, column: str, locale: Locale) -> str:
    ece, temperature = row.mean(column), row.mean("temperature")
    written = ["-" if value is None else locale.number(value, 3) for value in (ece, temperature)]
    return locale(key, ece=written[0], temperature=written[1])
