"""Prepare the tables with interval bars: results, and differences from the best approach."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from kinopoisk_ft.reporting.columns import COLUMNS
from kinopoisk_ft.reporting.conclusions import TRAINABLE, badge
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.plots import scatter
from kinopoisk_ft.reporting.plots.forest import Axis
from kinopoisk_ft.reporting.plots.looks import Look, Looks
from kinopoisk_ft.reporting.table import Table, write_value
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.equivalence import MARGIN
from kinopoisk_ft.statistics.metrics import HEADLINE

TICKS = 5


@dataclass(frozen=True)
class Cell:
    """A cell with a formatted value, and the number by which the table is sorted."""

    text: str
    number: float | str
    under: str = ""


@dataclass(frozen=True)
class Line:
    """One approach in a table with bars. `verdict` is a key of the locale or ""."""

    name: str
    look: Look | None
    score: Cell
    bar: str
    cells: tuple[Cell, ...]
    verdict: str


@dataclass(frozen=True)
class Bars:
    """A table with bars. `ticks` are pairs of a CSS length and a label; `band` is CSS."""

    headings: list[str]
    lines: list[Line]
    ticks: list[tuple[str, str]]
    band: str = ""


def results(table: Table, locale: Locale, looks: Looks) -> Bars:
    """Return the table of results: F1 with a bar, time, trainable parameters and verdict."""
    # The study may have no times, for example because its machine was busy.
    cost = next(name for name in (*scatter.measured(table), scatter.COSTS[0]) if name != TRAINABLE)
    means = {
        row.name: table.comparison.means.get(row.name, {}).get(
            HEADLINE, Interval(*[row.values[HEADLINE].mean] * 3)
        )
        for row in table.rows
    }
    axis = Axis.of(list(means.values()))
    lines = []
    for row in table.rows:
        one = means[row.name]
        under = locale.interval(one, digits=3) if one.low < one.high else ""
        cells = tuple(_cell(row.mean(name), name, locale) for name in (cost, TRAINABLE))
        score = Cell(locale.number(one.mean, 3), one.mean, under)
        line = Line(row.name, looks[row.name], score, axis.bar(one), cells, badge(table, row))
        lines.append(line)
    if HEADLINE in table.majority:
        floor = table.majority[HEADLINE]
        nothing = (Cell(NOTHING, ""), Cell(NOTHING, ""))
        score = Cell(locale.number(floor, 3), floor)
        lines.append(Line(locale("majority"), None, score, "", nothing, ""))
    headings = [locale("approach"), locale("axis_f1_interval"), locale.heading(COLUMNS[cost]),
                locale(TRAINABLE), locale("verdict")]  # fmt: skip
    return Bars(headings, lines, [])


def _cell(value: float | None, column: str, locale: Locale) -> Cell:
    if value is None:
        return Cell(NOTHING, "")
    short = column == TRAINABLE
    text = locale.short(value) if short else write_value(value, COLUMNS[column], locale)
    return Cell(text, value)


def differences(table: Table, locale: Locale, looks: Looks) -> Bars:
    """Return the forest plot as a table: differences from the best approach, and verdicts."""
    found = table.against_best()
    edge = Interval(0.0, -MARGIN, MARGIN)
    axis = Axis.of([*(one.interval for one in found), edge])
    lines = []
    for one in found:
        interval = one.interval
        score = Cell(
            locale.number(interval.mean, 3, signed=True), interval.mean,
            locale.interval(interval, digits=3, signed=True),
        )  # fmt: skip
        verdict = one.verdict.replace(" ", "_")
        name = f"{one.name} \N{MINUS SIGN} {table.rows[0].name}"
        lines.append(Line(name, looks[one.name], score, axis.bar(interval), (), verdict))
    values = [float(v) for v in MaxNLocator(TICKS).tick_values(axis.low, axis.high)]
    values = [value for value in values if axis.low <= value <= axis.high]
    ticks = zip(map(axis.place, values), locale.ticks(values), strict=True)
    places = {"zero": 0.0, "from": -MARGIN, "to": MARGIN}
    band = "; ".join(f"--{name}: {axis.place(value)}" for name, value in places.items())
    headings = [locale("pair"), locale("difference_f1"), locale("verdict")]
    return Bars(headings, lines, list(ticks), band)
