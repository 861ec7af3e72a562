"""Compare scores, intervals and p-values with scikit-learn, SciPy and formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up import answers, approach
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score
from torchmetrics.functional.classification import multiclass_f1_score

from kinopoisk_ft.statistics import bootstrap
from kinopoisk_ft.statistics.bootstrap import (
    estimate_mean,
    p_value,
    percentiles,
    resample,
    widening,
)
from kinopoisk_ft.statistics.comparison import compare
from kinopoisk_ft.statistics.metrics import count_confusion, scores
from kinopoisk_ft.statistics.seeds import RunScores, total


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, predicted = rng.integers(0, classes, (2, 200))
    found = scores(count_confusion(labels, predicted[None], classes))
    assert found["accuracy"][0] == pytest.approx(accuracy_score(labels, predicted))
    for average in ("weighted", "macro"):
        expected = f1_score(labels, predicted, average=average)
        assert found[f"f1_{average}"][0] == pytest.approx(expected)


def test_an_absent_class_is_left_out_as_torchmetrics_does() -> None:
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    expected = multiclass_f1_score(
        torch.tensor(predicted), torch.tensor(labels), 3, average="macro"
    )
    assert scores(count_confusion(labels, predicted[None], 3))["f1_macro"][0] == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_bootstrap_is_that_of_scipy(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.integers(0, classes, 150)
    a, b = (
        np.where(rng.random(150) < w, rng.integers(0, classes, 150), labels) for w in (0.2, 0.4)
    )
    scored = resample(labels, np.stack([a, b]), classes)

    def weighted_f1(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        both = scores(count_confusion(y, np.stack([a, b]), classes))["f1_weighted"]
        return float(both[0] - both[1])

    expected = stats.bootstrap(
        (labels, a, b), weighted_f1, paired=True, vectorized=False, n_resamples=3000,
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    drawn = scored["f1_weighted"].resampled
    found = percentiles(weighted_f1(labels, a, b), drawn[:, 0] - drawn[:, 1])
    assert np.std(drawn[:, 0] - drawn[:, 1]) == pytest.approx(expected.standard_error, rel=0.05)
    ends = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.01)


def test_blocks_change_no_resample_and_limit_the_confusion_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 20 classes, the matrices of a resample are larger than the number of reviews."""
    rng, sizes = np.random.default_rng(0), []
    labels, predicted = rng.integers(0, 20, 50), rng.integers(0, 20, (2, 50))
    whole = resample(labels, predicted, 20, resamples=200)

    def score(matrices: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(matrices.size)
        return scores(matrices)

    monkeypatch.setattr(bootstrap, "CHUNK", 10_000)
    monkeypatch.setattr(bootstrap, "scores", score)
    found = resample(labels, predicted, 20, resamples=200)
    assert max(sizes) <= 10_000
    for metric, values in whole.items():
        np.testing.assert_array_equal(found[metric].resampled, values.resampled)


def test_accuracy_of_one_run_has_the_binomial_error() -> None:
    run = answers(1000)
    drawn = resample(run.labels, run.predicted[None], 2)["accuracy"].resampled[:, 0]
    accuracy = np.mean(run.labels == run.predicted)
    assert drawn.std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 1000), rel=0.03)
    again = resample(run.labels, run.predicted[None], 2)["accuracy"].resampled[:, 0]
    assert np.array_equal(drawn, again)


def test_bootstrap_of_groups_is_scipys_over_groups() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 30, 25)
    groups = np.repeat(rng.permutation(25), sizes)
    right = rng.random(len(groups)) < np.repeat(rng.beta(4, 1, 25), sizes)
    labels = rng.integers(0, 2, len(groups))
    predicted = np.where(right, labels, 1 - labels)
    widened = resample(labels, predicted[None], 2, groups=groups)["accuracy"].resampled[:, 0]
    drawn = right.mean() + (widened - right.mean()) / widening(sizes)
    hits, all_of = np.bincount(groups, right), np.bincount(groups)
    expected = stats.bootstrap(
        (hits, all_of), lambda h, n: h.sum() / n.sum(), paired=True, vectorized=False,
        n_resamples=5000, method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    found = percentiles(right.mean(), drawn)
    assert drawn.std() == pytest.approx(expected.standard_error, rel=0.05)
    ends = expected.confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.01)
    alone = resample(labels, predicted[None], 2)["accuracy"].resampled[:, 0]
    # The answers to all reviews of a film are right, or all are wrong.
    assert drawn.std() > 1.5 * alone.std()


