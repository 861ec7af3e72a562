"""Calibration of a run's probabilities: metrics, one temperature, one threshold, reliability bins.

Temperature and threshold are fitted on validation reviews alone. Guo, C. et al. (2017). On
Calibration of Modern Neural Networks.
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

# A temperature beyond these bounds means only that validation had no mistakes, or no signal.
TEMPERATURES = (0.05, 20.0)
SMALLEST = float(np.finfo(np.float64).tiny)
# Suffixes of a metric's name: after the temperature, and with the fitted threshold.
CALIBRATED, THRESHOLD = "_calibrated", "_threshold"


def calibration_metrics(
    validation: np.ndarray, val_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Compute a run's calibration from probabilities (N, classes) and labels (N,) of two splits.

    The result has `temperature`; each calibration metric as `test_<name>`, and after the
    temperature as `test_<name>_calibrated`; with two classes also `threshold`, and each counted
    metric with it as `test_<name>_threshold`.
    """
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
    """Return the temperature with the lowest negative log-likelihood of labels (N,).

    `probabilities` (N, classes) must be of reviews outside training and test: of validation.
    """
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: log_loss_of(apply_temperature(probabilities, float(np.exp(log_t))), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature) for softmax(logits); the predicted classes stay."""
    logits = np.log(np.maximum(probabilities, SMALLEST))
    result: np.ndarray = softmax(logits / temperature, axis=1)
    return result


def fit_threshold(second: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold on the second class's probability (N,) with the best headline metric.

    Among equally good thresholds it is the one nearest to 0.5. It is 0.5 itself, or midway between
    two probabilities.
    """
    order = np.argsort(second)
    values, starts = np.unique(second[order], return_index=True)
    # Reviews below each threshold.
    below = np.append(starts, len(labels))
    positives = np.concatenate([[0], np.cumsum(labels[order])])[below]
    negatives = below - positives
    ones = int(labels.sum())
    zeros = len(labels) - ones
    counts = np.stack(
        [
            np.stack([negatives, zeros - negatives], axis=-1),
            np.stack([positives, ones - positives], axis=-1),
        ],
        axis=-2,
    )
    edges = np.concatenate([[0.0], values, [1.0]])
    bounds = (edges[1:] + edges[:-1]) / 2
    bounds[np.searchsorted(values, 0.5)] = 0.5
    score = scores(counts)[HEADLINE]
    best = np.flatnonzero(np.isclose(score, score.max(), rtol=0, atol=1e-12))
    return float(bounds[best[np.abs(bounds[best] - 0.5).argmin()]])


@dataclass(frozen=True)
class Bin:
    """Reviews whose highest probability falls between two bounds; `confidence` is its mean."""

    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Return the bins of the expected calibration error that hold any review."""
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
    """Return the bins over all runs together, without and with the temperature of each run."""
    labels = np.concatenate([run.labels for run in runs])
    plain = np.concatenate([run.probabilities for run in runs])
    scaled = [
        apply_temperature(run.probabilities, t) for run, t in zip(runs, temperatures, strict=True)
    ]
    return reliability(plain, labels), reliability(np.concatenate(scaled), labels)
