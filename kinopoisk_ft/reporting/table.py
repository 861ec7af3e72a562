"""Compare runs with the same test reviews in tables, and format these tables as DataFrames.

A DataFrame without rows means that there is nothing to show.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from kinopoisk_ft.reporting.columns import BEST, MAJORITY, MARKS, Column, columns_in
from kinopoisk_ft.reporting.locale import NOTHING, Locale, time_digits
from kinopoisk_ft.reporting.run_rows import Row, rows_of
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.comparison import Approach, Comparison, compare
from kinopoisk_ft.statistics.metrics import (
    HEADLINE,
    count_confusion,
    headline_first,
    scores,
    shown_in,
)
from kinopoisk_ft.statistics.pairs import Pair
from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.slices import NO_GRADE, SEEN, Slice

DIGEST_CHARACTERS = 12
LEAKAGE_KINDS = ("near_duplicates", "films", "authors")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with the same test reviews, sorted by the headline metric.

    Args:
        best: best mean of all rows, by column.
        majority: scores of the majority-class baseline, by column.
        majority_differs: True if the runs recorded different scores of this baseline.
        comparison: statistical comparison of the rows, by row name.
    """

    data: str
    split_digest: str
    source_digest: str
    rows: tuple[Row, ...]
    best: dict[str, float]
    majority: dict[str, float]
    majority_differs: bool
    comparison: Comparison

    def holder(self, column: str) -> Row | None:
        """Return the row with the best value of a column, or None if no row has a value."""
        return next((row for row in self.rows if row.from_best.get(column) == 0), None)

    @property
    def leakage(self) -> dict[str, float]:
        """Return all metrics of the first run that has leakage metrics, or {} if no run has them.

        One run is enough, because all runs have the same splits and therefore the same leakage.
        """
        runs = (run.metrics for row in self.rows for run in row.runs)
        return next((m for m in runs if any(key.startswith("leakage_") for key in m)), {})


def tables(runs: list[TrainedRun], predictions: Mapping[str, Predictions]) -> list[Table]:
    """Return one table for each combination of data set and split.

    `predictions` are keyed by run id. Runs without predictions have scores but no intervals.
    """
    groups: dict[tuple[str, str, str], list[TrainedRun]] = defaultdict(list)
    for run in runs:
        known = _add_scores(run, predictions.get(run.run_id))
        groups[(run.data, run.source_digest, run.split_digest)].append(known)
    return [_table(key, groups[key], predictions) for key in sorted(groups)]


def _add_scores(run: TrainedRun, predictions: Predictions | None) -> TrainedRun:
    if predictions is None:
        return run
    classes = len(predictions.class_names)
    # Earlier versions did not record all metrics.
    found = scores(count_confusion(predictions.labels, predictions.predicted, classes))
    metrics = {f"test_{name}": float(value) for name, value in found.items()}
    return replace(run, metrics=metrics | run.metrics)


def _table(
    key: tuple[str, str, str], runs: list[TrainedRun], predictions: Mapping[str, Predictions]
) -> Table:
    rows = rows_of(runs)
    best = {}
    for name, column in BEST.items():
        if means := [row.values[name].mean for row in rows if name in row.values]:
            best[name] = column.better(means)
    rows = [
        replace(row, from_best={c: row.values[c].mean - best[c] for c in best if c in row.values})
        for row in rows
    ]
    rows.sort(key=lambda row: (-row.values[HEADLINE].mean, row.name))
    majority, differs = _majority(runs)
    data, source_digest, split_digest = key
    return Table(
        data=data,
        split_digest=split_digest,
        source_digest=source_digest,
        rows=tuple(rows),
        best=best,
        majority=majority,
        majority_differs=differs,
        comparison=compare([_approach(row, predictions) for row in rows]),
    )


def _approach(row: Row, predictions: Mapping[str, Predictions]) -> Approach:
    return Approach(
        name=row.name,
        seeds=tuple(run.seed for run in row.runs),
        runs=tuple(predictions.get(run.run_id) for run in row.runs),
        temperatures=tuple(run.metrics.get("temperature") for run in row.runs),
    )


