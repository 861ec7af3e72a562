"""Which approach to take when time, resources or quality is the limit."""

from __future__ import annotations

from kinopoisk_ft.reporting.compare import TIME, least, row_parts, told_apart
from kinopoisk_ft.reporting.notes import is_network
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import Words


def recommendations(table: Table, words: Words) -> list[str]:
    """Return which approach to take when time, resources or quality is the limit.

    Of a single approach there is nothing to choose: the list is empty.
    """
    if len(table.rows) == 1:
        return []
    best = table.rows[0]
    networks = [row for row in table.rows if is_network(row)]
    found = []
    fastest = table.holder(TIME)
    if fastest:
        text = words("limit_time", **row_parts(fastest, best, words))
        network = least(networks, TIME)
        if not is_network(fastest) and network:
            text += " " + words("limit_time_network", **row_parts(network, best, words))
        found.append(text)
    smallest = least(networks or list(table.rows), "trainable_parameters")
    if smallest:
        count = words.number(smallest.values["trainable_parameters"].mean, 0)
        text = words("limit_resources", count=count, **row_parts(smallest, best, words))
        frugal = least(networks, "peak_memory_mb")
        if frugal:
            memory = words.number(frugal.values["peak_memory_mb"].mean, 0)
            text += " " + words("limit_memory", name=frugal.name, memory=memory)
        found.append(text)
    return [*found, _quality(table, words)]


def _quality(table: Table, words: Words) -> str:
    best = table.rows[0]
    accuracy = words.score(best.values["accuracy"].mean)
    text = [words("limit_quality", accuracy=accuracy, **row_parts(best, best, words))]
    rivals = [row for row in table.rows[1:] if told_apart(table, row, best) is False]
    fastest = least([best, *rivals], TIME)
    if rivals and fastest:
        names = words.listed([row.name for row in rivals])
        time = words.seconds(fastest.values[TIME].mean)
        text.append(words("rivals", names=names, fastest=fastest.name, time=time))
    single = [row.name for row in table.rows if len(row.runs) == 1]
    if len(single) == len(table.rows):
        text.append(words("more_seeds"))
    elif single:
        text.append(words("more_seeds_for", names=words.listed(single)))
    return " ".join(text)
