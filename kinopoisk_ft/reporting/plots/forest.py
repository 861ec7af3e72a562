"""Draw the differences from the best approach with their intervals as a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import GREY, INK, literal, new_figure, tidy
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.equivalence import MARGIN

# Sizes in inches.
WIDTH, ROW_HEIGHT = 8.0, 0.34
FONT = 9
# Share of the axis that is left free at each side, for the markers at its ends.
PADDING = 0.04


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of a forest plot in HTML, from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> Axis:
        """Return an axis on which all intervals have room."""
        low = min((one.low for one in intervals), default=0.0)
        high = max((one.high for one in intervals), default=1.0)
        pad = PADDING * (high - low) or PADDING
        return cls(low - pad, high + pad)

    def place(self, value: float) -> str:
        """Return the place of a value as a CSS length."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def bar(self, one: Interval) -> str:
        """Return the CSS variables of the bar of an interval."""
        places = ("low", one.low), ("at", one.mean), ("high", one.high)
        return "; ".join(f"--{name}: {self.place(value)}" for name, value in places)


def draw(table: Table, locale: Locale, looks: Looks) -> Figure:
    """Draw one line per approach, with the verdict at its right.

    A shaded band shows the margin.
    """
    found = table.against_best()
    figure = new_figure(WIDTH, 1.3 + ROW_HEIGHT * len(found))
    axes = figure.add_subplot()
    right = axes.get_yaxis_transform()
    for place, one in enumerate(found):
        look, ends = looks[one.name], one.interval
        axes.plot([ends.low, ends.high], [place, place], color=look.colour, linewidth=2.2)
        axes.plot(ends.mean, place, color=look.colour, marker=look.marker, markersize=7,
                  markeredgecolor="white")  # fmt: skip
        said = locale(one.verdict.replace(" ", "_"))
        axes.text(1.01, place, said, va="center", fontsize=FONT, color=INK, transform=right)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, linewidth=0)
    tidy(axes)
    axes.grid(False, axis="y")
    axes.set_yticks(range(len(found)), [literal(one.name) for one in found], fontsize=FONT)
    axes.set_title(literal(data_line(table, locale), 80), fontsize=FONT, color=INK, loc="left")
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: locale.number(v, 3, signed=True)))
    best, margin = literal(table.rows[0].name), locale.number(MARGIN, 2)
    axes.set_xlabel(locale("axis_difference", best=best, margin=margin), fontsize=FONT)
    return figure
