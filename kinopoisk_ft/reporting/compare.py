"""The parts that sentences on two rows share: differences, their verdicts, written numbers."""

from __future__ import annotations

from kinopoisk_ft.reporting.chance import Difference, difference
from kinopoisk_ft.reporting.table import Row, Table
from kinopoisk_ft.reporting.words import Words

F1 = "f1_weighted"
TIME = "train_seconds"


def one_seed(table: Table) -> bool:
    """Return whether no row has a second seed."""
    return all(len(row.runs) == 1 for row in table.rows)


def _verdict(table: Table, found: Difference, pair: tuple[Row, Row], words: Words) -> str:
    if found.interval is None:
        if one_seed(table):
            return ""  # said once for all
        one = any(len(row.runs) == 1 for row in pair)
        return words("verdict_one_seed" if one else "verdict_no_spread")
    low, high = (words.score(end, signed=True) for end in found.interval)
    return words("verdict_beyond" if found.beyond_noise else "verdict_noise", low=low, high=high)


def f1_parts(table: Table, row: Row, other: Row, words: Words) -> dict[str, str]:
    """Return F1 of `row` less that of `other`, and whether chance explains it, in words."""
    found = difference(row.values[F1], other.values[F1])
    verdict = _verdict(table, found, (row, other), words)
    return {"delta": words.score(found.mean, signed=True), "verdict": verdict}


def row_parts(row: Row, best: Row, words: Words) -> dict[str, str]:
    """Return a row's name, F1, distance from the best F1, and training time, in words."""
    f1 = row.values[F1].mean
    time = row.mean(TIME)
    delta = words.score(f1 - best.values[F1].mean, signed=True)
    return {
        "name": row.name,
        "f1": words.score(f1),
        "from_best": "" if row is best else words("from_best", delta=delta),
        "time": "-" if time is None else words.seconds(time),
    }


def least(rows: list[Row], column: str) -> Row | None:
    """Return the row with the lowest mean of a column, of those that recorded it."""
    known = [row for row in rows if column in row.values]
    return min(known, key=lambda row: row.values[column].mean, default=None)
