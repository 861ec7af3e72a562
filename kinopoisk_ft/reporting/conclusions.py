"""Sentences made from the numbers; what chance may explain is never called real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.leaks import sentence
from kinopoisk_ft.reporting.locale import NOTHING, Words
from kinopoisk_ft.reporting.run_rows import Row, unequal
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import ALPHA, Pair

FULL = "none"
# The adapters whose savings the study asks about, in this order.
CHEAPER = ("lora", "freeze")


def conclusions(table: Table, words: Words) -> list[str]:
    """Return what the numbers say: best, floor, fastest, what LoRA saves, how Mamba compares."""
    best = table.rows[0]
    found = [words("one_seed")] if one_seed(table) else []
    if len(table.rows) == 1:
        f1 = words.score(best.values[F1].mean)
        return [*found, words("only", name=best.name, f1=f1), *_floor(table, words)]
    second = table.rows[1]
    found.append(
        words(
            "best",
            name=best.name,
            f1=words.score(best.values[F1].mean),
            second=second.name,
            **f1_parts(table, second, best, words),
        )
    )
    found += _floor(table, words) + _fastest(table, words)
    for adapter in CHEAPER:
        for row in table.rows:
            full = _full_training(table, row)
            if row.first.adapter == adapter and full:
                facts = _facts(table, row, full, ("trainable_parameters", TIME), words)
                text = words("against_full", name=row.name, other=full.name, facts=facts)
                found.append(text + _budgets(row, full, words))
    return found + _mamba(table, words) + sentence(table, words)


def _floor(table: Table, words: Words) -> list[str]:
    best = table.rows[0]
    found = []
    if F1 in table.majority:
        floor = table.majority[F1]
        delta = words.score(best.values[F1].mean - floor, signed=True)
        found.append(words("above_majority", name=best.name, f1=words.score(floor), delta=delta))
    baseline = next((row for row in table.rows if not row.is_network), None)
    if baseline is best and len(table.rows) > 1:
        found.append(words("tfidf_best"))
    elif baseline and baseline is not best:
        f1 = words.score(baseline.values[F1].mean)
        parts = f1_parts(table, best, baseline, words)
        found.append(words("above_tfidf", name=best.name, f1=f1, **parts))
    return found


def _fastest(table: Table, words: Words) -> list[str]:
    best, fastest = table.rows[0], table.holder(TIME)
    if fastest is None:
        return []
    if fastest is best:
        return [words("fastest_is_best", **row_parts(best, words))]
    found = [_faster("fastest", table, fastest, words)]
    network = least([row for row in table.rows if row.is_network], TIME)
    if not fastest.is_network and network and network is not best:
        found.append(_faster("fastest_network", table, network, words))
    return found


def _faster(key: str, table: Table, row: Row, words: Words) -> str:
    best = table.rows[0]
    parts = row_parts(row, words) | f1_parts(table, row, best, words)
    return words(key, best=best.name, best_time=row_parts(best, words)["time"], **parts)


def _full_training(table: Table, row: Row) -> Row | None:
    """Return the row that trains all of the same model, on the most equal footing there is."""
    full = [r for r in table.rows if r.first.model == row.first.model and r.first.adapter == FULL]
    return min(full, key=lambda r: len(unequal([row, r])), default=None)


def _facts(table: Table, row: Row, other: Row, columns: tuple[str, ...], words: Words) -> str:
    facts = []
    for column in columns:
        a, b = row.mean(column), other.mean(column)
        if a is not None and b:
            if column.endswith("parameters"):
                parts = (words.number(a, 0), words.number(b, 0), words.percent(a / b))
            else:
                change = words.percent(a / b - 1, signed=True)
                parts = (words.seconds(a), words.seconds(b), change)
            facts.append(words(f"fact_{column}", a=parts[0], b=parts[1], change=parts[2]))
    facts.append(words("fact_f1", **f1_parts(table, row, other, words)))
    return "; ".join(facts)


def _mamba(table: Table, words: Words) -> list[str]:
    mamba = next((row for row in table.rows if "mamba" in row.first.model), None)
    others = [r for r in table.rows if "mamba" not in r.first.model and r.is_network]
    if mamba is None or not others:
        return []
    # Of networks with the same start, if there are any: pretraining outweighs an architecture.
    other = min(others, key=lambda row: row.starts_randomly != mamba.starts_randomly)
    facts = _facts(table, mamba, other, (TIME, "eval_seconds"), words)
    key = "mamba_from_scratch" if mamba.starts_randomly and other.starts_randomly else "mamba"
    text = words(key, name=mamba.name, other=other.name, facts=facts)
    return [text + _budgets(mamba, other, words)]


def _budgets(row: Row, other: Row, words: Words) -> str:
    """Return a further sentence on what is unequal, "" where nothing is."""
    differences = [
        f"{words(key)} {' / '.join(value or NOTHING for _, value in parts)}"
        for key, parts in unequal([row, other]).items()
    ]
    return " " + words("budgets", differences=", ".join(differences)) if differences else ""


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
