"""Make predictions of invented runs for the tests of statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinopoisk_ft.statistics.comparison import Approach
from kinopoisk_ft.statistics.predictions import Predictions


def answers(
    n: int = 300, *, wrong: float = 0.1, seed: int = 0, classes: int = 2, data: int = 0
) -> Predictions:
    """Return the predictions of an invented run; equal `data` means the same reviews."""
    labels = (np.random.default_rng(data).random(n) < 0.8).astype(np.int64)
    rng = np.random.default_rng((1, seed))
    predicted = np.where(rng.random(n) < wrong, (labels + 1) % classes, labels)
    probabilities = np.full((n, classes), 0.1 / (classes - 1))
    probabilities[np.arange(n), predicted] = 0.9
    table = pd.DataFrame({"row": np.arange(n), "label": labels, "predicted": predicted})
    for i in range(classes):
        table[f"p_{i}"] = probabilities[:, i]
    return Predictions.of(table, "here")


def approach(name: str, *runs: Predictions | None, seeds: str = "0123456789") -> Approach:
    return Approach(name=name, seeds=tuple(seeds[: len(runs)]), runs=runs)
