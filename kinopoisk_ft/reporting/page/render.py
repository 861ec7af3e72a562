"""Render a document as one HTML page that loads nothing, with the templates of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kinopoisk_ft.reporting import table as tables
from kinopoisk_ft.reporting.columns import BEST, Column, columns_in
from kinopoisk_ft.reporting.conclusions import choices
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.locale import NOTHING, Words
from kinopoisk_ft.reporting.page import figures
from kinopoisk_ft.reporting.page.hardest_reviews import hardest
from kinopoisk_ft.reporting.page.reproduce import budgets, data_of, recipes
from kinopoisk_ft.reporting.page.study_reference import study_reference
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import Table, write_interval, write_mean, write_value
from kinopoisk_ft.statistics.metrics import shown_in


@dataclass(frozen=True)
class Cell:
    """A value of the main table, what stands under it, and its mark if it is the best."""

    text: str
    under: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """One approach in the main table, or the majority class."""

    name: str
    seeds: str
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """A heading with figures and a table, either of which may be empty; `id` is its anchor."""

    id: str
    title: str
    figures: list[figures.PageFigure]
    frame: pd.DataFrame


def as_html(document: Document, files: RunFiles, words: Words) -> str:
    """Return the report as one page: no scripts, and nothing that is loaded."""
    environment = Environment(
        loader=PackageLoader("kinopoisk_ft.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _view(section, f"t{number}", files, words)
        for number, section in enumerate(document.sections, start=1)
    ]
    page = environment.get_template("page.html.j2")
    failed = failures(document, words)
    return page.render(document=document, sections=sections, failed=failed, words=words)


def _view(section: Section, stem: str, files: RunFiles, words: Words) -> dict[str, Any]:
    """Return what the template of a section needs; frames without rows are left out there."""
    table = section.table
    columns = columns_in("page")
    return {
        "id": stem,
        "title": tables.data_line(table, words),
        "section": section,
        "choices": choices(table, words),
        "heading": [words("approach"), "n", *map(words.heading, columns)],
        "lines": [
            *(_line(table, row, columns, words) for row in table.rows),
            Line(words("majority"), NOTHING, [_majority(table, c, words) for c in columns]),
        ],
        "blocks": _blocks(section, stem, files, words),
        "hard": hardest(table, files.predictions, words),
        "leakage": tables.leakage(table, words),
        "sizes": _data_sizes(data_of(table, files.details), words),
        "budgets": budgets(table, words),
        "recipes": recipes(table, files.details, words),
        "study": study_reference(table, words),
    }


def _line(table: Table, row: Row, columns: list[Column], words: Words) -> Line:
    return Line(row.name, str(len(row.runs)), [_cell(table, row, c, words) for c in columns])


def _cell(table: Table, row: Row, column: Column, words: Words) -> Cell:
    under = [interval] if (interval := write_interval(table, row, column, words)) else []
    best = bool(column.mark) and row.marked(column.mark)
    if column.name in row.from_best and not best:
        under.append(f"Δ {write_value(row.from_best[column.name], column, words, signed=True)}")
    mark = words(f"mark_{column.mark}") if best else ""
    return Cell(write_mean(row, column, words), tuple(under), mark)


def _majority(table: Table, column: Column, words: Words) -> Cell:
    if column.name not in table.majority:
        return Cell(NOTHING)
    value, under = table.majority[column.name], []
    if column.name in BEST:
        distance = value - table.best[column.name]
        under.append(f"Δ {write_value(distance, column, words, signed=True)}")
    return Cell(write_value(value, column, words), tuple(under))


def _blocks(section: Section, stem: str, files: RunFiles, words: Words) -> list[Block]:
    """Return the blocks that have a figure or a table."""
    table, nothing = section.table, pd.DataFrame()
    slices: list[tuple[str, str, list[figures.PageFigure], pd.DataFrame]] = [
        (f"slices-{metric.name}", f"slices_{metric.name}", [],
         tables.slices(table, metric.name, words))
        for metric in shown_in("slices")
    ]  # fmt: skip
    named = [
        ("costs", "costs", figures.costs(table, stem, words), nothing),
        ("differences", "differences", figures.differences(table, stem, words),
         tables.differences(table, words)),
        ("curves", "curves", figures.curves(table, files.details, stem, words), nothing),
        ("confusion", "confusion", figures.confusion(table, files.predictions, stem, words),
         nothing),
        ("calibration", "calibration", figures.calibration(table, stem, words),
         tables.calibration(table, words)),
        *slices,
    ]  # fmt: skip
    return [
        Block(f"{stem}-{name}", words(title), shown, frame)
        for name, title, shown, frame in named
        if shown or len(frame)
    ]


def _data_sizes(data: dict[str, Any], words: Words) -> str:
    """Return a line on the sizes of the splits and how well the film alone gives the label."""
    parts = [
        f"{name} {words.number(_size(count), 0)}" for name, count in data.get("counts", {}).items()
    ]
    text = words("sizes", parts=", ".join(parts)) if parts else ""
    p = data.get("leakage_film_guess_p_value")
    if p is not None and "leakage_film_guess_accuracy" in data.get("leakage", {}):
        text += " " + words("leakage_p", p=words.p_value(p))
    return text.strip()


def _size(count: Any) -> float:
    """Return the number of reviews; a split counts them by class or in total."""
    return float(sum(count.values()) if isinstance(count, dict) else count)
