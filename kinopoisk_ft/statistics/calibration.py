"""Measure calibration, and fit a temperature and a threshold on the validation split.

Guo, C. et al. (2017). On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from kinopoisk_ft.statistics.metrics import (
    BINS,
    HEADLINE,
    bin_confidence,
    count_confusion,
    log_loss_of,
    scores,
    shown_in,
)
from kinopoisk_ft.statistics.predictions import Predictions

# Bounds of the temperature. The optimum lies outside of them only if all predictions are correct,
# or if all are uninformative.
TEMPERATURES = (0.05, 20.0)
# Replaces probabilities of 0, whose logarithm is infinite.
SMALLEST = float(np.finfo(np.float64).tiny)
# Suffixes of metric names: after temperature scaling, and with the fitted threshold.
CALIBRATED, THRESHOLD = "_calibrated", "_threshold"


def calibration_metrics(
    validation: np.ndarray, val_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Compute the calibration metrics of a run on the test split.

    Args:
        validation: (N, classes) probabilities on the validation split.
        test: (N, classes) probabilities on the test split.

    Returns:
        The fitted `temperature`, and for two classes also the fitted `threshold`.
        `test_<name>` is a calibration metric, and `test_<name>_calibrated` is the same metric after
        temperature scaling. `test_<name>_threshold` is a score at the fitted threshold.
    """
    # Temperature and threshold are fitted only on validation data, so the test scores are unbiased.
    temperature = fit_temperature(validation, val_labels)
    scaled = apply_temperature(test, temperature)
    found = {"temperature": temperature}
    for metric in shown_in("calibration"):
        found[f"test_{metric.name}"] = metric(test, test_labels)
        found[f"test_{metric.name}{CALIBRATED}"] = metric(scaled, test_labels)
    if test.shape[1] == 2:
        found["threshold"] = fit_threshold(validation[:, 1], val_labels)
        predicted = (test[:, 1] >= found["threshold"]).astype(np.int64)
        counted = scores(count_confusion(test_labels, predicted, 2))
        found |= {f"test_{name}{THRESHOLD}": float(value) for name, value in counted.items()}
    return found


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that minimizes the negative log-likelihood.

    `probabilities` are (N, classes), on the validation split.
    """
    # In log(T), the bounds are symmetric about T = 1, and `xatol` is a relative tolerance of T.
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: log_loss_of(apply_temperature(probabilities, float(np.exp(log_t))), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Apply temperature scaling to probabilities (N, classes).

    The predicted classes do not change.
    """
    # Log-probabilities differ from the model's logits by a constant, which softmax ignores.
    logits = np.log(np.maximum(probabilities, SMALLEST))
    result: np.ndarray = softmax(logits / temperature, axis=1)
    return result


def fit_threshold(second: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold that maximizes the headline metric (weighted F1) of a binary classifier.

    Class 1 is predicted if its probability is at least the threshold. If several thresholds are
    equally good, the one nearest to 0.5 is returned.

    Args:
        second: (N,) probabilities of class 1.
    """
    order = np.argsort(second)
    values, starts = np.unique(second[order], return_index=True)
    # The number of reviews with a probability below each candidate threshold.
    below = np.append(starts, len(labels))
    # (candidates,): the numbers of reviews of class 1 and class 0 that are below each threshold.
    positives = np.concatenate([[0], np.cumsum(labels[order])])[below]
    negatives = below - positives
    ones = int(labels.sum())
    zeros = len(labels) - ones
    # (candidates, true class, predicted class)
    counts = np.stack(
        [
            np.stack([negatives, zeros - negatives], axis=-1),
            np.stack([positives, ones - positives], axis=-1),
        ],
        axis=-2,
    )
    edges = np.concatenate([[0.0], values, [1.0]])
    # Each threshold is halfway between two adjacent values among 0, the probabilities, and 1.
    bounds = (edges[1:] + edges[:-1]) / 2
    # After rounding, a mean may equal the lower value, which would then count as class 1. If the
    # lower value is 1, the threshold is above 1.
    bounds[1:] = np.maximum(bounds[1:], np.nextafter(values, 2))
    # The candidate that gives the same predictions as 0.5 becomes 0.5.
    bounds[np.searchsorted(values, 0.5)] = 0.5
    score = scores(counts)[HEADLINE]
    # Equal scores may differ by rounding errors.
    best = np.flatnonzero(np.isclose(score, score.max(), rtol=0, atol=1e-12))
    return float(bounds[best[np.abs(bounds[best] - 0.5).argmin()]])


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    `confidence` is the mean probability of the predicted class.
    """

    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Return the non-empty bins of a reliability diagram."""
    confidence, place = bin_confidence(probabilities)
    right = probabilities.argmax(axis=1) == labels
    return [
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in (place == i for i in range(BINS))
        if here.any()
    ]


def before_and_after(
    runs: Sequence[Predictions], temperatures: Sequence[float]
) -> tuple[list[Bin], list[Bin]]:
    """Return reliability bins before and after temperature scaling.

    The reviews of all runs are binned together, but each run is scaled with its own temperature.
    """
    labels = np.concatenate([run.labels for run in runs])
    plain = np.concatenate([run.probabilities for run in runs])
    scaled = [
        apply_temperature(run.probabilities, t) for run, t in zip(runs, temperatures, strict=True)
    ]
    return reliability(plain, labels), reliability(np.concatenate(scaled), labels)
