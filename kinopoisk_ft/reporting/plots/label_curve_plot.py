"""Draw weighted F1 against the number of training labels."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from kinopoisk_ft.reporting.label_curves import LabelCurves
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.run_plots import COLOURS, GREY, literal, new_figure, tidy
from kinopoisk_ft.statistics.metrics import HEADLINE

WIDTH, NARROW_WIDTH, HEIGHT = 8.0, 4.4, 4.2  # inches
FONT = 9
# Markers and lines repeat after different numbers of curves, so that their pairs do not repeat.
SHAPES, LINES = "osD^vPX", ("-", "--", ":")


def draw(found: LabelCurves, locale: Locale, *, narrow: bool = False) -> Figure:
    """Draw a line with a 95% band for each approach."""
    figure = new_figure(NARROW_WIDTH if narrow else WIDTH, HEIGHT)
    axes = figure.add_subplot()
    for number, curve in enumerate(found.curves):
        colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
        x, intervals = [point.labels for point in curve.points], curve.intervals
        axes.plot(
            x, [one.mean for one in intervals], color=colour, marker=shape, markersize=5,
            linestyle=LINES[number // len(COLOURS) % len(LINES)], label=literal(curve.name),
        )  # fmt: skip
        low, high = [one.low for one in intervals], [one.high for one in intervals]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    if (floor := found.tables[0].majority.get(HEADLINE)) is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle="--", label=locale("majority"))
    ticks = sorted({round(point.labels) for curve in found.curves for point in curve.points})
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: locale.number(v, 0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: locale.number(v, 2)))
    axes.tick_params(labelsize=FONT)
    axes.set_xlabel(locale("axis_labels"), fontsize=FONT)
    axes.set_ylabel(locale("axis_f1"), fontsize=FONT)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=1 if narrow else 2, frameon=False,
                  fontsize=FONT)  # fmt: skip
    return figure
