"""Build the tables that compare runs with the same data, split and number of labels."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kinopoisk_ft.reporting.columns import BEST, MAJORITY, Column
from kinopoisk_ft.reporting.locale import MINUS, NOTHING, Locale, time_digits
from kinopoisk_ft.reporting.run_rows import SEARCH, TRIAL, Row, rows_of, with_cost
from kinopoisk_ft.reporting.runs import TrainedRun
from kinopoisk_ft.statistics.bootstrap import Interval
from kinopoisk_ft.statistics.comparison import Approach, Comparison, compare
from kinopoisk_ft.statistics.equivalence import (
    MARGIN,
    STRICT_MARGIN,
    Decision,
    decide,
    decide_together,
)
from kinopoisk_ft.statistics.metrics import HEADLINE, count_confusion, scores
from kinopoisk_ft.statistics.predictions import Predictions

DIGEST_CHARACTERS = 12
# The data set of generated reviews; see conf/data/demo.yaml.
DEMO = "demo"


@dataclass(frozen=True)
class Against:
    """The difference in weighted F1: an approach minus the best approach.

    The ends of `interval` are simultaneous bounds; see `equivalence.Decision`. `verdict` is a
    result of `Table.verdict`. For `paired`, see `pairs.Pair`.
    """

    name: str
    interval: Interval
    verdict: str
    paired: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with the same data, split and number of labels, sorted by weighted F1.

    Rows that have not learned (see `Row.learned`) come last.

    Args:
        best: best mean, by column. Doubtful times are left out, and rows that have not learned
            count only if no row has learned.
        majority: mean scores of the majority-class baseline over the runs, by column.
        majority_differs: True if the runs recorded different scores of this baseline.
        comparison: statistical comparison of the rows. Its approach names are the row names.
        decisions: {margin: {row name: decision}}. A decision tells whether the row is as good as
            the first row. Rows that have not learned are missing. The p-values are corrected for
            multiple tests over all tables with the same test reviews.
        train_limit: the setting data.train_limit; "" if all reviews of the train split are used.
    """

    data: str
    split_digest: str
    source_digest: str
    rows: tuple[Row, ...]
    best: dict[str, float]
    majority: dict[str, float]
    majority_differs: bool
    comparison: Comparison
    decisions: dict[float, dict[str, Decision]]
    train_limit: str = ""

    @property
    def learned(self) -> list[Row]:
        """Return the rows that have learned, best row first."""
        return [row for row in self.rows if row.learned]

    @property
    def only_trials(self) -> bool:
        """Return whether all runs are trials of a hyperparameter search.

        The search chooses one of them by its validation score, so their test scores are not ranked.
        """
        return all(row.compared(SEARCH) == TRIAL for row in self.rows)

    @property
    def several_subsets(self) -> bool:
        """Return whether data.train_limit chose different training reviews for the runs."""
        return len({run.train_seed for row in self.rows for run in row.runs}) > 1

    def decide(self, a: str, b: str) -> Decision | None:
        """Decide whether row `a` is as good as row `b`; None if they cannot be compared.

        `a` and `b` are names. If `b` is the first row, the decision is taken from `decisions`.
        Otherwise, a new decision is made, with p-values that are not corrected for multiple tests.
        """
        if b == self.rows[0].name and a in self.decisions[MARGIN]:
            return self.decisions[MARGIN][a]
        pair = self.comparison.pair(a, b)
        return decide([pair.differences[HEADLINE]])[0] if pair else None

    def verdict(self, row: Row, margin: float = MARGIN) -> str:
        """Return the verdict on a row as a key of the locale, or "" if the row was not compared.

        The keys are "reference" (for the best row), "as_good", "worse", "undecided" and
        "not_learned".
        """
        if not row.learned:
            return "not_learned"
        if row is self.rows[0]:
            return "reference"
        decision = self.decisions[margin].get(row.name)
        return decision.verdict.replace(" ", "_") if decision else ""

    def interval(self, row: Row, column: str) -> Interval | None:
        """Return the mean of a score with its 95% interval, or None if there is no interval."""
        return self.comparison.means.get(row.name, {}).get(column)

    @property
    def train_reviews(self) -> float | None:
        """Return the mean number of training reviews, or None if no run recorded it.

        If data.train_limit is set, the number depends on the seed, because either all reviews of a
        film are selected or none; see `label_budget.limit_rows`.
        """
        runs = [run.metrics for row in self.rows for run in row.runs]
        counts = [metrics["train_reviews"] for metrics in runs if "train_reviews" in metrics]
        return statistics.fmean(counts) if counts else None

    def against_best(self) -> list[Against]:
        """Return the differences of the rows from the best row, in the order of the rows."""
        found = []
        for row in self.learned[1:]:
            decision = self.decisions[MARGIN].get(row.name)
            pair = self.comparison.pair(row.name, self.rows[0].name)
            if decision and pair:
                mean = pair.differences[HEADLINE].mean
                interval = Interval(mean, decision.low, decision.high)
                found.append(Against(row.name, interval, self.verdict(row), pair.paired))
        return found

    @property
    def majority_from_best(self) -> dict[str, float]:
        """Return the score of the majority class minus the best mean, by column."""
        return {c: self.majority[c] - best for c, best in self.best.items() if c in self.majority}

    @property
    def leakage(self) -> dict[str, float]:
        """Return the mean of each leakage metric over the runs that recorded it.

        With data.train_limit, leakage depends on the chosen training reviews.
        """
        found = defaultdict(list)
        for metrics in (run.metrics for row in self.rows for run in row.runs):
            for name in (name for name in metrics if name.startswith("leakage_")):
                found[name].append(metrics[name])
        return {name: statistics.fmean(values) for name, values in found.items()}


