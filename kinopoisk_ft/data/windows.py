"""Divide the tokens of a long review into overlapping windows, and pad reviews and windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kinopoisk_ft.errors import UserError

# The default stride as a fraction of a window's text tokens: a quarter of a window overlaps.
DEFAULT_STRIDE = 0.75


@dataclass(frozen=True)
class Windows:
    """The sizes of the windows into which long reviews are divided.

    Each window gets the same special tokens and the same `data.text_prefix` as an undivided review.

    Args:
        room: maximum number of text tokens in a window.
        stride: maximum distance between the starts of two adjacent windows, in tokens.
        max_windows: maximum number of windows of a review; None for no limit.
        left, right: numbers of special and prefix tokens before and after the text of a window.
    """

    room: int
    stride: int
    max_windows: int | None
    left: int
    right: int

    @classmethod
    def of(
        cls, room: int, stride: int | None, max_windows: int | None, left: int, right: int
    ) -> Windows:
        """Choose the sizes; if `stride` is None, a quarter of each window overlaps with the next.

        Raises:
            UserError: `stride` is larger than a window, so tokens between windows would be lost.
        """
        if stride is not None and stride > room:
            raise UserError(
                f"data.window_stride={stride} would skip tokens, because a window has only {room} "
                "tokens in addition to the special tokens",
                where="data.window_stride",
                fix=f"set data.window_stride to {room} or less, or to null",
            )
        return cls(room, stride or max(1, int(DEFAULT_STRIDE * room)), max_windows, left, right)

    @property
    def max_tokens(self) -> int | None:
        """Return the number of text tokens that `max_windows` windows can cover."""
        if self.max_windows is None:
            return None
        return self.room + (self.max_windows - 1) * self.stride

    def count(self, lengths: np.ndarray) -> np.ndarray:
        """Return the number of windows of each review, (N,).

        Args:
            lengths: number of tokens of each review, with special and prefix tokens, (N,).
        """
        beyond = np.maximum(0, lengths - self.left - self.right - self.room)
        # -(-a // b) is a / b, rounded up.
        return 1 + -(-beyond // self.stride)

    def count_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return the number of tokens in all windows of each review, (N,)."""
        number = self.count(lengths)
        return np.where(number > 1, number * (self.left + self.room + self.right), lengths)

    def cut(self, ids: Sequence[int]) -> list[list[int]]:
        """Divide the token ids of a review, including special tokens, into windows.

        All windows of a review have the same length. Their starts are evenly spaced: the first
        window is the start of the review, the last one is its end.
        """
        ids = list(ids)
        text = ids[self.left : len(ids) - self.right]
        number = int(self.count(np.asarray(len(ids))))
        if number == 1:
            return [ids]
        beyond = len(text) - self.room
        # `count` rounds up, so adjacent starts are at most `stride` tokens apart.
        starts = [beyond * i // (number - 1) for i in range(number)]
        first, last = ids[: self.left], ids[len(ids) - self.right :]
        return [[*first, *text[start : start + self.room], *last] for start in starts]

    def ranges(self, lengths: np.ndarray) -> list[range]:
        """Return the range of window numbers of each review; all windows are numbered from 0."""
        bounds = np.concatenate([[0], np.cumsum(self.count(lengths))])
        return [range(start, end) for start, end in pairwise(bounds.tolist())]


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Pad rows of token ids on the right.

    Returns:
        The tensors input_ids and attention_mask, each (batch, longest row).
    """
    # If the tokenizer adds no special tokens, an empty text has no tokens.
    length = max(1, max(len(row) for row in rows))
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def pad_windows(reviews: Sequence[list[list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad the windows of reviews on the right, and pad each review with empty windows.

    Returns:
        The tensors input_ids and attention_mask, each (batch, windows, longest window).
    """
    most = max(map(len, reviews))
    # Windows without tokens consist of padding, and their attention_mask is 0.
    filled = [window for windows in reviews for window in windows + [[]] * (most - len(windows))]
    # (batch * windows, length) becomes (batch, windows, length).
    return {key: rows.unflatten(0, (-1, most)) for key, rows in pad(filled, pad_id).items()}
