"""How often answers of each confidence are right: what a reliability picture shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
