"""Test that the test sets of all folds are compared together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_rows import trained
from report_store import answers
from sklearn.metrics import f1_score

from kinopoisk_ft.commands.report import summarize_sweep
from kinopoisk_ft.reporting.document import Document, build
from kinopoisk_ft.reporting.folds import pool_folds
from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.run_files import RunFiles
from kinopoisk_ft.reporting.runs import Collected, TrainedRun
from kinopoisk_ft.statistics.predictions import Predictions

EN = Locale("en")


def made() -> tuple[Collected, RunFiles]:
    """Return two approaches with two seeds and three folds of equal size."""
    runs, predictions = [], {}
    for model, skill in (("bert", 3.0), ("gru", 2.0)):
        for seed in range(2):
            table = answers(seed, skill)
            for fold in range(3):
                settings = {"data.folds": "3", "data.fold": str(fold)}
                run = trained(model, seed=seed, settings=settings, split=f"fold {fold}",
                              train_seconds=10.0 * (1 + fold))  # fmt: skip
                run = replace(run, run_id=f"{model} {seed} {fold}")
                runs.append(run)
                part = table[table["row"] // 3 % 3 == fold]
                predictions[run.run_id] = Predictions.of(part, run.run_id)
    return Collected(experiment="folds", runs=runs), RunFiles(predictions, {})


def test_all_reviews_are_in_one_table() -> None:
    collected, files = pool_folds(*made())
    assert len(collected.runs) == 4
    document = build(collected, files.predictions, None, EN)
    (section,) = document.sections
    assert [(row.name, len(row.runs)) for row in section.table.rows] == [("bert", 2), ("gru", 2)]
    for run in collected.runs:
        table = answers(int(run.seed), 3.0 if run.model == "bert" else 2.0)
        expected = f1_score(table["label"], table["predicted"], average="weighted")
        assert run.metrics["test_f1_weighted"] == pytest.approx(expected)
        assert run.metrics["train_seconds"] == pytest.approx(20.0)
        pooled = files.predictions[run.run_id]
        np.testing.assert_array_equal(pooled.rows, table["row"])
        np.testing.assert_array_equal(pooled.predicted, table["predicted"])
        assert pooled.facts["film"].tolist() == table["film"].tolist()
    assert "The test sets of 3 folds are pooled" in " ".join(section.notes)


def test_the_majority_class_is_scored_on_all_reviews() -> None:
    """Its F1 is not the mean F1 of the folds. The training reviews of a fold decide the class."""
    collected, files = made()
    usual = {"0": 1, "1": 1, "2": 0}
    for run in collected.runs:
        labels = files.predictions[run.run_id].labels
        right = labels == usual[run.settings["data.fold"]]
        run.metrics.update(majority_accuracy=right.mean(), majority_f1_weighted=0.5)
    for run in pool_folds(collected, files)[0].runs:
        table = answers(int(run.seed), 3.0)
        predicted = [usual[str(row // 3 % 3)] for row in table["row"]]
        expected = f1_score(table["label"], predicted, average="weighted")
        assert run.metrics["majority_f1_weighted"] == pytest.approx(expected)
        assert run.metrics["majority_accuracy"] == pytest.approx(
            (table["label"] == predicted).mean()
        )


def test_the_summary_of_a_sweep_pools_the_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a sweep must show the same table as a report on the sweep."""
    collected, files = made()
    described: list[Document] = []
    package = "kinopoisk_ft.reporting"
    monkeypatch.setattr("kinopoisk_ft.tracking.store.open_store", lambda _: None)
    monkeypatch.setattr(f"{package}.runs.collect", lambda *_: collected)
    monkeypatch.setattr(f"{package}.run_files.load_run_files", lambda *_: files)
    monkeypatch.setattr(
        f"{package}.saved_view.describe_sweep", lambda *args, **_: described.append(args[2])
    )
    text = summarize_sweep("sqlite:///mlflow.db", "parent")
    (section,) = described[0].sections
    assert [(row.name, len(row.runs)) for row in section.table.rows] == [("bert", 2), ("gru", 2)]
    assert "fold 1" not in text


def test_films_of_several_folds_are_counted_once() -> None:
    collected, files = made()
    for run in collected.runs:
        run.metrics.update(leakage_films=90.0, leakage_near_duplicates=2.0)
    for run in pool_folds(collected, files)[0].runs:
        assert run.metrics["leakage_films"] == 90.0
        assert run.metrics["leakage_near_duplicates"] == 6.0


def test_more_reviews_decide_what_one_fold_does_not() -> None:
    collected, files = made()
    single = replace(collected, runs=[r for r in collected.runs if r.settings["data.fold"] == "0"])
    (one,) = build(single, files.predictions, None, EN).sections
    pooled, joined = pool_folds(collected, files)
    (all_folds,) = build(pooled, joined.predictions, None, EN).sections
    widths = []
    for section in (one, all_folds):
        interval = section.table.comparison.means["bert"]["f1_weighted"]
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0]


@pytest.mark.parametrize("missing", ["run", "predictions"])
def test_an_incomplete_cross_validation_stays_separate(missing: str) -> None:
    collected, files = made()
    name = "gru 1 2"
    if missing == "run":
        collected = replace(collected, runs=[r for r in collected.runs if r.run_id != name])
    else:
        files = RunFiles({k: v for k, v in files.predictions.items() if k != name}, {})
    found = pool_folds(collected, files)[0].runs
    separate = [run for run in found if "data.fold" in run.settings]
    assert {run.run_id.rpartition(" ")[0] for run in separate} == {"gru 1"}
    assert len(found) - len(separate) == 3


def test_a_fold_that_has_not_learned_marks_the_training() -> None:
    collected, files = made()
    runs: list[TrainedRun] = [
        replace(run, not_learned="test") if run.run_id == "bert 0 1" else run
        for run in collected.runs
    ]
    found = pool_folds(replace(collected, runs=runs), files)[0].runs
    assert {run.run_id: run.not_learned for run in found}["bert 0 0"] == "test"


def test_what_a_pooled_run_says_of_itself_holds_for_all_folds() -> None:
    collected, files = made()
    runs = [
        replace(
            run,
            command=f"python -m kinopoisk_ft data.folds=3 data.fold={run.settings['data.fold']}",
            metrics=run.metrics
            | {"leakage_pretraining": 30.0, "leakage_pretraining_share": 0.15, "temperature": 2.0},
        )
        for run in collected.runs
    ]
    found = pool_folds(replace(collected, runs=runs), files)[0].runs[0]
    assert found.command == "python -m kinopoisk_ft data.folds=3 -m data.fold=0,1,2"
    assert found.metrics["leakage_pretraining"] == 90
    assert found.metrics["leakage_pretraining_share"] == pytest.approx(0.15)
    assert "temperature" not in found.metrics
