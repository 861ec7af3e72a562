"""Show the original study's figures beside ours, where the recipe is the same."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

import pandas as pd

from kinopoisk_ft.reporting.columns import columns_in
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.runs import GROUPS
from kinopoisk_ft.reporting.table import Table, frame_of, write_measured, write_value


@functools.cache
def published_figures() -> dict[str, Any]:
    """Return the study's figures by the experiment that repeats them."""
    file = files("kinopoisk_ft.reporting.page").joinpath("study_reference.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def study_reference(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the study's table with ours in it; no rows if no run repeats a recipe of it."""
    ours = {row.first.experiment: row for row in table.rows if same_recipe(row)}
    study = published_figures()
    # Only columns that the study measured.
    columns = [c for c in columns_in("results") if all(c.name in found for found in study.values())]
    rows = []
    for experiment, found in study.items() if ours else ():
        theirs = [write_value(found[column.name], column, locale) for column in columns]
        rows.append([found["name"], locale("source_study"), *theirs])
        row = ours.get(experiment)
        cells = [write_measured(table, row, c, locale) if row else NOTHING for c in columns]
        rows.append([found["name"], locale("source_ours" if row else "source_none"), *cells])
    headings = [locale("approach"), locale("source"), *map(locale.heading, columns)]
    return frame_of(headings, rows)


def same_recipe(row: Row) -> bool:
    """Return whether the runs took an experiment of the study and left its recipe unchanged."""
    recipe = (*GROUPS, *(f"{group[:-1]}{mark}" for group in GROUPS for mark in "=/"))
    changed = [
        part
        for run in row.runs
        for part in run.overrides.split()
        if part.lstrip("+~'\"").startswith(recipe)
    ]
    return row.first.experiment in published_figures() and not changed
