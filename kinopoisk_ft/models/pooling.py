"""Pool the hidden states of a text's tokens into one vector, and the vectors of windows into one.

The windows of a review are encoded as separate texts. A batch of reviews with windows has the shape
(batch, windows, length). Windows without a real token are padding, and are removed before the
encoder runs. A graph of torch.export also encodes these empty windows, because the shapes in such a
graph cannot depend on the values of the mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kinopoisk_ft.data.preprocessing import find_omitted
from kinopoisk_ft.data.windows import Windows, pad_windows
from kinopoisk_ft.errors import check_name

POOLINGS = ("cls", "mean", "last", "last_position")
WINDOW_POOLINGS = ("mean", "max", "attention")


def pool(hidden: Tensor, attention_mask: Tensor | None, kind: str) -> Tensor:
    """Pool hidden states (batch, length, d_model) into vectors (batch, d_model).

    Args:
        attention_mask: (batch, length), nonzero at real tokens; None if all tokens are real.
        kind: "cls" selects the first position. "mean" averages the real tokens. "last" selects the
            last real token. "last_position" selects the last position, even if this is padding.
            Without real tokens, "mean" and "last" return zeros.
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
        # Without real tokens, the sum is 0 and the divisor is 1, so the result is 0.
        return (total / real.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
    # In the reversed mask, argmax returns the first real token, which is the last one of the row.
    # The mask is converted, because argmax does not support bool.
    last = hidden.shape[1] - 1 - real.flip(1).to(torch.int8).argmax(1)
    chosen = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
    return torch.where(real.any(1, keepdim=True), chosen, 0)


def find_filled_windows(attention_mask: Tensor) -> Tensor:
    """Find the windows that contain text; return a mask (batch, windows), bool.

    The first window of a review is always in the mask, so that every review has a window.

    Args:
        attention_mask: (batch, windows, length), padded on the right.
    """
    # Padding is on the right, so the first position is real in every window with text.
    present = attention_mask[..., 0] != 0
    present[:, 0] = True
    return present


def flatten_windows(
    input_ids: Tensor, attention_mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Convert ids and mask from (batch, windows, length) to (all windows, length).

    Empty windows are removed, except in torch.export. Ids and mask of the shape (batch, length) are
    returned unchanged.
    """
    if attention_mask is None or attention_mask.dim() == 2:
        return input_ids, attention_mask
    if torch.compiler.is_exporting():
        return input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
    present = find_filled_windows(attention_mask)
    return input_ids[present], attention_mask[present]


def divide_long_texts(
    input_ids: Tensor, attention_mask: Tensor | None, windows: dict[str, Any] | None, pad_id: int
) -> tuple[Tensor, Tensor | None]:
    """Divide whole texts (batch, length) into windows, as training did.

    If `max_windows` is 1, each long text is truncated to its start and end, as with
    data.truncation=head_tail.

    Args:
        windows: the fields of `Windows`; None if the texts are not divided.

    Returns:
        Ids and mask (batch, windows, length). The dimension of windows is removed if each text has
        one window. If no text is longer than a window, ids and mask are returned unchanged.
    """
    if windows is None or input_ids.dim() > 2:
        return input_ids, attention_mask
    sizes = Windows(**windows)
    if input_ids.shape[1] <= sizes.left + sizes.room + sizes.right:
        return input_ids, attention_mask
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    divided = []
    for ids, mask in zip(input_ids, attention_mask, strict=True):
        row = ids[mask != 0].tolist()
        # "head_tail" and "windows" omit the same tokens of a text that is too long.
        omitted = find_omitted(len(row), sizes.left, sizes.right, sizes.max_tokens, "windows")
        divided.append(sizes.cut(row[: omitted.start] + row[omitted.stop :]))
    padded = pad_windows(divided, pad_id)
    # The dimension of windows is removed if each text has one window.
    ids, mask = (rows.squeeze(1).to(input_ids.device) for rows in padded.values())
    return ids, mask


class WindowPooling(nn.Module):
    """Pools the vectors of a review's windows into one vector.

    Args:
        kind: "mean", "max" (of each element), or "attention": a mean whose weights are a softmax of
            learned scores. The scores start at 0, so that all windows have the same weight.
    """

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        check_name(kind, WINDOW_POOLINGS, "model.window_pooling")
        self.kind = kind
        if kind == "attention":
            self.score = nn.Linear(d_model, 1, bias=False)
            nn.init.zeros_(self.score.weight)

    def forward(self, vectors: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Pool vectors (all windows, d_model) into (batch, d_model).

        Args:
            attention_mask: (batch, windows, length). If it is None or (batch, length), each review
                has one window, and the vectors are returned unchanged.
        """
        if attention_mask is None or attention_mask.dim() == 2:
            return vectors
        present = find_filled_windows(attention_mask)
        # (batch, windows, d_model). The pooling is in fp32, as in `pool`.
        if torch.compiler.is_exporting():
            every = vectors.float().unflatten(0, present.shape)
            padded = torch.where(present[..., None], every, 0)
        else:
            padded = vectors.new_zeros((*present.shape, vectors.shape[-1]), dtype=torch.float32)
            # The rows of `vectors` are the present windows, in the same order as in the mask.
            padded[present] = vectors.float()
        if self.kind == "max":
            # The zeros of empty windows could be greater than the values of real windows.
            pooled = padded.masked_fill(~present[..., None], -torch.inf).amax(1)
        elif self.kind == "attention":
            # A score of minus infinity gives an empty window the weight 0.
            scores = self.score(padded)[..., 0].float().masked_fill(~present, -torch.inf)
            pooled = (scores.softmax(1)[..., None] * padded).sum(1)
        else:
            # The first window is always present, so the divisor is at least 1.
            pooled = padded.sum(1) / present.sum(1, keepdim=True)
        return pooled.to(vectors.dtype)
