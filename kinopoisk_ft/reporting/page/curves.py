"""Learning curves of one approach: a thin line for each seed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kinopoisk_ft.reporting.pictures import CURVES, FEW_POINTS, HistoryRow, new_figure, tidy
from kinopoisk_ft.reporting.words import Words

WIDTH, PANEL_HEIGHT = 4.4, 1.9  # inches
FONT = 9
PANELS = {"axis_loss": ("train_loss", "val_loss"), "axis_f1": ("val_f1_weighted",)}
NAMES = {"train_loss": "curve_training", "val_loss": "curve_validation"}


def draw_curves(histories: Sequence[Sequence[HistoryRow]], words: Words) -> Figure:
    """Return the figure: losses above, validation F1 below, whichever were recorded."""
    panels = {
        title: keys
        for title, keys in PANELS.items()
        if any(key in row for history in histories for row in history for key in keys)
    }
    figure = new_figure(WIDTH, 0.5 + PANEL_HEIGHT * len(panels))
    drawn = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, keys) in zip(drawn, panels.items(), strict=True):
        for key in keys:
            for history in histories:
                points = [(row["step"], row[key]) for row in history if key in row]
                marker = "o" if len(points) <= FEW_POINTS else ""
                look = {"color": CURVES[key][1], "marker": marker, "ms": 4, "lw": 1, "alpha": 0.8}
                axes.plot([x for x, _ in points], [y for _, y in points], **look)
        axes.set_ylabel(words(title), fontsize=FONT)
        axes.tick_params(labelsize=FONT)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.plain(value)))
        tidy(axes)
    drawn[-1].set_xlabel(words("axis_step"), fontsize=FONT)
    drawn[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    drawn[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.short(value)))
    known = [k for k in NAMES if any(k in row for history in histories for row in history)]
    if known:
        handles = [Line2D([], [], color=CURVES[k][1], label=words(NAMES[k])) for k in known]
        drawn[0].legend(handles=handles, frameon=False, fontsize=FONT)
    return figure
