"""A decision threshold for two classes, fitted on validation."""

from __future__ import annotations

import numpy as np

from kinopoisk_ft.statistics.scores import HEADLINE, METRICS, scores


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
