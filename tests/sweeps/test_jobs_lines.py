"""Test the line that a sweep prints for each job."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinopoisk_ft.sweeps.forecast import Expected, read_forecast, write_forecast
from kinopoisk_ft.sweeps.jobs import Outcome, format_job
from kinopoisk_ft.tracking.sweep import FORECAST, notes_folder

JOBS = [
    Expected("tfidf", True, 0.0), Expected("bert", False, 100.0), Expected("bert", False, 100.0),
    Expected("bert + lora", False, 60.0),
]  # fmt: skip


def test_the_time_left_is_corrected_by_the_measured_times() -> None:
    """The job with 100 expected seconds took 50, so the other 160 seconds become 80."""
    line = format_job(1, "bert, seed 0", 0.9214, 50.0, JOBS, ended({0: 1.0, 1: 50.0}))
    assert line == "2/4 bert, seed 0: test f1_weighted 0.921 in 50 s, about 80 s left"


def test_the_time_left_is_shared_by_jobs_that_run_at_the_same_time() -> None:
    """Three jobs of 100 s are left for two places: one that is running, and one that is free."""
    jobs, running = [Expected("bert", False, 100.0)] * 4, [Outcome(1, "unfinished", [])]
    line = format_job(0, "a", 0.5, 100.0, jobs, [*ended({0: 100.0}), *running])
    assert line.endswith(", about 2 min left")
    # The last job runs alone.
    line = format_job(0, "a", 0.5, 100.0, jobs[:2], [*ended({0: 60.0}), *running])
    assert line.endswith(", about 60 s left")


def test_failed_and_pruned_jobs_are_not_left() -> None:
    others = [Outcome(2, "failed", []), Outcome(3, "pruned", [], seconds=9.0)]
    line = format_job(1, "a", 0.5, 50.0, JOBS, [*ended({0: 1.0, 1: 50.0}), *others])
    assert line == "2/4 a: test f1_weighted 0.500 in 50 s"


def ended(took: dict[int, float]) -> list[Outcome]:
    return [Outcome(job, "done", [], seconds=seconds) for job, seconds in took.items()]


@pytest.mark.parametrize(
    ("expected", "took", "line"),
    [
        (JOBS, {0: 1.0}, "1/4 a: test f1_weighted 0.500 in 1 s"),
        (JOBS, {0: 1.0, 1: 9.0, 2: 9.0, 3: 9.0}, "1/4 a: test f1_weighted 0.500 in 1 s"),
        ([], {0: 1.0}, "1 a: test f1_weighted 0.500 in 1 s"),
        ([*JOBS, Expected("own", False, None)], {1: 9.0}, "1/5 a: test f1_weighted 0.500 in 1 s"),
    ],
)
def test_without_a_basis_no_time_is_said(
    expected: list[Expected], took: dict[int, float], line: str
) -> None:
    assert format_job(0, "a", 0.5, 1.0, expected, ended(took)) == line


def test_a_skipped_job_names_the_earlier_run() -> None:
    line = format_job(0, "tfidf, seed 1", 0.9, 0.5, JOBS, ended({0: 0.5}), "1a2b")
    assert line == "1/4 tfidf, seed 1: test f1_weighted 0.900 (skipped: identical to run 1a2b)"


def test_pretraining_has_no_test_score() -> None:
    assert format_job(0, "bert", None, 100.0, [], []) == "1 bert: finished in 2 min"


def test_the_forecast_is_read_by_other_processes(tmp_path: Path) -> None:
    assert read_forecast(tmp_path) == []
    write_forecast(JOBS, tmp_path)
    assert read_forecast(tmp_path) == JOBS
    (notes_folder(tmp_path) / FORECAST).write_text("[1]")
    assert read_forecast(tmp_path) == []