def test_widening_is_students_t_with_the_effective_number_of_groups() -> None:
    assert widening(np.full(10, 7)) == pytest.approx(stats.t.ppf(0.975, 9) / 1.959964)
    assert widening(np.array([100, 1, 1, 1])) == pytest.approx(stats.t.ppf(0.975, 1) / 1.959964)
    assert widening(np.ones(5000, dtype=int)) == pytest.approx(1, abs=0.001)


def test_resamples_drawn_in_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    run = answers(200)

    def draw() -> np.ndarray:
        return resample(run.labels, run.predicted[None], 2, resamples=1000)["f1_macro"].resampled

    whole = draw()
    # There are four kinds of reviews, so blocks have 225 resamples, and the last one has 100.
    monkeypatch.setattr("kinopoisk_ft.statistics.bootstrap.CHUNK", 900)
    np.testing.assert_array_equal(draw(), whole)


def test_groups_of_one_are_reviews() -> None:
    run = answers(400)
    alone, each = (
        resample(run.labels, run.predicted[None], 2, groups=groups)["f1_macro"].resampled
        for groups in (None, np.arange(400))
    )
    assert each.std() == pytest.approx(alone.std(), rel=0.05)


def test_a_single_group_does_not_make_scores_certain() -> None:
    """Drawing the only group again and again would give an interval of width 0."""
    labels, predicted = np.arange(100) % 2, np.zeros((1, 100), dtype=np.int64)
    found = resample(labels, predicted, 2, groups=np.full(100, 7))["accuracy"]
    alone = resample(labels, predicted, 2)["accuracy"]
    np.testing.assert_array_equal(found.resampled, alone.resampled)
    assert found.resampled.std() > 0


def test_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(-3, 3, 25):
        drawn = rng.normal(shift, 1, 10_000)
        found = percentiles(shift, drawn)
        assert p_value(drawn) == pytest.approx(2 * stats.norm.sf(abs(shift)), abs=0.02)
        assert (p_value(drawn) < 0.05) == (not found.low <= 0 <= found.high)
    assert p_value(np.zeros(99)) == 1
    assert p_value(np.ones(99)) == pytest.approx(2 / 100)


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_seeds_alone_give_students_interval(seeds: int) -> None:
    """With infinitely many reviews, only seeds vary; the oracle is SciPy's interval."""
    observed = np.random.default_rng(seeds).normal(0.9, 0.01, seeds)
    mean, drawn, *_ = total([(1.0, RunScores(observed, np.tile(observed, (200_000, 1))))])
    low, high = stats.t.interval(0.95, seeds - 1, loc=observed.mean(), scale=stats.sem(observed))
    found = percentiles(mean, drawn)
    assert (found.low - mean, found.high - mean) == pytest.approx(
        (low - mean, high - mean), rel=0.06
    )


def test_the_variance_of_reviews_is_divided_into_shared_and_own_parts() -> None:
    """Each resample changes all three runs by one normal amount, and each run by another one."""
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.03, (100_000, 1)), rng.normal(0, 0.02, (100_000, 3))
    runs = RunScores(np.array([0.88, 0.9, 0.92]), 0.9 + shared + own)
    assert runs.own_variance == pytest.approx(0.02**2, rel=0.02)
    found = total([(1.0, runs)])
    assert found.review_variance == pytest.approx(0.03**2, rel=0.02)
    assert found.own_variance == pytest.approx(0.02**2 / 3, rel=0.02)
    assert found.seed_variance == pytest.approx(0.02**2 / 3)


def test_seeds_that_answer_alike_leave_the_chance_of_reviews() -> None:
    run = answers()
    one = compare([approach("a", run)]).means["a"]["accuracy"]
    three = compare([approach("a", run, run, run)]).means["a"]["accuracy"]
    assert (one.mean, one.low, one.high) == pytest.approx((three.mean, three.low, three.high))


def test_intervals_contain_only_possible_scores() -> None:
    """With two seeds, Student's t has one degree of freedom, and its intervals are very wide."""
    two = RunScores(np.array([0.2, 0.8]), np.tile([0.2, 0.8], (9999, 1)))
    assert estimate_mean(two).low == 0
    assert estimate_mean(two, lowest=-1.0).low == -1
    assert estimate_mean(two).high == 1
