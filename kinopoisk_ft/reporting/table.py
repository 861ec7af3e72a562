"""Runs → tables: one table for each data set and split, one row for each approach."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.comparison import Approach, Comparison, compare
from kinopoisk_ft.statistics.predictions import Predictions

# Column of the table → metric of the run.
COLUMNS = {
    "accuracy": "test_accuracy",
    "f1_weighted": "test_f1_weighted",
    "f1_macro": "test_f1_macro",
    "train_seconds": "train_seconds",
    "eval_seconds": "eval_seconds",
    "trainable_parameters": "trainable_parameters",
    "total_parameters": "total_parameters",
    "peak_memory_mb": "peak_memory_mb",
    "tokens_per_second": "tokens_per_second",
    "characters_seen_share": "characters_seen_share",
    "temperature": "temperature",
    "ece": "test_ece",
    "ece_calibrated": "test_ece_calibrated",
    "brier": "test_brier",
    "brier_calibrated": "test_brier_calibrated",
    "nll": "test_nll",
    "nll_calibrated": "test_nll_calibrated",
    "threshold": "threshold",
    "accuracy_threshold": "test_accuracy_threshold",
    "f1_weighted_threshold": "test_f1_weighted_threshold",
}
# Column → what a run from cached states of its frozen layers owes to the run that made them.
OWED = {"train_seconds": "prefix_build_seconds", "eval_seconds": "prefix_test_build_seconds"}
# What every run should have recorded; a note names what is missing.
EXPECTED = (
    "accuracy", "f1_weighted", "f1_macro", "train_seconds", "eval_seconds",
    "trainable_parameters", "total_parameters",
)  # fmt: skip
MAJORITY_COLUMNS = {name: f"majority_{name}" for name in ("accuracy", "f1_weighted", "f1_macro")}
# Column → the better of two values; these are marked and differenced.
BEST = {"accuracy": max, "f1_weighted": max, "train_seconds": min}
MARKS = {"min_time": "train_seconds", "best_accuracy": "accuracy", "best_f1": "f1_weighted"}
SETTINGS_IN_NAME = 2


@dataclass(frozen=True)
class Spread:
    """Mean over n seeds and the standard deviation of one seed (n - 1; None where n = 1)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One approach: its runs differ in the seed alone.

    `values` lacks what no run recorded; `from_best` holds the signed distances from the best.
    """

    name: str
    runs: tuple[TrainedRun, ...]
    values: dict[str, Spread]
    own_settings: dict[str, str]  # those that tell it from rows of the same approach
    from_best: dict[str, float]

    @property
    def first(self) -> TrainedRun:
        """Return any one run: model, adapter and settings are those of all."""
        return self.runs[0]

    def mean(self, column: str) -> float | None:
        """Return the mean of a column, None where nothing was recorded."""
        return self.values[column].mean if column in self.values else None

    def marked(self, mark: str) -> bool:
        """Return whether the row is the best in the sense of a mark of `MARKS`."""
        return self.from_best.get(MARKS[mark]) == 0


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
    rows = _rows(runs)
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


def _rows(runs: list[TrainedRun]) -> list[Row]:
    by_approach: dict[str, dict[str, list[TrainedRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_approach[run.approach][str(run.settings)].append(run)
    rows = []
    for approach, recipes in sorted(by_approach.items()):
        groups = list(recipes.values())
        own = _own_settings([group[0].settings for group in groups])
        for number, (group, settings) in enumerate(zip(groups, own, strict=True), start=1):
            group.sort(key=lambda run: (len(run.seed), run.seed, run.run_id))
            name = _name(approach, settings, number)
            values = _values(group)
            rows.append(
                Row(
                    name=name, runs=tuple(group), values=values, own_settings=settings, from_best={}
                )
            )
    return rows


def _values(runs: list[TrainedRun]) -> dict[str, Spread]:
    found = {
        column: [
            run.metrics[metric] + run.metrics.get(OWED.get(column, ""), 0.0)
            for run in runs
            if metric in run.metrics
        ]
        for column, metric in COLUMNS.items()
    }
    return {column: Spread.of(values) for column, values in found.items() if values}


def _own_settings(recipes: list[dict[str, str]]) -> list[dict[str, str]]:
    keys = sorted({key for recipe in recipes for key in recipe})
    differing = [k for k in keys if len({recipe.get(k) for recipe in recipes}) > 1]
    return [{k: recipe.get(k, "-") for k in differing} for recipe in recipes]


def _name(approach: str, own: dict[str, str], number: int) -> str:
    """Name a row after its approach, and after what tells it from another of the same name."""
    if not own:
        return approach
    if len(own) > SETTINGS_IN_NAME:
        return f"{approach} #{number}"
    short = {key: key.rpartition(".")[2] for key in own}
    if len(set(short.values())) < len(short):
        short = {key: key for key in own}
    return f"{approach} ({', '.join(f'{short[k]}={v}' for k, v in own.items())})"
