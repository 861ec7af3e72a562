"""Test how the report reads runs from a store."""

from __future__ import annotations

import pytest
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from kinopoisk_ft.reporting.run_rows import rows_of
from kinopoisk_ft.reporting.runs import _newest, read_trained


def finished(**params: str) -> Run:
    info = RunInfo("run", "0", "", "FINISHED", 0, 0, "active")
    written = [Param(f"data.{name}", value) for name, value in params.items()]
    return Run(info, RunData(params=written, tags=[RunTag("model", "bert"), RunTag("seed", "0")]))


@pytest.mark.parametrize(
    ("limit", "seed", "repeats"),
    [("300", "0", True), ("300", "1", False), ("None", "1", True)],
)
def test_another_choice_of_training_reviews_is_another_training(
    limit: str, seed: str, repeats: bool
) -> None:
    """It is no other row of the report, because it is chance like the seed of a run."""
    runs = [read_trained(finished(train_limit=limit, train_seed=one)) for one in ("0", seed)]
    for by_settings in (True, False):
        assert len(_newest(runs, by_settings=by_settings)) == (1 if repeats else 2)
    (row,) = rows_of(runs)
    assert len(row.runs) == 2
