"""The columns of the report: the MLflow metric behind each, how it is written, where it is shown.

To add a column, write its line in `COLUMNS` and its label in the two locale files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from kinopoisk_ft.statistics.calibration import CALIBRATED, THRESHOLD
from kinopoisk_ft.statistics.metrics import METRICS, Metric, shown_in

Kind = Literal["score", "seconds", "count", "share"]
# `results` and `sizes` are tables of the Markdown report, `page` the main table of the page, `view`
# the columns of MLflow's table of runs.
Shown = Literal["results", "sizes", "page", "view", "calibration"]
MAIN: tuple[Shown, ...] = ("results", "page", "view")
SIZES: tuple[Shown, ...] = ("sizes", "page", "view")


@dataclass(frozen=True)
class Column:
    """A value of each row of the report.

    Args:
        name: in CSV and JSON; also the key of its label.
        metric: in MLflow; the name itself if empty.
        kind: how it is written. A score or a time has a deviation over seeds.
        unit: the key of its unit, which follows the label; empty for pure numbers.
        shown_in: the tables that show it.
        best: the better one of two values; the best is then marked and distances are shown.
        mark: the column of CSV and JSON that says which row is the best.
        charged: the metric of a cost that another run paid for this one, added to the value.
        expected: True if a note names the runs that lack it.
        interval: True if the comparison has an interval for it.
    """

    name: str
    metric: str = ""
    kind: Kind = "score"
    unit: str = ""
    shown_in: tuple[Shown, ...] = ()
    best: Literal["max", "min"] | None = None
    mark: str = ""
    charged: str = ""
    expected: bool = False
    interval: bool = False
    digits: int = 4

    def better(self, values: list[float]) -> float:
        """Return the best of at least one value."""
        return min(values) if self.best == "min" else max(values)


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
    yield Column("temperature", shown_in=("calibration",))
    for metric in shown_in("calibration"):
        for name in (metric.name, f"{metric.name}{CALIBRATED}"):
            yield Column(name, f"test_{name}", unit=metric.unit, shown_in=("calibration",))
    yield Column("threshold", shown_in=("calibration",))
    for metric in shown_in("threshold"):
        name = f"{metric.name}{THRESHOLD}"
        yield Column(name, f"test_{name}", shown_in=("calibration",))


# The cost of building the prefix cache is charged to every run that uses it.
COLUMNS = {
    column.name: column
    for column in (
        *(_score(metric) for metric in METRICS if "results" in metric.shown_in),
        Column("train_seconds", kind="seconds", unit="s", shown_in=MAIN, best="min",
               mark="min_time", charged="prefix_build_seconds", expected=True),
        Column("eval_seconds", kind="seconds", unit="s", shown_in=MAIN,
               charged="prefix_test_build_seconds", expected=True),
        Column("trainable_parameters", kind="count", shown_in=MAIN, expected=True),
        Column("total_parameters", kind="count", shown_in=SIZES, expected=True),
        Column("peak_memory_mb", kind="count", unit="MB", shown_in=SIZES),
        Column("tokens_per_second", kind="count", shown_in=SIZES),
        Column("characters_seen_share", kind="share", shown_in=SIZES),
        *_calibration(),
    )
}  # fmt: skip
BEST = {name: column for name, column in COLUMNS.items() if column.best}
MARKS = {column.mark: name for name, column in COLUMNS.items() if column.mark}
# The majority class's score under the name of the column that it belongs to.
MAJORITY = {metric.name: f"majority_{metric.name}" for metric in METRICS if metric.of_counts}


def columns_in(table: Shown) -> list[Column]:
    """Return the columns that a table shows."""
    return [column for column in COLUMNS.values() if table in column.shown_in]
