"""Show what made each row, and the original study beside rows that repeat its recipe."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT, get_top_key
from kinopoisk_ft.reporting.columns import columns_in
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_files import Details
from kinopoisk_ft.reporting.run_rows import BUDGET, SEARCH, TEXTS, Row
from kinopoisk_ft.reporting.runs import GROUPS, TrainedRun
from kinopoisk_ft.reporting.table import Table, frame_of, write_measured, write_value

COMMAND = re.compile(r"(?:python|torchrun --nproc-per-node \d+) -m kinopoisk_ft(?= |$)")
# The group that chooses many runs at once.
SWEEP = "sweep"
MACHINE = ("processor", "cores", "memory_gib", "platform", "python")


@dataclass(frozen=True)
class Recipe:
    """The commands of one row, and facts by name.

    `partial` is True if a run recorded only its overrides.
    """

    name: str
    commands: list[str]
    partial: bool
    facts: list[tuple[str, str]]


def budgets(table: Table, locale: Locale) -> pd.DataFrame:
    """Return a row for each approach with its budget, as far as any row recorded it."""
    keys = (*BUDGET, SEARCH, *TEXTS)
    columns = {
        locale(key): [
            row.compared(key) if row.is_network or key in TEXTS else "" for row in table.rows
        ]
        for key in keys
    }
    columns[locale("lr")] = [row.setting("trainer.lr") * row.is_network for row in table.rows]
    known = {heading: cells for heading, cells in columns.items() if any(cells)}
    names = [row.name for row in table.rows]
    rows = [[cell or NOTHING for cell in row] for row in zip(names, *known.values(), strict=True)]
    return frame_of([locale("approach"), *known], rows if known else [])


def data_of(table: Table, details: Mapping[str, Details]) -> dict[str, Any]:
    """Return the description of the table's data from the first run that recorded it."""
    runs = [run.run_id for row in table.rows for run in row.runs]
    return next((details[i].data for i in runs if i in details and details[i].data), {})


def recipes(table: Table, details: Mapping[str, Details], locale: Locale) -> list[Recipe]:
    """Return the commands and facts of each row."""
    return [
        Recipe(
            row.name,
            [_command(run) for run in row.runs if run.command or run.overrides],
            any(run.overrides and not COMMAND.match(run.command) for run in row.runs),
            _facts(
                row, [details.get(run.run_id, Details()).environment for run in row.runs], locale
            ),
        )
        for row in table.rows
    ]


def _command(run: TrainedRun) -> str:
    """Return the command of one run, with every word quoted again.

    Anyone who can write to the store sets the recorded command. Of overrides alone, the choice of
    a sweep and of output folders is left out. Text that cannot be split into words stays as it is.
    """
    start = COMMAND.match(run.command)
    try:
        if start:
            return shlex.join([*shlex.split(start[0]), *shlex.split(run.command[start.end() :])])
        kept = [
            o
            for o in shlex.split(run.overrides)
            if get_top_key(o) not in {SWEEP, *KEYS_WITHOUT_EFFECT}
        ]
    except ValueError:
        return run.overrides
    return f"python -m kinopoisk_ft {shlex.join(kept)}"


def _facts(row: Row, environments: list[dict[str, Any]], locale: Locale) -> list[tuple[str, str]]:
    facts = {
        locale("seeds"): _all(run.seed for run in row.runs),
        locale("commit"): _all(run.commit for run in row.runs),
        locale("device"): _all([*(e.get("device") for e in environments)])
        or _all(run.device for run in row.runs),
        locale("precision"): _all(run.precision for run in row.runs),
        locale("machine"): _all(
            ", ".join(f"{key} {e[key]}" for key in MACHINE if e.get(key)) for e in environments
        ),
        locale("versions"): _all(
            ", ".join(f"{name} {v}" for name, v in e.get("packages", {}).items() if v)
            for e in environments
        ),
        locale("run_ids"): _all(run.run_id for run in row.runs),
    }
    return [(name, value or locale("not_recorded")) for name, value in facts.items()]


def _all(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


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
