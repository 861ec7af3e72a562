"""Write the conclusions and recommendations.

Approaches that failed a check of `tasks.learned` are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kinopoisk_ft.reporting.columns import BEST, COLUMNS, COSTS, TIME, TRAINABLE
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.run_rows import Row, are_comparable, differing_settings, with_cost
from kinopoisk_ft.reporting.table import Table
from kinopoisk_ft.statistics.equivalence import LARGEST, MARGIN, Decision
from kinopoisk_ft.statistics.metrics import HEADLINE
from kinopoisk_ft.statistics.pairs import Pair

# A sentence names at most this many undecided approaches. Otherwise, it only counts them.
MOST_NAMED = 2
# An approach that is as good as the best one is recommended instead if it saves more than this
# fraction of a cost. Smaller savings may be noise.
SAVING = 0.1
# The adapter config that trains all weights.
FULL = "none"
# The adapters that the original study compares with full fine-tuning, in this order.
CHEAPER = ("lora", "freeze")


@dataclass(frozen=True)
class Choice:
    """One recommended approach.

    Args:
        limit: the scarce resource ("time", "parameters" or "memory"), or "quality" if the
            recommendation ignores costs.
        number: the cost of the approach; if `limit` is "quality", its weighted F1.
        reason: why the approach is recommended, in a few words.
        badge: verdict on the approach; see `Table.verdict`.
    """

    limit: str
    name: str
    text: str
    number: str
    reason: str
    badge: str


def answer(table: Table, locale: Locale) -> str:
    """Return one sentence on which approach to take."""
    rows = table.learned
    if not rows:
        return locale("none_learned")
    if table.only_trials:
        return locale("only_trials")
    best, *others = rows
    if not others:
        return locale("only", **_numbers(best, locale))
    verdicts = {row.name: table.verdict(row) for row in others}
    as_good = [row for row in others if verdicts[row.name] == "as_good"]
    # One cost decides: the first one in `COSTS` that can be compared.
    column = next((name for name in COSTS if are_comparable([best, *as_good], name)), None)
    margin = locale.number(MARGIN, 2)
    parts = {"name": best.name, "f1": _round(best, locale), "margin": margin}
    if column and (taken := _take(best, as_good, column)) is not best:
        costs = [locale.value(row.values[column].mean, COLUMNS[column]) for row in (taken, best)]
        return locale(
            f"answer_{COSTS[column]}", **parts | {"name": taken.name}, best=best.name,
            low=_round(taken, locale), a=costs[0], b=costs[1],
        )  # fmt: skip
    # A verdict is empty if the predictions of an approach are missing or have other classes.
    undecided, worse, unmeasured = (
        _few([name for name, verdict in verdicts.items() if verdict == one], len(others), locale)
        for one in ("undecided", "worse", "")
    )
    if undecided:
        said = [locale("answer_undecided", names=undecided, **parts)]
        said += [locale("group_worse", names=worse, margin=margin)] if worse else []
        return " ".join(said)
    if unmeasured:
        return locale("answer_unmeasured", names=unmeasured, **parts)
    if as_good and column:
        saving, cost = locale.percent(SAVING), locale(column)
        return locale("answer_as_good", saving=saving, cost=cost, **parts)
    return locale("answer_no_cost" if as_good else "answer_worse", **parts)


def _take(best: Row, as_good: list[Row], column: str) -> Row:
    taken = best
    # The rows are sorted by score, so each loss in score is paid for by a saving.
    for row in as_good:
        if row.values[column].mean < (1 - SAVING) * taken.values[column].mean:
            taken = row
    return taken


def _few(names: list[str], total: int, locale: Locale) -> str:
    if len(names) <= MOST_NAMED:
        return locale.listed(names)
    if len(names) == total:
        return locale("others")
    return locale("count_of_others", count=len(names), total=total)


def _round(row: Row, locale: Locale) -> str:
    return locale.number(row.values[HEADLINE].mean, 3)


def conclusions(table: Table, locale: Locale) -> list[str]:
    """Return the conclusions from one table, one or two sentences each."""
    rows = table.learned
    if not rows:
        return [locale("none_learned")]
    if table.only_trials:
        return [locale("only_trials")]
    best = rows[0]
    if len(rows) == 1:
        return [locale("only", **_numbers(best, locale)), *_floor(table, locale)]
    second = rows[1]
    against = _difference(table, second, best, locale)
    found = [locale("best", second=second.name, **_numbers(best, locale), **against)]
    found += _floor(table, locale)
    for adapter in CHEAPER:
        for row in rows:
            full = _full_training(table, row)
            if row.first.adapter == adapter and full:
                facts = _facts(table, row, full, (TRAINABLE, TIME), locale)
                found.append(locale("against_full", name=row.name, other=full.name, facts=facts))
    return found + _mamba(table, locale) + _leakage(table, locale)


def _numbers(row: Row, locale: Locale) -> dict[str, str]:
    return {"name": row.name, "f1": locale.score(row.values[HEADLINE].mean)}


def _difference(table: Table, row: Row, other: Row, locale: Locale) -> dict[str, str]:
    delta = row.values[HEADLINE].mean - other.values[HEADLINE].mean
    return {
        "delta": locale.score(delta, signed=True),
        "verdict": _verdict(table, row.name, other.name, locale),
    }


def _verdict(table: Table, a: str, b: str, locale: Locale) -> str:
    pair, decision = table.comparison.pair(a, b), table.decide(a, b)
    if pair is None or decision is None:
        return locale("verdict_none")
    low, high = (locale.score(end, signed=True) for end in (decision.low, decision.high))
    # The table of the other pairs has their intervals.
    bounds = locale("bounds", low=low, high=high) if b == table.learned[0].name else ""
    parts = {"bounds": bounds, "margin": locale.number(MARGIN, 2)}
    if decision.verdict == "undecided":
        parts["needed"] = _needed(decision, pair, locale)
    return locale(f"verdict_{decision.verdict.replace(' ', '_')}", **parts)


def _needed(decision: Decision, pair: Pair, locale: Locale) -> str:
    counts = {"reviews": decision.count_more(pair.reviews), "seeds": decision.more_seeds}
    known = {name: locale.number(n, 0) for name, n in counts.items() if n}
    # The key contains the known numbers, as in "needed_reviews_seeds".
    parts = ["needed", *known] + ([] if pair.measured else ["one_seed"])
    return locale("_".join(parts), times=LARGEST, **known)


def _floor(table: Table, locale: Locale) -> list[str]:
    best, *others = table.learned
    found = []
    if HEADLINE in table.majority:
        floor = table.majority[HEADLINE]
        delta = locale.score(best.values[HEADLINE].mean - floor, signed=True)
        found.append(locale("above_majority", name=best.name, f1=locale.score(floor), delta=delta))
    if not best.is_network and any(row.is_network for row in others):
        found.append(locale("tfidf_best"))
    # The sentence `best` describes the first of them.
    for row in others[1:]:
        if not row.is_network:
            against = _difference(table, row, best, locale)
            found.append(locale("tfidf", best=best.name, **_numbers(row, locale), **against))
    return found


def _full_training(table: Table, row: Row) -> Row | None:
    # One option, such as `encoder`, can load any checkpoint.
    start = _checkpoint(row)
    full = [r for r in table.learned if r.first.adapter == FULL and _checkpoint(r) == start]
    # The row with the fewest other differences shows best what the adapter changes.
    return min(full, key=lambda r: len(differing_settings([row, r])), default=None)


def _checkpoint(row: Row) -> tuple[str, str, str]:
    return row.first.model, row.setting("model.name"), row.setting("model.revision")


def _facts(table: Table, row: Row, other: Row, columns: tuple[str, ...], locale: Locale) -> str:
    facts = []
    for name in columns:
        if are_comparable([row, other], name) and (b := other.values[name].mean):
            a, column = row.values[name].mean, COLUMNS[name]
            change = locale.percent(a / b - 1, signed=True)
            # Most changes of a parameter count would be close to -100%, so show a / b instead.
            if column.kind == "count":
                change = locale.percent(a / b)
            parts = {"a": locale.value(a, column), "b": locale.value(b, column)}
            facts.append(locale(f"fact_{name}", change=change, **parts))
    found = _difference(table, row, other, locale)
    if row is table.learned[0]:
        # Other sentences contain the verdict on this pair.
        found["verdict"] = ""
    facts.append(locale("fact_f1", **found))
    return "; ".join(facts)


def _mamba(table: Table, locale: Locale) -> list[str]:
    mamba = next((row for row in table.learned if "mamba" in row.first.model), None)
    others = [r for r in table.learned if "mamba" not in r.first.model and r.is_network]
    if mamba is None or not others:
        return []
    # Pretraining matters more than the architecture, so compare networks with the same start.
    same = [row for row in others if row.starts_randomly == mamba.starts_randomly]
    # Both lists begin with the highest weighted F1.
    other = (same or others)[0]
    facts = _facts(table, mamba, other, (TIME, "eval_seconds"), locale)
    start = "_from_scratch" if mamba.starts_randomly else "_pretrained"
    return [locale(f"mamba{start if same else ''}", name=mamba.name, other=other.name, facts=facts)]


def _leakage(table: Table, locale: Locale) -> list[str]:
    found, said = table.leakage, []
    # Without shared films, a film has no training labels, and the guess is the majority class.
    if found.get("leakage_films_share") and "leakage_film_guess_accuracy" in found:
        share = locale.percent(found["leakage_films_share"])
        guess = locale.score(found["leakage_film_guess_accuracy"])
        majority = locale.score(found["leakage_majority_accuracy"])
        said.append(locale("leakage_said", share=share, guess=guess, majority=majority))
    if authors := found.get("leakage_authors_share"):
        said.append(locale("leakage_authors_said", share=locale.percent(authors)))
    for row in table.rows:
        count, part = row.pretrained_on_test or (0, 0)
        if count:
            written = {"count": locale.number(count, 0), "share": locale.percent(part)}
            said.append(locale("pretraining_said", name=row.name, **written))
    return said


def choices(table: Table, locale: Locale) -> list[Choice]:
    """Return one recommendation for each measured cost, then one for quality.

    The result is empty if fewer than two approaches have learned (`Row.learned`), or if all runs
    are trials of a hyperparameter search.
    """
    if len(table.learned) < 2 or table.only_trials:
        return []
    found = [_limited(table, column, locale) for column in COSTS]
    best = table.learned[0]
    reason = locale("card_quality")
    quality = Choice(
        "quality", best.name, _quality(table, locale), _round(best, locale), reason, "reference"
    )
    return [*(choice for choice in found if choice), quality]


def _limited(table: Table, column: str, locale: Locale) -> Choice | None:
    compared = with_cost(table.learned, column)
    # Several settings of one approach have the same number of parameters, so none has the fewest.
    if len({row.values[column].mean for row in compared}) < 2:
        return None
    # Rows are sorted by score, so the first of equally cheap rows has the highest score.
    compared.sort(key=lambda row: row.values[column].mean)
    cheapest, among = compared[0], _among(table.learned, column, locale)
    costs = _costs(table, cheapest, column, locale)
    text = locale(f"limit_{COSTS[column]}", among=among, **costs)
    # TF-IDF is often the cheapest approach, but the reader may need a network.
    network = next((row for row in compared if row.is_network), cheapest)
    if network is not cheapest:
        text += " " + locale("limit_network", **_costs(table, network, column, locale))
    limit, brief = COSTS[column], locale.brief(cheapest.values[column].mean, COLUMNS[column])
    number = locale(f"cost_{limit}", value=brief)
    reason = locale(f"card_{limit}", among=among, f1=_round(cheapest, locale))
    return Choice(limit, cheapest.name, text, number, reason, table.verdict(cheapest))


def _among(rows: Sequence[Row], column: str, locale: Locale) -> str:
    """Return the words that limit a superlative to the rows whose costs are compared."""
    compared = with_cost(rows, column)
    if len(compared) == len(rows):
        return ""
    if len(compared) == sum(column in row.values for row in rows):
        return locale("among_measured")
    if column == TIME:
        return locale("among_reliable")
    return locale("among_device", device=compared[0].compared("device"))


def _costs(table: Table, row: Row, column: str, locale: Locale) -> dict[str, str]:
    best, against = table.learned[0], ""
    if row is not best:
        against = locale("from_best", best=best.name, **_difference(table, row, best, locale))
    value = locale.value(row.values[column].mean, COLUMNS[column])
    cost = locale(f"cost_{COSTS[column]}", value=value)
    return _numbers(row, locale) | {"cost": cost, "from_best": against}


def _quality(table: Table, locale: Locale) -> str:
    best, *others = table.learned
    scores = {name: locale.score(best.values[name].mean) for name in BEST if name in best.values}
    text = [locale("limit_quality", **_numbers(best, locale), **scores)]
    for verdict in ("as_good", "undecided", "worse"):
        group = [row for row in others if table.verdict(row) == verdict]
        if group:
            names, margin = locale.listed([row.name for row in group]), locale.number(MARGIN, 2)
            text.append(locale(f"group_{verdict}", names=names, margin=margin))
    return " ".join(text)
