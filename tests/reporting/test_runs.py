"""Test how the report reads runs from a store."""

from __future__ import annotations

import pytest
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag

from kinopoisk_ft.reporting.runs import READ, read_trained


def finished(**params: str) -> Run:
    info = RunInfo("run", "0", "", "FINISHED", 0, 0, "active")
    written = [Param(f"data.{name}", value) for name, value in params.items()]
    return Run(info, RunData(params=written, tags=[RunTag("model", "bert"), RunTag("seed", "0")]))


@pytest.mark.parametrize(
    ("limit", "train_seed", "repeats"),
    [("300", "0", True), ("300", "1", False), ("None", "1", True)],
)
def test_another_choice_of_training_reviews_is_another_training(
    limit: str, train_seed: str, repeats: bool
) -> None:
    """By default, the seed of a run also chooses its training reviews."""
    usual = read_trained(finished(train_limit=limit, train_seed="0"))
    other = read_trained(finished(train_limit=limit, train_seed=train_seed))
    assert (usual.settings == other.settings) == repeats
    # Reports on a whole experiment compare only these settings.
    assert [usual.settings.get(k) == other.settings.get(k) for k in READ].count(False) == (
        not repeats
    )
