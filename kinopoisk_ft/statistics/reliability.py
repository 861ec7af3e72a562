"""How often answers of each confidence are right: what a reliability picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kinopoisk_ft.statistics.predictions import Predictions
from kinopoisk_ft.statistics.temperature import scaled

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
