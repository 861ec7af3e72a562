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
from kinopoisk_ft.reporting.plots import calibration_plot, forest, label_curve_plot, scatter
from kinopoisk_ft.reporting.plots.calibration_plot import ERROR
from kinopoisk_ft.reporting.plots.run_plots import (
    GREY,
    INK,
    VAL_SCORE,
    draw_confusion,
    draw_curves,
)
from kinopoisk_ft.reporting.plots.scatter import pareto_front
from kinopoisk_ft.reporting.run_files import Details
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.calibration import CALIBRATED
from kinopoisk_ft.statistics.metrics import HEADLINE, count_confusion
from kinopoisk_ft.statistics.predictions import Predictions


@dataclass(frozen=True)
class PageFigure:
    """A figure of the HTML page: a title and an inline SVG."""

    title: str
    svg: Markup


def costs(table: Table, stem: str, locale: Locale) -> list[PageFigure]:
    """Return plots of weighted F1 against each cost."""
    found = []
    for column in scatter.measured(table):
        rows = [row for row in table.rows if column in row.values]
        points = [(row.values[column].mean, row.values[HEADLINE].mean) for row in rows]
        said = [
            locale("alt_point", name=row.name, x=locale.plain(x), f1=locale.score(y))
            for row, (x, y) in zip(rows, points, strict=True)
        ]
        front = locale.listed([rows[i].name for i in pareto_front(points)])
        title = locale("cost_title", cost=locale.heading(COLUMNS[column]))
        alt = locale("alt_costs", title=title, points="; ".join(said), front=front)
        drawn = inline(scatter.draw_one(table, column, locale), f"{stem}-{column}", alt)
        found.append(PageFigure(title, drawn))
    return found


def differences(table: Table, stem: str, locale: Locale) -> list[PageFigure]:
    """Return the forest plot of pairwise differences, or [] if there are no pairs."""
    if not table.pairs:
        return []
    said = []
    for pair in table.pairs:
        found = pair.differences[HEADLINE]
        verdict = forest.write_verdict(forest.verdict_on(table, pair), locale)
        said.append(
            f"{locale('row_less', a=pair.a, b=pair.b)}: {locale.score(found.mean, signed=True)} "
            f"{locale.interval(found, signed=True)}, {verdict}"
        )
    title = locale("forest_title")
    figure = forest.draw(table, locale, narrow=True)
    return [PageFigure(title, inline(figure, f"{stem}-forest", f"{title}. {'; '.join(said)}."))]


def label_curves(found: LabelCurves, stem: str, locale: Locale) -> list[PageFigure]:
    """Return the plot of weighted F1 against the number of labels."""
    title = locale("curves_by_labels")
    said = []
    for curve in found.curves:
        points = zip(curve.points, curve.intervals, strict=True)
        scores = (f"{locale.number(p.labels, 0)}: {locale.score(i.mean)}" for p, i in points)
        said.append(f"{curve.name} {', '.join(scores)}")
    figure = label_curve_plot.draw(found, locale, narrow=True)
    return [PageFigure(title, inline(figure, stem, f"{title}. {'; '.join(said)}."))]


def calibration(table: Table, stem: str, locale: Locale) -> list[PageFigure]:
    """Return a reliability diagram for each approach whose runs all have a temperature."""
    found = []
    for number, row in enumerate(table.rows):
        if row.name in table.comparison.reliability:
            ece = (row.mean(ERROR), row.mean(f"{ERROR}{CALIBRATED}"))
            before, after = ("-" if value is None else locale.number(value, 3) for value in ece)
            alt = locale("alt_calibration", name=row.name, before=before, after=after)
            figure = calibration_plot.draw(table, locale, only=row.name)
            found.append(PageFigure(row.name, inline(figure, f"{stem}-calibration-{number}", alt)))
    return found


def curves(
    table: Table, details: Mapping[str, Details], stem: str, locale: Locale
) -> list[PageFigure]:
    """Return the learning curves of each approach, with one line per seed."""
    found = []
    for number, row in enumerate(table.rows):
        histories = [details[run.run_id].history for run in row.runs if run.run_id in details]
        histories = [history for history in histories if len(history) > 1]
        if histories:
            alt = locale("alt_curves", name=row.name, n=len(histories), best=_best(row, locale))
            figure = draw_curves(histories, locale)
            found.append(PageFigure(row.name, inline(figure, f"{stem}-curve-{number}", alt)))
    return found


def _best(row: Row, locale: Locale) -> str:
    values = [run.metrics[VAL_SCORE] for run in row.runs if VAL_SCORE in run.metrics]
    return locale.score(float(np.mean(values))) if values else "-"


def confusion(
    table: Table, predictions: Mapping[str, Predictions], stem: str, locale: Locale
) -> list[PageFigure]:
    """Return the confusion matrix of each approach, summed over seeds."""
    found = []
    names = (locale("true"), locale("predicted"), locale("share_of_true"))
    for number, row in enumerate(table.rows):
        runs = [predictions[run.run_id] for run in row.runs if run.run_id in predictions]
        if not runs or any(runs[0].mismatch(run) for run in runs):
            continue
        classes = runs[0].class_names
        guesses = np.stack([run.predicted for run in runs])
        counts = count_confusion(runs[0].labels, guesses, len(classes)).sum(axis=0)
        cells = [
            f"{classes[i]} → {classes[j]}: {locale.number(counts[i, j], 0)}"
            for i, j in np.ndindex(counts.shape)
        ]
        alt = locale("alt_confusion", name=row.name, cells="; ".join(cells))
        figure = draw_confusion(counts, classes, names)
        svg = inline(figure, f"{stem}-confusion-{number}", alt, recolour=False)
        found.append(PageFigure(row.name, svg))
    return found


# Replaces colours with CSS variables, which page.css defines for the light and the dark scheme.
INKS = {INK: "--ink", "#000000": "--ink", GREY: "--faint", "#e4e4e4": "--line", "#ffffff": "--card"}
OUTER = re.compile(r"<svg.*</svg>", re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
SIZE = re.compile(r'(<svg[^>]*?) width="[^"]*"([^>]*?) height="[^"]*"')
COLOUR = re.compile("|".join(INKS))


def inline(figure: Figure, stem: str, alt: str, *, recolour: bool = True) -> Markup:
    """Convert a figure to inline SVG.

    Args:
        stem: prefix of all ids, which makes the ids unique on the page.
        alt: alternative text.
        recolour: True if colours follow the light or dark scheme of the page.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    found = OUTER.search(stream.getvalue())
    assert found is not None
    text = METADATA.sub("", found[0])
    text = SIZE.sub(r"\1\2", text, count=1)
    text = re.sub(r'\bid="', f'id="{stem}-', text)
    text = text.replace("url(#", f"url(#{stem}-").replace('href="#', f'href="#{stem}-')
    if recolour:
        text = COLOUR.sub(lambda match: f"var({INKS[match[0]]})", text)
    label = f'<svg role="img" class="{"plain" if recolour else "white"}" aria-label="{escape(alt)}"'
    return Markup(label + text.removeprefix("<svg"))
