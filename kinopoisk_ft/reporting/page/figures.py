"""Draw the figures of the HTML page as inline SVG with alternative texts."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from kinopoisk_ft.reporting.columns import COLUMNS
from kinopoisk_ft.reporting.label_curves import LabelCurves
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots import comparison_plots, run_plots, scatter
from kinopoisk_ft.reporting.plots.comparison_plots import ERROR
from kinopoisk_ft.reporting.plots.looks import COLOURS, Looks
from kinopoisk_ft.reporting.plots.run_plots import GREY, INK, Histories
from kinopoisk_ft.reporting.run_files import Details
from kinopoisk_ft.reporting.run_rows import with_cost
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.calibration import CALIBRATED
from kinopoisk_ft.statistics.metrics import HEADLINE, count_confusion
from kinopoisk_ft.statistics.predictions import Predictions


@dataclass(frozen=True)
class PageFigure:
    """A figure of the HTML page: a title and an inline SVG."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of an approach, which the page shows as a table.

    `cells[i][j]` describes the reviews of class i that were predicted as class j: their number as
    text, their percentage of class i as text, and the same percentage as a number.
    """

    name: str
    classes: tuple[str, ...]
    cells: list[list[tuple[str, str, float]]]


def costs(table: Table, stem: str, locale: Locale, looks: Looks) -> list[PageFigure]:
    """Return one plot for each measured cost: weighted F1 against the cost."""
    found = []
    for column in scatter.measured(table):
        rows = with_cost(table.rows, column)
        points = [(row.values[column].mean, row.values[HEADLINE].mean) for row in rows]
        said = {
            scatter.name_point(row, table): locale(
                "alt_point", name=row.name, x=locale.with_unit(x, COLUMNS[column]),
                f1=locale.score(y),
            )
            for row, (x, y) in zip(rows, points, strict=True)
        }  # fmt: skip
        front = locale.listed([rows[i].name for i in scatter.pareto_front(points)])
        title = locale("cost_title", cost=locale.heading(COLUMNS[column]))
        alt = locale("alt_costs", title=title, points="; ".join(said.values()), front=front)
        figure = scatter.draw_one(table, column, locale, looks)
        found.append(PageFigure(title, inline(figure, f"{stem}-{column}", alt, said)))
    return found


def label_curves(found: LabelCurves, locale: Locale, looks: Looks) -> list[PageFigure]:
    """Return the plot of weighted F1 against the number of labels."""
    title = locale("curves_by_labels")
    said = []
    for curve in found.curves:
        points = zip(curve.points, curve.intervals, strict=True)
        scores = (f"{locale.number(p.labels, 0)}: {locale.score(i.mean)}" for p, i in points)
        said.append(f"{curve.name} {', '.join(scores)}")
    figure = comparison_plots.draw_label_curves(found, locale, looks, legend=False)
    return [PageFigure(title, inline(figure, found.stem, f"{title}. {'; '.join(said)}."))]


def calibration(table: Table, stem: str, locale: Locale, looks: Looks) -> list[PageFigure]:
    """Return a reliability diagram for each approach whose runs all have a fitted temperature."""
    found = []
    for number, row in enumerate(table.rows):
        if row.name in table.comparison.reliability:
            before = locale.number(row.mean(ERROR), 3)
            after = locale.number(row.mean(f"{ERROR}{CALIBRATED}"), 3)
            alt = locale("alt_calibration", name=row.name, before=before, after=after)
            figure = comparison_plots.draw_calibration(table, locale, looks, only=row.name)
            found.append(PageFigure(row.name, inline(figure, f"{stem}-calibration-{number}", alt)))
    return found


def histories_of(table: Table, details: Mapping[str, Details]) -> Histories:
    """Return {approach: training histories of its runs}, without approaches that have none."""
    histories = {
        row.name: [details[run.run_id].history for run in row.runs if run.run_id in details]
        for row in table.rows
    }
    return {name: runs for name, runs in histories.items() if any(runs)}


def curves(histories: Histories, stem: str, locale: Locale, looks: Looks) -> list[PageFigure]:
    """Return one plot for each metric of the learning curves, with the runs of all approaches."""
    found = []
    for key in run_plots.measured_curves(histories):
        title = locale(f"axis_{key}")
        # `str.capitalize` would also change "F1" to "f1".
        title = title[:1].upper() + title[1:]
        alt = locale("alt_curves", title=title, names=locale.listed(list(histories)))
        figure = run_plots.draw_learning_curves(histories, key, locale, looks)
        found.append(PageFigure(title, inline(figure, f"{stem}-curve-{key}", alt)))
    return found


def confusion(
    table: Table, predictions: Mapping[str, Predictions], locale: Locale
) -> list[Confusion]:
    """Return the confusion matrix of each approach, summed over seeds."""
    found = []
    for row in table.rows:
        runs = [predictions[run.run_id] for run in row.runs if run.run_id in predictions]
        if not runs or any(runs[0].mismatch(run) for run in runs):
            continue
        classes = runs[0].class_names
        # (runs, N)
        guesses = np.stack([run.predicted for run in runs])
        # (true class, predicted class), summed over the runs.
        counts = count_confusion(runs[0].labels, guesses, len(classes)).sum(axis=0)
        # A class without test reviews has shares of 0 instead of NaN.
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        cells = [
            [
                (locale.number(n, 0), locale.percent(share), round(100 * share, 1))
                for n, share in zip(line, parts, strict=True)
            ]
            for line, parts in zip(counts.tolist(), shares.tolist(), strict=True)
        ]
        found.append(Confusion(row.name, tuple(classes), cells))
    return found


# CSS variables that replace the colours. The page defines them for the light and dark schemes.
# Matplotlib draws axes and ticks in #000000, and `tidy` draws the grid in #e4e4e4.
INKS = {
    INK: "--ink", "#000000": "--ink", GREY: "--faint", "#e4e4e4": "--line", "#ffffff": "--card",
    **{colour: f"--a{number}" for number, colour in enumerate(COLOURS)},
}  # fmt: skip
OUTER = re.compile(r"<svg.*</svg>", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"')
COLOUR = re.compile("|".join(INKS))


def inline(figure: Figure, stem: str, alt: str, tips: Mapping[str, str] | None = None) -> Markup:
    """Convert a figure to inline SVG, whose colours follow the light or dark scheme of the page.

    Args:
        stem: prefix of all ids, which makes the ids unique on the page.
        alt: alternative text.
        tips: texts to show while the pointer is on a part of the figure, by id of the part.
    """
    stream = io.StringIO()
    # The salt makes the ids in the SVG reproducible. Texts stay texts, so that CSS can colour them.
    with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    found = OUTER.search(stream.getvalue())
    assert found is not None
    text = METADATA.sub("", found[0])
    # Without width and height, CSS sets the size, and the viewBox keeps the proportions.
    text = SIZE.sub(r"\1\2", text, count=1)
    text = re.sub(r'\bid="', f'id="{stem}-', text)
    # References to ids get the same prefix as the ids.
    text = text.replace("url(#", f"url(#{stem}-").replace('href="#', f'href="#{stem}-')
    text = COLOUR.sub(lambda match: f"var({INKS[match[0]]})", text)
    for part, tip in (tips or {}).items():
        name = f'id="{stem}-{part}"'
        # Tips contain names from the store, so they are escaped.
        text = text.replace(name, f'{name} data-tip="{escape(tip)}"')
    label = f'<svg role="img" aria-label="{escape(alt)}"'
    return Markup(label + text.removeprefix("<svg"))
