"""The parts that sentences on two rows share: differences, their verdicts, written numbers."""

from __future__ import annotations

from collections.abc import Sequence

from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import Words
from kinopoisk_ft.statistics.pairs import ALPHA, Pair
from kinopoisk_ft.statistics.scores import HEADLINE

F1 = HEADLINE
TIME = "train_seconds"


def one_seed(table: Table) -> bool:
    """Return whether no row has a second seed."""
    return all(len(row.runs) == 1 for row in table.rows)


def f1_parts(table: Table, row: Row, other: Row, words: Words) -> dict[str, str]:
    """Return F1 of `row` less that of `other`, and whether chance explains it, in words."""
    delta = row.values[F1].mean - other.values[F1].mean
    pair = table.comparison.pair(row.name, other.name)
    verdict = _verdict(pair, len(table.comparison.pairs), words) if pair else words("verdict_none")
    return {"delta": words.score(delta, signed=True), "verdict": verdict}


def told_apart(table: Table, row: Row, other: Row) -> bool | None:
    """Return whether the difference in F1 exceeds chance; None where that was not measured."""
    pair = table.comparison.pair(row.name, other.name)
    return pair.beyond_chance if pair else None


def _verdict(pair: Pair, pairs: int, words: Words) -> str:
    found = pair.differences[F1]
    if found.holds_zero:
        key = "verdict_noise"
    elif found.p_holm > ALPHA:
        key = "verdict_uncorrected"
    else:
        key = "verdict_beyond"
    low, high = (words.score(end, signed=True) for end in (found.low, found.high))
    scope = "" if pair.measured else words("scope_reviews")
    p = words.p_value(found.p_holm)
    return words(key, low=low, high=high, p=p, pairs=pairs, scope=scope)


def row_parts(row: Row, words: Words) -> dict[str, str]:
    """Return a row's name, F1 and training time, in words."""
    time = row.mean(TIME)
    return {
        "name": row.name,
        "f1": words.score(row.values[F1].mean),
        "time": "-" if time is None else words.seconds(time),
    }


def least(rows: Sequence[Row], column: str) -> Row | None:
    """Return the row with the lowest mean of a column, of those that recorded it."""
    known = [row for row in rows if column in row.values]
    return min(known, key=lambda row: row.values[column].mean, default=None)
