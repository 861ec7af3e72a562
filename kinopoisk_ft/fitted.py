"""What training leaves of an approach, network or baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kinopoisk_ft.data.leakage import Overlap
from kinopoisk_ft.data.tokens import Seen


@dataclass
class Fitted:
    """A trained approach as it did on the test set; times in seconds."""

    probabilities: np.ndarray  # (N, classes), in the order of the test rows
    validation: np.ndarray  # the same of the validation rows, with the weights that tested
    loss: float
    objective: float  # best validation score
    trainable: int
    total: int
    seconds: dict[str, float]
    tokens: int  # real tokens of all training batches
    peak_memory_mb: float
    device: str
    precision: str
    seen: Seen
    truncated: dict[str, np.ndarray]  # of val and test, the share of each review that was cut off
    read_before: Overlap | None  # test reviews that its base was pretrained on, None if unknown
    history: list[dict[str, float]] = field(default_factory=list)
