"""Losses for `trainer/loss`: functions of logits, labels and class weights.

Each returns the sum of the loss over the labels, a scalar, and the count to divide it by. The mean
over an effective batch is the total of the sums divided by the total of the counts. The count may
depend on labels and weights only. Positions with the label IGNORED add nothing to sum and count.

Args of each function:
    logits: (N, classes), fp32.
    labels: (N,), int64.
    weight: of the classes, (classes,), or None; the mean is then weighted as in torch's
        `cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
# The label by which PyTorch's cross_entropy marks a position to ignore.
IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the summed cross-entropy and the count."""
    loss = functional.cross_entropy(logits, labels, weight, reduction="sum")
    return loss, _count(labels, weight)


def label_smoothing(
    logits: Tensor, labels: Tensor, weight: Tensor | None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Compute the summed cross-entropy to smoothed labels (Szegedy et al., 2016) and the count.

    Args:
        smoothing: the part of each label that is distributed over all classes, 0 to 1.
    """
    loss = functional.cross_entropy(
        logits, labels, weight, reduction="sum", label_smoothing=smoothing
    )
    return loss, _count(labels, weight)


def focal(
    logits: Tensor, labels: Tensor, weight: Tensor | None, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Compute the summed focal loss, -(1 - p)^gamma log p (Lin et al., 2017), and the count.

    Args:
        gamma: strength of the reduction for labels that already have a high probability p, >= 1.

    Raises:
        ValueError: gamma is below 1; the gradient would be infinite at p = 1.
    """
    if not gamma >= 1:
        raise ValueError(f"gamma={gamma}: it must be 1 or more")
    # Ignored labels give 0 here, and then 0 in the product.
    negative_log_p = functional.cross_entropy(logits, labels, reduction="none")
    losses = (1 - torch.exp(-negative_log_p)) ** gamma * negative_log_p
    if weight is not None:
        losses = losses * weight[labels.clamp(min=0)]
    return losses.sum(), _count(labels, weight)


def _count(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Count the labels, or add up the weights of their classes."""
    kept = labels[labels != IGNORED]
    return torch.tensor(len(kept)) if weight is None else weight[kept].sum()
