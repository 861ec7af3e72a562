"""Compare calibration, temperature and threshold with libraries and a search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from kinopoisk_ft.statistics.calibration import (
    apply_temperature,
    calibration_metrics,
    fit_temperature,
    fit_threshold,
    reliability,
)
from kinopoisk_ft.statistics.metrics import _brier, count_confusion, scores, shown_in


def logits(n: int, rng: np.random.Generator, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated probabilities, and labels drawn from them."""
    probabilities = rng.dirichlet(np.ones(classes), n)
    draws = rng.random((n, 1))
    return probabilities, (draws > probabilities.cumsum(axis=1)).sum(axis=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_temperature_undoes_a_known_one(classes: int) -> None:
    probabilities, labels = logits(20_000, np.random.default_rng(0), classes)
    assert fit_temperature(probabilities, labels) == pytest.approx(1, abs=0.05)
    sharp = apply_temperature(probabilities, 1 / 3)
    assert fit_temperature(sharp, labels) == pytest.approx(3, rel=0.05)
    assert apply_temperature(sharp, 3) == pytest.approx(probabilities)


def test_temperature_is_a_logistic_regression_of_the_margin() -> None:
    probabilities, labels = logits(500, np.random.default_rng(3))
    margin = np.log(probabilities[:, 1] / probabilities[:, 0])[:, None]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(margin, labels).coef_
    assert fit_temperature(probabilities, labels) == pytest.approx(1 / slope[0, 0], rel=1e-3)


def test_probabilities_of_zero_stay_finite() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    assert np.isfinite(apply_temperature(probabilities, 20)).all()
    assert np.isfinite(fit_temperature(probabilities, np.array([0, 0, 1])))


def test_calibration_is_that_of_the_libraries() -> None:
    probabilities, labels = logits(800, np.random.default_rng(4), 3)
    found = {metric.name: metric(probabilities, labels) for metric in shown_in("calibration")}
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    one_hot = np.eye(3)[labels]
    assert found["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    ece = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), 3, n_bins=15
    )
    assert found["ece"] == pytest.approx(ece.item(), abs=1e-6)
    bins = reliability(probabilities, labels)
    gaps = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / 800
    assert found["ece"] == pytest.approx(gaps, abs=1e-6)
    two, labels = logits(800, np.random.default_rng(5))
    expected = brier_score_loss(labels, two[:, 1])
    assert _brier(two, labels) == pytest.approx(expected)


def test_a_probability_of_one_is_in_the_last_bin() -> None:
    probabilities, labels = np.array([[1.0, 0.0], [0.96, 0.04]]), np.array([1, 0])
    (found,) = reliability(probabilities, labels)
    assert (found.count, found.confidence, found.accuracy) == (2, pytest.approx(0.98), 0.5)
    (ece,) = shown_in("reliability")
    assert ece(probabilities, labels) == pytest.approx(0.48)


def test_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(6)
    probabilities, labels = logits(120, rng)
    second = probabilities[:, 1] ** 2
    threshold = fit_threshold(second, labels)
    predicted = (second >= threshold).astype(int)
    found = scores(count_confusion(labels, predicted, 2))
    everywhere = [
        f1_score(labels, (second >= t).astype(int), average="weighted") for t in [*second, 1.0]
    ]
    assert found["f1_weighted"] == pytest.approx(max(everywhere), abs=1e-9)
    perfect = np.array([0.1, 0.2, 0.8, 0.9])
    assert fit_threshold(perfect, np.array([0, 0, 1, 1])) == 0.5
    assert fit_threshold(perfect, np.array([0, 0, 0, 1])) == pytest.approx(0.85)
    assert fit_threshold(perfect, np.zeros(4, dtype=int)) == pytest.approx(0.95)
    # No representable number is between these probabilities, and none is between 1 and 1.
    close = np.array([np.nextafter(0.3, 0), 0.3, np.nextafter(1.0, 0), 1.0])
    for positive in range(4):
        labels = (np.arange(4) > positive).astype(int)
        assert np.array_equal(close >= fit_threshold(close, labels), labels)


def test_what_is_fitted_never_sees_the_test_labels() -> None:
    rng = np.random.default_rng(7)
    val, val_labels = logits(500, rng)
    test, labels = logits(500, rng)
    found = calibration_metrics(
        apply_temperature(val, 0.5), val_labels, apply_temperature(test, 0.5), labels
    )
    flipped = calibration_metrics(
        apply_temperature(val, 0.5), val_labels, apply_temperature(test, 0.5), 1 - labels
    )
    for key in ("temperature", "threshold"):
        assert found[key] == flipped[key]
    assert found["test_ece_calibrated"] < found["test_ece"]
    assert found["test_nll_calibrated"] < found["test_nll"]
    assert found["test_brier_calibrated"] < found["test_brier"]
    three = calibration_metrics(*logits(90, rng, 3), *logits(90, rng, 3))
    assert "threshold" not in three
