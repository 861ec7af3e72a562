"""Whether a run's probabilities mean what they say, and what one temperature mends."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from kinopoisk_ft.statistics.reliability import BINS
from kinopoisk_ft.statistics.temperature import fit_temperature, log_loss_of, scaled
from kinopoisk_ft.statistics.threshold import fit_threshold, with_threshold


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
