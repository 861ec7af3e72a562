"""Draw weighted F1 against the number of training labels."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from kinopoisk_ft.reporting.label_curves import LabelCurves
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import GREY, add_legend, new_figure, tidy
from kinopoisk_ft.statistics.metrics import HEADLINE

WIDTH, NARROW_WIDTH, HEIGHT = 8.0, 4.6, 4.0  # inches
FONT = 9


def draw(found: LabelCurves, locale: Locale, looks: Looks, *, legend: bool = True) -> Figure:
    """Draw a line with a 95% band for each approach.

    Without a legend, the figure is narrower. The HTML page uses this, because it has a legend.
    """
    figure = new_figure(WIDTH if legend else NARROW_WIDTH, HEIGHT)
    axes = figure.add_subplot()
    for curve in found.curves:
        look, intervals = looks[curve.name], curve.intervals
        x = [point.labels for point in curve.points]
        axes.plot(
            x, [one.mean for one in intervals], color=look.colour, marker=look.marker, markersize=5
        )
        low, high = [one.low for one in intervals], [one.high for one in intervals]
        axes.fill_between(x, low, high, color=look.colour, alpha=0.12, linewidth=0)
    if (floor := found.tables[0].majority.get(HEADLINE)) is not None:
        axes.axhline(floor, color=GREY, linewidth=1, linestyle="--")
        axes.text(1, floor, locale("majority"), color=GREY, fontsize=FONT, ha="right", va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
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
    if legend:
        add_legend(figure, [curve.name for curve in found.curves], looks)
    return figure
