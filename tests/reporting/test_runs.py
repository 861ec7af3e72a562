"""Test how the report reads runs from a store."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from mlflow.entities import Param, Run, RunData, RunInfo, RunTag
from mlflow.store.entities import PagedList
from report_rows import trained

from kinopoisk_ft.reporting.run_rows import rows_of
from kinopoisk_ft.reporting.runs import _newest, _runs, read_trained
from kinopoisk_ft.reporting.table import _approach
from kinopoisk_ft.tracking.sweep import SAME_AS


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


def test_runs_are_paired_by_the_seeds_that_drew_their_reviews() -> None:
    """Run ids are random, so they must not decide which runs are compared."""
    seeds = [("0", "10"), ("0", "9"), ("1", "1"), ("0", "0")]
    for order in (seeds, seeds[::-1]):
        runs = [
            replace(trained(seed=int(seed)), train_seed=drawn, run_id=str(number))
            for number, (seed, drawn) in enumerate(order)
        ]
        (row,) = rows_of(runs)
        assert [run.repetition for run in row.runs] == ["0", "0/9", "0/10", "1"]
        assert _approach(row, {}).seeds == ("0", "0/9", "0/10", "1")


def test_a_job_that_repeats_another_one_of_its_sweep_adds_no_run() -> None:
    run = finished()
    tags = [RunTag(SAME_AS, run.info.run_id)]
    job = Run(RunInfo("job", "0", "", "FINISHED", 0, 0, "active"), RunData(tags=tags))
    pages = iter([[run], [job]])
    client = SimpleNamespace(search_runs=lambda *_, **__: PagedList(next(pages), None))
    assert _runs(client, "0", "sweep") == [run]
