"""Rows → tables: one for each data set and split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kinopoisk_ft.reporting.columns import BEST, MAJORITY_COLUMNS
from kinopoisk_ft.reporting.rows import Row, rows_of
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.comparison import Approach, Comparison, compare
from kinopoisk_ft.statistics.predictions import Predictions


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows on the same test reviews, best F1 first; `best` maps a column to its best mean.

    `comparison` is what the rows' predictions say; its approaches have the rows' names.
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
        """Return the row that holds the best value of a column."""
        return next((row for row in self.rows if row.from_best.get(column) == 0), None)


def tables(runs: list[TrainedRun], predictions: Mapping[str, Predictions]) -> list[Table]:
    """Return one table for each data set and split, in the order of their names.

    `predictions` are by run id; a run without them has a score and no interval.
    """
    groups: dict[tuple[str, str, str], list[TrainedRun]] = defaultdict(list)
    for run in runs:
        groups[(run.data, run.source_digest, run.split_digest)].append(run)
    return [_table(key, groups[key], predictions) for key in sorted(groups)]


def _table(
    key: tuple[str, str, str], runs: list[TrainedRun], predictions: Mapping[str, Predictions]
) -> Table:
    rows = rows_of(runs)
    best = {}
    for column, better in BEST.items():
        means = [row.values[column].mean for row in rows if column in row.values]
        if means:
            best[column] = better(means)
    rows = [
        replace(row, from_best={c: row.values[c].mean - best[c] for c in best if c in row.values})
        for row in rows
    ]
    rows.sort(key=lambda row: (-row.values["f1_weighted"].mean, row.name))
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
    """Return the majority class's scores and whether runs of one split disagree on them."""
    seen = {
        column: {round(run.metrics[metric], 9) for run in runs if metric in run.metrics}
        for column, metric in MAJORITY_COLUMNS.items()
    }
    scores = {
        c: next(r.metrics[m] for r in runs if m in r.metrics)
        for c, m in MAJORITY_COLUMNS.items()
        if seen[c]
    }
    return scores, any(len(values) > 1 for values in seen.values())
