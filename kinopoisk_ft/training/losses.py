"""Define the loss functions of the config group `trainer/loss`.

Each function returns a summed loss and a divisor, both scalars. The mean loss of several batches is
the sum of their losses divided by the sum of their divisors. The divisor is computed before the
forward pass, so it must not depend on the logits. Labels equal to IGNORED (-100) contribute to
neither loss nor divisor.

Args of each function:
    logits: (N, classes), fp32.
    labels: (N,), int64.
    weight: class weights (classes,) as in PyTorch's `cross_entropy`, or None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
# The default `ignore_index` of PyTorch's cross_entropy.
IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy, and the divisor for the mean."""
    loss = functional.cross_entropy(logits, labels, weight, reduction="sum")
    return loss, _count(labels, weight)


def label_smoothing(
    logits: Tensor, labels: Tensor, weight: Tensor | None, *, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy with smoothed labels, and the divisor for the mean.

    The method is from Szegedy et al. (2016).

    Args:
        smoothing: fraction of each label that is distributed over all classes, 0 to 1.
    """
    loss = functional.cross_entropy(
        logits, labels, weight, reduction="sum", label_smoothing=smoothing
    )
    return loss, _count(labels, weight)


def focal(
    logits: Tensor, labels: Tensor, weight: Tensor | None, *, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the summed focal loss, and the divisor for the mean.

    The loss of a label with the predicted probability p is -(1 - p)^gamma log p (Lin et al., 2017).

    Args:
        gamma: at least 1; larger values reduce the loss of well-classified labels.

    Raises:
        ValueError: gamma is below 1. The gradient would be NaN at p = 1.
    """
    if not gamma >= 1:
        raise ValueError(f"gamma={gamma} is too small; it must be 1 or more")
    # The cross-entropy of ignored labels is 0, and so is their focal loss.
    # (N,). Class weights are applied later, because p must not depend on them.
    negative_log_p = functional.cross_entropy(logits, labels, reduction="none")
    losses = (1 - torch.exp(-negative_log_p)) ** gamma * negative_log_p
    if weight is not None:
        # Clamp, because IGNORED is not a valid index. The weight of ignored labels does not matter.
        losses = losses * weight[labels.clamp(min=0)]
    return losses.sum(), _count(labels, weight)


def _count(labels: Tensor, weight: Tensor | None) -> Tensor:
    # PyTorch's cross_entropy also divides a weighted mean by the sum of the labels' weights.
    kept = labels[labels != IGNORED]
    return torch.tensor(len(kept)) if weight is None else weight[kept].sum()