def _majority(runs: list[TrainedRun]) -> tuple[dict[str, float], bool]:
    seen = {
        column: [run.metrics[metric] for run in runs if metric in run.metrics]
        for column, metric in MAJORITY.items()
    }
    differs = any(len({round(value, 6) for value in values}) > 1 for values in seen.values())
    return {column: values[0] for column, values in seen.items() if values}, differs


def data_line(table: Table, locale: Locale) -> str:
    """Return a line that describes the data and the split of a table."""
    rules = sorted({row.setting("data.split") for row in table.rows} - {""})
    rule = locale("split_rule", rule=locale.listed(rules)) if rules else ""
    digest = table.split_digest[:DIGEST_CHARACTERS]
    return locale("data", data=table.data, rule=rule, digest=digest)


def frame_of(headings: list[str], rows: list[list[str]]) -> pd.DataFrame:
    """Return a DataFrame of strings with the given headings, which may repeat."""
    return pd.DataFrame(rows, columns=pd.Index(headings, dtype=object), dtype=object)


def write_value(value: float, column: Column, locale: Locale, *, signed: bool = False) -> str:
    """Format a value in the number format of a column."""
    if column.kind == "seconds":
        return locale.seconds(value, signed=signed)
    if column.kind == "share":
        return locale.percent(value, signed=signed)
    return locale.number(value, column.digits if column.kind == "score" else 0, signed=signed)


def write_mean(row: Row, column: Column, locale: Locale) -> str:
    """Format mean ± standard deviation.

    For a single seed, and for columns other than scores and times, only the mean is written.
    """
    spread = row.values.get(column.name)
    if spread is None:
        return NOTHING
    mean = write_value(spread.mean, column, locale)
    if spread.std is None or column.kind in ("count", "share"):
        return mean
    digits = time_digits(spread.mean) if column.kind == "seconds" else column.digits
    return f"{mean} ± {locale.number(spread.std, digits)}"


def write_interval(table: Table, row: Row, column: Column, locale: Locale) -> str:
    """Format the 95% interval of a mean, or return "" if there is none."""
    found = table.comparison.means.get(row.name, {}).get(column.name)
    return locale.interval(found) if found and column.interval else ""


def write_measured(table: Table, row: Row, column: Column, locale: Locale) -> str:
    """Format mean ± standard deviation [interval]."""
    interval = write_interval(table, row, column, locale)
    return f"{write_mean(row, column, locale)} {interval}".rstrip()