def tables(runs: list[TrainedRun], predictions: Mapping[str, Predictions]) -> list[Table]:
    """Return one table for each combination of data set, split and number of labels.

    `predictions` is {run id: predictions}. Runs without predictions have scores but no intervals.
    """
    # {(data, digest of the source, digest of the split): {data.train_limit: runs}}.
    groups: dict[tuple[str, ...], dict[str, list[TrainedRun]]]
    groups = defaultdict(lambda: defaultdict(list))
    for run in runs:
        limit = run.settings.get("data.train_limit", "None")
        known = _add_scores(run, predictions.get(run.run_id))
        key = (run.data, run.source_digest, run.split_digest)
        groups[key]["" if limit == "None" else limit].append(known)
    found = []
    for _, limits in sorted(groups.items()):
        made = [_table(limit, members, predictions) for limit, members in limits.items()]
        found += _decide(sorted(made, key=_count_labels, reverse=True))
    return found


def _count_labels(table: Table) -> tuple[float, float]:
    # "" means no limit, so it sorts as infinity.
    limit = float(table.train_limit or "inf")
    # Earlier versions did not record the number. A limit that is a fraction then comes last.
    return (limit if table.train_reviews is None else table.train_reviews), limit


def _decide(tables: list[Table]) -> list[Table]:
    # The decisions are added to finished tables, because Holm's correction covers all of them.
    learned = [table for table in tables if table.learned]
    groups = [(t.rows[0].name, [row.name for row in t.learned], t.comparison) for t in learned]
    for margin in (MARGIN, STRICT_MARGIN):
        for table in tables:
            table.decisions[margin] = {}
        for table, decisions in zip(learned, decide_together(groups, margin), strict=True):
            table.decisions[margin] = decisions
    return tables


def _add_scores(run: TrainedRun, predictions: Predictions | None) -> TrainedRun:
    if predictions is None:
        return run
    classes = len(predictions.class_names)
    # Earlier versions did not record all metrics.
    found = scores(count_confusion(predictions.labels, predictions.predicted, classes))
    metrics = {f"test_{name}": float(value) for name, value in found.items()}
    return replace(run, metrics=metrics | run.metrics)


