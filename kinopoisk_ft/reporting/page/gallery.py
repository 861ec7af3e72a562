"""The page's pictures, each with a text that says what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from kinopoisk_ft.reporting import calibration_picture, forest, scatter
from kinopoisk_ft.reporting.details import Details
from kinopoisk_ft.reporting.page.curves import draw_curves
from kinopoisk_ft.reporting.page.svg import inline
from kinopoisk_ft.reporting.pareto import pareto_front
from kinopoisk_ft.reporting.pictures import draw_confusion
from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import Words
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.scores import HEADLINE, confusions

VAL_F1 = "val_f1_weighted"


@dataclass(frozen=True)
class Picture:
    """An inline SVG under a title."""

    title: str
    svg: Markup


def costs(table: Table, stem: str, words: Words) -> list[Picture]:
    """Return weighted F1 against each cost, with the Pareto front."""
    found = []
    for column in scatter.measured(table):
        rows = [row for row in table.rows if column in row.values]
        points = [(row.values[column].mean, row.values[HEADLINE].mean) for row in rows]
        said = [
            words("alt_point", name=row.name, x=words.plain(x), f1=words.score(y))
            for row, (x, y) in zip(rows, points, strict=True)
        ]
        front = words.listed([rows[i].name for i in pareto_front(points)])
        title = words("cost_title", cost=words.header(column))
        alt = words("alt_costs", title=title, points="; ".join(said), front=front)
        drawn = inline(scatter.draw_one(table, column, words), f"{stem}-{column}", alt)
        found.append(Picture(title, drawn))
    return found


def differences(table: Table, stem: str, words: Words) -> list[Picture]:
    """Return the forest plot, if anything was compared."""
    if not table.comparison.pairs:
        return []
    said = []
    for pair in table.comparison.pairs:
        found = pair.differences[HEADLINE]
        verdict = words("legend_beyond" if pair.beyond_chance else "legend_noise")
        said.append(
            f"{words('row_less', a=pair.a, b=pair.b)}: {words.score(found.mean, signed=True)} "
            f"{words.interval(found, signed=True)}, {verdict}"
        )
    title = words("forest_title")
    figure = forest.draw(table, words, narrow=True)
    return [Picture(title, inline(figure, f"{stem}-forest", f"{title}. {'; '.join(said)}."))]


def calibration(table: Table, stem: str, words: Words) -> list[Picture]:
    """Return a reliability picture an approach, of those with a temperature."""
    found = []
    for number, row in enumerate(table.rows):
        if row.name in table.comparison.reliability:
            ece = (row.mean("ece"), row.mean("ece_calibrated"))
            before, after = ("-" if value is None else words.number(value, 3) for value in ece)
            alt = words("alt_calibration", name=row.name, before=before, after=after)
            figure = calibration_picture.draw(table, words, only=row.name)
            found.append(Picture(row.name, inline(figure, f"{stem}-calibration-{number}", alt)))
    return found


def curves(table: Table, details: Mapping[str, Details], stem: str, words: Words) -> list[Picture]:
    """Return the learning curves of each approach that recorded them, a line a seed."""
    found = []
    for number, row in enumerate(table.rows):
        histories = [details[run.run_id].history for run in row.runs if run.run_id in details]
        histories = [history for history in histories if len(history) > 1]
        if histories:
            alt = words("alt_curves", name=row.name, n=len(histories), best=_best(row, words))
            figure = draw_curves(histories, words)
            found.append(Picture(row.name, inline(figure, f"{stem}-curve-{number}", alt)))
    return found


def _best(row: Row, words: Words) -> str:
    values = [run.metrics[VAL_F1] for run in row.runs if VAL_F1 in run.metrics]
    return words.score(float(np.mean(values))) if values else "-"


def confusion(
    table: Table, predictions: Mapping[str, Predictions], stem: str, words: Words
) -> list[Picture]:
    """Return the confusion matrix of each approach, all its seeds added up."""
    found = []
    names = (words("true"), words("predicted"), words("share_of_true"))
    for number, row in enumerate(table.rows):
        runs = [predictions[run.run_id] for run in row.runs if run.run_id in predictions]
        if not runs or any(runs[0].mismatch(run) for run in runs):
            continue
        classes = runs[0].class_names
        guesses = np.stack([run.predicted for run in runs])
        counts = confusions(runs[0].labels, guesses, len(classes)).sum(axis=0)
        cells = [
            f"{classes[i]} → {classes[j]}: {words.number(counts[i, j], 0)}"
            for i, j in np.ndindex(counts.shape)
        ]
        alt = words("alt_confusion", name=row.name, cells="; ".join(cells))
        figure = draw_confusion(counts, classes, names)
        svg = inline(figure, f"{stem}-confusion-{number}", alt, recolour=False)
        found.append(Picture(row.name, svg))
    return found
