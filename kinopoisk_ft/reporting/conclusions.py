"""Sentences made from the numbers; what chance may explain is never called real."""

from __future__ import annotations

from kinopoisk_ft.reporting.compare import F1, TIME, f1_parts, least, one_seed, row_parts
from kinopoisk_ft.reporting.footing import unequal
from kinopoisk_ft.reporting.leaks import sentence
from kinopoisk_ft.reporting.rows import Row
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.reporting.words import NOTHING, Words

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
