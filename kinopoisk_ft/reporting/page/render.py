"""Fill the Jinja templates of the HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kinopoisk_ft.reporting import frames, label_curves
from kinopoisk_ft.reporting.columns import BEST, Column, columns_in
from kinopoisk_ft.reporting.conclusions import choices
from kinopoisk_ft.reporting.document import Document, Section, failures, name_curves
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.page import figures
from kinopoisk_ft.reporting.page.hardest_reviews import hardest
from kinopoisk_ft.reporting.page.reproduce import budgets, data_of, recipes, study_reference
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import (
    Table,
    data_line,
    write_interval,
    write_mean,
    write_value,
)
from kinopoisk_ft.statistics.metrics import shown_in


@dataclass(frozen=True)
class Cell:
    """A cell of the main table.

    `mark` is a label for the best value of a column, or "" for other values.
    """

    text: str
    under: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the main table: one approach, or the majority-class baseline."""

    name: str
    seeds: str
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """A heading with figures or a table.

    `id` is the HTML anchor of the heading.
    """

    id: str
    title: str
    figures: list[figures.PageFigure]
    frame: pd.DataFrame


def as_html(document: Document, files: RunFiles, locale: Locale) -> str:
    """Return the report as one HTML page.

    The page has no scripts and no external resources.
    """
    environment = Environment(
        loader=PackageLoader("kinopoisk_ft.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _view(section, f"t{number}", files, locale)
        for number, section in enumerate(document.sections, start=1)
    ]
    page = environment.get_template("page.html.j2")
    failed = failures(document, locale)
    curves = [
        {
            "id": name_curves(number),
            "sentences": label_curves.sentences(found, locale),
            "figures": figures.label_curves(found, name_curves(number), locale),
            "scores": label_curves.scores_frame(found, locale),
            "crossings": label_curves.crossings_frame(found, locale),
        }
        for number, found in enumerate(document.curves, start=1)
    ]
    return page.render(
        document=document, curves=curves, sections=sections, failed=failed, locale=locale
    )


def _view(section: Section, stem: str, files: RunFiles, locale: Locale) -> dict[str, Any]:
    table = section.table
    columns = columns_in("page")
    return {
        "id": stem,
        "title": data_line(table, locale),
        "section": section,
        "choices": choices(table, locale),
        "heading": [
            locale("approach"), "n", *frames.verdict_headings(table, locale),
            *map(locale.heading, columns),
        ],
        "lines": [
            *(_line(table, row, columns, locale) for row in table.rows),
            Line(locale("majority"), NOTHING, [
                *[Cell(NOTHING)] * len(table.decisions),
                *(_majority(table, c, locale) for c in columns),
            ]),
        ],
        "blocks": _blocks(section, stem, files, locale),
        "hard": hardest(table, files.predictions, locale, files.shaded),
        "shaded": bool(files.shaded),
        "leakage": frames.leakage(table, locale),
        "sizes": _data_sizes(data_of(table, files.details), locale),
        "budgets": budgets(table, locale),
        "recipes": recipes(table, files.details, locale),
        "study": study_reference(table, locale),
    }  # fmt: skip


def _line(table: Table, row: Row, columns: list[Column], locale: Locale) -> Line:
    verdicts = [Cell(text) for text in frames.verdicts(table, row, locale)]
    cells = [_cell(table, row, column, locale) for column in columns]
    return Line(row.name, str(len(row.runs)), [*verdicts, *cells])


def _cell(table: Table, row: Row, column: Column, locale: Locale) -> Cell:
    under = [interval] if (interval := write_interval(table, row, column, locale)) else []
    best = bool(column.mark) and row.marked(column.mark)
    if column.name in row.from_best and not best:
        under.append(f"Δ {write_value(row.from_best[column.name], column, locale, signed=True)}")
    mark = locale(f"mark_{column.mark}") if best else ""
    return Cell(write_mean(row, column, locale), tuple(under), mark)


def _majority(table: Table, column: Column, locale: Locale) -> Cell:
    if column.name not in table.majority:
        return Cell(NOTHING)
    value, under = table.majority[column.name], []
    if column.name in BEST:
        distance = value - table.best[column.name]
        under.append(f"Δ {write_value(distance, column, locale, signed=True)}")
    return Cell(write_value(value, column, locale), tuple(under))


def _blocks(section: Section, stem: str, files: RunFiles, locale: Locale) -> list[Block]:
    table, nothing = section.table, pd.DataFrame()
    slices: list[tuple[str, str, list[figures.PageFigure], pd.DataFrame]] = [
        (f"slices-{metric.name}", f"slices_{metric.name}", [],
         frames.slices(table, metric.name, locale))
        for metric in shown_in("slices")
    ]  # fmt: skip
    named = [
        ("costs", "costs", figures.costs(table, stem, locale), nothing),
        ("differences", "differences", figures.differences(table, stem, locale),
         frames.differences(table, locale)),
        ("curves", "curves", figures.curves(table, files.details, stem, locale), nothing),
        ("confusion", "confusion", figures.confusion(table, files.predictions, stem, locale),
         nothing),
        ("calibration", "calibration", figures.calibration(table, stem, locale),
         frames.calibration(table, locale)),
        *slices,
    ]  # fmt: skip
    return [
        Block(f"{stem}-{name}", locale(title), shown, frame)
        for name, title, shown, frame in named
        if shown or len(frame)
    ]


def _data_sizes(data: dict[str, Any], locale: Locale) -> str:
    parts = [
        f"{name} {locale.number(_size(count), 0)}" for name, count in data.get("counts", {}).items()
    ]
    text = locale("sizes", parts=", ".join(parts)) if parts else ""
    p = data.get("leakage_film_guess_p_value")
    if p is not None and "leakage_film_guess_accuracy" in data.get("leakage", {}):
        text += " " + locale("leakage_p", p=locale.p_value(p))
    return text.strip()


def _size(count: Any) -> float:
    # A dict contains the counts by class.
    return float(sum(count.values()) if isinstance(count, dict) else count)
