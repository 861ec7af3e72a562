"""Intervals, tests, calibration and slices against scikit-learn, scipy, statsmodels, formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, log_loss
from statsmodels.stats.proportion import proportion_confint
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_f1_score

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.statistics.bootstrap import p_value, percentiles, resample
from kinopoisk_ft.statistics.calibration import calibration_metrics, calibration_scores
from kinopoisk_ft.statistics.comparison import Approach, compare
from kinopoisk_ft.statistics.pairs import mcnemar_of
from kinopoisk_ft.statistics.predictions import TEXT_CHARACTERS, Predictions, as_table
from kinopoisk_ft.statistics.reliability import reliability
from kinopoisk_ft.statistics.scores import METRICS, confusions, scores
from kinopoisk_ft.statistics.seeds import Seeds, total
from kinopoisk_ft.statistics.slices import slices
from kinopoisk_ft.statistics.temperature import fit_temperature, scaled
from kinopoisk_ft.statistics.threshold import fit_threshold, with_threshold


def answers(
    n: int = 300, *, wrong: float = 0.1, seed: int = 0, classes: int = 2, data: int = 0
) -> Predictions:
    """Return the answers of a made-up run: the same reviews for the same `data`."""
    labels = (np.random.default_rng(data).random(n) < 0.8).astype(np.int64)
    rng = np.random.default_rng((1, seed))
    predicted = np.where(rng.random(n) < wrong, (labels + 1) % classes, labels)
    probabilities = np.full((n, classes), 0.1 / (classes - 1))
    probabilities[np.arange(n), predicted] = 0.9
    table = pd.DataFrame({"row": np.arange(n), "label": labels, "predicted": predicted})
    for i in range(classes):
        table[f"p_{i}"] = probabilities[:, i]
    return Predictions.of(table, "here")


def approach(name: str, *runs: Predictions | None, seeds: str = "0123456789") -> Approach:
    return Approach(name=name, seeds=tuple(seeds[: len(runs)]), runs=runs)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, predicted = rng.integers(0, classes, (2, 200))
    found = scores(confusions(labels, predicted[None], classes))
    assert found["accuracy"][0] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("weighted", "macro"):
        expected = f1_score(labels, predicted, average=average)
        assert found[f"f1_{average}"][0] == pytest.approx(expected)


def test_an_absent_class_is_left_out_as_torchmetrics_does() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    expected = multiclass_f1_score(
        torch.tensor(predicted), torch.tensor(labels), 3, average="macro"
    )
    assert scores(confusions(labels, predicted[None], 3))["f1_macro"][0] == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_bootstrap_is_that_of_scipy(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 150)
    a, b = (
        np.where(rng.random(150) < w, rng.integers(0, classes, 150), labels) for w in (0.2, 0.4)
    )
    sample = resample(labels, np.stack([a, b]), classes)

    def weighted_f1(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        both = scores(confusions(y, np.stack([a, b]), classes))["f1_weighted"]
        return float(both[0] - both[1])

    expected = stats.bootstrap(
        (labels, a, b), weighted_f1, paired=True, vectorized=False, n_resamples=3000,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    drawn = sample.resampled["f1_weighted"]
    found = percentiles(weighted_f1(labels, a, b), drawn[:, 0] - drawn[:, 1])
    assert np.std(drawn[:, 0] - drawn[:, 1]) == pytest.approx(expected.standard_error, rel=0.05)
    ends = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.01)


def test_accuracy_of_one_run_has_the_binomial_error() -> None:
    run = answers(1000)
    drawn = resample(run.labels, run.predicted[None], 2).resampled["accuracy"][:, 0]
    accuracy = np.mean(run.labels == run.predicted)
    assert drawn.std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 1000), rel=0.03)
    again = resample(run.labels, run.predicted[None], 2).resampled["accuracy"][:, 0]
    assert np.array_equal(drawn, again)


def test_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-3, 3, 25):
        drawn = rng.normal(shift, 1, 10_000)
        found = percentiles(shift, drawn)
        assert p_value(drawn) == pytest.approx(2 * stats.norm.sf(abs(shift)), abs=0.02)
        assert (p_value(drawn) < 0.05) == (not found.holds_zero)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.ones(99)) == pytest.approx(2 / 100)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_seeds_alone_give_students_interval(seeds: int) -> None:
    """Endless reviews: nothing but the seeds varies, and their interval is scipy's."""
    observed = np.random.default_rng(seeds).normal(0.9, 0.01, seeds)
    mean, drawn = total([(1.0, Seeds(observed, np.tile(observed, (200_000, 1))))])
    low, high = stats.t.interval(0.95, seeds - 1, loc=observed.mean(), scale=stats.sem(observed))
    found = percentiles(mean, drawn)
    assert (found.low - mean, found.high - mean) == pytest.approx(
        (low - mean, high - mean), rel=0.06
    )


