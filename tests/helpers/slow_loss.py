"""Slow a training down while a file exists."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor

from kinopoisk_ft.training.losses import cross_entropy

SLOW = Path("slow")


def slow_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy, in a second while the file SLOW exists in the current folder."""
    if SLOW.exists():
        time.sleep(1)
    return cross_entropy(logits, labels, weight)
