"""Accuracy and F1 out of confusion matrices, of many at once."""

from __future__ import annotations

import numpy as np

METRICS = ("accuracy", "f1_weighted", "f1_macro")
HEADLINE = "f1_weighted"

Scores = dict[str, np.ndarray]


def scores(confusion: np.ndarray) -> Scores:
    """Return each metric, (...), of confusion matrices (..., true class, predicted class).

    A class that is neither predicted nor present is left out of the macro average, as torchmetrics
    does.
    """
    true, guessed = confusion.sum(axis=-1), confusion.sum(axis=-2)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    both = true + guessed
    f1 = np.divide(2.0 * hit, both, out=np.zeros(both.shape), where=both > 0)
    total = true.sum(axis=-1)
    return {
        "accuracy": hit.sum(axis=-1) / total,
        "f1_weighted": (f1 * true).sum(axis=-1) / total,
        "f1_macro": f1.sum(axis=-1) / (both > 0).sum(axis=-1),
    }


def confusions(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return confusion matrices (runs, classes, classes) of labels (N,), predicted (runs, N)."""
    cells = labels * classes + predicted
    counts = [np.bincount(run, minlength=classes * classes) for run in cells]
    return np.stack(counts).reshape(-1, classes, classes)