def _table(limit: str, runs: list[TrainedRun], predictions: Mapping[str, Predictions]) -> Table:
    rows = rows_of(runs)
    learned = [row for row in rows if row.learned] or rows
    best = {}
    for name, column in BEST.items():
        if means := [row.values[name].mean for row in with_cost(learned, name)]:
            best[name] = min(means) if column.best == "min" else max(means)
    rows = [
        replace(
            row,
            from_best={c: row.values[c].mean - b for c, b in best.items() if with_cost([row], c)},
        )
        for row in rows
    ]
    # The name makes the order of equal scores reproducible.
    rows.sort(key=lambda row: (not row.learned, -row.values[HEADLINE].mean, row.name))
    majority, differs = _majority(runs)
    return Table(
        data=runs[0].data,
        split_digest=runs[0].split_digest,
        source_digest=runs[0].source_digest,
        rows=tuple(rows),
        best=best,
        majority=majority,
        majority_differs=differs,
        # In each pair of the comparison, `a` is the row that comes first in the table.
        comparison=compare([_approach(row, predictions) for row in rows]),
        decisions={},
        train_limit=limit,
    )


def _approach(row: Row, predictions: Mapping[str, Predictions]) -> Approach:
    return Approach(
        name=row.name,
        seeds=tuple(run.repetition for run in row.runs),
        runs=tuple(predictions.get(run.run_id) for run in row.runs),
        temperatures=tuple(run.metrics.get("temperature") for run in row.runs),
    )


def _majority(runs: list[TrainedRun]) -> tuple[dict[str, float], bool]:
    seen = {
        column: [run.metrics[metric] for run in runs if metric in run.metrics]
        for column, metric in MAJORITY.items()
    }
    # Earlier versions recorded these scores in single precision.
    differs = any(len({round(value, 6) for value in values}) > 1 for values in seen.values())
    # Unlike `fmean`, `mean` returns the common value of equal scores without a rounding error.
    means = {column: statistics.mean(values) for column, values in seen.items() if values}
    return means, differs


def data_line(table: Table, locale: Locale, *, digest: bool = True) -> str:
    """Describe the data and the split in one line, with or without the digest of the split."""
    rules = sorted({row.setting("data.split") for row in table.rows} - {""})
    # `label` returns the key itself if a rule has no label.
    names = [locale.label(f"split_{rule}").removeprefix("split_") for rule in rules]
    rule = locale("split_rule", rule=locale.listed(names)) if names else ""
    rows = ", " + locale("test_rows", digest=write_digest(table)) if digest else ""
    limit = locale("limited_to", limit=write_limit(table, locale)) if table.train_limit else ""
    name = f"{table.data} {locale('synthetic')}" if table.data == DEMO else table.data
    return locale("data", data=name, rule=rule) + rows + limit


def write_limit(table: Table, locale: Locale) -> str:
    """Format data.train_limit: a number, a fraction as a percentage, or "all" without a limit."""
    if not table.train_limit:
        return locale("all_labels")
    limit = float(table.train_limit)
    if limit < 1:
        return locale("labels_share", share=locale.percent(limit))
    return locale.number(limit, 0)


def write_digest(table: Table) -> str:
    """Return the start of the digest of the split, which identifies the test reviews."""
    return table.split_digest[:DIGEST_CHARACTERS]


def write_pair(a: str, b: str, paired: bool, locale: Locale) -> str:
    """Return a label for the difference a - b, with a mark if the test reviews differ."""
    name = f"{a} {MINUS} {b}"
    return name if paired else locale("unpaired_mark", name=name)


def write_mean(row: Row, column: Column, locale: Locale) -> str:
    """Format mean ± standard deviation.

    Only the mean is written if there is one seed, or if the column contains counts or shares.
    """
    spread = row.values.get(column.name)
    if spread is None:
        return NOTHING
    mean = locale.value(spread.mean, column)
    if spread.std is None or column.kind in ("count", "share"):
        return mean
    digits = time_digits(spread.mean) if column.kind == "seconds" else column.digits
    return f"{mean} ± {locale.number(spread.std, digits)}"


def write_interval(table: Table, row: Row, column: Column, locale: Locale) -> str:
    """Format the 95% interval of a mean, or return "" if there is none."""
    found = table.interval(row, column.name)
    return locale.interval(found) if found else ""


def write_measured(table: Table, row: Row, column: Column, locale: Locale) -> str:
    """Format mean ± standard deviation [interval]."""
    interval = write_interval(table, row, column, locale)
    return f"{write_mean(row, column, locale)} {interval}".rstrip()


def unknown_pretraining(table: Table) -> list[str]:
    """Return the names of networks whose overlap of pretraining and test data is unknown."""
    return [row.name for row in table.rows if row.is_network and row.pretrained_on_test is None]