def test_seeds_that_answer_alike_leave_the_chance_of_reviews() -> None:
    run = answers()
    one = compare([approach("a", run)]).means["a"]["accuracy"]
    three = compare([approach("a", run, run, run)]).means["a"]["accuracy"]
    assert (one.mean, one.low, one.high) == pytest.approx((three.mean, three.low, three.high))


def test_mcnemar_by_the_binomial_and_by_chi_squared() -> None:
    def right(only_a: int, only_b: int) -> tuple[np.ndarray, np.ndarray]:
        a = np.array([1] * only_a + [0] * only_b + [1] * 30 + [0] * 5, dtype=bool)
        return a[None], np.concatenate([~a[: only_a + only_b], a[only_a + only_b :]])[None]

    few = mcnemar_of(*right(3, 11), same_seeds=True)
    assert (few.only_a, few.only_b) == (3, 11)
    assert few.p == pytest.approx(stats.binomtest(3, 14).pvalue)
    many = mcnemar_of(*right(20, 45), same_seeds=True)
    assert many.p == pytest.approx(stats.chi2.sf((abs(20 - 45) - 1) ** 2 / 65, 1))
    alike = mcnemar_of(*right(0, 0), same_seeds=True)
    assert alike.p == 1
    several = mcnemar_of(*(np.repeat(x, 3, axis=0) for x in right(3, 11)), same_seeds=False)
    assert several.p == pytest.approx(2 * few.p)


def test_every_pair_is_corrected_by_holm() -> None:
    runs = [answers(seed=i, wrong=w) for i, w in enumerate((0.05, 0.08, 0.12, 0.2))]
    found = compare([approach(str(i), run) for i, run in enumerate(runs)])
    assert [(p.a, p.b) for p in found.pairs] == list(itertools.combinations("0123", 2))
    for metric in METRICS:
        ps = np.array([pair.differences[metric].p for pair in found.pairs])
        order = ps.argsort()
        by_hand = np.maximum.accumulate(np.minimum(1, ps[order] * np.arange(len(ps), 0, -1)))
        corrected = np.array([pair.differences[metric].p_holm for pair in found.pairs])
        assert corrected[order] == pytest.approx(by_hand)
    pair = found.pair("3", "0")
    assert pair is not None
    forward = found.pair("0", "3")
    assert forward is not None
    assert pair.differences["accuracy"].mean == -forward.differences["accuracy"].mean < 0
    assert pair.differences["accuracy"].low == -forward.differences["accuracy"].high
    assert pair.beyond_chance
    assert forward.mcnemar
    assert pair.mcnemar
    assert pair.mcnemar.only_a == forward.mcnemar.only_b
    assert found.pair("0", "nobody") is None


def test_matching_of_seeds() -> None:
    runs = [answers(seed=i) for i in range(6)]
    a = approach("a", *runs[:3])
    same = compare([a, approach("b", *runs[3:], seeds="201")]).pairs[0]
    assert same.same_seeds
    assert same.measured
    one_by_one = [np.mean(x.predicted == x.labels) - np.mean(y.predicted == y.labels)
                  for x, y in zip(runs[:3], (runs[4], runs[5], runs[3]), strict=True)]  # fmt: skip
    assert same.differences["accuracy"].mean == pytest.approx(np.mean(one_by_one))
    assert not compare([a, approach("b", *runs[3:], seeds="345")]).pairs[0].same_seeds
    assert not compare([a, approach("b", *runs[3:], seeds="011")]).pairs[0].same_seeds
    lone = compare([a, approach("b", runs[3])]).pairs[0]
    assert not lone.measured
    assert not lone.same_seeds


def test_other_reviews_are_compared_unpaired_and_said_so() -> None:
    a, b = answers(), answers(seed=1)
    paired = compare([approach("a", a), approach("b", b)]).pairs[0]
    shifted = Predictions(**{**vars(b), "rows": b.rows + 1})
    found = compare([approach("a", a), approach("b", shifted)])
    assert [(p.kind, p.names, p.detail) for p in found.problems] == [
        ("unpaired", ("a", "b"), "rows")
    ]
    (pair,) = found.pairs
    assert not pair.paired
    assert pair.mcnemar is None
    assert pair.differences["accuracy"].mean == pytest.approx(paired.differences["accuracy"].mean)
    # Two independent proportions.
    shares = [np.mean(run.labels == run.predicted) for run in (a, b)]
    error = np.sqrt(sum(p * (1 - p) / 300 for p in shares))
    width = pair.differences["accuracy"].high - pair.differences["accuracy"].low
    assert width == pytest.approx(2 * 1.96 * error, rel=0.05)
    labels = Predictions(**{**vars(b), "labels": 1 - b.labels})
    assert compare([approach("a", a), approach("b", labels)]).problems[0].detail == "labels"


