"""Draw the learning curves of all approaches in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.looks import Looks
from kinopoisk_ft.reporting.plots.run_plots import (
    CURVES,
    FONT,
    VAL_SCORE,
    HistoryRow,
    draw_line,
    format_steps,
    format_values,
    new_figure,
    points_of,
)

# Sizes in inches.
WIDTH, HEIGHT = 4.6, 2.9
TITLES = {
    "train_loss": "axis_train_loss", "val_loss": "axis_val_loss", VAL_SCORE: "axis_val_f1",
}  # fmt: skip

Histories = Mapping[str, Sequence[Sequence[HistoryRow]]]


def measured(histories: Histories) -> list[str]:
    """Return the metrics that at least one run has recorded twice."""
    runs = [run for found in histories.values() for run in found]
    return [key for key in CURVES if any(len(points_of(run, key)) > 1 for run in runs)]


def draw(histories: Histories, key: str, locale: Locale, looks: Looks) -> Figure:
    """Draw one metric of all approaches, with one line per run.

    Figures of different metrics have the same horizontal axis.

    Args:
        histories: the histories of the runs of each approach.
        key: name of the metric.
    """
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.add_subplot()
    steps: list[float] = []
    for name, runs in histories.items():
        look = looks[name]
        for run in runs:
            steps += [step for step, _ in points_of(run, *CURVES)]
            if points := points_of(run, key):
                draw_line(axes, points, color=look.colour, alpha=0.8)
    axes.set_ylabel(locale(TITLES[key]), fontsize=FONT)
    format_steps(axes, steps, locale)
    # Otherwise the approach with the most steps leaves no room for the others.
    axes.set_xscale("log")
    axes.set_xlim(0.9 * min(steps, default=1.0), 1.1 * max(steps, default=1.0))
    axes.set_xlabel(locale("axis_log_step"), fontsize=FONT)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: locale.number(value, 0)))
    format_values(axes, locale)
    return figure
