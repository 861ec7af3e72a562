"""Pool the hidden states of all tokens of a text into one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from kinopoisk_ft.errors import check_name

POOLINGS = ("cls", "mean", "last", "last_position")


def pool(hidden: Tensor, attention_mask: Tensor | None, kind: str) -> Tensor:
    """Pool hidden states (batch, length, d_model) into vectors (batch, d_model).

    Args:
        attention_mask: (batch, length), nonzero at real tokens; None if all tokens are real.
        kind: "cls" selects the first position. "mean" averages the real tokens. "last" selects the
            last real token. "last_position" selects the last position, even if this is padding.
            Without real tokens, "mean" and "last" return zeros.

    Raises:
        UserError: `kind` has another value.
    """
    check_name(kind, POOLINGS, "model.pooling")
    if kind == "cls":
        return hidden[:, 0]
    if kind == "last_position":
        return hidden[:, -1]
    if attention_mask is None:
        attention_mask = torch.ones(hidden.shape[:2], device=hidden.device)
    real = attention_mask != 0
    if kind == "mean":
        # The sum is in float32, because 8 bits of precision (bf16) are too few for many terms.
        total = torch.where(real[..., None], hidden, 0).sum(1, dtype=torch.float32)
        return (total / real.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
    # In the reversed mask, argmax returns the first real token, which is the last one of the row.
    last = hidden.shape[1] - 1 - real.flip(1).to(torch.int8).argmax(1)
    chosen = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    return torch.where(real.any(1, keepdim=True), chosen, 0)
