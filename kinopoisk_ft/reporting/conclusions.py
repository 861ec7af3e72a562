"""Conclusions and recommendations from the numbers.

A difference is called real only where its interval and the corrected p-value exclude chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import BEST, COLUMNS
from kinopoisk_ft.reporting.locale import NOTHING, Words
from kinopoisk_ft.reporting.run_rows import Row, differing_settings
from kinopoisk_ft.reporting.table import Table, write_value
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import ALPHA, Pair

FULL = "none"
# The adapters whose savings the study asks about, in this order.
CHEAPER = ("lora", "freeze")
TIME, TRAINABLE = "train_seconds", "trainable_parameters"
# What an approach costs, and the limit under which that cost decides.
COSTS = {TIME: "time", TRAINABLE: "parameters", "peak_memory_mb": "memory"}


@dataclass(frozen=True)
class Choice:
    """The approach to take under one limit ("time", "parameters", "memory", "quality"), and why."""

    limit: str
    name: str
    text: str


def conclusions(table: Table, words: Words) -> list[str]:
    """Return sentences: best, floor, fastest, what cheaper adapters save, how Mamba compares."""
    best = table.rows[0]
    found = [words("one_seed")] if all(len(row.runs) == 1 for row in table.rows) else []
    if len(table.rows) == 1:
        return [*found, words("only", **_numbers(best, words)), *_floor(table, words)]
    second = table.rows[1]
    against = _difference(table, second, best, words)
    found.append(words("best", second=second.name, **_numbers(best, words), **against))
    found += _floor(table, words) + _fastest(table, words)
    for adapter in CHEAPER:
        for row in table.rows:
            full = _full_training(table, row)
            if row.first.adapter == adapter and full:
                facts = _facts(table, row, full, (TRAINABLE, TIME), words)
                text = words("against_full", name=row.name, other=full.name, facts=facts)
                found.append(text + _budgets(row, full, words))
    return found + _mamba(table, words) + _leakage(table, words)


def _numbers(row: Row, words: Words) -> dict[str, str]:
    """Return a row's name, F1 and training time in words."""
    time = row.mean(TIME)
    return {
        "name": row.name,
        "f1": words.score(row.values[HEADLINE].mean),
        "time": NOTHING if time is None else words.seconds(time),
    }


def _difference(table: Table, row: Row, other: Row, words: Words) -> dict[str, str]:
    """Return F1 of `row` minus F1 of `other`, and whether chance explains it, in words."""
    delta = row.values[HEADLINE].mean - other.values[HEADLINE].mean
    pair = table.comparison.pair(row.name, other.name)
    verdict = _verdict(pair, len(table.comparison.pairs), words) if pair else words("verdict_none")
    return {"delta": words.score(delta, signed=True), "verdict": verdict}


def _verdict(pair: Pair, pairs: int, words: Words) -> str:
    found = pair.differences[HEADLINE]
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


def _floor(table: Table, words: Words) -> list[str]:
    """Compare the best row with the majority class and with the TF-IDF baseline."""
    best = table.rows[0]
    found = []
    if HEADLINE in table.majority:
        floor = table.majority[HEADLINE]
        delta = words.score(best.values[HEADLINE].mean - floor, signed=True)
        found.append(words("above_majority", name=best.name, f1=words.score(floor), delta=delta))
    baseline = next((row for row in table.rows if not row.is_network), None)
    if baseline is best and len(table.rows) > 1:
        found.append(words("tfidf_best"))
    elif baseline and baseline is not best:
        f1 = words.score(baseline.values[HEADLINE].mean)
        against = _difference(table, best, baseline, words)
        found.append(words("above_tfidf", name=best.name, f1=f1, **against))
    return found


def _cheapest(rows: Sequence[Row], column: str) -> Row | None:
    """Return the row with the lowest mean of a column among those that recorded it."""
    known = [row for row in rows if column in row.values]
    return min(known, key=lambda row: row.values[column].mean, default=None)


def _cheapest_network(table: Table, column: str) -> Row | None:
    return _cheapest([row for row in table.rows if row.is_network], column)


def _fastest(table: Table, words: Words) -> list[str]:
    best, fastest = table.rows[0], table.holder(TIME)
    if fastest is None:
        return []
    if fastest is best:
        return [words("fastest_is_best", **_numbers(best, words))]
    found = [_faster("fastest", table, fastest, words)]
    network = _cheapest_network(table, TIME)
    if not fastest.is_network and network and network is not best:
        found.append(_faster("fastest_network", table, network, words))
    return found


def _faster(key: str, table: Table, row: Row, words: Words) -> str:
    best = table.rows[0]
    parts = _numbers(row, words) | _difference(table, row, best, words)
    return words(key, best=best.name, best_time=_numbers(best, words)["time"], **parts)


def _full_training(table: Table, row: Row) -> Row | None:
    """Return the row that trains all of the same model, with the fewest other differences."""
    full = [r for r in table.rows if r.first.model == row.first.model and r.first.adapter == FULL]
    return min(full, key=lambda r: len(differing_settings([row, r])), default=None)


