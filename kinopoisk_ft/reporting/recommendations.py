"""Which approach to take when time, parameters, memory or quality is the limit."""

from __future__ import annotations

from dataclasses import dataclass

from kinopoisk_ft.reporting.compare import TIME, f1_parts, least, row_parts, told_apart
from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import Words

# Column of what an approach costs → the limit under which that counts.
COSTS = {TIME: "time", "trainable_parameters": "parameters", "peak_memory_mb": "memory"}


@dataclass(frozen=True)
class Choice:
    """What to take under one limit, "time", "parameters", "memory" or "quality", and why."""

    limit: str
    name: str
    text: str


def recommendations(table: Table, words: Words) -> list[str]:
    """Return the sentences of `choices`."""
    return [choice.text for choice in choices(table, words)]


def choices(table: Table, words: Words) -> list[Choice]:
    """Return which approach to take under each limit that was measured, quality last.

    Of a single approach there is nothing to choose: the list is empty.
    """
    if len(table.rows) == 1:
        return []
    found = [_limited(table, column, words) for column in COSTS]
    quality = Choice("quality", table.rows[0].name, _quality(table, words))
    return [*(choice for choice in found if choice), quality]


def _limited(table: Table, column: str, words: Words) -> Choice | None:
    """Return the row that costs the least, and the cheapest network where that is none."""
    cheapest = least(table.rows, column)
    if cheapest is None:
        return None
    limit, cost = COSTS[column], _cost(cheapest, column, words)
    text = words(f"limit_{limit}", cost=cost, **_parts(table, cheapest, words))
    network = least([row for row in table.rows if row.is_network], column)
    if network and not cheapest.is_network:
        cost = _cost(network, column, words)
        text += " " + words("limit_network", cost=cost, **_parts(table, network, words))
    return Choice(limit, cheapest.name, text)


def _cost(row: Row, column: str, words: Words) -> str:
    value = row.values[column].mean
    number = words.seconds(value) if column == TIME else words.number(value, 0)
    return words(f"cost_{COSTS[column]}", value=number)


def _parts(table: Table, row: Row, words: Words) -> dict[str, str]:
    """Return a row's numbers, and what of its distance from the best chance explains."""
    best, against = table.rows[0], ""
    if row is not best:
        against = words("from_best", best=best.name, **f1_parts(table, row, best, words))
    return row_parts(row, words) | {"from_best": against}


def _quality(table: Table, words: Words) -> str:
    best = table.rows[0]
    accuracy = words.score(best.values["accuracy"].mean)
    text = [words("limit_quality", accuracy=accuracy, **row_parts(best, words))]
    apart = {row.name: told_apart(table, row, best) for row in table.rows[1:]}
    rivals = [row for row in table.rows[1:] if apart[row.name] is False]
    if all(apart.values()):
        text.append(words("no_rivals"))
    if rivals:
        fastest, named = least([best, *rivals], TIME), ""
        if fastest:
            time = words.seconds(fastest.values[TIME].mean)
            named = words("rivals_fastest", name=fastest.name, time=time)
        names = words.listed([row.name for row in rivals])
        text.append(words("rivals", names=names, fastest=named))
    single = [row.name for row in table.rows if len(row.runs) == 1]
    if len(single) == len(table.rows):
        text.append(words("more_seeds"))
    elif single:
        text.append(words("more_seeds_for", names=words.listed(single)))
    return " ".join(text)
