"""Show how to reproduce each row, and compare rows with the original study."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from kinopoisk_ft.config.command import KEYS_WITHOUT_EFFECT, get_top_key
from kinopoisk_ft.reporting.columns import columns_in
from kinopoisk_ft.reporting.frames import frame_of
from kinopoisk_ft.reporting.locale import NOTHING, Locale
from kinopoisk_ft.reporting.run_files import Details
from kinopoisk_ft.reporting.run_rows import BUDGET, SEARCH, TEXTS, Row
from kinopoisk_ft.reporting.runs import GROUPS, TrainedRun
from kinopoisk_ft.reporting.table import Table, write_measured

# The start of a command that `config.command.build_command` returns.
COMMAND = re.compile(r"(?:python|torchrun --nproc-per-node \d+) -m kinopoisk_ft(?= |$)")
# The config group whose options start many runs at once.
SWEEP = "sweep"
# The packages whose versions are at the top of the page.
MAIN = ("kinopoisk-ft", "torch", "transformers")


@dataclass(frozen=True)
class Recipe:
    """The commands that repeat the runs of one row of the report's table.

    `partial` is True if at least one run did not record its whole command. `facts` are
    (name, value) pairs that describe the runs.
    """

    name: str
    commands: list[str]
    partial: bool
    facts: list[tuple[str, str]]


def budgets(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of training settings, without settings that are empty for all approaches."""
    columns = {
        locale(key): [
            locale.setting(row.compared(key)) if _applies(key, row) else "" for row in table.rows
        ]
        for key in (*BUDGET, SEARCH, *TEXTS)
    }
    # TF-IDF has no learning rate, so its cell is empty: a string times False.
    columns[locale("lr")] = [row.setting("trainer.lr") * row.is_network for row in table.rows]
    known = {heading: cells for heading, cells in columns.items() if any(cells)}
    names = [row.name for row in table.rows]
    rows = [[cell or NOTHING for cell in row] for row in zip(names, *known.values(), strict=True)]
    return frame_of([locale("approach"), *known], rows if known else [])


def _applies(key: str, row: Row) -> bool:
    # The TF-IDF baseline keeps the same part of a review as networks, if a limit is set.
    cuts = key == "data.truncation" and bool(row.compared("data.max_characters"))
    return row.is_network or key in TEXTS or cuts


def data_of(table: Table, details: Mapping[str, Details]) -> dict[str, Any]:
    """Return the content of data.json from one run, or {} if no run has this file."""
    runs = [run.run_id for row in table.rows for run in row.runs]
    return next((details[i].data for i in runs if i in details and details[i].data), {})


def describe_runs(table: Table, details: Mapping[str, Details], locale: Locale) -> list[str]:
    """Describe the split, the seeds, the dates, the hardware and the versions in a few words each.

    What was not recorded is left out.
    """
    runs = [run for row in table.rows for run in row.runs]
    environments = [details.get(run.run_id, Details()).environment for run in runs]
    counts = data_of(table, details).get("counts", {})
    parts = [
        f"{locale.number(_size(counts[part]), 0)} {locale(f'part_{part}')}"
        for part in ("train", "val", "test")
        if part in counts
    ]
    seeds = ", ".join(sorted({run.seed for run in runs}, key=lambda s: (len(s), s)))
    # `start_time` is in milliseconds.
    days = [date.fromtimestamp(run.start_time / 1000) for run in runs if run.start_time]
    facts = [
        locale("sizes", value=" / ".join(parts)) if parts else "",
        locale("fact_seeds", value=seeds) if seeds else "",
        locale.dates(min(days), max(days)) if days else "",
        _all(_hardware(one, locale) for one in environments),
        _all(map(_versions, environments)),
    ]
    return [fact for fact in facts if fact]


def _size(count: Any) -> float:
    # A dict contains the counts by class.
    return float(sum(count.values()) if isinstance(count, dict) else count)


def _hardware(environment: dict[str, Any], locale: Locale) -> str:
    cores = environment.get("cores")
    parts = [
        # On a CPU, the name of the processor describes the device.
        "" if environment.get("device") == "cpu" else environment.get("device"),
        environment.get("processor"),
        locale("cores", count=cores) if cores else "",
    ]
    return ", ".join(str(part) for part in parts if part)


