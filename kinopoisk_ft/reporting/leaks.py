"""The account of what of the test set training had met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kinopoisk_ft.reporting.locale import Words
from kinopoisk_ft.reporting.run_rows import Row
from kinopoisk_ft.reporting.runs import Details
from kinopoisk_ft.reporting.table import Table

KINDS = ("near_duplicates", "films", "authors")


def leakage(table: Table, words: Words) -> list[list[str]]:
    """Return what train and test share, with its share of the test set; no rows if unrecorded."""
    found = _metrics(table)
    rows = [
        [
            words(f"leakage_{kind}"),
            words.number(found[f"leakage_{kind}"], 0),
            words.percent(found[f"leakage_{kind}_share"]),
        ]
        for kind in KINDS
        if f"leakage_{kind}_share" in found and f"leakage_{kind}" in found
    ]
    if "leakage_film_guess_accuracy" in found:
        majority = words.score(found["leakage_majority_accuracy"])
        guess = words.score(found["leakage_film_guess_accuracy"])
        rows.append([words("leakage_film_guess", majority=majority), guess, ""])
    rows += _pretraining(table, words)
    heading = [words("leakage_what"), words("leakage_shared"), words("leakage_share")]
    return [heading, *rows] if rows else []


def sentence(table: Table, words: Words) -> list[str]:
    """Return what films alone tell, and which bases had read of the test set, as far as known."""
    return _films(table, words) + [
        words("pretraining_said", name=row.name, share=words.percent(found[1]),
              count=words.number(found[0], 0))
        for row in table.rows
        if (found := read_before(row)) and found[0]
    ]  # fmt: skip


def unknown(table: Table) -> list[str]:
    """Return the names of the networks of which nobody knows whether their base had read tests."""
    return [row.name for row in table.rows if row.is_network and read_before(row) is None]


def read_before(row: Row) -> tuple[float, float] | None:
    """Return the most test reviews, and their share, that a run's base was pretrained on.

    None where a run does not say, and none is known to have read any.
    """
    keys = ("leakage_pretraining", "leakage_pretraining_share")
    found = [tuple(run.metrics.get(key) for key in keys) for run in row.runs]
    known = [(count, share) for count, share in found if count is not None and share is not None]
    most = max(known, default=(0.0, 0.0))
    return most if most[0] or len(known) == len(found) else None


def _pretraining(table: Table, words: Words) -> list[list[str]]:
    """Return a row for each base that had read test reviews, and one for those unknown."""
    rows = [
        [words("pretraining", names=row.name), words.number(found[0], 0), words.percent(found[1])]
        for row in table.rows
        if (found := read_before(row)) and found[0]
    ]
    if names := unknown(table):
        rows.append([words("pretraining", names=words.listed(names)), words("unknown"), ""])
    return rows


def _films(table: Table, words: Words) -> list[str]:
    found = _metrics(table)
    keys = ("films_share", "film_guess_accuracy", "majority_accuracy")
    if any(f"leakage_{key}" not in found for key in keys):
        return []
    share, guess, majority = (found[f"leakage_{key}"] for key in keys)
    return [
        words(
            "leakage_said",
            share=words.percent(share),
            guess=words.score(guess),
            majority=words.score(majority),
        )
    ]


def _metrics(table: Table) -> dict[str, float]:
    """Return the metrics of the first run that recorded the leakage: all runs share the split."""
    runs = (run.metrics for row in table.rows for run in row.runs)
    return next((m for m in runs if any(key.startswith("leakage_") for key in m)), {})


def sizes(table: Table, details: Mapping[str, Details], words: Words) -> str:
    """Return a line on the sizes of the parts and how the film alone tells the label, or ""."""
    data = data_of(table, details)
    counts = data.get("counts", {})
    parts = [f"{words.header(name)} {words.number(_size(n), 0)}" for name, n in counts.items()]
    text = words("sizes", parts=", ".join(parts)) if parts else ""
    p = data.get("leakage_film_guess_p_value")
    if p is not None and "leakage_film_guess_accuracy" in data.get("leakage", {}):
        text += " " + words("leakage_p", p=words.p_value(p))
    return text.strip()


def data_of(table: Table, details: Mapping[str, Details]) -> dict[str, Any]:
    """Return the description of the table's data from the first run that recorded it."""
    runs = [run.run_id for row in table.rows for run in row.runs]
    return next((details[i].data for i in runs if i in details and details[i].data), {})


def _size(count: Any) -> float:
    return float(sum(count.values()) if isinstance(count, dict) else count)
