"""Build the content of the report for all output formats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from kinopoisk_ft.reporting.conclusions import Choice, answer, choices, conclusions
from kinopoisk_ft.reporting.frames import frame_of
from kinopoisk_ft.reporting.label_curves import LabelCurves, label_curves
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.notes import Caveat, caveats, collection_notes, table_notes
from kinopoisk_ft.reporting.plots.looks import Look, assign_looks
from kinopoisk_ft.reporting.runs import Collected, FailedRun
from kinopoisk_ft.reporting.table import Table, tables
from kinopoisk_ft.statistics.predictions import Predictions

# File name of the report without suffix.
STEM = "comparison"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table of the report, with its figures and texts.

    Args:
        pictures: file names without suffix, by kind of figure.
        choices: the recommendations.
        answer: one sentence on which approach to take.
    """

    table: Table
    pictures: dict[str, str]
    notes: list[str]
    conclusions: list[str]
    choices: list[Choice]
    caveats: list[Caveat]
    answer: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failed runs that have the same approach and the same cause; see `FailedRun`."""

    approach: str
    kind: str
    detail: str
    seeds: list[str]
    run_ids: list[str]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The content of a report.

    `parent` is the run id of a sweep, or None if the report covers a whole experiment.
    """

    experiment: str
    parent: str | None
    notes: list[str]
    sections: list[Section]
    failures: list[Failure]
    curves: list[LabelCurves]

    @property
    def looks(self) -> dict[str, Look]:
        """Return the colour and marker of each approach, the same in all figures."""
        names = [row.name for section in self.sections for row in section.table.rows]
        return assign_looks([*names, *(curve.name for one in self.curves for curve in one.curves)])


def build(
    collected: Collected,
    predictions: Mapping[str, Predictions],
    parent: str | None,
    locale: Locale,
) -> Document:
    """Build the report from the runs.

    Args:
        predictions: {run id: predictions}.
        parent: run id of a sweep; None if the report covers a whole experiment.
    """
    found = tables(collected.runs, predictions)
    stems = [STEM] if len(found) == 1 else [f"{STEM}-{i + 1}" for i in range(len(found))]
    sections = [
        Section(
            table=table,
            pictures=_pictures(table, stem),
            notes=table_notes(table, locale),
            conclusions=conclusions(table, locale),
            choices=choices(table, locale),
            caveats=caveats(table, locale),
            answer=answer(table, locale),
        )
        for table, stem in zip(found, stems, strict=True)
    ]
    return Document(
        experiment=collected.experiment,
        parent=parent,
        notes=collection_notes(collected, len(found), locale),
        sections=sections,
        failures=_failures(collected.failed),
        curves=label_curves(found, predictions),
    )


def _pictures(table: Table, stem: str) -> dict[str, str]:
    found = {"comparison": stem}
    # Without predictions, there are no differences.
    if table.against_best():
        found["differences"] = f"{stem}-differences"
    # An approach has reliability bins only if each of its runs has a fitted temperature.
    if table.comparison.reliability:
        found["calibration"] = f"{stem}-calibration"
    return found


def _failures(failed: list[FailedRun]) -> list[Failure]:
    groups: dict[tuple[str, str, str], list[FailedRun]] = defaultdict(list)
    for run in failed:
        groups[run.approach, run.kind, run.detail].append(run)
    return [
        Failure(
            approach=approach,
            kind=kind,
            detail=detail,
            # Seeds are strings of digits. Sorting by length first puts 10 after 9.
            seeds=sorted({run.seed for run in runs if run.seed}, key=lambda s: (len(s), s)),
            run_ids=[run.run_id for run in runs],
        )
        for (approach, kind, detail), runs in sorted(groups.items())
    ]


def failures(document: Document, locale: Locale) -> pd.DataFrame:
    """Return the table of failed runs."""
    rows = []
    for failure in document.failures:
        seeds = ", ".join(failure.seeds) or NOTHING
        cause = locale(f"cause_{failure.kind}", detail=failure.detail)
        rows.append([failure.approach, str(len(failure.run_ids)), seeds, cause])
    return frame_of([locale(column) for column in ("approach", "count", "seeds", "cause")], rows)
