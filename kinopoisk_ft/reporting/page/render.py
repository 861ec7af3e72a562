"""Fill the Jinja templates of the HTML page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kinopoisk_ft.reporting import frames, label_curves
from kinopoisk_ft.reporting.columns import Column, columns_in
from kinopoisk_ft.reporting.document import Document, Section, failures
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.page import figures, results
from kinopoisk_ft.reporting.page.hardest_reviews import hardest
from kinopoisk_ft.reporting.page.reproduce import (
    budgets,
    data_of,
    describe_runs,
    recipes,
    study_reference,
)
from kinopoisk_ft.reporting.plots.looks import COLOURS, DARK_COLOURS, Looks
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.table import (
    Table,
    data_line,
    write_digest,
    write_interval,
    write_mean,
)
from kinopoisk_ft.statistics.metrics import shown_in

SCRIPT = Path(__file__).parents[1] / "templates" / "page.js"
# The files of a report; see `output.write`.
MACHINE_READABLE = ("csv", "differences", "slices", "json", "tex", "figures")


@dataclass(frozen=True)
class Cell:
    """A cell of the page's main table.

    `under` contains lines below the text. `mark` is a label if the value is the best one, else "".
    """

    text: str
    under: tuple[str, ...] = ()
    mark: str = ""


def as_html(document: Document, files: RunFiles, locale: Locale) -> str:
    """Return the report as one HTML page without external resources.

    The page contains a script, for example to sort tables, but also works without it.
    """
    environment = Environment(
        loader=PackageLoader("kinopoisk_ft.reporting"),
        # Names, labels and reviews come from the store, and must not be read as HTML.
        autoescape=True,
        # A wrong name in a template raises an error instead of printing nothing.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    looks = document.looks
    sections = [
        _view(section, f"t{number}", files, locale, looks)
        for number, section in enumerate(document.sections, start=1)
    ]
    curves = [
        {
            "id": found.stem,
            "sentences": label_curves.sentences(found, locale),
            "names": [curve.name for curve in found.curves],
            "figures": figures.label_curves(found, locale, looks),
            "scores": label_curves.scores_frame(found, locale),
            "crossings": label_curves.crossings_frame(found, locale),
        }
        for found in document.curves
    ]
    script = SCRIPT.read_text("utf-8")
    # The Content-Security-Policy of the page allows only the script with this digest.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        document=document, curves=curves, sections=sections, failed=failures(document, locale),
        locale=locale, looks=looks, colours=list(zip(COLOURS, DARK_COLOURS, strict=True)),
        script=script, script_digest=digest, machine_readable=MACHINE_READABLE,
    )  # fmt: skip


def _view(
    section: Section, stem: str, files: RunFiles, locale: Locale, looks: Looks
) -> dict[str, Any]:
    table = section.table
    columns = [c for c in columns_in("page") if any(c.name in row.values for row in table.rows)]
    slices = [
        (f"slices_{m.name}", frames.slices(table, m.name, locale)) for m in shown_in("slices")
    ]
    histories = figures.histories_of(table, files.details)
    return {
        "id": stem,
        "title": data_line(table, locale, digest=False),
        "facts": describe_runs(table, files.details, locale),
        "section": section,
        "names": [row.name for row in table.rows],
        # `choices` returns the recommendation by quality last, but the page shows it first.
        "cards": sorted(section.choices, key=lambda card: card.limit != "quality"),
        "results": results.results(table, locale, looks),
        "costs": figures.costs(table, stem, locale, looks),
        "forest": results.differences(table, locale, looks),
        "pairs": frames.differences(table, locale),
        "heading": [locale("approach"), "n", *frames.verdict_headings(table, locale),
                    *map(locale.heading, columns)],
        "lines": [*(_line(table, row, columns, locale) for row in table.rows),
                  _majority_line(table, columns, locale)],
        "curve_names": list(histories),
        "curves": figures.curves(histories, stem, locale, looks),
        "calibration": figures.calibration(table, stem, locale, looks),
        "calibration_table": frames.calibration(table, locale),
        "slices": [(title, frame) for title, frame in slices if len(frame)],
        "confusion": figures.confusion(table, files.predictions, locale),
        "hard": hardest(table, files.predictions, locale, files.shaded),
        "shaded": bool(files.shaded),
        "leakage": frames.leakage(table, locale),
        "leakage_p": _leakage_p(table, data_of(table, files.details), locale),
        "budgets": budgets(table, locale),
        "digest": write_digest(table),
        "recipes": recipes(table, files.details, locale),
        "study": study_reference(table, locale),
    }  # fmt: skip


def _line(table: Table, row: Row, columns: list[Column], locale: Locale) -> tuple[str, list[Cell]]:
    verdicts = [Cell(text) for text in frames.verdicts(table, row, locale)]
    cells = [_cell(table, row, column, locale) for column in columns]
    return row.name, [Cell(str(len(row.runs))), *verdicts, *cells]


def _cell(table: Table, row: Row, column: Column, locale: Locale) -> Cell:
    under = [interval] if (interval := write_interval(table, row, column, locale)) else []
    best = bool(column.mark) and row.marked(column.mark)
    if column.name in row.from_best and not best:
        under.append(f"Δ {locale.value(row.from_best[column.name], column, signed=True)}")
    mark = locale(f"mark_{column.mark}") if best else ""
    return Cell(write_mean(row, column, locale), tuple(under), mark)


def _majority_line(table: Table, columns: list[Column], locale: Locale) -> tuple[str, list[Cell]]:
    nothing = [Cell(NOTHING)] * (1 + len(table.decisions))
    return locale("majority"), [*nothing, *(_majority(table, c, locale) for c in columns)]


def _majority(table: Table, column: Column, locale: Locale) -> Cell:
    text = locale.value(table.majority.get(column.name), column)
    distance = table.majority_from_best.get(column.name)
    if distance is None:
        return Cell(text)
    return Cell(text, (f"Δ {locale.value(distance, column, signed=True)}",))


def _leakage_p(table: Table, data: dict[str, Any], locale: Locale) -> str:
    p, leakage = data.get("leakage_film_guess_p_value"), data.get("leakage", {})
    # Without shared films, the guess is the majority class. Each subset has its own p-value.
    if p is None or not leakage.get("leakage_films") or table.several_subsets:
        return ""
    return locale("leakage_p", p=locale.p_equation(p))