def _versions(environment: dict[str, Any]) -> str:
    packages = environment.get("packages", {})
    found = {"Python": environment.get("python"), **{name: packages.get(name) for name in MAIN}}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


def recipes(table: Table, details: Mapping[str, Details], locale: Locale) -> list[Recipe]:
    """Return, for each row, the commands that repeat its runs, with facts about the runs."""
    return [
        Recipe(
            row.name,
            [_command(run) for run in row.runs if run.command or run.overrides],
            any(run.overrides and not COMMAND.match(run.command) for run in row.runs),
            _facts(row, details, locale),
        )
        for row in table.rows
    ]


def _command(run: TrainedRun) -> str:
    start = COMMAND.match(run.command)
    try:
        if start:
            # Words are quoted, because anyone with write access to the store can set the command.
            return shlex.join([*shlex.split(start[0]), *shlex.split(run.command[start.end() :])])
        dropped = {SWEEP, *KEYS_WITHOUT_EFFECT}
        kept = [one for one in shlex.split(run.overrides) if get_top_key(one) not in dropped]
    except ValueError:
        # Unbalanced quotes.
        return run.overrides
    return f"python -m kinopoisk_ft {shlex.join(kept)}"


def _facts(row: Row, details: Mapping[str, Details], locale: Locale) -> list[tuple[str, str]]:
    environments = [details.get(run.run_id, Details()).environment for run in row.runs]
    facts = {
        locale("seeds"): _all(run.seed for run in row.runs),
        locale("commit"): _all(run.commit for run in row.runs),
        locale("device"): _all(e.get("device") for e in environments)
        or _all(run.device for run in row.runs),
        locale("precision"): _all(run.precision for run in row.runs),
        locale("machine"): _all(_machine(e, locale) for e in environments),
        locale("versions"): _all(
            ", ".join(f"{name} {v}" for name, v in e.get("packages", {}).items() if v)
            for e in environments
        ),
        locale("run_ids"): _all(run.run_id for run in row.runs),
    }
    return [(name, value or locale("not_recorded")) for name, value in facts.items()]


def _machine(environment: dict[str, Any], locale: Locale) -> str:
    keys = ("processor", "cores", "memory_gib", "platform", "python")
    processor, cores, gib, platform, python = (environment.get(key) for key in keys)
    parts = [
        processor,
        locale("cores", count=cores) if cores else "",
        locale("memory", gib=locale.plain(float(gib))) if gib else "",
        platform,
        f"Python {python}" if python else "",
    ]
    return ", ".join(str(part) for part in parts if part)


def _all(values: Iterable[Any]) -> str:
    # Each value is listed once, in the order of the runs.
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


@functools.cache
def published_figures() -> dict[str, Any]:
    """Load the results of the original study: {option of conf/experiment: results}."""
    file = Path(__file__).with_name("study_reference.json")
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def study_reference(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table that compares the original study with the rows that repeat it.

    The table is empty if no row repeats the study.
    """
    ours = {row.first.experiment: row for row in table.rows if _repeats_study(row)}
    study = published_figures()
    # Columns that the study did not measure are left out.
    columns = [c for c in columns_in("results") if all(c.name in found for found in study.values())]
    rows = []
    for experiment, found in study.items() if ours else ():
        theirs = [locale.value(found[column.name], column) for column in columns]
        rows.append([found["name"], locale("source_study"), *theirs])
        row = ours.get(experiment)
        cells = [write_measured(table, row, c, locale) if row else NOTHING for c in columns]
        rows.append([found["name"], locale("source_ours" if row else "source_none"), *cells])
    headings = [locale("approach"), locale("source"), *map(locale.heading, columns)]
    return frame_of(headings, rows)


def _repeats_study(row: Row) -> bool:
    """Return whether a row repeats an experiment of the original study with unchanged settings."""
    # Hydra's prefixes + and ~, and the quotes of the shell, come before a key.
    overrides = [part.lstrip("+~'\"") for run in row.runs for part in run.overrides.split()]
    # Overrides of the settings are for example model.lr=1, model=bert and model/name=x.
    changed = any(part.startswith(GROUPS) for part in overrides)
    return row.first.experiment in published_figures() and not changed
