"""Prepare the tables with interval bars: results, and differences from the best approach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from kinopoisk_ft.reporting.columns import COLUMNS, TIME, TRAINABLE
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.plots import scatter
from kinopoisk_ft.reporting.plots.looks import Look, Looks
from kinopoisk_ft.reporting.table import Table, write_pair
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.equivalence import MARGIN
from kinopoisk_ft.statistics.metrics import HEADLINE

TICKS = 5
# Fraction of the axis that is left free at each end, for the markers.
PADDING = 0.04


@dataclass(frozen=True)
class Axis:
    """The horizontal axis of the bars, from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> Axis:
        """Create an axis that contains all intervals."""
        low, high = min(one.low for one in intervals), max(one.high for one in intervals)
        # If all values are equal, the axis still needs a width, because `place` divides by it.
        pad = PADDING * (high - low) or PADDING
        return cls(low - pad, high + pad)

    def place(self, value: float) -> str:
        """Return the position of a value as a CSS length."""
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def bar(self, one: Interval) -> str:
        """Return the CSS variables that place the bar of an interval."""
        places = ("low", one.low), ("at", one.mean), ("high", one.high)
        return "; ".join(f"--{name}: {self.place(value)}" for name, value in places)


@dataclass(frozen=True)
class Cell:
    """A cell with a formatted value, the number that sorts the table, and text below the value."""

    text: str
    number: float | str
    under: str = ""


@dataclass(frozen=True)
class Line:
    """One approach in a table with bars.

    `bar` contains the CSS variables that place the bar. `verdict` is a result of `Table.verdict`.
    """

    name: str
    look: Look | None
    score: Cell
    bar: str
    cells: tuple[Cell, ...]
    verdict: str


@dataclass(frozen=True)
class Bars:
    """A table with bars.

    `ticks` are pairs of a CSS length and a label. `band` contains the CSS variables that place the
    zero line and the shaded band from -margin to +margin, or "" if there are none.
    """

    headings: list[str]
    lines: list[Line]
    ticks: list[tuple[str, str]]
    band: str = ""


def results(table: Table, locale: Locale, looks: Looks) -> Bars:
    """Return the table of results: F1 with a bar, time, trainable parameters and verdict."""
    # The times may be missing, for example because the machine was busy.
    cost = next(name for name in (*scatter.measured(table), TIME) if name != TRAINABLE)
    means = [
        table.interval(row, HEADLINE) or Interval(*[row.values[HEADLINE].mean] * 3)
        for row in table.rows
    ]
    axis = Axis.of(means)
    lines = []
    for row, one in zip(table.rows, means, strict=True):
        # Without predictions, both bounds are equal to the mean.
        under = locale.interval(one, digits=3) if one.low < one.high else ""
        cells = tuple(_cell(row.mean(name), name, locale) for name in (cost, TRAINABLE))
        score = Cell(locale.number(one.mean, 3), one.mean, under)
        look, verdict = looks[row.name], table.verdict(row)
        lines.append(Line(row.name, look, score, axis.bar(one), cells, verdict))
    if HEADLINE in table.majority:
        floor = table.majority[HEADLINE]
        nothing = (Cell(NOTHING, ""), Cell(NOTHING, ""))
        score = Cell(locale.number(floor, 3), floor)
        # The script of the page does not move a line without a look when it sorts the table.
        lines.append(Line(locale("majority"), None, score, "", nothing, ""))
    headings = [locale("approach"), locale("axis_f1_interval"), locale.heading(COLUMNS[cost]),
                locale(TRAINABLE), locale("verdict")]  # fmt: skip
    return Bars(headings, lines, [])


def _cell(value: float | None, column: str, locale: Locale) -> Cell:
    # The script of the page sorts cells without a number to the end.
    return Cell(locale.brief(value, COLUMNS[column]), "" if value is None else value)


def differences(table: Table, locale: Locale, looks: Looks) -> Bars:
    """Return the table of differences from the best approach, with interval bars and verdicts."""
    found = table.against_best()
    # The axis contains the margin, even if all differences are small.
    edge = Interval(0.0, -MARGIN, MARGIN)
    axis = Axis.of([*(one.interval for one in found), edge])
    lines = []
    for one in found:
        interval = one.interval
        score = Cell(
            locale.number(interval.mean, 3, signed=True), interval.mean,
            locale.interval(interval, digits=3, signed=True),
        )  # fmt: skip
        name = write_pair(one.name, table.rows[0].name, one.paired, locale)
        lines.append(Line(name, looks[one.name], score, axis.bar(interval), (), one.verdict))
    values = [float(v) for v in MaxNLocator(TICKS).tick_values(axis.low, axis.high)]
    # The locator may return ticks outside of the axis.
    values = [value for value in values if axis.low <= value <= axis.high]
    ticks = zip(map(axis.place, values), locale.ticks(values), strict=True)
    places = {"zero": 0.0, "from": -MARGIN, "to": MARGIN}
    band = "; ".join(f"--{name}: {axis.place(value)}" for name, value in places.items())
    headings = [locale("pair"), locale("difference_f1"), locale("verdict")]
    return Bars(headings, lines, list(ticks), band)
