"""The original study's figures beside ours, where the recipe is the same."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

from kinopoisk_ft.reporting.locale import NOTHING, Words
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.runs import GROUPS
from kinopoisk_ft.reporting.table import Table, spread_text
from kinopoisk_ft.statistics.metrics import HEADLINE


@functools.cache
def study() -> dict[str, Any]:
    """Return the published figures by the experiment that repeats them."""
    text = files("kinopoisk_ft.reporting").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published(table: Table, words: Words) -> list[list[str]]:
    """Return the study's table with ours in it; no rows where no run repeats a recipe of it."""
    ours = {row.first.experiment: row for row in table.rows if same_recipe(row)}
    if not ours:
        return []
    columns = ["accuracy", HEADLINE, "train_seconds", "eval_seconds", "trainable_parameters"]
    heading = [words("approach"), words("source"), *(words.header(c) for c in columns)]
    rows = []
    for experiment, figures in study().items():
        theirs = [_written(figures[c], c, words) for c in columns]
        rows.append([figures["name"], words("source_study"), *theirs])
        row = ours.get(experiment)
        measured = [_ours(table, row, c, words) if row else NOTHING for c in columns]
        rows.append([figures["name"], words("source_ours" if row else "source_none"), *measured])
    return [heading, *rows]


def same_recipe(row: Row) -> bool:
    """Return whether the runs took an experiment of the study and changed nothing of its recipe."""
    recipe = (*GROUPS, *(f"{group[:-1]}{mark}" for group in GROUPS for mark in "=/"))
    changed = [
        part
        for run in row.runs
        for part in run.overrides.split()
        if part.lstrip("+~'\"").startswith(recipe)
    ]
    return row.first.experiment in study() and not changed


def _written(value: float, column: str, words: Words) -> str:
    if column.endswith("seconds"):
        return words.seconds(value)
    return words.number(value, 0 if column.endswith("parameters") else 4)


def _ours(table: Table, row: Row, column: str, words: Words) -> str:
    mean = row.mean(column)
    if mean is None:
        return NOTHING
    if column.endswith(("seconds", "parameters")):
        return _written(mean, column, words)
    interval = table.comparison.means.get(row.name, {}).get(column)
    text = spread_text(row, column, 4, words)
    return f"{text} {words.interval(interval)}" if interval else text
