"""Slow a training down, or let it use more and more memory, while a file exists."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from kinopoisk_ft.training.losses import cross_entropy

SLOW, GREEDY = Path("slow"), Path("greedy")
# What a step keeps while the file GREEDY exists: 256 MiB.
KEPT = 2**26

kept: list[Tensor] = []


def slow_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy, and look for the files in the current folder.

    While SLOW exists, this takes a second; while GREEDY exists, it keeps memory.
    """
    if GREEDY.exists():
        kept.append(torch.ones(KEPT))
    if SLOW.exists():
        time.sleep(1)
    return cross_entropy(logits, labels, weight)
