"""Test intervals, differences, calibration and slices in every format of the report."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from report_store import ANSWERED, Store, answers, filled_store, report
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kinopoisk_ft.reporting.locale import Locale
from kinopoisk_ft.reporting.plots.comparison_plots import draw_calibration, draw_differences
from kinopoisk_ft.reporting.plots.looks import assign_looks
from kinopoisk_ft.reporting.run_files import load_run_files
from kinopoisk_ft.reporting.runs import collect
from kinopoisk_ft.reporting.table import Table, tables
from kinopoisk_ft.statistics.equivalence import MARGIN

EN = Locale("en")
NAMES = {"bert 178M", "bert 178M + LoRA", "mamba 178M", "TF-IDF"}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return filled_store(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answered")


@pytest.fixture(scope="session")
def answered(store: Store, folder: Path) -> tuple:
    return report(store, folder, "experiment=answered", figures=True)


@pytest.fixture(scope="session")
def table(store: Store) -> Table:
    collected = collect(store.client, "answered")
    (found,) = tables(collected.runs, load_run_files(store.client, collected.runs).predictions)
    return found


def test_means_have_intervals_around_them(answered: tuple) -> None:
    rows = answered[0].set_index("approach")
    for metric in ("accuracy", "f1_weighted", "f1_macro"):
        for name in NAMES:
            low, mean, high = (rows.loc[name, f"{metric}{end}"] for end in ("_low", "", "_high"))
            assert low < mean < high
        assert np.isnan(rows.loc["majority class", f"{metric}_low"])
    text = f"{rows.loc['TF-IDF', 'accuracy']:.4f} [{rows.loc['TF-IDF', 'accuracy_low']:.4f}, "
    assert text in answered[2]


def test_a_metric_that_a_run_did_not_record_comes_from_its_predictions(answered: tuple) -> None:
    """Like runs of earlier versions, these runs recorded no MCC."""
    rows = answered[0].set_index("approach")
    run = answers(0, next(skill for model, _, skill, *_ in ANSWERED if model == "tfidf"))
    expected = matthews_corrcoef(run["label"], run["predicted"])
    assert rows.loc["TF-IDF", "mcc"] == pytest.approx(expected)
    assert rows.loc["TF-IDF", "mcc_low"] < expected < rows.loc["TF-IDF", "mcc_high"]
    assert "| macro F1 | Matthews correlation (MCC) |" in answered[2]
    assert f"| {expected:.4f} [" in answered[2]


def test_differences_are_those_of_the_metrics(answered: tuple, folder: Path) -> None:
    found = pd.read_csv(folder / "comparison-differences.csv")
    assert len(found) == 6 * 4
    assert set(found["a"]) | set(found["b"]) == NAMES
    means = answered[0].set_index("approach")
    for row in found.itertuples():
        expected = means.loc[row.a, row.metric] - means.loc[row.b, row.metric]
        assert row.difference == pytest.approx(expected, abs=1e-6)
        assert row.low <= row.difference <= row.high
        assert row.p <= row.p_holm <= min(1, 6 * row.p) + 1e-12
    alone = found[(found["a"] == "TF-IDF") | (found["b"] == "TF-IDF")]
    assert set(alone["several_seeds"]) == {"no"}
    assert set(found.drop(alone.index)["same_seeds"]) == {"yes"}


def test_sentences_follow_the_intervals(answered: tuple) -> None:
    whole = answered[1]["tables"][0]
    pairs = {(p["a"], p["b"]): p["differences"]["f1_weighted"] for p in
             whole["comparison"]["pairs"]}  # fmt: skip
    near, far = pairs["bert 178M + LoRA", "bert 178M"], pairs["bert 178M + LoRA", "mamba 178M"]
    assert near["low"] < 0 < near["high"]
    assert far["low"] > 0
    best, mamba = whole["conclusions"][0], whole["conclusions"][-1]
    assert "Second by weighted F1 is bert 178M; difference from bert 178M + LoRA: " in best
    assert "(as good at a margin of 0.02; 95% bounds" in best
    assert "(worse by more than 0.02; 95% bounds" in mamba
    assert "As good at a margin of 0.02: bert 178M." in whole["recommendations"][-1]
    verdicts = {row["approach"]: row["verdict_0.02"] for row in whole["rows"]}
    assert verdicts["bert 178M"] == "as good"
    assert verdicts["mamba 178M"] == "worse"
    assert verdicts["bert 178M + LoRA"] is None
    # The bounds in the files are those of the page, which agree with the verdicts.
    rows = {row["approach"]: row for row in whole["rows"]}
    assert rows["bert 178M"]["difference_low_0.02"] >= -0.02
    assert rows["mamba 178M"]["difference_high_0.02"] <= -0.02
    assert rows["bert 178M"]["p_as_good_0.02"] <= 0.05 < rows["bert 178M"]["p_worse_0.02"]
    assert "| bert 178M | 3 | as good | undecided |" in answered[2]


def test_slices_are_those_of_pandas(answered: tuple, folder: Path) -> None:
    found = pd.read_csv(folder / "comparison-slices.csv", dtype={"value": str})
    tfidf = found[found["approach"] == "TF-IDF"].set_index(["by", "value", "metric"])
    run = answers(0, next(skill for model, _, skill, *_ in ANSWERED if model == "tfidf"))
    for value, seen in (("yes", True), ("no", False)):
        part = run[run["film_in_train"] == seen]
        accuracy = tfidf.loc[("film_in_train", value, "accuracy")]
        assert accuracy["n"] == len(part)
        assert accuracy["mean"] == pytest.approx(accuracy_score(part["label"], part["predicted"]))
        f1 = tfidf.loc[("film_in_train", value, "f1_weighted")]
        expected = f1_score(part["label"], part["predicted"], average="weighted")
        assert f1["mean"] == pytest.approx(expected)
        assert f1["low"] < f1["mean"] < f1["high"]
    assert "| film seen in training: yes |" in answered[2]
    assert "so there are no slices by: share of text cut off." in " ".join(
        answered[1]["tables"][0]["notes"]
    )


def test_calibration_is_a_table(answered: tuple) -> None:
    rows = answered[0].set_index("approach").loc[sorted(NAMES)]
    assert (rows["nll_calibrated"] < rows["nll"]).all()
    assert (rows["temperature"] > 1).all()
    assert "### Calibration" in answered[2]
    assert "only the calibration section uses them" in answered[2]
    assert f"{rows.loc['TF-IDF', 'ece']:.4f}" in answered[2]


def test_pictures_are_linked_and_made(answered: tuple, folder: Path) -> None:
    for what in ("differences", "calibration"):
        name = f"comparison-{what}.png"
        assert f"]({name})" in answered[2]
        assert (folder / name).stat().st_size > 10_000


def test_forest_has_a_row_an_approach_that_agrees_with_its_verdict(table: Table) -> None:
    looks = assign_looks(row.name for row in table.rows)
    figure = draw_differences(table, EN, looks)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [row.name for row in table.rows[1:]]
    said = [text.get_text() for text in axes.texts]
    assert len(set(said)) >= 2
    for name, verdict, line in zip(names, said, axes.lines[::2], strict=False):
        low, high = line.get_xdata()
        assert verdict == (
            "as good" if low >= -MARGIN else "worse" if high <= -MARGIN else "undecided"
        )
        assert line.get_color() == looks[name].colour
        decision = table.decisions[MARGIN][name]
        assert (decision.verdict, decision.low, decision.high) == (verdict, low, high)
    extents = [Text.get_window_extent(label) for label in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
    assert all(extent.x0 >= 0 for extent in extents)


def test_calibration_has_a_panel_an_approach(table: Table) -> None:
    looks = assign_looks(row.name for row in table.rows)
    figure = draw_calibration(table, EN, looks)
    figure.draw_without_rendering()
    assert {axes.get_title(loc="left") for axes in figure.axes} == NAMES
    for axes in figure.axes:
        diagonal, before, after = axes.lines
        assert len(before.get_xdata()) > 1
        assert list(before.get_ydata()) != list(after.get_ydata())
        assert after.get_color() == looks[axes.get_title(loc="left")].colour
        assert diagonal.get_linestyle() == "--"


@pytest.mark.slow
def test_other_rows_are_compared_unpaired_with_a_note(store: Store, tmp_path: Path) -> None:
    _, whole, text = report(store, tmp_path, "experiment=mixed rows")
    notes = " ".join(whole["tables"][0]["notes"])
    assert "bert and mamba: not the same test reviews (different rows)" in notes
    assert "TF-IDF: no predictions.parquet (seeds 0)" in notes
    (pair,) = whole["tables"][0]["comparison"]["pairs"]
    assert pair["paired"] is False
    assert pair["mcnemar"] is None
    assert "mamba − bert (unpaired)" in text
