"""What a reader must know beside the table: what is missing, left out or unequal."""

from __future__ import annotations

from collections import defaultdict

from kinopoisk_ft.reporting.runs import Collected
from kinopoisk_ft.reporting.table import EXPECTED, MAJORITY_COLUMNS, OWED, Row, Table
from kinopoisk_ft.reporting.words import Words
from kinopoisk_ft.statistics.comparison import Comparison

BASELINE = "tfidf"
# What a budget is made of; the study's differed in both.
BUDGET = ("data.max_length", "trainer.budget", "trainer.epochs")
MOST_NAMED = 3  # rows named one by one in a note


def is_network(row: Row) -> bool:
    """Return whether a row is anything but the TF-IDF baseline."""
    return row.first.model != BASELINE


def setting(row: Row, key: str) -> str:
    """Return one setting of a row's recipe, "" where it has none."""
    return row.first.settings.get(key, "")


def _budget(row: Row, key: str) -> str:
    """Return a part of a row's budget, "" where it has none: trainer.budget overrules epochs."""
    budget = setting(row, "trainer.budget").removeprefix("None")
    epochs = "" if budget else setting(row, "trainer.epochs")
    known = {"trainer.budget": budget, "trainer.epochs": epochs}
    return known[key] if key in known else setting(row, key)


def collection_notes(collected: Collected, count: int, words: Words) -> list[str]:
    """Return the notes on all runs together; `count` is the number of tables."""
    notes = []
    if count > 1:
        notes.append(words("note_tables", count=count))
    if collected.superseded:
        notes.append(words("note_superseded", count=collected.superseded))
    if collected.unfinished:
        notes.append(words("note_unfinished", count=collected.unfinished))
    return notes


def table_notes(table: Table, words: Words) -> list[str]:
    """Return the notes on one table."""
    notes = []
    if any(len(row.runs) > 1 for row in table.rows):
        notes.append(words("note_spread"))
    if all(is_network(row) for row in table.rows):
        notes.append(words("note_no_tfidf"))
    if set(table.majority) != set(MAJORITY_COLUMNS):
        notes.append(words("note_no_majority"))
    if table.majority_differs:
        notes.append(words("note_majority_differs"))
    networks = [row for row in table.rows if is_network(row)]
    for key in BUDGET:
        notes += _differs([(row.name, {_budget(row, key)}) for row in networks], key, words)
    devices = [(row.name, {run.device for run in row.runs}) for row in networks]
    notes += _differs(devices, "device", words)
    owing = [
        r.name for r in table.rows if any(set(OWED.values()) & set(run.metrics) for run in r.runs)
    ]
    if owing:
        notes.append(words("note_owed", names=", ".join(owing)))
    notes += _settings(table.rows)
    for row in table.rows:
        missing = [words.header(c) for c in EXPECTED if c not in row.values]
        if missing:
            notes.append(words("note_missing", name=row.name, columns=", ".join(missing)))
    if any("temperature" in row.values for row in table.rows):
        notes.append(words("note_calibration"))
    return notes + _comparison_notes(table.comparison, words)


def _comparison_notes(comparison: Comparison, words: Words) -> list[str]:
    """Say how intervals are made and what could not be compared."""
    notes = []
    if comparison.means:
        notes.append(words("note_intervals"))
    if comparison.pairs:
        notes.append(words("note_pairs"))
    if any(comparison.slices.values()):
        notes.append(words("note_slices"))
    for problem in comparison.problems:
        key, detail = f"note_{problem.kind}", problem.detail
        if problem.kind == "unpaired" and detail == "classes":
            key = "note_other_classes"
        if problem.kind != "no_predictions":
            detail = words(f"reason_{detail}")
        notes.append(words(key, names=words.listed(list(problem.names)), detail=detail or "-"))
    if comparison.absent_slices:
        facts = ", ".join(words(f"by_{by}") for by in comparison.absent_slices)
        notes.append(words("note_no_slice", facts=facts))
    return notes


def _differs(rows: list[tuple[str, set[str]]], what: str, words: Words) -> list[str]:
    names: dict[str, list[str]] = defaultdict(list)
    for name, values in rows:
        for value in sorted(values):
            names[value or "-"].append(name)
    if len(names) < 2:
        return []
    groups = {value: ", ".join(named) for value, named in names.items()}
    most = max(names, key=lambda value: len(names[value]))
    if len(names[most]) > MOST_NAMED:
        groups[most] = words("others")
    listed = "; ".join(f"{value}: {named}" for value, named in groups.items())
    return [words("note_differs", what=what, groups=listed)]


def _settings(rows: tuple[Row, ...]) -> list[str]:
    """Spell out the settings of rows that a number tells apart."""
    return [
        f"{row.name}: {', '.join(f'{k}={v}' for k, v in row.own_settings.items())}."
        for row in rows
        if "#" in row.name.removeprefix(row.first.approach)
    ]
