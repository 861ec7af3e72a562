"""Test predictions on disk, and compare scores on parts of the test set with pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from made_up import answers, approach
from sklearn.metrics import f1_score
from statsmodels.stats.proportion import proportion_confint

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.statistics.comparison import compare
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS, Predictions, as_table
from kinopoisk_ft.statistics.slices import slices


def part(n: int = 80) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return test reviews with all columns that may be known, and training reviews."""
    rng = np.random.default_rng(8)
    test = pd.DataFrame({
        "text": ["я" * int(k) for k in rng.integers(5, 400, n)],
        "label": rng.integers(0, 2, n),
        "row": rng.permutation(1000)[:n],
        "film": [None if i == 0 else f"film {i % 7}" for i in range(n)],
        "grade10": [np.nan if i == 1 else float(i % 10 + 1) for i in range(n)],
        "truncated": [max(0.0, (i % 4 - 1) / 3) for i in range(n)],
    })  # fmt: skip
    return test, pd.DataFrame({"film": ["film 0", "film 3", None]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "missing from the predictions: row"),
        ({"p_1": None}, "at least two classes"),
        ({"row": 3}, "row 3 more than once"),
        ({"p_0": np.nan}, "contain text, NaN"),
        ({"p_0": "high"}, "contain text, NaN"),
        ({"label": np.nan}, "contain text, NaN"),
        ({"label": "Bad"}, "contain text, NaN"),
        ({"label": 2}, "classes must be 0 to 1"),
        ({"predicted": -1}, "classes must be 0 to 1"),
        ({"predicted": 0.5}, "classes must be 0 to 1"),
        ({"row": [0.0, 1.0, 2.0, 3.0, 4.5]}, "row numbers must be whole"),
    ],
)
def test_unusable_predictions_are_refused(change: dict, message: str) -> None:
    run = answers(5)
    table = pd.DataFrame({"row": run.rows, "label": run.labels, "predicted": run.predicted})
    table[["p_0", "p_1"]] = run.probabilities
    for column, value in change.items():
        table = table.drop(columns=column) if value is None else table.assign(**{column: value})
    with pytest.raises(UserError, match=message) as error:
        Predictions.of(table, "run 17")
    assert error.value.where == "run 17"


def test_the_beginning_of_each_review_is_kept() -> None:
    test, train = part(3)
    test["text"] = ["а" * 2 * TEXT_CHARACTERS, "б", ""]
    table = as_table(test, np.full((3, 2), 0.5), ("a", "b"), train)
    assert table["text"].str.len().tolist() == [TEXT_CHARACTERS, 1, 0]
    assert table["characters"].tolist() == [2 * TEXT_CHARACTERS, 1, 0]


def test_slices_of_everything_known() -> None:
    test, train = part()
    probabilities = np.random.default_rng(9).dirichlet(np.ones(2), len(test))
    table = as_table(test, probabilities, ("плохо", "хорошо"), train)
    found = slices([Predictions.of(table, "here")])
    table["right"] = table["predicted"] == table["label"]
    by = {(s.by, s.value): s for s in found}
    grades = table.groupby("grade10")["right"].agg(["mean", "size"])
    for grade, row in grades.iterrows():
        kept = by["grade10", f"{grade:.0f}"]
        assert (kept.n, kept.scores["accuracy"].mean) == (row["size"], pytest.approx(row["mean"]))
        low, high = proportion_confint(row["mean"] * row["size"], row["size"], method="wilson")
        assert (kept.scores["accuracy"].low, kept.scores["accuracy"].high) == pytest.approx(
            (low, high)
        )
    quarters = [s for s in found if s.by == "characters"]
    cut = pd.qcut(table["characters"], 4).value_counts(sort=False)
    assert [s.n for s in quarters] == cut.tolist()
    assert quarters[0].value.startswith(f"{table['characters'].min()}-")
    assert [by["truncated", v].n for v in ("0", "0-50%", "50-100%")] == [40, 20, 20]
    seen = table["film"].isin(["film 0", "film 3"])
    assert by["film_in_train", "yes"].n == seen.sum()
    assert by["film_in_train", "no"].n == (~seen & table["film"].notna()).sum()
    no = table[~seen & table["film"].notna()]
    expected = f1_score(no["label"], no["predicted"], average="weighted")
    f1 = by["film_in_train", "no"].scores["f1_weighted"]
    assert f1.mean == pytest.approx(expected)
    assert f1.low < f1.mean < f1.high


def test_films_are_seen_by_their_names_as_the_split_compares_them() -> None:
    test, _ = part(4)
    test["film"] = ["Ёлки", "елки (2010)", "", "Чапаев"]
    train = pd.DataFrame({"film": ["«Елки»", ""]})
    table = as_table(test, np.full((4, 2), 0.5), ("a", "b"), train)
    assert table["film_in_train"].tolist() == [True, True, None, False]


def test_reviews_of_one_group_are_worth_less_than_single_ones() -> None:
    test, train = part()
    probabilities = np.eye(2)[test["label"]]
    probabilities[:20] = 1 - probabilities[:20]
    widths = []
    for group in (np.arange(len(test)), np.arange(len(test)) // 20):
        table = as_table(test.assign(group=group), probabilities, ("a", "b"), train)
        run = Predictions.of(table, "here")
        accuracy = next(s.scores["accuracy"] for s in slices([run]) if s.by == "truncated")
        widths.append(accuracy.high - accuracy.low)
        found = compare([approach("a", run)])
        assert found.groups == (len(np.unique(group)),)
    assert widths[1] > 1.5 * widths[0]


def test_one_group_is_worth_one_review() -> None:
    """The variance between films is unknown, so the interval of a single film is wide."""
    test, train = part()
    probabilities = np.eye(2)[test["label"]]
    probabilities[:20] = 1 - probabilities[:20]
    table = as_table(test.assign(group=3), probabilities, ("a", "b"), train)
    found = next(s for s in slices([Predictions.of(table, "here")]) if s.by == "truncated")
    accuracy, f1 = found.scores["accuracy"], found.scores["f1_weighted"]
    ends = proportion_confint(accuracy.mean, 1, method="wilson")
    assert (accuracy.low, accuracy.high) == pytest.approx(ends)
    assert f1.low < f1.mean < f1.high


def test_an_unknown_fact_drops_its_slice_and_is_named() -> None:
    test, train = part()
    probabilities = np.random.default_rng(9).dirichlet(np.ones(2), len(test))
    plain = test.drop(columns=["film", "truncated"])
    run = Predictions.of(as_table(plain, probabilities, ("a", "b"), train), "here")
    found = compare([approach("a", run)])
    assert found.absent_slices == ("truncated", "film_in_train")
    assert {s.by for s in found.slices["a"]} == {"characters", "grade10"}


def test_a_table_survives_the_disk(tmp_path: object) -> None:
    test, train = part()
    probabilities = np.random.default_rng(9).dirichlet(np.ones(3), len(test))
    table = as_table(test, probabilities, ("a", "b", "c"), train)
    file = f"{tmp_path}/predictions.parquet"
    table.to_parquet(file, index=False)
    run = Predictions.of(pd.read_parquet(file), file)
    assert np.array_equal(run.rows, np.sort(test["row"]))
    assert run.class_names == ("a", "b", "c")
    order = test["row"].argsort()
    assert np.array_equal(run.probabilities, probabilities[order])
    assert run.facts["characters"].tolist() == test["text"].str.len()[order].tolist()
    assert slices([run])[0].n > 0