def test_what_cannot_be_compared_is_named() -> None:
    good, other = answers(), answers(data=5)
    three = answers(classes=3)
    found = compare([
        approach("good", good), approach("gone", good, None, seeds="07"),
        approach("mixed", good, other), approach("three", three),
    ])  # fmt: skip
    assert {(p.kind, p.names, p.detail) for p in found.problems} == {
        ("no_predictions", ("gone",), "7"),
        ("own_mismatch", ("mixed",), "labels"),
        ("unpaired", ("good", "three"), "classes"),
    }
    assert set(found.means) == {"good", "three"}
    assert found.pairs == ()
    assert compare([]).means == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "lack row"),
        ({"p_1": None}, "two classes"),
        ({"row": 3}, "row 3 twice"),
        ({"p_0": np.nan}, "no numbers"),
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


def logits(n: int, rng: np.random.Generator, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that mean what they say, and labels drawn from them."""
    probabilities = rng.dirichlet(np.ones(classes), n)
    draws = rng.random((n, 1))
    return probabilities, (draws > probabilities.cumsum(axis=1)).sum(axis=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_temperature_undoes_a_known_one(classes: int) -> None:
    probabilities, labels = logits(20_000, np.random.default_rng(0), classes)
    assert fit_temperature(probabilities, labels) == pytest.approx(1, abs=0.05)
    sharp = scaled(probabilities, 1 / 3)
    assert fit_temperature(sharp, labels) == pytest.approx(3, rel=0.05)
    assert scaled(sharp, 3) == pytest.approx(probabilities)


def test_temperature_is_a_logistic_regression_of_the_margin() -> None:
    probabilities, labels = logits(500, np.random.default_rng(3))
    margin = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(margin, labels).coef_
    assert fit_temperature(probabilities, labels) == pytest.approx(1 / slope[0, 0], rel=1e-3)


def test_probabilities_of_zero_stay_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    assert np.isfinite(scaled(probabilities, 20)).all()
    assert np.isfinite(fit_temperature(probabilities, np.array([0, 0, 1])))


def test_calibration_is_that_of_the_libraries() -> None:
    probabilities, labels = logits(800, np.random.default_rng(4), 3)
    found = calibration_scores(probabilities, labels)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    one_hot = np.eye(3)[labels]
    assert found["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    ece = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), 3, n_bins=15
    )
    assert found["ece"] == pytest.approx(ece.item())
    bins = reliability(probabilities, labels)
    gaps = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / 800
    assert found["ece"] == pytest.approx(gaps, abs=1e-6)
    two, labels = logits(800, np.random.default_rng(5))
    expected = brier_score_loss(labels, two[:, 1])
    assert calibration_scores(two, labels)["brier"] == pytest.approx(expected)


def test_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(6)
    probabilities, labels = logits(120, rng)
    second = probabilities[:, 1] ** 2
    threshold = fit_threshold(second, labels)
    found = with_threshold(second, labels, threshold)
    everywhere = [
        f1_score(labels, (second >= t).astype(int), average="weighted") for t in [*second, 1.0]
    ]
    assert found["f1_weighted"] == pytest.approx(max(everywhere), abs=1e-9)
    perfect = np.array([0.1, 0.2, 0.8, 0.9])
    assert fit_threshold(perfect, np.array([0, 0, 1, 1])) == 0.5
    assert fit_threshold(perfect, np.array([0, 0, 0, 1])) == pytest.approx(0.85)
    assert fit_threshold(perfect, np.zeros(4, dtype=int)) == pytest.approx(0.95)


def test_what_is_fitted_never_sees_the_test_labels() -> None:
    rng = np.random.default_rng(7)
    val, val_labels = logits(500, rng)
    test, labels = logits(500, rng)
    found = calibration_metrics(scaled(val, 0.5), val_labels, scaled(test, 0.5), labels)
    flipped = calibration_metrics(scaled(val, 0.5), val_labels, scaled(test, 0.5), 1 - labels)
    for key in ("temperature", "threshold"):
        assert found[key] == flipped[key]
    assert found["test_ece_calibrated"] < found["test_ece"]
    assert found["test_nll_calibrated"] < found["test_nll"]
    assert found["test_brier_calibrated"] < found["test_brier"]
    three = calibration_metrics(*logits(90, rng, 3), *logits(90, rng, 3))
    assert "threshold" not in three


def part(n: int = 80) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return test reviews with all that may be known of them, and the training reviews."""
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
        assert (kept.n, kept.accuracy.mean) == (row["size"], pytest.approx(row["mean"]))
        low, high = proportion_confint(row["mean"] * row["size"], row["size"], method="wilson")
        assert (kept.accuracy.low, kept.accuracy.high) == pytest.approx((low, high))
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
    f1 = by["film_in_train", "no"].f1_weighted
    assert f1.mean == pytest.approx(expected)
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
