"""Check each kind of pooling on a padded batch."""

from __future__ import annotations

import pytest
import torch

from kinopoisk_ft.errors import UserError
from kinopoisk_ft.models.pooling import pool

HIDDEN = torch.arange(24.0).reshape(3, 4, 2)
RIGHT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_each_kind() -> None:
    torch.testing.assert_close(pool(HIDDEN, RIGHT, "cls"), HIDDEN[:, 0])
    torch.testing.assert_close(pool(HIDDEN, RIGHT, "last_position"), HIDDEN[:, 3])
    last = torch.stack([HIDDEN[0, 3], HIDDEN[1, 1], torch.zeros(2)])
    torch.testing.assert_close(pool(HIDDEN, RIGHT, "last"), last)
    mean = torch.stack([HIDDEN[0].mean(0), HIDDEN[1, :2].mean(0), torch.zeros(2)])
    torch.testing.assert_close(pool(HIDDEN, RIGHT, "mean"), mean)


def test_side_of_padding_does_not_matter() -> None:
    left = RIGHT.flip(1)
    torch.testing.assert_close(pool(HIDDEN, left, "last")[1], HIDDEN[1, 3])
    torch.testing.assert_close(pool(HIDDEN, left, "mean")[1], HIDDEN[1, 2:].mean(0))


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_without_mask_all_tokens_are_real(kind: str) -> None:
    every = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(pool(HIDDEN, None, kind), pool(HIDDEN, every, kind))


@pytest.mark.parametrize("kind", ["mean", "last"])
def test_pads_get_no_gradient(kind: str) -> None:
    hidden = HIDDEN.clone().requires_grad_()
    pool(hidden, RIGHT, kind).sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[RIGHT == 0].any()
    assert hidden.grad[1, 1].all()


def test_the_mean_in_half_precision_does_not_overflow() -> None:
    """The sum of these tokens is above the largest number in fp16, 65,504."""
    hidden = torch.full((1, 1000, 2), 100.0, dtype=torch.float16)
    torch.testing.assert_close(pool(hidden, None, "mean"), hidden[:, 0])


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'last'"):
        pool(HIDDEN, RIGHT, "lasst")
