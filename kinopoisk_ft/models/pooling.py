"""One vector per text from the hidden states of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError, suggest_name

POOLINGS = ("cls", "mean", "last", "last_position")


def check_pooling(kind: str) -> str:
    """Return `kind` if it is a pooling.

    Raises:
        UserError: it is not.
    """
    if kind not in POOLINGS:
        raise UserError(f"unknown pooling '{kind}'", fix=suggest_name(kind, POOLINGS))
    return kind


def pool(hidden: Tensor, attention_mask: Tensor | None, kind: str) -> Tensor:
    """Reduce hidden (batch, length, d_model) to (batch, d_model).

    Args:
        attention_mask: (batch, length), nonzero at real tokens; None: all are real.
        kind: cls, the first position; mean, over the real tokens; last, the rightmost real token;
            last_position, the last column whatever is in it, pads included. A row without a real
            token gives zeros by mean and last.

    Raises:
        UserError: an unknown kind.
    """
    check_pooling(kind)
    if kind == "cls":
        return hidden[:, 0]
    if kind == "last_position":
        return hidden[:, -1]
    if attention_mask is None:
        attention_mask = torch.ones(hidden.shape[:2], device=hidden.device)
    real = attention_mask != 0
    if kind == "mean":
        total = torch.where(real[..., None], hidden, 0).sum(1, dtype=torch.float32)
        return (total / real.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
    last = hidden.shape[1] - 1 - real.flip(1).to(torch.int8).argmax(1)
    chosen = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    return torch.where(real.any(1, keepdim=True), chosen, 0)