def results(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of test results, with the majority-class baseline in the last row."""
    columns = columns_in("results")
    rows = [
        [row.name, str(len(row.runs)), *(write_measured(table, row, c, locale) for c in columns)]
        for row in table.rows
    ]
    majority = [
        write_value(table.majority[c.name], c, locale) if c.name in table.majority else NOTHING
        for c in columns
    ]
    rows.append([locale("majority"), NOTHING, *majority])
    return frame_of([locale("approach"), "n", *map(locale.heading, columns)], rows)


def sizes(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of model sizes and speeds."""
    columns = columns_in("sizes")
    rows = [
        [row.name, *(write_mean(row, c, locale) for c in columns), row.first.max_length or NOTHING]
        for row in table.rows
    ]
    headings = [locale("approach"), *map(locale.heading, columns), locale("max_length")]
    return frame_of(headings, rows)


def against_best(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table that compares each row with the best values."""
    rows = []
    for row in table.rows:
        marks = [locale("yes" if row.marked(mark) else "no") for mark in MARKS]
        rows.append([row.name, *marks, *_distances(row.from_best, locale)])
    majority = {
        c: table.majority[c] - best for c, best in table.best.items() if c in table.majority
    }
    rows.append([locale("majority"), *[locale("no")] * len(MARKS), *_distances(majority, locale)])
    return frame_of(
        [locale("approach"), *MARKS, *(locale(f"{name}_from_best") for name in BEST)], rows
    )


def _distances(found: dict[str, float], locale: Locale) -> list[str]:
    return [
        write_value(found[name], column, locale, signed=True) if name in found else NOTHING
        for name, column in BEST.items()
    ]


def differences(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of differences between pairs of approaches, with intervals and p-values."""
    headings = [locale("approach"), locale("against")]
    for metric in headline_first(shown_in("differences")):
        headings += [
            locale("difference", metric=locale.label(metric.name)),
            locale("p"),
            locale("p_holm"),
        ]
    headings += [locale("mcnemar"), locale("mcnemar_holm")]
    return frame_of(headings, [_difference(pair, locale) for pair in table.comparison.pairs])


def _difference(pair: Pair, locale: Locale) -> list[str]:
    cells = [pair.a, pair.b if pair.paired else locale("unpaired_mark", name=pair.b)]
    for metric in headline_first(shown_in("differences")):
        found = pair.differences[metric.name]
        text = f"{locale.score(found.mean, signed=True)} {locale.interval(found, signed=True)}"
        cells += [text, locale.p_value(found.p), locale.p_value(found.p_holm)]
    test = pair.mcnemar
    tested = [locale.p_value(test.p), locale.p_value(test.p_holm)] if test else [NOTHING, NOTHING]
    return [*cells, *tested]


def calibration(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of calibration metrics before and after temperature scaling."""
    rows = [row for row in table.rows if "temperature" in row.values]
    columns = [
        column
        for column in columns_in("calibration")
        if any(column.name in row.values for row in rows)
    ]
    cells = [[row.name, *(write_mean(row, column, locale) for column in columns)] for row in rows]
    return frame_of([locale("approach"), *map(locale.heading, columns)], cells)


def slices(table: Table, metric: str, locale: Locale) -> pd.DataFrame:
    """Return the table of one metric, with one row per slice and one column per approach."""
    found = table.comparison.slices
    names = [row.name for row in table.rows if row.name in found]
    places: dict[tuple[int, float], dict[str, Slice]] = defaultdict(dict)
    for name in names:
        for one in found[name]:
            places[one.place][name] = one
    rows = []
    for _, here in sorted(places.items()):
        counts = sorted({one.n for one in here.values()})
        cells = [_slice_score(here.get(name), metric, locale) for name in names]
        rows.append(
            [_slice_name(next(iter(here.values())), locale), _counts(counts, locale), *cells]
        )
    return frame_of([locale("slice"), locale("reviews"), *names], rows)


def _slice_name(one: Slice, locale: Locale) -> str:
    if one.by == "grade10" and one.value == NO_GRADE:
        return locale("no_grade")
    shown = locale(one.value) if one.value in SEEN else locale.range(one.value)
    return f"{locale(f'by_{one.by}')}: {shown}"


def _slice_score(one: Slice | None, metric: str, locale: Locale) -> str:
    if one is None:
        return NOTHING
    found = one.scores[metric]
    return f"{locale.number(found.mean, 3)} {locale.interval(found, digits=3)}"


def _counts(counts: list[int], locale: Locale) -> str:
    # Models that truncate differently have slices of different sizes.
    ends = dict.fromkeys((counts[0], counts[-1]))
    return locale.range("-".join(locale.number(n, 0) for n in ends))


def leakage(table: Table, locale: Locale) -> pd.DataFrame:
    """Return the table of overlaps between training data and test reviews."""
    found = table.leakage
    rows = [
        [
            locale(f"leakage_{kind}"),
            locale.number(found[f"leakage_{kind}"], 0),
            locale.percent(found[f"leakage_{kind}_share"]),
        ]
        for kind in LEAKAGE_KINDS
        if f"leakage_{kind}_share" in found and f"leakage_{kind}" in found
    ]
    if "leakage_film_guess_accuracy" in found:
        majority = locale.score(found["leakage_majority_accuracy"])
        guess = locale.score(found["leakage_film_guess_accuracy"])
        rows.append([locale("leakage_film_guess", majority=majority), guess, ""])
    rows += _pretraining(table, locale)
    return frame_of(
        [locale("leakage_what"), locale("leakage_shared"), locale("leakage_share")], rows
    )


def _pretraining(table: Table, locale: Locale) -> list[list[str]]:
    rows = [
        [
            locale("pretraining", names=row.name),
            locale.number(found[0], 0),
            locale.percent(found[1]),
        ]
        for row in table.rows
        if (found := row.pretrained_on_test) and found[0]
    ]
    if names := unknown_pretraining(table):
        rows.append([locale("pretraining", names=locale.listed(names)), locale("unknown"), ""])
    return rows


def unknown_pretraining(table: Table) -> list[str]:
    """Return the names of networks that may have been pretrained on test reviews."""
    return [row.name for row in table.rows if row.is_network and row.pretrained_on_test is None]
