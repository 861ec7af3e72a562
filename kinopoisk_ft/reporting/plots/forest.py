"""Draw pairwise differences with their intervals as a forest plot."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
from kinopoisk_ft.reporting.table import Table, data_line
from kinopoisk_ft.statistics.equivalence import MARGIN, Verdict
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import Pair

# Sizes in inches.
WIDTH, NARROW_WIDTH, ROW_HEIGHT = 8.0, 4.4, 0.34
FONT = 9
VERDICTS: tuple[Verdict, ...] = ("as good", "worse", "undecided")


def draw(table: Table, locale: Locale, *, narrow: bool = False) -> Figure:
    """Draw the F1 difference and its interval for each pair of approaches.

    A shaded band shows the margin. In a narrow figure, the names of the pairs are above the
    intervals.
    """
    pairs = table.pairs
    colours = dict(zip(VERDICTS, (COLOURS[0], COLOURS[1], GREY), strict=True))
    row_height = 1.4 * ROW_HEIGHT if narrow else ROW_HEIGHT
    figure = new_figure(NARROW_WIDTH if narrow else WIDTH, 1.6 + row_height * len(pairs))
    axes = figure.add_subplot()
    for place, pair in enumerate(pairs):
        found = pair.differences[HEADLINE]
        colour = colours[verdict_on(table, pair)]
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=2.2)
        axes.plot(found.mean, place, marker="o", markersize=6, color=colour, markeredgecolor="w")
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.12, linewidth=0)
    tidy(axes)
    axes.grid(False, axis="y")
    names = [locale("row_less", a=literal(pair.a), b=literal(pair.b)) for pair in pairs]
    if narrow:
        _names_above(axes, names)
    else:
        axes.set_yticks(range(len(pairs)), names, fontsize=FONT)
        title = literal(data_line(table, locale), max_length=80)
        axes.set_title(title, fontsize=FONT, color=INK, loc="left")
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: locale.number(v, 3, signed=True)))
    axes.set_xlabel(locale("axis_difference"))
    handles = [
        Line2D([], [], color=colour, marker="o", lw=2.2, label=write_verdict(verdict, locale))
        for verdict, colour in colours.items()
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=1 if narrow else 3,
        frameon=False,
        fontsize=FONT,
    )
    return figure


def verdict_on(table: Table, pair: Pair) -> Verdict:
    """Return whether the approach with the lower score is as good as the other one."""
    lower, higher = (pair.a, pair.b) if pair.differences[HEADLINE].mean < 0 else (pair.b, pair.a)
    decision = table.decide(lower, higher)
    return decision.verdict if decision else "undecided"


def write_verdict(verdict: Verdict, locale: Locale) -> str:
    """Return the text in the legend for a verdict."""
    key = f"legend_{verdict.replace(' ', '_')}"
    return locale(key, margin=locale.number(MARGIN, 2))


def _names_above(axes: Axes, names: list[str]) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    left = axes.get_yaxis_transform()
    for place, name in enumerate(names):
        look: dict[str, Any] = {"fontsize": FONT, "color": INK, "bbox": BEHIND_TEXT}
        axes.text(0, place - 0.18, name, va="bottom", transform=left, **look)