def _facts(table: Table, row: Row, other: Row, columns: tuple[str, ...], words: Words) -> str:
    """Return the change of each column from `other` to `row`, and the difference in F1."""
    facts = []
    for name in columns:
        a, b = row.mean(name), other.mean(name)
        if a is not None and b:
            column = COLUMNS[name]
            ratio = (
                words.percent(a / b)
                if column.kind == "count"
                else words.percent(a / b - 1, signed=True)
            )
            values = [write_value(value, column, words) for value in (a, b)]
            facts.append(words(f"fact_{name}", a=values[0], b=values[1], change=ratio))
    facts.append(words("fact_f1", **_difference(table, row, other, words)))
    return "; ".join(facts)


def _mamba(table: Table, words: Words) -> list[str]:
    mamba = next((row for row in table.rows if "mamba" in row.first.model), None)
    others = [r for r in table.rows if "mamba" not in r.first.model and r.is_network]
    if mamba is None or not others:
        return []
    # Prefer networks with the same start: pretraining outweighs an architecture.
    other = min(others, key=lambda row: row.starts_randomly != mamba.starts_randomly)
    facts = _facts(table, mamba, other, (TIME, "eval_seconds"), words)
    key = "mamba_from_scratch" if mamba.starts_randomly and other.starts_randomly else "mamba"
    text = words(key, name=mamba.name, other=other.name, facts=facts)
    return [text + _budgets(mamba, other, words)]


def _budgets(row: Row, other: Row, words: Words) -> str:
    """Return a further sentence on the settings that differ, "" if none do."""
    differences = [
        f"{words(key)} {' / '.join(value or NOTHING for _, value in parts)}"
        for key, parts in differing_settings([row, other]).items()
    ]
    return " " + words("budgets", differences=", ".join(differences)) if differences else ""


def _leakage(table: Table, words: Words) -> list[str]:
    """Return how far films alone give the label, and which bases were trained on test reviews."""
    keys = {
        "share": "leakage_films_share",
        "guess": "leakage_film_guess_accuracy",
        "majority": "leakage_majority_accuracy",
    }
    found = {part: table.leakage.get(key) for part, key in keys.items()}
    parts = {part: value for part, value in found.items() if value is not None}
    said = []
    if len(parts) == len(keys):
        share = words.percent(parts.pop("share"))
        scores = {part: words.score(value) for part, value in parts.items()}
        said.append(words("leakage_said", share=share, **scores))
    for row in table.rows:
        count, part = row.pretrained_on_test or (0, 0)
        if count:
            written = {"count": words.number(count, 0), "share": words.percent(part)}
            said.append(words("pretraining_said", name=row.name, **written))
    return said


def recommendations(table: Table, words: Words) -> list[str]:
    """Return the sentences of `choices`."""
    return [choice.text for choice in choices(table, words)]


def choices(table: Table, words: Words) -> list[Choice]:
    """Return the approach to take under each limit that was measured, quality last.

    The list is empty for a single approach.
    """
    if len(table.rows) == 1:
        return []
    found = [_limited(table, column, words) for column in COSTS]
    quality = Choice("quality", table.rows[0].name, _quality(table, words))
    return [*(choice for choice in found if choice), quality]


def _limited(table: Table, column: str, words: Words) -> Choice | None:
    """Return the row that costs the least; also name the cheapest network if it is not one."""
    cheapest = _cheapest(table.rows, column)
    if cheapest is None:
        return None
    text = words(f"limit_{COSTS[column]}", **_costs(table, cheapest, column, words))
    network = _cheapest_network(table, column)
    if network and not cheapest.is_network:
        text += " " + words("limit_network", **_costs(table, network, column, words))
    return Choice(COSTS[column], cheapest.name, text)


def _costs(table: Table, row: Row, column: str, words: Words) -> dict[str, str]:
    """Return a row's numbers, its cost, and its distance from the best with the verdict."""
    best, against = table.rows[0], ""
    if row is not best:
        against = words("from_best", best=best.name, **_difference(table, row, best, words))
    value = write_value(row.values[column].mean, COLUMNS[column], words)
    cost = words(f"cost_{COSTS[column]}", value=value)
    return _numbers(row, words) | {"cost": cost, "from_best": against}


def _quality(table: Table, words: Words) -> str:
    """Recommend the best row, and name the rows that do not differ from it significantly."""
    best, *others = table.rows
    scores = {name: words.score(best.values[name].mean) for name in BEST if name in best.values}
    text = [words("limit_quality", **_numbers(best, words), **scores)]
    pairs = {row.name: table.comparison.pair(row.name, best.name) for row in others}
    rivals = [row for row in others if (p := pairs[row.name]) and not p.beyond_chance]
    if all(pair and pair.beyond_chance for pair in pairs.values()):
        text.append(words("no_rivals"))
    if rivals:
        fastest, named = _cheapest([best, *rivals], TIME), ""
        if fastest:
            named = words("rivals_fastest", **_numbers(fastest, words))
        names = words.listed([row.name for row in rivals])
        text.append(words("rivals", names=names, fastest=named))
    single = [row.name for row in table.rows if len(row.runs) == 1]
    if len(single) == len(table.rows):
        text.append(words("more_seeds"))
    elif single:
        text.append(words("more_seeds_for", names=words.listed(single)))
    return " ".join(text)
