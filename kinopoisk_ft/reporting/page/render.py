"""Documents → HTML, by the templates beside this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kinopoisk_ft.reporting import table as tables
from kinopoisk_ft.reporting.conclusions import choices
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.leaks import leakage, sizes
from kinopoisk_ft.reporting.locale import Words
from kinopoisk_ft.reporting.page import figures, results
from kinopoisk_ft.reporting.page.hardest_reviews import hardest
from kinopoisk_ft.reporting.page.reproduce import budgets, recipes
from kinopoisk_ft.reporting.page.study_reference import published
from kinopoisk_ft.reporting.runs import Material
from kinopoisk_ft.reporting.table import data_line


@dataclass(frozen=True)
class Block:
    """A heading with its pictures and table, any of which may be empty; `id` is its anchor."""

    id: str
    title: str
    pictures: list[figures.Picture]
    rows: list[list[str]]


def as_html(document: Document, material: Material, words: Words) -> str:
    """Return the report as one page: no scripts, and nothing that is loaded."""
    environment = Environment(
        loader=PackageLoader("kinopoisk_ft.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        _view(section, f"t{number}", material, words)
        for number, section in enumerate(document.sections, start=1)
    ]
    failed = failures(document, words) if document.failures else []
    page = environment.get_template("page.html.j2")
    return page.render(document=document, sections=sections, failed=failed, words=words)


def _view(section: Section, stem: str, found: Material, words: Words) -> dict[str, Any]:
    table = section.table
    return {
        "id": stem,
        "title": data_line(table, words),
        "section": section,
        "choices": choices(table, words),
        "heading": results.heading(words),
        "lines": results.lines(table, words),
        "blocks": [block for block in _blocks(section, stem, found, words) if _filled(block)],
        "hard": hardest(table, found.predictions, words),
        "leakage": leakage(table, words),
        "sizes": sizes(table, found.details, words),
        "budgets": budgets(table, words),
        "recipes": recipes(table, found.details, words),
        "published": published(table, words),
    }


def _blocks(section: Section, stem: str, found: Material, words: Words) -> list[Block]:
    table = section.table
    curves = figures.curves(table, found.details, stem, words)
    confusion = figures.confusion(table, found.predictions, stem, words)
    named = [
        ("costs", "costs", figures.costs(table, stem, words), []),
        ("differences", "differences", figures.differences(table, stem, words),
         tables.differences(table, words)),
        ("curves", "curves", curves, []),
        ("confusion", "confusion", confusion, []),
        ("calibration", "calibration", figures.calibration(table, stem, words),
         tables.calibration(table, words)),
        ("slices-accuracy", "slices_accuracy", [], tables.slices(table, "accuracy", words)),
        ("slices", "slices_f1_weighted", [], tables.slices(table, "f1_weighted", words)),
    ]  # fmt: skip
    return [
        Block(f"{stem}-{name}", words(title), pictures, rows)
        for name, title, pictures, rows in named
    ]


def _filled(block: Block) -> bool:
    return bool(block.pictures or block.rows)
