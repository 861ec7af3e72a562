"""Define the columns of the report.

To add a column, add an entry to `COLUMNS` and a label to each file in reporting/locale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kinopoisk_ft.statistics.calibration import CALIBRATED, THRESHOLD
from kinopoisk_ft.statistics.metrics import METRICS, Metric, shown_in

Kind = Literal["score", "seconds", "count", "share"]
# `page` is the main table of the HTML page, `view` is the table of runs in the MLflow UI. The
# others are tables of the Markdown report.
Shown = Literal["results", "sizes", "page", "view", "calibration"]
TIME, TRAINABLE, MEMORY = "train_seconds", "trainable_parameters", "peak_memory_mb"
# Columns that measure a cost, with the name of the limit on this cost; see `Choice.limit`.
COSTS = {TIME: "time", TRAINABLE: "parameters", MEMORY: "memory"}
MAIN: tuple[Shown, ...] = ("results", "page", "view")
SIZES: tuple[Shown, ...] = ("sizes", "page", "view")


@dataclass(frozen=True)
class Column:
    """A quantity that the report shows for each row of a table; see `run_rows.Row`.

    Args:
        name: name in CSV and JSON, and in the locale files.
        metric: name of the MLflow metric; empty if equal to `name`.
        kind: number format. Only scores and times are shown with a standard deviation.
        unit: unit, such as "MiB"; empty for pure numbers.
        shown_in: the tables that show the column.
        best: whether the maximum or the minimum is the best value; None if no value is marked.
        mark: name of the CSV and JSON column that marks the row with the best value.
        charged: names of other metrics that are added to the value, such as the time to fill a
            cache.
        expected: True if every row should have a value. A note lists the rows without one.
        interval: True if the report contains a confidence interval of the value.
    """

    name: str
    metric: str = ""
    kind: Kind = "score"
    unit: str = ""
    shown_in: tuple[Shown, ...] = ()
    best: Literal["max", "min"] | None = None
    mark: str = ""
    charged: tuple[str, ...] = ()
    expected: bool = False
    interval: bool = False
    # Number of decimals, which only values of the kind "score" use.
    digits: int = 4


def _score(metric: Metric) -> Column:
    return Column(
        metric.name,
        f"test_{metric.name}",
        unit=metric.unit,
        shown_in=MAIN,
        best=("min" if metric.lower_is_better else "max") if metric.mark else None,
        mark=metric.mark,
        interval=metric.of_counts is not None,
        digits=metric.digits,
    )


def _calibration() -> Iterator[Column]:
    # The temperature and the threshold are fitted on the validation split.
    yield Column("temperature", shown_in=("calibration",))
    for metric in shown_in("calibration"):
        # One column is before and one after temperature scaling (Guo et al., 2017).
        for name in (metric.name, f"{metric.name}{CALIBRATED}"):
            yield Column(name, f"test_{name}", unit=metric.unit, shown_in=("calibration",))
    yield Column("threshold", shown_in=("calibration",))
    for metric in shown_in("threshold"):
        name = f"{metric.name}{THRESHOLD}"
        yield Column(name, f"test_{name}", shown_in=("calibration",))


# If a run uses cached activations of frozen layers (`prefix_cache`), the time to fill the cache is
# added to the training and test times of the run. The time of `head_first` is added to training.
COLUMNS = {
    column.name: column
    for column in (
        *(_score(metric) for metric in METRICS if "results" in metric.shown_in),
        Column(TIME, kind="seconds", unit="s", shown_in=MAIN, best="min",
               mark="min_time", charged=("prefix_build_seconds", "head_seconds"), expected=True),
        Column("eval_seconds", kind="seconds", unit="s", shown_in=MAIN,
               charged=("prefix_test_build_seconds",), expected=True),
        Column(TRAINABLE, kind="count", shown_in=MAIN, expected=True),
        Column("total_parameters", kind="count", shown_in=SIZES, expected=True),
        # Despite its name, this metric is in MiB.
        Column(MEMORY, kind="count", unit="MiB", shown_in=SIZES),
        # The number of training tokens divided by train_seconds.
        Column("tokens_per_second", kind="count", shown_in=SIZES),
        # This counts the texts of all three parts, because training and the choice of the epoch
        # depend on them, too.
        Column("characters_seen_share", kind="share", shown_in=SIZES),
        Column("tuning_trials", kind="count", shown_in=SIZES),
        *_calibration(),
    )
}  # fmt: skip
BEST = {name: column for name, column in COLUMNS.items() if column.best}
MARKS = {column.mark: name for name, column in COLUMNS.items() if column.mark}
# MLflow metric with the score of always predicting the majority class, by column.
MAJORITY = {metric.name: f"majority_{metric.name}" for metric in METRICS if metric.of_counts}


def columns_in(table: Shown) -> list[Column]:
    """Return the columns that a table shows."""
    return [column for column in COLUMNS.values() if table in column.shown_in]
