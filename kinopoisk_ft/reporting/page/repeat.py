"""What is needed to make each row again: commands, commits, versions, hardware, budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kinopoisk_ft.reporting.cells import NOTHING
from kinopoisk_ft.reporting.details import Details
from kinopoisk_ft.reporting.notes import setting
from kinopoisk_ft.reporting.table import Row, Table
from kinopoisk_ft.reporting.words import Words

BUDGETS = (
    "trainer.epochs", "trainer.max_steps", "trainer.batch_size", "trainer.accumulation",
    "adapter.lr", "trainer.lr", "data.max_length",
)  # fmt: skip
MACHINE = ("processor", "cores", "memory_gib", "platform", "python")


@dataclass(frozen=True)
class Recipe:
    """How one row was made: commands as given, and facts by name."""

    name: str
    commands: list[str]
    facts: list[tuple[str, str]]


def budgets(table: Table, words: Words) -> list[list[str]]:
    """Return a row an approach with what it was allowed, of the settings that any row has."""
    keys = [key for key in BUDGETS if any(setting(row, key) for row in table.rows)]
    if not keys:
        return []
    rows = [[row.name, *(setting(row, key) or NOTHING for key in keys)] for row in table.rows]
    return [[words("approach"), *keys], *rows]


def recipes(table: Table, details: Mapping[str, Details], words: Words) -> list[Recipe]:
    """Return the recipe of each row."""
    return [
        Recipe(
            row.name,
            [f"python -m kinopoisk_ft {run.overrides}" for run in row.runs if run.overrides],
            _facts(
                row, [details.get(run.run_id, Details()).environment for run in row.runs], words
            ),
        )
        for row in table.rows
    ]


def _facts(row: Row, environments: list[dict[str, Any]], words: Words) -> list[tuple[str, str]]:
    facts = {
        words("seeds"): _all(run.seed for run in row.runs),
        words("commit"): _all(run.commit for run in row.runs),
        words("device"): _all([*(e.get("device") for e in environments)])
        or _all(run.device for run in row.runs),
        words("precision"): _all(run.precision for run in row.runs),
        words("machine"): _all(
            ", ".join(f"{key} {e[key]}" for key in MACHINE if e.get(key)) for e in environments
        ),
        words("versions"): _all(
            ", ".join(f"{name} {v}" for name, v in e.get("packages", {}).items() if v)
            for e in environments
        ),
        words("run_ids"): _all(run.run_id for run in row.runs),
    }
    return [(name, value or words("not_recorded")) for name, value in facts.items()]


def _all(values: Iterable[Any]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))
