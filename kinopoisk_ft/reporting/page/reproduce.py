"""What is needed to make each row again: commands, commits, versions, hardware, budgets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kinopoisk_ft.config.command import NO_INFLUENCE, top
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_files import Details
from kinopoisk_ft.reporting.run_rows import BUDGET, SEARCH, TEXTS, Row
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.reporting.table import Table, frame_of

COMMAND = re.compile(r"(?:python|torchrun --nproc-per-node \d+) -m kinopoisk_ft(?= |$)")
SWEEP = "sweep"  # chooses many runs
MACHINE = ("processor", "cores", "memory_gib", "platform", "python")


@dataclass(frozen=True)
class Recipe:
    """How one row was made: commands, and facts by name.

    They are `partial` where a run recorded no more than its overrides.
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
    """Return the recipe of each row."""
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
    """Return the command of one run, every word quoted anew: whoever may write to a store sets it.

    Of mere overrides, what chose a whole sweep and where things went are left out. What cannot be
    split into words is shown as it is.
    """
    start = COMMAND.match(run.command)
    try:
        if start:
            return shlex.join([*shlex.split(start[0]), *shlex.split(run.command[start.end() :])])
        kept = [o for o in shlex.split(run.overrides) if top(o) not in {SWEEP, *NO_INFLUENCE}]
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
