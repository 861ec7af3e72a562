"""Whether a run's probabilities mean what they say, and what one temperature mends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from kinopoisk_ft.statistics.metrics import HEADLINE, METRICS, scores
from kinopoisk_ft.statistics.predictions import Predictions


def calibration_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return ece (15 bins), brier (mean squared error; of two classes 0 to 1, else 0 to 2), nll."""
    classes = probabilities.shape[1]
    ece = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=BINS
    )
    brier = brier_score_loss(labels, probabilities, labels=list(range(classes)))
    return {
        "ece": float(ece),
        "brier": float(brier),
        "nll": log_loss_of(probabilities, labels),
    }


def calibration_metrics(
    validation: np.ndarray, val_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, float]:
    """Return a run's calibration as metrics: what is fitted is fitted on validation alone.

    temperature; test_ece, test_brier, test_nll, and each with `_calibrated`; of two classes also
    threshold and the metrics with it, test_accuracy_threshold and so on.
    """
    temperature = fit_temperature(validation, val_labels)
    plain = calibration_scores(test, test_labels)
    mended = calibration_scores(scaled(test, temperature), test_labels)
    found = {"temperature": temperature}
    found |= {f"test_{key}": value for key, value in plain.items()}
    found |= {f"test_{key}_calibrated": value for key, value in mended.items()}
    if test.shape[1] == 2:
        found["threshold"] = fit_threshold(validation[:, 1], val_labels)
        cut = with_threshold(test[:, 1], test_labels, found["threshold"])
        found |= {f"test_{key}_threshold": value for key, value in cut.items()}
    return found


BINS = 15  # of equal width, as in Guo, C. et al. (2017)


@dataclass(frozen=True)
class Bin:
    """Reviews whose highest probability falls between two bounds."""

    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[Bin]:
    """Return the bins of the expected calibration error that hold any review."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(int(here.sum()), float(confidence[here].mean()), float(right[here].mean()))
        for here in (place == i for i in range(BINS))
        if here.any()
    ]


def before_and_after(
    runs: Sequence[Predictions], temperatures: Sequence[float]
) -> tuple[list[Bin], list[Bin]]:
    """Return the bins of all runs' answers together: as they are, and each with its temperature."""
    labels = np.concatenate([run.labels for run in runs])
    plain = np.concatenate([run.probabilities for run in runs])
    mended = [scaled(run.probabilities, t) for run, t in zip(runs, temperatures, strict=True)]
    return reliability(plain, labels), reliability(np.concatenate(mended), labels)


# Beyond these a temperature says only that validation had no mistakes, or no signal.
TEMPERATURES = (0.05, 20.0)
SMALLEST = float(np.finfo(np.float64).tiny)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the least negative log-likelihood of labels (N,).

    `probabilities` (N, classes) are of reviews that neither trained nor test, of validation.
    """
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: log_loss_of(scaled(probabilities, float(np.exp(log_t))), labels),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature), out of softmax(logits): the answers stay the same."""
    logits = np.log(np.maximum(probabilities, SMALLEST))
    result: np.ndarray = softmax(logits / temperature, axis=1)
    return result


def log_loss_of(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood in nats."""
    return float(log_loss(labels, probabilities, labels=list(range(probabilities.shape[1]))))


def fit_threshold(second: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold on the second class's probability (N,) with the best weighted F1.

    Of equally good ones the nearest to 0.5; it is 0.5, or midway between two probabilities.
    """
    order = np.argsort(second)
    values, starts = np.unique(second[order], return_index=True)
    below = np.append(starts, len(labels))  # reviews below each threshold
    positives = np.concatenate([[0], np.cumsum(labels[order])])[below]
    negatives = below - positives
    ones = int(labels.sum())
    zeros = len(labels) - ones
    matrices = np.stack(
        [
            np.stack([negatives, zeros - negatives], axis=-1),
            np.stack([positives, ones - positives], axis=-1),
        ],
        axis=-2,
    )
    edges = np.concatenate([[0.0], values, [1.0]])
    bounds = (edges[1:] + edges[:-1]) / 2
    bounds[np.searchsorted(values, 0.5)] = 0.5
    f1 = scores(matrices)[HEADLINE]
    best = np.flatnonzero(np.isclose(f1, f1.max(), rtol=0, atol=1e-12))
    return float(bounds[best[np.abs(bounds[best] - 0.5).argmin()]])


def with_threshold(second: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, float]:
    """Return the metrics of answering the second class from this probability on."""
    cells = labels * 2 + (second >= threshold)
    found = scores(np.bincount(cells, minlength=4).reshape(2, 2))
    return {metric: float(found[metric]) for metric in METRICS}
